"""BERT (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers").

Every weight carries the name that Google's TensorFlow 1 code gave it
(`bert/encoder/layer_0/output/dense/kernel` and so on), so that checkpoints travel by variable name
in both directions.
"""

import keras
from keras import ops

from encoders.backbone import Backbone
from encoders.config import BertConfig
from encoders.layers import Embeddings, Parts, first_rows, tanh_pooler


class BertEmbeddings(Embeddings):
    """Word + token type + position embeddings, LayerNorm, dropout."""

    sizes = {
        "word_embeddings": "vocab_size",
        "token_type_embeddings": "type_vocab_size",
        "position_embeddings": "max_position_embeddings",
    }

    def look_up(self, input_ids, segment_ids):
        words = ops.take(self.tables["word_embeddings"], input_ids, axis=0)
        types = ops.take(self.tables["token_type_embeddings"], segment_ids, axis=0)
        return (
            words + types + first_rows(self.tables["position_embeddings"], input_ids)
        )  # [S, H] broadcast over B


class Bert(Backbone):
    """The BERT encoder as one layer, see `Backbone`.

    The pooler is tanh of a dense layer on the first position.
    """

    config_class = BertConfig

    def make_embeddings(self, parts: Parts) -> keras.layers.Layer:
        return BertEmbeddings(parts, name="embeddings")

    def make_pooler(self, parts: Parts) -> keras.layers.Layer:
        return tanh_pooler(parts)

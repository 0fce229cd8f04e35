"""DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT").

BERT's encoder without token types, pooler and dropout behind the attention; weights have BERT's
names below `distilbert/`.
"""

import keras
from keras import ops

from encoders.backbone import Backbone
from encoders.config import DistilBertConfig
from encoders.heads import FirstToken
from encoders.layers import Embeddings, Parts, first_rows


class DistilBertEmbeddings(Embeddings):
    """Word + position embeddings, LayerNorm, dropout."""

    sizes = {"word_embeddings": "vocab_size", "position_embeddings": "max_position_embeddings"}

    def look_up(self, input_ids, segment_ids):
        words = ops.take(self.tables["word_embeddings"], input_ids, axis=0)
        return words + first_rows(
            self.tables["position_embeddings"], input_ids
        )  # [S, H] broadcast over B


class DistilBert(Backbone):
    """The DistilBERT encoder as one layer, see `Backbone`. There is no pooler."""

    config_class = DistilBertConfig

    def make_embeddings(self, parts: Parts) -> keras.layers.Layer:
        return DistilBertEmbeddings(parts, name="embeddings")


def classifier_features(
    config: DistilBertConfig, *, seed: int | None, dtype: str | None
) -> FirstToken:
    """The hidden layer of the classification head.

    Dense and ReLU on the first token, without dropout.
    """
    return FirstToken(
        "relu",
        initializer_range=config.initializer_range,
        seed=seed,
        dtype=dtype,
        name="pre_classifier",
    )

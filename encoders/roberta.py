"""RoBERTa (Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach");
DistilRoBERTa is one with 6 layers.

The encoder is BERT's; what differs are positions, which start behind that of the padding, and the
head of a classifier. Weights have BERT's names below `roberta/`.
"""

import keras
from keras import ops

from encoders.backbone import Backbone
from encoders.config import RobertaConfig
from encoders.heads import FirstToken
from encoders.layers import Embeddings, Parts, tanh_pooler


def position_ids(input_ids, pad_token_id: int):
    """Return the position ids, int32 [B, S].

    Tokens are counted from `pad_token_id` + 1, wherever padding stands; padding has `pad_token_id`.
    """
    is_token = ops.cast(ops.not_equal(input_ids, pad_token_id), "int32")
    return ops.cumsum(is_token, axis=1) * is_token + pad_token_id


class RobertaEmbeddings(Embeddings):
    """Word + the first token type + position embeddings, LayerNorm, dropout.

    Published models have one token type; of more, the first is taken for all tokens, as RoBERTa's
    tokenizers tell none apart.
    """

    sizes = {
        "word_embeddings": "vocab_size",
        "token_type_embeddings": "type_vocab_size",
        "position_embeddings": "max_position_embeddings",
    }

    def look_up(self, input_ids, segment_ids):
        positions = position_ids(input_ids, self.config.pad_token_id)
        words = ops.take(self.tables["word_embeddings"], input_ids, axis=0)
        return (
            words
            + self.tables["token_type_embeddings"][0]
            + ops.take(self.tables["position_embeddings"], positions, axis=0)
        )


class Roberta(Backbone):
    """The RoBERTa encoder as one layer, see `Backbone`.

    The pooler is BERT's; Hugging Face's base models hold one.
    """

    config_class = RobertaConfig

    def make_embeddings(self, parts: Parts) -> keras.layers.Layer:
        return RobertaEmbeddings(parts, name="embeddings")

    def make_pooler(self, parts: Parts) -> keras.layers.Layer:
        return tanh_pooler(parts)


def classifier_features(
    config: RobertaConfig, *, dropout: bool, seed: int | None, dtype: str | None
) -> FirstToken:
    """The hidden layer of the classification head: dropout, dense, tanh on the first token."""
    rate = config.classifier_dropout_prob if dropout else 0.0
    return FirstToken(
        "tanh",
        dropout_rate=rate,
        initializer_range=config.initializer_range,
        seed=seed,
        dtype=dtype,
        name="classifier",
    )

"""Base class of the encoders of all architectures.

Their inputs, their outputs and how they are put together.
"""

import dataclasses
from typing import ClassVar

import keras

from encoders.config import TransformerConfig
from encoders.layers import Encoder, Parts, attention_mask


class Backbone(keras.layers.Layer):
    """An encoder as one layer; use one of its subclasses. Its weights are named below `name`.

    Called with `input_ids`, `input_mask` (1 = token, 0 = padding) and `segment_ids`, all int [B,
    S], both dimensions static or not; returns `sequence_output` [B, S, H], or with `pooler=True`
    the pair with `pooled_output` [B, H]. Architectures without segments ignore `segment_ids`.

    Args:
        config: size and constants, of the subclass' `config_class` or as a dictionary.
        pooler: whether there is a pooler, where the architecture knows one.
        dropout: False turns every dropout off even in training.
        seed: decides initial weights (truncated normal) and dropout masks; None leaves them to
          Keras' global seed.
        name: first part of every weight's name; keep the architecture's for checkpoints.
        dtype: Keras dtype policy, such as "mixed_bfloat16"; None takes the global one. Softmax and
          LayerNorm compute
            at least in float32.
    """

    config_class: ClassVar[type[TransformerConfig]]

    def __init__(
        self, config, *, pooler=True, dropout=True, seed=None, name=None, dtype=None, **kwargs
    ):
        super().__init__(name=name or self.config_class.model_type, dtype=dtype, **kwargs)
        self.config = (
            config if isinstance(config, self.config_class) else self.config_class(**config)
        )
        self.dropout = dropout
        self.seed = seed
        parts = Parts(self.config, dropout, seed, self.dtype_policy)
        self.embeddings = self.make_embeddings(parts)
        self.encoder = self.make_encoder(parts)
        # Last, so that the seeds of all other layers are the same with and without it.
        self.pooler = self.make_pooler(parts) if pooler else None

    def make_embeddings(self, parts: Parts) -> keras.layers.Layer:
        """A layer from `input_ids`, `segment_ids` to [B, S, H], in the scope `embeddings`."""
        raise NotImplementedError

    def make_encoder(self, parts: Parts) -> keras.layers.Layer:
        """A layer from [B, S, H] and the mask to [B, S, H], in the scope `encoder`."""
        return Encoder(parts, name="encoder")

    def make_pooler(self, parts: Parts) -> keras.layers.Layer | None:
        """A layer on the first token [B, H], in the scope `pooler`; None where the architecture has
        none.
        """
        return None

    def build(self, input_shape):
        hidden_shape = (None, None, self.config.hidden_size)
        self.embeddings.build(input_shape)
        self.encoder.build(hidden_shape)
        if self.pooler is not None:
            self.pooler.build(hidden_shape)

    def call(self, input_ids, input_mask, segment_ids):
        mask = attention_mask(input_mask)  # [B, 1, 1, S]
        sequence_output = self.encoder(self.embeddings(input_ids, segment_ids), mask)  # [B, S, H]
        if self.pooler is None:
            return sequence_output
        return sequence_output, self.pooler(sequence_output[:, 0])  # [B, H]

    def get_config(self):
        own = {"config": dataclasses.asdict(self.config), "pooler": self.pooler is not None}
        return super().get_config() | own | {"dropout": self.dropout, "seed": self.seed}

"""Two-layer pre-norm transformer classifier.

The architecture of the Columbia project "Transformer-Quantization" (2022): embedding and learned
positions times sqrt(width), sinusoidal positions, pre-norm blocks, a classifier with one hidden
layer on the first token. The original adds the embeddings twice and does not mask padding;
`double_embedding` and `mask_padding` turn these two on and off.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from encoders.layers import precise

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of the classifier.

    Attributes:
      vocabulary: number of token ids.
      classes: number of classes.
      blocks: number of transformer blocks.
      width: of embeddings.
      heads: number of attention heads; divides `width`.
      hidden: width inside of feed-forward blocks.
      classifier: width of the hidden layer of the classifier.
      positions: longest text in tokens.
      dropout: rate everywhere.
      double_embedding: whether the embedding is added to itself with sinusoidal positions.
      mask_padding: whether attention leaves padding out.
    """

    vocabulary: int
    classes: int = 4
    blocks: int = 2
    width: int = 512
    heads: int = 8
    hidden: int = 1024
    classifier: int = 1024
    positions: int = 512
    dropout: float = 0.1
    double_embedding: bool = False
    mask_padding: bool = True


def build(architecture: Architecture, seed: int = 0, dtype: str | None = None) -> keras.Model:
    """Return a classifier with Xavier-uniform weights.

    Args:
      architecture: its sizes.
      seed: of weights and dropout.
      dtype: Keras dtype policy, such as "mixed_bfloat16"; None takes the global one. Softmax and
        layer norms are computed in float32 or more.

    Returns:
      A model from `input_ids` and `input_mask`, both int32 [batch, length], to logits
      [batch, classes].
    """
    make = _Layers(architecture.dropout, seed, dtype)
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="input_mask")
    x = _embedded(ids, architecture, make)
    for number in range(architecture.blocks):
        name = f"block_{number}"
        normed = make.norm(f"{name}_attention_norm")(x)
        attended = _attention(normed, mask, architecture, make, f"{name}_attention")
        x = make.add(f"{name}_attention_add")([x, make.dropout(attended)])
        normed = make.norm(f"{name}_ffn_norm")(x)
        inner = make.dense(architecture.hidden, f"{name}_ffn_inner", "relu")(normed)
        outer = make.dense(architecture.width, f"{name}_ffn_outer")(make.dropout(inner))
        x = make.add(f"{name}_ffn_add")([x, make.dropout(outer)])
    hidden = make.dense(architecture.classifier, "classifier_hidden", "relu")(x[:, 0])
    logits = make.dense(architecture.classes, "classifier_output")(hidden)
    return keras.Model({"input_ids": ids, "input_mask": mask}, logits, name="classifier")


class _Layers:
    """Layers of one dtype policy, with weights from one sequence of seeds."""

    def __init__(self, rate: float, seed: int, dtype: str | None):
        self.rate, self.dtype = rate, dtype
        self._seed = keras.random.SeedGenerator(seed)

    def number(self) -> int:
        return int(ops.convert_to_numpy(self._seed.next())[0])

    def dense(self, width: int, name: str, activation: str | None = None) -> layers.Dense:
        kernel = keras.initializers.GlorotUniform(self.number())
        return layers.Dense(
            width, activation, kernel_initializer=kernel, name=name, dtype=self.dtype
        )

    def embedding(self, size: int, width: int, name: str) -> layers.Embedding:
        table = keras.initializers.GlorotUniform(self.number())
        # Not in bfloat16: Keras would convert the whole table in every step, not the rows that
        # occur. What adds the rows up converts them.
        dtype = keras.dtype_policies.get(self.dtype).variable_dtype
        return layers.Embedding(size, width, embeddings_initializer=table, name=name, dtype=dtype)

    def norm(self, name: str) -> layers.LayerNormalization:
        return layers.LayerNormalization(epsilon=_EPSILON, name=name, dtype=self.dtype)

    def add(self, name: str) -> layers.Add:
        return layers.Add(name=name, dtype=self.dtype)

    def dropout(self, x: Any) -> Any:
        if not self.rate:
            return x
        return layers.Dropout(self.rate, seed=self.number(), dtype=self.dtype)(x)


class _Positions(layers.Layer):
    """Numbers of the positions of token ids, int32 [1, length]."""

    def call(self, ids: Any) -> Any:
        return ops.arange(ops.shape(ids)[1], dtype="int32")[None]


class _AddSinusoids(layers.Layer):
    """Sum of embeddings [batch, length, width] and sinusoidal positions."""

    def __init__(self, positions: int, **arguments: Any):
        super().__init__(**arguments)
        self.positions = positions

    def build(self, shape: Any) -> None:
        self._table = ops.convert_to_tensor(sinusoids(self.positions, shape[-1]))

    def call(self, x: Any) -> Any:
        table = ops.cast(self._table, x.dtype)
        return x + table[None, : ops.shape(x)[1]]


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Positions as sines and cosines of Vaswani et al. 2017; float32 [positions, width]."""
    rates = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(positions)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(positions, -1).astype(np.float32)


def _embedded(ids: Any, architecture: Architecture, make: _Layers) -> Any:
    width = architecture.width
    tokens = make.embedding(architecture.vocabulary, width, "embedding_tokens")(ids)
    learned = make.embedding(architecture.positions, width, "embedding_positions")
    embedded = make.add("embedding_add")([tokens, learned(_Positions()(ids))])
    scale = layers.Rescaling(math.sqrt(width), name="embedding_scale", dtype=make.dtype)
    embedded = scale(embedded)
    placed = make.dropout(_AddSinusoids(architecture.positions, dtype=make.dtype)(embedded))
    if architecture.double_embedding:
        placed = make.add("embedding_double")([embedded, placed])
    return placed


class _Attention(layers.Layer):
    """Scaled dot-product attention of projected queries, keys and values."""

    def __init__(self, heads: int, rate: float, seed: int, mask_padding: bool, **arguments: Any):
        super().__init__(**arguments)
        self.heads, self.mask_padding = heads, mask_padding
        self._dropout = layers.Dropout(rate, seed=seed, dtype=self.dtype_policy)

    def call(self, query: Any, key: Any, value: Any, mask: Any, training: Any = None) -> Any:
        query, key, value = map(self._split, (query, key, value))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        scores = ops.cast(scores, precise(self.compute_dtype)) / math.sqrt(query.shape[-1])
        if self.mask_padding:
            left_out = 1.0 - ops.cast(mask, scores.dtype)
            scores = scores + left_out[:, None, None] * -1e9
        probabilities = ops.cast(ops.softmax(scores), self.compute_dtype)
        weights = self._dropout(probabilities, training=training)
        mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        shape = ops.shape(mixed)
        return ops.reshape(mixed, (shape[0], shape[1], self.heads * mixed.shape[-1]))

    def _split(self, x: Any) -> Any:
        shape = ops.shape(x)
        x = ops.reshape(x, (shape[0], shape[1], self.heads, x.shape[-1] // self.heads))
        return ops.transpose(x, (0, 2, 1, 3))


def _attention(x: Any, mask: Any, architecture: Architecture, make: _Layers, name: str) -> Any:
    projected = [
        make.dense(architecture.width, f"{name}_{n}")(x) for n in ("query", "key", "value")
    ]
    attend = _Attention(
        architecture.heads,
        architecture.dropout,
        make.number(),
        architecture.mask_padding,
        name=f"{name}_product",
        dtype=make.dtype,
    )
    return make.dense(architecture.width, f"{name}_output")(attend(*projected, mask))

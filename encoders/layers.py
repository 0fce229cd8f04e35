"""Keras layers of the encoders, each named as its weights are in a checkpoint.

Letters in shape comments: B batch, S sequence length, H hidden size, N attention heads, D = H / N,
F intermediate size.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import ClassVar

import keras
from keras import ops

# Added to the score of a masked key. Large enough to vanish in the softmax, small enough for
# float16.
MASKED_SCORE = -10000.0


def gelu(x):
    """Exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016).

    Written with Erf because exporters know no Erfc.
    """
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016); the cube by products, as `pow` is
    slow on CPU.
    """
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": ops.relu,
    "tanh": ops.tanh,
}


def seed_stream(seed: int | str | None) -> Iterator[int | None]:
    """Yield a seed for each initializer and dropout layer; all None (Keras' global seed decides)
    when `seed` is None.
    """
    source = random.Random(seed)
    while True:
        yield None if seed is None else source.getrandbits(31)


def attention_mask(input_mask):
    """Return the float32 [B, 1, 1, S] that is added to attention scores, for an int [B, S] mask, 1
    = token.
    """
    mask = (1.0 - ops.cast(input_mask, "float32")) * MASKED_SCORE
    return ops.expand_dims(mask, (1, 2))


def precise(dtype: str) -> str:
    """Return the type for softmax and scores where the rest is computed in `dtype`: float32, or
    float64.

    bfloat16 has 8 bits of mantissa, too few to sum hundreds of exponentials.
    """
    return keras.backend.result_type(dtype, "float32")


class Dropout(keras.layers.Layer):
    """Dropout whose random state is named after its place in the model.

    Keras' own layer numbers these states through the process: a checkpoint of them would not fit a
    process that made other layers before.
    """

    def __init__(self, rate: float, seed: int | None, dtype):
        super().__init__(name="dropout", dtype=dtype)
        self.rate = rate
        self.seed = seed

    def build(self, input_shape):
        if self.rate > 0.0:
            self.generator = keras.random.SeedGenerator(self.seed, name="random")

    def call(self, x, training=False):
        return (
            keras.random.dropout(x, self.rate, seed=self.generator)
            if training and self.rate > 0.0
            else x
        )


class Parts:
    """Makes small Keras layers with the configuration's constants, seeds and dtype policy."""

    def __init__(self, config, dropout: bool, seed: int | None, dtype):
        self.config = config
        self._dropout = dropout
        self._seeds = seed_stream(seed)
        self.dtype = dtype

    def initializer(self):
        return keras.initializers.TruncatedNormal(
            stddev=self.config.initializer_range, seed=next(self._seeds)
        )

    def dense(self, units: int, name: str, activation: Callable | None = None):
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=self.initializer(),
            name=name,
            dtype=self.dtype,
        )

    def dropout(self, rate: float):
        seed = next(
            self._seeds
        )  # drawn in any case, so that the weights do not depend on whether dropout is on
        return Dropout(rate if self._dropout else 0.0, seed, dtype=self.dtype)

    def layer_norm(self, epsilon: float | None = None):
        epsilon = self.config.layer_norm_eps if epsilon is None else epsilon
        return keras.layers.LayerNormalization(epsilon=epsilon, name="LayerNorm", dtype=self.dtype)


class Embeddings(keras.layers.Layer):
    """A sum of rows of tables, LayerNorm, dropout; use one of its subclasses.

    A subclass says in `sizes` which tables there are and which key of the configuration is their
    number of rows, and adds up their rows in `look_up`.
    """

    sizes: ClassVar[dict[str, str]]

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.config = parts.config
        self.initializers = [parts.initializer() for _ in self.sizes]
        self.layer_norm = parts.layer_norm()
        self.dropout = parts.dropout(parts.config.hidden_dropout_prob)

    def look_up(self, input_ids, segment_ids):
        """Return the sum of embeddings [B, S, H] of ids and segments, both int [B, S]."""
        raise NotImplementedError

    def build(self, input_shape):
        width = self.config.hidden_size
        self.tables = {
            name: self.add_weight(
                name=name, shape=(getattr(self.config, key), width), initializer=initializer
            )
            for (name, key), initializer in zip(self.sizes.items(), self.initializers, strict=True)
        }
        self.layer_norm.build((None, None, width))
        self.dropout.build((None, None, width))

    def call(self, input_ids, segment_ids):
        check_length(ops.shape(input_ids)[1], self.config)
        return self.dropout(self.layer_norm(self.look_up(input_ids, segment_ids)))


def check_length(length, config) -> None:
    """Refuse a static sequence length for which there are no positions.

    Raises:
        ValueError: `length` is known and above the configuration's `max_sequence_length`.
    """
    if isinstance(length, int) and length > config.max_sequence_length:
        raise ValueError(
            f"sequence length {length} is above {config.length_limit} of the configuration"
        )


def first_rows(table, ids):
    """Return the rows of a position table for [B, S] tokens, one after the other: [S, H]."""
    # A slice, not an index: a dynamic length above the limit is refused at run time instead of
    # being cut.
    return ops.slice(table, (0, 0), (ops.shape(ids)[1], table.shape[1]))


class SelfAttention(keras.layers.Layer):
    """Multi-head attention of a sequence on itself, up to the concatenated heads.

    Args:
        parts: where its layers come from.
        width: of query, key and value, all heads together.
        inputs: width of what query and key are made from.
        value_inputs: width of what the value is made from.
        name: scope of the weights.
    """

    def __init__(self, parts: Parts, width: int, inputs: int, value_inputs: int, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.width = width
        self.inputs = inputs
        self.value_inputs = value_inputs
        self.heads = parts.config.num_attention_heads
        self.query = parts.dense(width, "query")
        self.key = parts.dense(width, "key")
        self.value = parts.dense(width, "value")
        self.dropout = parts.dropout(parts.config.attention_probs_dropout_prob)

    def build(self, input_shape):
        for layer, inputs in (
            (self.query, self.inputs),
            (self.key, self.inputs),
            (self.value, self.value_inputs),
        ):
            layer.build((None, None, inputs))
        self.dropout.build((None, None, None, None))

    def call(self, x, values, mask):
        length = ops.shape(x)[1]
        size = self.width // self.heads

        def split(y):  # [B, S, H] -> [B, S, N, D]
            return ops.reshape(y, (-1, length, self.heads, size))

        query = ops.transpose(split(self.query(x)), (0, 2, 1, 3))  # [B, N, S, D]
        key = ops.transpose(split(self.key(x)), (0, 2, 3, 1))  # [B, N, D, S]
        value = ops.transpose(split(self.value(values)), (0, 2, 1, 3))  # [B, N, S, D]
        dtype = precise(self.compute_dtype)
        scores = ops.cast(ops.matmul(query, key), dtype) * (1.0 / math.sqrt(size))  # [B, N, S, S]
        probabilities = ops.softmax(scores + ops.cast(mask, dtype), axis=-1)
        probabilities = self.dropout(ops.cast(probabilities, self.compute_dtype))
        context = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))  # [B, S, N, D]
        return ops.reshape(context, (-1, length, self.width))


class ResidualOutput(keras.layers.Layer):
    """Dense, dropout, addition of the block's input, normalisation.

    The second half of the blocks of an encoder layer.
    """

    def __init__(
        self,
        parts: Parts,
        inputs: int,
        units: int,
        rate: float,
        name: str,
        norm: keras.layers.Layer | None = None,
    ):
        super().__init__(name=name, dtype=parts.dtype)
        self.inputs = inputs
        self.dense = parts.dense(units, "dense")
        self.dropout = parts.dropout(rate)
        self.layer_norm = parts.layer_norm() if norm is None else norm

    def build(self, input_shape):
        self.dense.build((None, None, self.inputs))
        self.dropout.build((None, None, self.dense.units))
        self.layer_norm.build((None, None, self.dense.units))

    def call(self, x, residual):
        return self.layer_norm(self.dropout(self.dense(x)) + residual)


class DenseBlock(keras.layers.Layer):
    """A dense layer one scope below its own name (`intermediate/dense`, `pooler/dense`)."""

    def __init__(self, parts: Parts, inputs: int, units: int, activation: Callable, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.inputs = inputs
        self.dense = parts.dense(units, "dense", activation)

    def build(self, input_shape):
        self.dense.build((None, self.inputs))

    def call(self, x):
        return self.dense(x)


class Attention(keras.layers.Layer):
    """Self-attention with its output projection and residual."""

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        width = parts.config.hidden_size
        self.self_attention = SelfAttention(parts, width, width, width, name="self")
        self.projection = ResidualOutput(
            parts, width, width, parts.config.attention_output_dropout, name="output"
        )

    def build(self, input_shape):
        self.self_attention.build(input_shape)
        self.projection.build(input_shape)

    def call(self, x, mask):
        return self.projection(self.self_attention(x, x, mask), x)


class EncoderLayer(keras.layers.Layer):
    """Transformer layer of BERT, with LayerNorm after each residual."""

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(parts, name="attention")
        self.intermediate = DenseBlock(
            parts, width, inner, ACTIVATIONS[config.hidden_act], name="intermediate"
        )
        self.projection = ResidualOutput(
            parts, inner, width, config.hidden_dropout_prob, name="output"
        )

    def build(self, input_shape):
        for layer in (self.attention, self.intermediate, self.projection):
            layer.build(input_shape)

    def call(self, x, mask):
        x = self.attention(x, mask)  # [B, S, H]
        return self.projection(self.intermediate(x), x)  # [B, S, F] -> [B, S, H]


class Encoder(keras.layers.Layer):
    """The stack of Transformer layers, each made by `layer(parts, name=...)`."""

    def __init__(self, parts: Parts, name: str, layer: Callable = EncoderLayer):
        super().__init__(name=name, dtype=parts.dtype)
        self.stack = [
            layer(parts, name=f"layer_{i}") for i in range(parts.config.num_hidden_layers)
        ]

    def build(self, input_shape):
        for layer in self.stack:
            layer.build(input_shape)

    def call(self, x, mask):
        for layer in self.stack:
            x = layer(x, mask)
        return x


def tanh_pooler(parts: Parts) -> DenseBlock:
    """Tanh of a dense layer on the first position: BERT's pooler."""
    width = parts.config.hidden_size
    return DenseBlock(parts, width, width, ops.tanh, name="pooler")

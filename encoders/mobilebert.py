"""MobileBERT (Sun et al. 2020, "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited
Devices").

Between layers states are H wide; a layer works at its bottleneck's width E
(`intra_bottleneck_size`), with several small feed-forward networks. Published models have NoNorm,
an affine map of each channel, in place of LayerNorm. Weights have BERT's names below `mobilebert/`,
those of the bottlenecks and feed-forward networks Hugging Face's.
"""

import keras
from keras import ops

from encoders.backbone import Backbone
from encoders.config import MobileBertConfig
from encoders.layers import (
    ACTIVATIONS,
    DenseBlock,
    Dropout,
    Encoder,
    Parts,
    ResidualOutput,
    SelfAttention,
    check_length,
    first_rows,
    tanh_pooler,
)

# Hugging Face leaves the LayerNorm of the embeddings, and that of a layer before its output
# bottleneck, at PyTorch's default whatever `layer_norm_eps` says.
_DEFAULT_EPSILON = 1e-5


class NoNorm(keras.layers.Layer):
    """Scale and shift of each channel, without statistics."""

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=input_shape[-1:], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=input_shape[-1:], initializer="zeros")

    def call(self, x):
        return x * self.gamma + self.beta


def _norm(parts: Parts, epsilon: float | None = None) -> keras.layers.Layer:
    if parts.config.normalization_type == "no_norm":
        return NoNorm(name="LayerNorm", dtype=parts.dtype)
    return parts.layer_norm(epsilon)


class MobileBertEmbeddings(keras.layers.Layer):
    """Narrow word embeddings of a token and its neighbours, a dense layer, token type and position
    embeddings, norm, dropout.
    """

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = self.config = parts.config
        self.initializers = [parts.initializer() for _ in range(3)]
        self.inputs = config.embedding_size * (3 if config.trigram_input else 1)
        transformed = config.trigram_input or config.embedding_size != config.hidden_size
        self.transformation = (
            parts.dense(config.hidden_size, "embedding_transformation") if transformed else None
        )
        self.layer_norm = _norm(parts, _DEFAULT_EPSILON)
        self.dropout = parts.dropout(config.hidden_dropout_prob)

    def build(self, input_shape):
        config = self.config
        tables = (
            ("word_embeddings", config.vocab_size, config.embedding_size),
            ("token_type_embeddings", config.type_vocab_size, config.hidden_size),
            ("position_embeddings", config.max_position_embeddings, config.hidden_size),
        )
        self.words, self.types, self.positions = (
            self.add_weight(name=name, shape=shape, initializer=initializer)
            for (name, *shape), initializer in zip(tables, self.initializers, strict=True)
        )
        if self.transformation is not None:
            self.transformation.build((None, None, self.inputs))
        self.layer_norm.build((None, None, config.hidden_size))
        self.dropout.build((None, None, config.hidden_size))

    def call(self, input_ids, segment_ids):
        check_length(ops.shape(input_ids)[1], self.config)
        x = ops.take(self.words, input_ids, axis=0)
        if self.config.trigram_input:
            around = ops.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = ops.concatenate(
                [around[:, 2:], x, around[:, :-2]], axis=-1
            )  # next, own, previous token
        if self.transformation is not None:
            x = self.transformation(x)  # [B, S, H]
        x = x + first_rows(self.positions, input_ids) + ops.take(self.types, segment_ids, axis=0)
        return self.dropout(self.layer_norm(x))


class _Narrowing(keras.layers.Layer):
    """Dense layer into the bottleneck, [B, S, H] -> [B, S, E], and norm."""

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.dense = parts.dense(parts.config.intra_bottleneck_size, "dense")
        self.layer_norm = _norm(parts)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.layer_norm.build((None, None, self.dense.units))

    def call(self, x):
        return self.layer_norm(self.dense(x))


class _Bottleneck(keras.layers.Layer):
    """Inputs of the attention of a layer.

    (input of query and key, input of value, skip operand of the attention).
    """

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.input_layer = _Narrowing(parts, name="input")
        self.attention = (
            None if parts.config.use_bottleneck_attention else _Narrowing(parts, name="attention")
        )

    def build(self, input_shape):
        self.input_layer.build(input_shape)
        if self.attention is not None:
            self.attention.build(input_shape)

    def call(self, x):
        narrow = self.input_layer(x)
        if self.attention is None:
            return narrow, narrow, narrow
        return self.attention(x), x, narrow


class _Attention(keras.layers.Layer):
    """Self-attention with its output projection and residual."""

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        width = config.inner_size
        wide_value = config.use_bottleneck and not config.use_bottleneck_attention
        value_inputs = config.hidden_size if wide_value else width
        rate = 0.0 if config.use_bottleneck else config.hidden_dropout_prob
        self.self_attention = SelfAttention(parts, width, width, value_inputs, name="self")
        self.projection = ResidualOutput(
            parts, width, width, rate, name="output", norm=_norm(parts)
        )

    def build(self, input_shape):
        self.self_attention.build(input_shape)
        self.projection.build(input_shape)

    def call(self, x, values, residual, mask):
        return self.projection(self.self_attention(x, values, mask), residual)


class _FeedForward(keras.layers.Layer):
    """Feed-forward network before the last one of a layer.

    Dense, activation, dense, residual, norm.
    """

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        width, inner = config.inner_size, config.intermediate_size
        self.intermediate = DenseBlock(
            parts, width, inner, ACTIVATIONS[config.hidden_act], name="intermediate"
        )
        self.projection = ResidualOutput(parts, inner, width, 0.0, name="output", norm=_norm(parts))

    def build(self, input_shape):
        self.intermediate.build(input_shape)
        self.projection.build(input_shape)

    def call(self, x):
        return self.projection(self.intermediate(x), x)


class _Output(keras.layers.Layer):
    """The second half of the last feed-forward network and, with a bottleneck, the way out of it to
    H with its own residual.
    """

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        self.inputs = config.intermediate_size
        self.dense = parts.dense(config.inner_size, "dense")
        self.dropout: Dropout = parts.dropout(
            0.0 if config.use_bottleneck else config.hidden_dropout_prob
        )
        self.layer_norm = _norm(parts, _DEFAULT_EPSILON)
        self.bottleneck = None
        if config.use_bottleneck:
            self.bottleneck = ResidualOutput(
                parts,
                config.inner_size,
                config.hidden_size,
                config.hidden_dropout_prob,
                name="bottleneck",
                norm=_norm(parts),
            )

    def build(self, input_shape):
        self.dense.build((None, None, self.inputs))
        self.dropout.build((None, None, self.dense.units))
        self.layer_norm.build((None, None, self.dense.units))
        if self.bottleneck is not None:
            self.bottleneck.build(input_shape)

    def call(self, x, residual, layer_input):
        x = self.layer_norm(self.dropout(self.dense(x)) + residual)
        return x if self.bottleneck is None else self.bottleneck(x, layer_input)


class MobileBertLayer(keras.layers.Layer):
    """Transformer layer of MobileBERT.

    Bottleneck, attention, feed-forward networks, way out of the bottleneck.
    """

    def __init__(self, parts: Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        self.bottleneck = _Bottleneck(parts, name="bottleneck") if config.use_bottleneck else None
        self.attention = _Attention(parts, name="attention")
        self.feed_forward = [
            _FeedForward(parts, name=f"ffn_{i}") for i in range(config.num_feedforward_networks - 1)
        ]
        self.intermediate = DenseBlock(
            parts,
            config.inner_size,
            config.intermediate_size,
            ACTIVATIONS[config.hidden_act],
            name="intermediate",
        )
        self.projection = _Output(parts, name="output")

    def build(self, input_shape):
        layers = (
            self.bottleneck,
            self.attention,
            *self.feed_forward,
            self.intermediate,
            self.projection,
        )
        for layer in layers:
            if layer is not None:
                layer.build(input_shape)

    def call(self, x, mask):
        keys, values, residual = (x, x, x) if self.bottleneck is None else self.bottleneck(x)
        y = self.attention(keys, values, residual, mask)  # [B, S, E]
        for network in self.feed_forward:
            y = network(y)
        return self.projection(self.intermediate(y), y, x)  # [B, S, H]


class MobileBert(Backbone):
    """The MobileBERT encoder as one layer, see `Backbone`.

    The pooler is the first token as it is, or with `classifier_activation` tanh of a dense layer on
    it.
    """

    config_class = MobileBertConfig

    def make_embeddings(self, parts: Parts) -> keras.layers.Layer:
        return MobileBertEmbeddings(parts, name="embeddings")

    def make_encoder(self, parts: Parts) -> keras.layers.Layer:
        return Encoder(parts, name="encoder", layer=MobileBertLayer)

    def make_pooler(self, parts: Parts) -> keras.layers.Layer:
        if not self.config.classifier_activation:
            return keras.layers.Identity(name="pooler", dtype=parts.dtype)
        return tanh_pooler(parts)

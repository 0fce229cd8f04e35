"""BERT in plain Keras 3 layers; nothing here knows about quantization.

Every weight carries the name that Google's TensorFlow 1 code gave it (`bert/encoder/layer_0/output/dense/kernel` and so
on), so that checkpoints travel by variable name in both directions. Reading them is `load_weights`, whose code is in
`modeling_checkpoint.py`. Architecture: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers".

Letters in shape comments: B batch, S sequence length, H hidden size, N attention heads, D = H / N, F intermediate size.
"""

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Iterator

import keras
from keras import ops

from modeling_checkpoint import LoadReport as LoadReport
from modeling_checkpoint import detect_lower_case as detect_lower_case
from modeling_checkpoint import load_weights as load_weights

# Added to the score of a masked key. Large enough to vanish in the softmax, small enough for float16.
MASKED_SCORE = -10000.0


def gelu(x):
    """Exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016). Written with Erf because exporters know no Erfc."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016); the cube by products, as `pow` is slow on CPU."""
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": ops.relu,
    "tanh": ops.tanh,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The size of a BERT and its constants, under the keys that Google's and Hugging Face's files share.

    `hidden_act` "gelu" is the exact function, as Hugging Face reads it; "gelu_new" and "gelu_pytorch_tanh" are the tanh
    approximation. `layer_norm_eps` is 1e-12 where the file is silent, as in Google's code.

    Raises:
        ValueError: a value of the wrong type or out of range; the message names the key.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"BERT configuration: {field.name} must be a positive integer, got {value!r}")
            if field.type is float and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"BERT configuration: {field.name} must be a number, got {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"BERT configuration: {name} must be in [0, 1), got {getattr(self, name)!r}")
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"BERT configuration: {name} must be above 0, got {getattr(self, name)!r}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"BERT configuration: unknown hidden_act {self.hidden_act!r}; known: {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BERT configuration: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> "BertConfig":
        """Reads Google's `bert_config.json` or Hugging Face's `config.json`; keys that do not concern us are ignored.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, a key is missing or wrong, or the file describes another architecture.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"BERT configuration not found: {path} (give a bert_config.json or config.json)")
        try:
            with open(path, encoding="utf-8") as stream:
                values = json.load(stream)
        except ValueError as error:
            raise ValueError(f"BERT configuration {path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"BERT configuration {path}: a JSON object is wanted, got {type(values).__name__}")
        for key, wanted in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
            if values.get(key, wanted) != wanted:
                raise ValueError(f"{path}: {key} is {values[key]!r}, but only {wanted!r} is supported")
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise ValueError(f"BERT configuration {path} lacks {', '.join(missing)}")
        try:
            return cls(**{f.name: values[f.name] for f in fields if f.name in values})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _seed_stream(seed: int | None) -> Iterator[int | None]:
    """One seed for each initializer and dropout layer; all None (Keras' global seed decides) when `seed` is None."""
    source = random.Random(seed)
    while True:
        yield None if seed is None else source.getrandbits(31)


class _Dropout(keras.layers.Layer):
    """Dropout whose random state is named after its place in the model.

    Keras' own layer numbers these states through the process: a checkpoint of them would not fit a process that made
    other layers before.
    """

    def __init__(self, rate: float, seed: int | None, dtype):
        super().__init__(name="dropout", dtype=dtype)
        self.rate = rate
        self.seed = seed

    def build(self, input_shape):
        if self.rate > 0.0:
            self.generator = keras.random.SeedGenerator(self.seed, name="random")

    def call(self, x, training=False):
        return keras.random.dropout(x, self.rate, seed=self.generator) if training and self.rate > 0.0 else x


class _Parts:
    """What the layers are made of: small Keras layers with the configuration's constants, seeds and dtype policy."""

    def __init__(self, config: BertConfig, dropout: bool, seed: int | None, dtype):
        self.config = config
        self._dropout = dropout
        self._seeds = _seed_stream(seed)
        self.dtype = dtype

    def initializer(self):
        return keras.initializers.TruncatedNormal(stddev=self.config.initializer_range, seed=next(self._seeds))

    def dense(self, units: int, name: str, activation: Callable | None = None):
        return keras.layers.Dense(
            units, activation=activation, kernel_initializer=self.initializer(), name=name, dtype=self.dtype
        )

    def dropout(self, rate: float):
        seed = next(self._seeds)  # drawn in any case, so that the weights do not depend on whether dropout is on
        return _Dropout(rate if self._dropout else 0.0, seed, dtype=self.dtype)

    def layer_norm(self):
        return keras.layers.LayerNormalization(epsilon=self.config.layer_norm_eps, name="LayerNorm", dtype=self.dtype)


class _Embeddings(keras.layers.Layer):
    """Word + token type + position embeddings, LayerNorm, dropout."""

    def __init__(self, parts: _Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.config = parts.config
        self.initializers = [parts.initializer() for _ in range(3)]
        self.layer_norm = parts.layer_norm()
        self.dropout = parts.dropout(parts.config.hidden_dropout_prob)

    def build(self, input_shape):
        config, width = self.config, self.config.hidden_size
        tables = (
            ("word_embeddings", config.vocab_size),
            ("token_type_embeddings", config.type_vocab_size),
            ("position_embeddings", config.max_position_embeddings),
        )
        self.words, self.types, self.positions = (
            self.add_weight(name=name, shape=(rows, width), initializer=initializer)
            for (name, rows), initializer in zip(tables, self.initializers, strict=True)
        )
        self.layer_norm.build((None, None, width))
        self.dropout.build((None, None, width))

    def call(self, input_ids, segment_ids):
        length = ops.shape(input_ids)[1]
        limit = self.config.max_position_embeddings
        if isinstance(length, int) and length > limit:
            raise ValueError(f"sequence length {length} is above max_position_embeddings {limit} of the configuration")
        x = ops.take(self.words, input_ids, axis=0) + ops.take(self.types, segment_ids, axis=0)  # [B, S, H]
        # A slice, not an index: a dynamic length above the limit is refused at run time instead of being cut.
        x = x + ops.slice(self.positions, (0, 0), (length, self.config.hidden_size))  # [S, H] broadcast over B
        return self.dropout(self.layer_norm(x))


class _SelfAttention(keras.layers.Layer):
    """Multi-head attention of a sequence on itself, up to the concatenated heads."""

    def __init__(self, parts: _Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        self.width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = parts.dense(self.width, "query")
        self.key = parts.dense(self.width, "key")
        self.value = parts.dense(self.width, "value")
        self.dropout = parts.dropout(config.attention_probs_dropout_prob)

    def build(self, input_shape):
        for layer in (self.query, self.key, self.value):
            layer.build((None, None, self.width))
        self.dropout.build((None, None, None, None))

    def call(self, x, mask):
        length = ops.shape(x)[1]
        size = self.width // self.heads

        def split(y):  # [B, S, H] -> [B, S, N, D]
            return ops.reshape(y, (-1, length, self.heads, size))

        query = ops.transpose(split(self.query(x)), (0, 2, 1, 3))  # [B, N, S, D]
        key = ops.transpose(split(self.key(x)), (0, 2, 3, 1))  # [B, N, D, S]
        value = ops.transpose(split(self.value(x)), (0, 2, 1, 3))  # [B, N, S, D]
        scores = ops.cast(ops.matmul(query, key), "float32") * (1.0 / math.sqrt(size))  # [B, N, S, S]
        # In float32 whatever the policy: bfloat16 has 8 bits of mantissa, too few to sum hundreds of exponentials.
        probabilities = ops.softmax(scores + ops.cast(mask, "float32"), axis=-1)
        probabilities = self.dropout(ops.cast(probabilities, self.compute_dtype))
        context = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))  # [B, S, N, D]
        return ops.reshape(context, (-1, length, self.width))


class _ResidualOutput(keras.layers.Layer):
    """Dense, dropout, addition of the block's input, LayerNorm: the second half of both blocks of an encoder layer."""

    def __init__(self, parts: _Parts, inputs: int, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.inputs = inputs
        self.dense = parts.dense(parts.config.hidden_size, "dense")
        self.dropout = parts.dropout(parts.config.hidden_dropout_prob)
        self.layer_norm = parts.layer_norm()

    def build(self, input_shape):
        self.dense.build((None, None, self.inputs))
        self.dropout.build((None, None, self.dense.units))
        self.layer_norm.build((None, None, self.dense.units))

    def call(self, x, residual):
        return self.layer_norm(self.dropout(self.dense(x)) + residual)


class _DenseBlock(keras.layers.Layer):
    """A dense layer one scope below its own name (`intermediate/dense`, `pooler/dense`)."""

    def __init__(self, parts: _Parts, units: int, activation: Callable, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.inputs = parts.config.hidden_size
        self.dense = parts.dense(units, "dense", activation)

    def build(self, input_shape):
        self.dense.build((None, self.inputs))

    def call(self, x):
        return self.dense(x)


class _Attention(keras.layers.Layer):
    """Self-attention with its output projection and residual."""

    def __init__(self, parts: _Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.self_attention = _SelfAttention(parts, name="self")
        self.projection = _ResidualOutput(parts, parts.config.hidden_size, name="output")

    def build(self, input_shape):
        self.self_attention.build(input_shape)
        self.projection.build(input_shape)

    def call(self, x, mask):
        return self.projection(self.self_attention(x, mask), x)


class _EncoderLayer(keras.layers.Layer):
    """One Transformer layer, LayerNorm after each residual."""

    def __init__(self, parts: _Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        config = parts.config
        self.attention = _Attention(parts, name="attention")
        self.intermediate = _DenseBlock(
            parts, config.intermediate_size, ACTIVATIONS[config.hidden_act], name="intermediate"
        )
        self.projection = _ResidualOutput(parts, config.intermediate_size, name="output")

    def build(self, input_shape):
        for layer in (self.attention, self.intermediate, self.projection):
            layer.build(input_shape)

    def call(self, x, mask):
        x = self.attention(x, mask)  # [B, S, H]
        return self.projection(self.intermediate(x), x)  # [B, S, F] -> [B, S, H]


class _Encoder(keras.layers.Layer):
    """The stack of Transformer layers."""

    def __init__(self, parts: _Parts, name: str):
        super().__init__(name=name, dtype=parts.dtype)
        self.stack = [_EncoderLayer(parts, name=f"layer_{i}") for i in range(parts.config.num_hidden_layers)]

    def build(self, input_shape):
        for layer in self.stack:
            layer.build(input_shape)

    def call(self, x, mask):
        for layer in self.stack:
            x = layer(x, mask)
        return x


class Bert(keras.layers.Layer):
    """The BERT encoder as one layer; its weights are named below `name`.

    Called with `input_ids`, `input_mask` (1 = token, 0 = padding) and `segment_ids`, all int [B, S], both dimensions
    static or not; returns `sequence_output` [B, S, H], or with `pooler=True` the pair with `pooled_output` [B, H]
    (tanh of a dense layer on the first position).

    Args:
        config: size and constants.
        pooler: whether there is a pooler, with its two weights.
        dropout: False turns every dropout off even in training.
        seed: decides initial weights (truncated normal) and dropout masks; None leaves them to Keras' global seed.
        name: first part of every weight's name; keep "bert" for checkpoints.
        dtype: Keras dtype policy, such as "mixed_bfloat16"; None takes the global one. Softmax and LayerNorm compute
            in float32 in any case.
    """

    def __init__(self, config, *, pooler=True, dropout=True, seed=None, name="bert", dtype=None, **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.config = config if isinstance(config, BertConfig) else BertConfig(**config)
        self.dropout = dropout
        self.seed = seed
        parts = _Parts(self.config, dropout, seed, self.dtype_policy)
        self.embeddings = _Embeddings(parts, name="embeddings")
        self.encoder = _Encoder(parts, name="encoder")
        # Last, so that the seeds of all other layers are the same with and without it.
        self.pooler = _DenseBlock(parts, self.config.hidden_size, ops.tanh, name="pooler") if pooler else None

    def build(self, input_shape):
        hidden_shape = (None, None, self.config.hidden_size)
        self.embeddings.build(input_shape)
        self.encoder.build(hidden_shape)
        if self.pooler is not None:
            self.pooler.build(hidden_shape)

    def call(self, input_ids, input_mask, segment_ids):
        mask = (1.0 - ops.cast(input_mask, "float32")) * MASKED_SCORE
        mask = ops.expand_dims(mask, (1, 2))  # [B, 1, 1, S]: added to the scores of every head and query
        sequence_output = self.encoder(self.embeddings(input_ids, segment_ids), mask)  # [B, S, H]
        if self.pooler is None:
            return sequence_output
        return sequence_output, self.pooler(sequence_output[:, 0])  # [B, H]

    def get_config(self):
        own = {"config": dataclasses.asdict(self.config), "pooler": self.pooler is not None}
        return super().get_config() | own | {"dropout": self.dropout, "seed": self.seed}


class Head(keras.layers.Layer):
    """Scores on top of BERT: dropout and a dense layer whose weights are stored as Google stores those of its heads.

    That is `output_weights` [units, H], applied transposed, and `output_bias` [units]. Takes [..., H], returns float32
    [..., units]. The layer keeps float32 under any policy.

    Args:
        units: number of scores.
        scope: what the names of the weights begin with; "cls/squad" for SQuAD, empty for classification.
        dropout_rate: for the input, in training.
        initializer_range: standard deviation of the truncated normal that the weights start with.
        seed: see `Bert`.
    """

    def __init__(self, units, *, scope="", dropout_rate=0.0, initializer_range=0.02, seed=None, name=None, **kwargs):
        super().__init__(name=name, **(kwargs | {"dtype": "float32"}))
        self.units = units
        self.scope = scope
        self.initializer_range = initializer_range
        self.seed = seed
        self.dropout = _Dropout(dropout_rate, seed, dtype="float32")

    def build(self, input_shape):
        self.dropout.build(input_shape)
        initializer = keras.initializers.TruncatedNormal(stddev=self.initializer_range, seed=self.seed)
        # add_weight would put the layer's own name in front.
        parent, _, last = self.scope.rpartition("/")
        with keras.name_scope(last, override_parent=parent):
            self.kernel = keras.Variable(initializer, (self.units, input_shape[-1]), name="output_weights")
            self.bias = keras.Variable("zeros", (self.units,), name="output_bias")

    def call(self, x):
        return ops.matmul(self.dropout(x), ops.transpose(self.kernel)) + self.bias

    def get_config(self):
        own = {"units": self.units, "scope": self.scope, "dropout_rate": self.dropout.rate}
        return super().get_config() | own | {"initializer_range": self.initializer_range, "seed": self.seed}


def _inputs(config: BertConfig, sequence_length: int | None) -> dict:
    """The three int32 inputs [B, S]."""
    limit = config.max_position_embeddings
    if sequence_length is not None and not 1 <= sequence_length <= limit:
        raise ValueError(
            f"sequence_length must be between 1 and the configuration's max_position_embeddings {limit}, "
            f"got {sequence_length!r}"
        )
    names = ("input_ids", "input_mask", "segment_ids")
    return {name: keras.Input((sequence_length,), dtype="int32", name=name) for name in names}


def build_encoder(
    config: BertConfig,
    *,
    sequence_length: int | None = None,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional BERT encoder with pooler.

    Args:
        config: size and constants.
        sequence_length: static S, or None for any length up to `max_position_embeddings`.
        dropout: False turns dropout off even in training.
        seed: see `Bert`.
        dtype: Keras dtype policy; None takes the global one.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"sequence_output": [B, S, H],
        "pooled_output": [B, H]} in the compute dtype.

    Raises:
        ValueError: `sequence_length` is out of range.
    """
    inputs = _inputs(config, sequence_length)
    sequence, pooled = Bert(config, dropout=dropout, seed=seed, dtype=dtype)(**inputs)
    return keras.Model(inputs, {"sequence_output": sequence, "pooled_output": pooled}, name="bert_encoder")


def build_squad_model(
    config: BertConfig,
    *,
    sequence_length: int | None = None,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional BERT for extractive question answering. It has no pooler, as nothing would read it.

    Args and errors: see `build_encoder`.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"start_logits", "end_logits"}
        (float32 [B, S]).
    """
    inputs = _inputs(config, sequence_length)
    sequence = Bert(config, pooler=False, dropout=dropout, seed=seed, dtype=dtype)(**inputs)
    head = Head(2, scope="cls/squad", initializer_range=config.initializer_range, seed=seed, name="squad")
    logits = head(sequence)  # [B, S, 2]
    return keras.Model(inputs, {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}, name="bert_squad")


def build_classifier(
    config: BertConfig,
    num_labels: int,
    *,
    sequence_length: int | None = None,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional BERT for classification, or for regression with `num_labels` 1 (which wants a squared loss).

    Args and errors: see `build_encoder`.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"logits"} (float32 [B, num_labels]).
    """
    if type(num_labels) is not int or num_labels < 1:
        raise ValueError(f"num_labels must be a positive integer, got {num_labels!r}")
    inputs = _inputs(config, sequence_length)
    _, pooled = Bert(config, dropout=dropout, seed=seed, dtype=dtype)(**inputs)
    rate = config.hidden_dropout_prob if dropout else 0.0
    head = Head(
        num_labels, dropout_rate=rate, initializer_range=config.initializer_range, seed=seed, name="classifier"
    )
    return keras.Model(inputs, {"logits": head(pooled)}, name="bert_classifier")

"""Small models of every kind that the toolkit must work on, each with data and its expected
sites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tf_keras

import modeling

VOCAB, WIDTH, HEADS, INNER, LENGTH, BATCH = 40, 16, 2, 24, 6, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model with what one needs to quantize and train it.

    Attributes:
      model: anything `tfquant.quantize` takes.
      batches: two of them, of different sizes.
      linear: paths of the layers that have a weight and an input site under the default recipe.
      attention: paths that have the sites q, k, v and probabilities under the default recipe.
      weights: the variables of what is no Keras model.
    """

    model: Any
    batches: list[Any]
    linear: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    weights: tuple[tf.Variable, ...] = ()

    def run(self, model: Any, batch: Any, **options) -> list[tf.Tensor]:
        """Flat outputs of the original or of what was made of it."""
        if hasattr(model, "signatures") and not isinstance(model, keras.Model):
            return tf.nest.flatten(model.signatures["serving_default"](**batch))
        args = batch if isinstance(batch, tuple) else (batch,)
        return tf.nest.flatten(model(*args, **options))

    def trainable(self) -> list[tf.Variable]:
        """The variables of the original that can be trained; a subclassed model has them once it
        has run.
        """
        if self.weights:
            return list(self.weights)
        return [
            getattr(v, "value", v) if isinstance(v, keras.Variable) else v
            for v in self.model.trainable_variables
        ]


class TwoOfAName(keras.Model):
    """Two layers of one name."""

    def __init__(self):
        super().__init__(name="twins")
        self.left, self.right = (keras.layers.Dense(6, name="dense") for _ in range(2))

    def call(self, x):
        return self.right(self.left(x))


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tokens(
    names: tuple[str, str], *sizes: tuple[int, int], segments: str = ""
) -> list[dict[str, np.ndarray]]:
    """Batches of token ids and masks with real padding, one for each (rows, length)."""
    rng, batches = random(1), []
    for rows, length in sizes:
        mask = (np.arange(length) < rng.integers(min(2, length), length + 1, (rows, 1))).astype(
            np.int32
        )
        batch = {
            names[0]: rng.integers(0, VOCAB, (rows, length)).astype(np.int32) * mask,
            names[1]: mask,
        }
        if segments:
            batch[segments] = (rng.random((rows, length)) < 0.5).astype(np.int32) * mask
        batches.append(batch)
    return batches


def floats(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = random(2)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


# Our own BERT.


def bert_config(layers: int = 2, **changes) -> modeling.BertConfig:
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    return modeling.BertConfig(**{**sizes, **changes})


BERT_LINEARS = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)


def own_bert(layers: int = 1, sequence_length: int | None = None) -> Case:
    batches = tokens(
        ("input_ids", "input_mask"),
        (BATCH, LENGTH),
        (BATCH + 1, sequence_length or 9),
        segments="segment_ids",
    )
    prefixes = [f"bert/encoder/layer_{i}" for i in range(layers)]
    return Case(
        modeling.build_squad_model(bert_config(layers), sequence_length=sequence_length, seed=0),
        batches,
        linear=tuple(f"{p}/{name}" for p in prefixes for name in BERT_LINEARS),
        attention=tuple(f"{p}/attention/self" for p in prefixes),
    )


# KerasHub.


def _hub_paths(block: str, layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    heads = [f"{block}_{i}/self_attention_layer" for i in range(layers)]
    linear = tuple(
        path
        for i in range(layers)
        for path in (
            *(f"{heads[i]}/{name}" for name in ("query", "key", "value", "attention_output")),
            f"{block}_{i}/feedforward_intermediate_dense",
            f"{block}_{i}/feedforward_output_dense",
        )
    )
    return linear, tuple(heads)


_HUB_SIZES = dict(
    vocabulary_size=VOCAB,
    num_layers=1,
    num_heads=HEADS,
    hidden_dim=WIDTH,
    intermediate_dim=INNER,
    max_sequence_length=32,
)


def hub_bert() -> Case:
    batches = tokens(
        ("token_ids", "padding_mask"), (BATCH, LENGTH), (BATCH + 1, 9), segments="segment_ids"
    )
    linear, heads = _hub_paths("transformer_layer", 1)
    return Case(
        keras_hub.models.BertBackbone(**_HUB_SIZES), batches, linear=linear, attention=heads
    )


def hub_roberta() -> Case:
    batches = tokens(("token_ids", "padding_mask"), (BATCH, LENGTH), (BATCH + 1, 9))
    linear, heads = _hub_paths("transformer_layer", 1)
    return Case(
        keras_hub.models.RobertaBackbone(**_HUB_SIZES), batches, linear=linear, attention=heads
    )


def hub_distilbert() -> Case:
    batches = tokens(("token_ids", "padding_mask"), (BATCH, LENGTH), (BATCH + 1, 9))
    linear, heads = _hub_paths("transformer_layer", 1)
    return Case(
        keras_hub.models.DistilBertBackbone(**_HUB_SIZES), batches, linear=linear, attention=heads
    )


# Keras 3.


def functional(dtype: str | None = None) -> Case:
    """MultiHeadAttention, EinsumDense, LayerNormalization, Dense; post-norm, a masked attention,
    batch and length open.
    """
    layer = dict(dtype=dtype)
    x = inputs = keras.Input((None, WIDTH), name="x")
    mask = keras.Input((None,), dtype="bool", name="mask")
    a = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, dropout=0.1, name="mha", **layer)(
        x, x, attention_mask=mask[:, None, :]
    )
    x = keras.layers.LayerNormalization(name="norm1", **layer)(
        x + keras.layers.Dropout(0.1, **layer)(a)
    )
    h = keras.layers.EinsumDense(
        "abc,cd->abd", (None, INNER), activation="gelu", bias_axes="d", name="up", **layer
    )(x)
    h = keras.layers.Dense(WIDTH, name="down", **layer)(h)
    x = keras.layers.LayerNormalization(name="norm2", **layer)(keras.layers.Add(**layer)([x, h]))
    outputs = keras.layers.Dense(3, name="head", **layer)(x[:, 0])
    batches = []
    for rows, length in ((BATCH, LENGTH), (BATCH + 1, 9)):
        lengths = random(rows).integers(2, length + 1, (rows, 1))
        batches.append([floats((rows, length, WIDTH))[0], np.arange(length) < lengths])
    projections = tuple(f"mha/{name}" for name in ("query", "key", "value", "attention_output"))
    return Case(
        keras.Model([inputs, mask], outputs, name="functional"),
        batches,
        linear=(*projections, "up", "down"),
        attention=("mha",),
    )


def mixed_bfloat16() -> Case:
    return functional("mixed_bfloat16")


class Block(keras.layers.Layer):
    """A transformer block of nested layers, normalised before (pre-LN)."""

    def __init__(self, name: str):
        super().__init__(name=name)
        self.norm1 = keras.layers.LayerNormalization(name="norm1")
        self.attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="attention")
        self.norm2 = keras.layers.LayerNormalization(name="norm2")
        self.up = keras.layers.Dense(INNER, activation="gelu", name="up")
        self.down = keras.layers.Dense(WIDTH, name="down")
        self.dropout = keras.layers.Dropout(0.1)

    def build(self, shape):
        self.norm1.build(shape)
        self.attention.build(shape, shape)
        self.norm2.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], INNER))

    def call(self, x, training=False):
        h = self.norm1(x)
        x = x + self.dropout(self.attention(h, h, training=training), training=training)
        return x + self.dropout(self.down(self.up(self.norm2(x))), training=training)


class Subclassed(keras.Model):
    """A model whose `call` holds Python control flow; it does not say what its inputs are."""

    def __init__(self, blocks: int = 1):
        super().__init__(name="subclassed")
        self.blocks = [Block(f"block_{i}") for i in range(blocks)]
        self.norm = keras.layers.LayerNormalization(name="final_norm")
        self.head = keras.layers.Dense(3, name="head")

    def call(self, inputs, training=False):
        x = inputs["x"]
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(keras.ops.mean(self.norm(x), axis=1))


def subclassed() -> Case:
    batches = [{"x": x} for x in floats((BATCH, LENGTH, WIDTH), (BATCH + 1, LENGTH, WIDTH))]
    attention = "subclassed/block_0/attention"
    projections = tuple(
        f"{attention}/{name}" for name in ("query", "key", "value", "attention_output")
    )
    linear = (*projections, "subclassed/block_0/up", "subclassed/block_0/down")
    return Case(Subclassed(), batches, linear=linear, attention=(attention,))


def sequential() -> Case:
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(INNER, "relu", name="first"),
            keras.layers.Dense(4, name="second"),
        ],
        name="sequential",
    )
    return Case(
        model, floats((BATCH, 8), (BATCH + 1, 8)), linear=("sequential/first", "sequential/second")
    )


def nested() -> Case:
    """A functional model that holds a Sequential and another functional model, which holds a model
    itself.
    """
    inner_input = keras.Input((WIDTH,), name="inner_in")
    deepest = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(WIDTH, name="deep_dense")], name="deepest"
    )
    inner = keras.Model(
        inner_input,
        keras.layers.Dense(WIDTH, name="inner_dense")(deepest(inner_input)),
        name="inner",
    )
    tail = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(4, name="tail_dense")], name="tail"
    )
    inputs = keras.Input((8,), name="x")
    outputs = tail(inner(keras.layers.Dense(WIDTH, activation="relu", name="outer_dense")(inputs)))
    linear = ("outer_dense", "deepest/deep_dense", "inner_dense", "tail/tail_dense")
    return Case(
        keras.Model(inputs, outputs, name="outer"),
        floats((BATCH, 8), (BATCH + 1, 8)),
        linear=linear,
    )


def called_twice() -> Case:
    """One Dense used on two tensors: one weight, two inputs."""
    inputs = keras.Input((WIDTH,), name="x")
    shared = keras.layers.Dense(WIDTH, name="shared")
    h = keras.ops.tanh(shared(inputs))
    outputs = shared(h)
    return Case(
        keras.Model(inputs, outputs, name="twice"),
        floats((BATCH, WIDTH), (BATCH + 1, WIDTH)),
        linear=("shared", "shared#2"),
    )


def tied_embeddings() -> Case:
    """A language model whose output projection is the transposed embedding table."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    embedding = keras_hub.layers.ReversibleEmbedding(
        VOCAB, WIDTH, tie_weights=True, name="embedding"
    )
    h = keras.layers.Dense(WIDTH, activation="tanh", name="body")(embedding(ids))
    outputs = embedding(h, reverse=True)
    batches = [
        random(i).integers(0, VOCAB, shape).astype(np.int32)
        for i, shape in enumerate([(BATCH, LENGTH), (BATCH + 1, 9)])
    ]
    return Case(
        keras.Model(ids, outputs, name="tied"), batches, linear=("body", "embedding/embeddings")
    )


def encoder_decoder() -> Case:
    """A decoder block with self-attention and cross-attention to an encoder block."""
    source = keras.Input((None, WIDTH), name="source")
    target = keras.Input((None, WIDTH), name="target")

    def attend(name, query, value, causal=False):
        attended = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=name)(
            query, value, use_causal_mask=causal
        )
        return keras.layers.LayerNormalization(name=f"{name}_norm")(query + attended)

    memory = attend("encoder", source, source)
    decoded = attend("cross", attend("decoder", target, target, causal=True), memory)
    outputs = keras.layers.Dense(VOCAB, name="head")(decoded)
    batches = [
        dict(zip(("source", "target"), floats((b, s, WIDTH), (b, t, WIDTH)), strict=True))
        for b, s, t in ((BATCH, LENGTH, 5), (BATCH + 1, 9, 4))
    ]
    names = ("query", "key", "value", "attention_output")
    blocks = ("encoder", "decoder", "cross")
    model = keras.Model({"source": source, "target": target}, outputs, name="encoder_decoder")
    return Case(
        model, batches, linear=tuple(f"{b}/{n}" for b in blocks for n in names), attention=blocks
    )


class EinsumAttention(keras.layers.Layer):
    """Attention written out with einsum, one kernel for query, key and value, and a softmax by
    hand.
    """

    def build(self, shape):
        size = WIDTH // HEADS
        for name in "qkv":
            setattr(self, f"w{name}", self.add_weight((WIDTH, HEADS, size), name=f"w{name}"))
        self.wo = self.add_weight((HEADS, size, WIDTH), name="wo")

    def call(self, x):
        q, k, v = (tf.einsum("bsd,dnh->bsnh", x, w) for w in (self.wq, self.wk, self.wv))
        scores = tf.einsum("bqnh,bknh->bnqk", q, k) / np.float32(np.sqrt(WIDTH // HEADS))
        exp = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
        context = tf.einsum("bnqk,bknh->bqnh", exp / tf.reduce_sum(exp, axis=-1, keepdims=True), v)
        return tf.einsum("bqnh,nhd->bqd", context, self.wo)


def written_out_attention() -> Case:
    inputs = keras.Input((None, WIDTH), name="x")
    outputs = inputs + EinsumAttention(name="attention")(inputs)
    batches = floats((BATCH, LENGTH, WIDTH), (BATCH + 1, 9, WIDTH))
    linear = tuple(f"attention/{w}" for w in ("wq", "wk", "wv", "wo"))
    return Case(
        keras.Model(inputs, outputs, name="written_out"),
        batches,
        linear=linear,
        attention=("attention",),
    )


def convolutional() -> Case:
    """Convolutions, BatchNormalization with moving statistics, Dropout, a residual addition."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.5, name="bn")(x))
    x = x + keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(keras.layers.GlobalAveragePooling2D()(x))
    outputs = keras.layers.Dense(3, name="head")(x)
    return Case(
        keras.Model(inputs, outputs, name="convolutional"),
        floats((BATCH, 8, 8, 3), (BATCH + 1, 8, 8, 3)),
        linear=("conv", "depthwise", "head"),
    )


# tf-keras.


def tf_keras_functional() -> Case:
    inputs = tf_keras.Input((LENGTH, WIDTH), name="x")
    a = tf_keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="mha")(inputs, inputs)
    x = tf_keras.layers.LayerNormalization(name="norm")(inputs + tf_keras.layers.Dropout(0.1)(a))
    h = tf_keras.layers.Dense(WIDTH, name="down")(
        tf_keras.layers.Dense(INNER, activation="gelu", name="up")(x)
    )
    x = tf_keras.layers.LayerNormalization(name="norm2")(x + h)
    outputs = tf_keras.layers.Dense(3, name="head")(x[:, 0])
    projections = tuple(f"mha/{name}" for name in ("query", "key", "value", "attention_output"))
    return Case(
        tf_keras.Model(inputs, outputs),
        floats((BATCH, LENGTH, WIDTH), (BATCH + 1, LENGTH, WIDTH)),
        linear=(*projections, "up", "down"),
        attention=("mha",),
    )


def tf_keras_sequential() -> Case:
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(INNER, "relu", name="first", input_shape=(8,)),
            tf_keras.layers.Dense(4, name="second"),
        ]
    )
    return Case(model, floats((BATCH, 8), (BATCH + 1, 8)), linear=("first", "second"))


# Without Keras.


class Module(tf.Module):
    """A network of bare variables, two of them without a name."""

    def __init__(self):
        super().__init__()
        rng = random(3)
        self.first = tf.Variable(
            rng.normal(size=(8, INNER)).astype(np.float32), name="first/kernel"
        )
        self.bias = tf.Variable(np.zeros(INNER, np.float32), name="first/bias")
        self.second = tf.Variable(rng.normal(size=(INNER, INNER)).astype(np.float32))
        self.third = tf.Variable(rng.normal(size=(INNER, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="x")])
    def __call__(self, x):
        h = tf.nn.relu(x @ self.first + self.bias)
        return tf.tanh(h @ self.second) @ self.third


MODULE_LINEARS = ("first", "Variable", "Variable_1")


def saved_model(folder: str) -> Case:
    tf.saved_model.save(Module(), folder)
    loaded = tf.saved_model.load(folder)
    weights = (loaded.first, loaded.bias, loaded.second, loaded.third)
    return Case(
        loaded,
        [{"x": x} for x in floats((BATCH, 8), (BATCH + 1, 8))],
        linear=MODULE_LINEARS,
        weights=weights,
    )


def saved_keras_model(folder: str) -> Case:
    case = sequential()
    case.model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)
    signature = loaded.signatures["serving_default"]
    name = next(iter(signature.structured_input_signature[1]))
    weights = tuple(v for v in signature.variables if v.trainable)
    return dataclasses.replace(
        case, model=loaded, batches=[{name: x} for x in case.batches], weights=weights
    )


def function_with_signature() -> Case:
    module = Module()
    function = module.__call__
    function.owner = module  # a tf.function of a method holds its object weakly
    return Case(
        function,
        floats((BATCH, 8), (BATCH + 1, 8)),
        linear=MODULE_LINEARS,
        weights=tuple(module.trainable_variables),
    )


def function_without_signature() -> Case:
    """A `tf.function` of two tensors and a number, over variables without names that it closes
    over.
    """
    rng = random(4)
    kernel = tf.Variable(rng.normal(size=(8, 8)).astype(np.float32))
    other = tf.Variable(rng.normal(size=(8, 4)).astype(np.float32))

    @tf.function
    def network(x, offset, scale=2.0):
        return tf.nn.relu(x @ kernel + offset) @ other * scale

    batches = [tuple(floats((BATCH, 8), (BATCH, 8))), tuple(floats((BATCH + 1, 8), (BATCH + 1, 8)))]
    return Case(network, batches, linear=("Variable", "Variable_1"), weights=(kernel, other))


class Looping(tf.Module):
    """A product before a loop and one in its body."""

    def __init__(self):
        super().__init__()
        rng = random(5)
        self.before = tf.Variable(rng.normal(size=(8, 8)).astype(np.float32), name="before/kernel")
        self.within = tf.Variable(
            0.1 * rng.normal(size=(8, 8)).astype(np.float32), name="within/kernel"
        )

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    def __call__(self, x):
        x = tf.tanh(x @ self.before)
        body = lambda i, h: (i + 1, tf.tanh(h @ self.within))  # noqa: E731
        return tf.while_loop(lambda i, _: i < 3, body, (0, x))[1]


def loop() -> Case:
    module = Looping()
    return Case(
        module,
        floats((BATCH, 8), (BATCH + 1, 8)),
        linear=("before",),
        weights=tuple(module.trainable_variables),
    )


KERAS: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        own_bert,
        hub_bert,
        hub_roberta,
        hub_distilbert,
        functional,
        mixed_bfloat16,
        subclassed,
        sequential,
        nested,
        called_twice,
        tied_embeddings,
        encoder_decoder,
        written_out_attention,
        convolutional,
        tf_keras_functional,
        tf_keras_sequential,
    )
}
FUNCTIONS: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (function_with_signature, function_without_signature, loop)
}
SAVED: dict[str, Callable[[str], Case]] = {f.__name__: f for f in (saved_model, saved_keras_model)}


def build(name: str, folder: str) -> Case:
    """The case called `name`; `folder` is for models that are saved and loaded."""
    keras.utils.set_random_seed(7)
    return SAVED[name](folder) if name in SAVED else {**KERAS, **FUNCTIONS}[name]()

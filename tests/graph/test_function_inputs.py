"""Inputs of activation functions, softmax, the attention scaling and normalizations."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.trace import trace
from tfquant.rules import Recipe, Rule

INT4 = tfquant.QuantSpec("int4")
SIZE = 8
RNG = np.random.default_rng(0)
KERNEL = tf.Variable(RNG.normal(0, 1, (SIZE, SIZE)).astype(np.float32), name="dense/kernel")
BIAS = tf.Variable(RNG.normal(0, 1, SIZE).astype(np.float32), name="dense/bias")
GAMMA, BETA = (
    tf.Variable(RNG.normal(1, 0.2, SIZE).astype(np.float32), name=f"norm/{name}")
    for name in ("gamma", "beta")
)
SIGNATURE = tf.TensorSpec([None, 3, SIZE])


def inputs_of(network, *roles: str, signature=SIGNATURE) -> dict[str, object]:
    """Address -> edge of the roles of a function."""
    edges = trace(source_of(network, signature=signature)).analysis.roles.edges
    return {e.address: e for e in edges if e.role in roles}


def rounded(x: np.ndarray) -> tf.Tensor:
    """Symmetric 4 bits with the extremes as range."""
    scale = np.float32(np.abs(x).max() / 7)
    return tf.constant(np.clip(np.round(x / scale), -7, 7).astype(np.float32) * scale)


def linear(x):
    return tf.nn.bias_add(x @ KERNEL, BIAS)


def written_softmax(x):
    e = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    return e / tf.reduce_sum(e, -1, keepdims=True)


ACTIVATIONS = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky": tf.nn.leaky_relu,
    "elu": tf.nn.elu,
    "selu": tf.nn.selu,
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "softplus": tf.nn.softplus,
    "gelu": tf.nn.gelu,
    "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_erfc": lambda x: x * tf.math.erfc(-x * 0.5**0.5) / 2,
    "gelu_bert": lambda x: 0.5 * x * (1.0 + tf.tanh(0.79788 * (x + 0.044715 * tf.pow(x, 3)))),
    "gelu_sigmoid": lambda x: x * tf.sigmoid(1.702 * x),
    "silu": tf.nn.silu,
    "silu_written": lambda x: tf.sigmoid(x) * x,
    "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
    "hard_swish": keras.activations.hard_silu,
    "squared_relu": lambda x: tf.square(tf.nn.relu(x)),
    "softmax": tf.nn.softmax,
    "softmax_written": written_softmax,
}


@pytest.mark.representatives("relu", "gelu", "gelu_bert", "silu", "mish", "softmax_written")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_whole_function_sees_its_rounded_input_where_no_product_follows(name):
    function = ACTIVATIONS[name]
    role = "softmax_input" if "softmax" in name else "activation_input"

    def network(x):
        return function(linear(x))

    found = inputs_of(network, "activation_input", "softmax_input")
    assert list(found) == [f"dense:{role}:input"]
    x = np.random.default_rng(1).normal(size=(5, 3, SIZE)).astype(np.float32)
    quantized = tfquant.quantize(
        network,
        Recipe((Rule(INT4, role=role),)),
        [x],
        signature=SIGNATURE,
        progress=False,
    )
    wanted = function(rounded(linear(x).numpy()))
    np.testing.assert_allclose(quantized(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_gate_is_no_part_of_the_function():
    gate = tf.Variable(KERNEL.numpy().T, name="gate/kernel")

    def network(x):
        return tf.nn.silu(x @ gate) * linear(x)

    assert list(inputs_of(network, "activation_input")) == ["gate:activation_input:input"]


def test_functions_behind_one_product_are_numbered_and_one_without_product_has_its_scope():
    def network(x):
        with tf.name_scope("first"):
            x = tf.nn.relu(x)
        h = linear(x)
        return tf.tanh(h) + tf.sigmoid(h[:, ::-1])

    assert list(inputs_of(network, "activation_input")) == [
        "first:activation_input:input",
        "dense:activation_input:input",
        "dense#2:activation_input:input",
    ]


def test_long_chains_and_unrolled_loops_are_searched_without_recursion():
    def network(x):
        state = h = linear(x)
        for _ in range(150):
            h = h * 0.5 + state
            state = state * h
        return tf.nn.gelu(h)

    (edge,) = inputs_of(network, "activation_input").values()
    assert edge.tensor.op.type == "AddV2"


def test_all_functions_of_mobilebert_have_edges():
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = modeling.MobileBertConfig(
        **sizes,
        intermediate_size=24,
        max_position_embeddings=16,
        embedding_size=6,
        intra_bottleneck_size=8,
        num_feedforward_networks=2,
    )
    graph = trace(source_of(modeling.build_squad_model(config, sequence_length=8)))
    count = collections.Counter(e.role for e in graph.analysis.roles.edges)
    assert count["softmax_input"] == count["scaling_input"] == 2
    assert count["activation_input"] == 2 * 2  # ReLU of each feed-forward network
    # One behind the embeddings; in each layer two bottlenecks, the attention, each feed-forward
    # network, and the output with its own.
    assert count["layernorm_input"] == 1 + 2 * (2 + 1 + 2 + 1)


class Attending(keras.layers.Layer):
    """Attention of one head on three projections; the scale is applied where `scaled` says."""

    def __init__(self, scaled: str):
        super().__init__(name="attending")
        self.scaled = scaled
        self.projections = [keras.layers.Dense(4, name=name) for name in ("q", "k", "v")]

    def call(self, x):
        q, k, v = (layer(x) for layer in self.projections)
        if self.scaled == "query":
            q = q / tf.sqrt(tf.cast(tf.shape(q)[-1], tf.float32))
        if self.scaled == "both":
            q, k = q * 4**-0.25, k * 4**-0.25
        scores = tf.matmul(q, k, transpose_b=True)
        if self.scaled == "scores":
            scores = scores / 2.0
        if self.scaled == "capped":
            scores = 30.0 * tf.tanh(scores / 30.0)
        return tf.matmul(tf.nn.softmax(scores + -1e9 * tf.ones([3, 3])), v)


@pytest.mark.parametrize(
    ("scaled", "tensors"),
    [
        ("query", ["attending/q"]),
        ("both", ["attending/q", "attending/k"]),
        ("scores", ["MatMul"]),
        ("capped", []),
    ],
)
def test_the_scaling_is_found_on_the_scores_or_their_operands_and_a_cap_is_none(scaled, tensors):
    inputs = keras.Input((3, SIZE))
    model = keras.Model(inputs, Attending(scaled)(inputs))
    edges = [e for e in trace(source_of(model)).analysis.roles.edges if e.role == "scaling_input"]
    assert [e.address for e in edges] == [
        f"attending:scaling_input:{port}" for port in ("input", "input#2")[: len(tensors)]
    ]
    for edge, name in zip(edges, tensors, strict=True):
        assert name.rpartition("/")[2] in edge.tensor.name


@pytest.mark.representatives("own_bert*", "hub_bert*", "written*", "convolutional*")
@pytest.mark.parametrize(
    ("name", "activations", "heads"),
    [
        ("own_bert", ["bert/encoder/layer_0/intermediate/dense"], ["self"]),
        (
            "hub_bert",
            ["pooled_dense", "transformer_layer_0/feedforward_intermediate_dense"],
            ["self_attention_layer"],
        ),
        ("mixed_bfloat16", ["up"], ["mha"]),
        ("tf_keras_functional", ["up"], ["mha"]),
        ("written_out_attention", [], ["attention"]),
        ("encoder_decoder", [], ["cross", "decoder", "encoder"]),
        ("convolutional", ["conv"], []),
    ],
)
def test_inputs_of_functions_in_models(name, activations, heads):
    case = models.build(name, "")
    edges = trace(source_of(case.model, case.batches[0])).analysis.roles.edges
    found = {
        role: sorted(e.path for e in edges if e.role == role)
        for role in ("activation_input", "softmax_input", "scaling_input")
    }
    assert found["activation_input"] == activations
    for role in ("softmax_input", "scaling_input"):
        assert [path.rpartition("/")[2] for path in found[role]] == heads


def layer_norm(x):
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, BETA, GAMMA, 1e-6)


def root_mean_square_norm(x):
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-6) * GAMMA


def no_norm(x):
    return x * GAMMA + BETA


@pytest.mark.parametrize("normalise", [layer_norm, root_mean_square_norm, no_norm])
def test_normalizations_see_their_rounded_input(normalise):
    def network(x):
        return 2.0 * normalise(linear(x))

    recipe = Recipe((Rule(INT4, role="layernorm_input"),))
    x = np.random.default_rng(1).normal(size=(5, 3, SIZE)).astype(np.float32)
    quantized = tfquant.quantize(network, recipe, [x], signature=SIGNATURE, progress=False)
    assert [s.address for s in quantized.plan.sites] == ["norm:layernorm_input:input"]
    wanted = 2.0 * normalise(rounded(linear(x).numpy()))
    np.testing.assert_allclose(quantized(x), wanted, rtol=1e-4, atol=1e-4)


def test_no_named_recipe_takes_these_roles():
    new = {"activation_input", "softmax_input", "scaling_input", "*"}
    for name in tfquant.recipes.names():
        assert not new & {role for rule in tfquant.recipe(name).rules for role in rule.roles}

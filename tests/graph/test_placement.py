"""Where quantizers sit in BERT: counts of NVIDIA's placements, sharing, fused and disabled ranges;
the roles of other models.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import make_plan
from tfquant.graph.trace import trace
from tfquant.model import engine_of

LAYERS = 12


@pytest.fixture(scope="module")
def bert_base():
    """The trace of a BERT as deep as BERT-base."""
    return trace(source_of(models.own_bert(LAYERS).model))


def planned(graph, name: str, share: bool = False):
    return make_plan(graph, dataclasses.replace(tfquant.recipe(name), share=share))


def split(plan) -> tuple[int, int]:
    weights = sum(site.is_weight for site in plan.sites)
    return weights, len(plan.sites) - weights


@pytest.mark.parametrize(
    ("recipe", "activations"),
    [("int8_residual_float", 121), ("int8_residual", 145), ("int8_residual_both", 169)],
)
def test_twelve_layers_have_72_weight_sites_and_as_many_activation_sites_as_consumers(
    bert_base, recipe, activations
):
    assert split(planned(bert_base, recipe)) == (72, activations)


@pytest.mark.parametrize("recipe", ["ft1", "ft2", "ft3", "trt"])
def test_later_modes_have_253_activation_sites_and_72_kernels(bert_base, recipe):
    assert split(planned(bert_base, recipe)) == (72, 253)


@pytest.mark.parametrize(
    ("recipe", "activations"),
    # In a layer: the common input of Q, K and V; q, k, v, probabilities; the inputs of three dense
    # layers. Behind the last one more. Every skip operand is a tensor that a dense layer takes too,
    # the other operands are tensors of their own.
    [
        ("int8_residual_float", 8 * LAYERS + 1),
        ("int8_residual", 8 * LAYERS + 1),
        ("int8_residual_both", 10 * LAYERS + 1),
    ],
)
def test_sharing_gives_one_range_per_tensor(bert_base, recipe, activations):
    plan = planned(bert_base, recipe, share=True)
    assert split(plan) == (72, activations)
    members = [address for site in plan.sites for address in site.members]
    assert len(members) == len(set(members)) == sum(split(planned(bert_base, recipe)))


def test_sites_of_one_layer_are_those_of_the_reference(bert_base):
    layer = "bert/encoder/layer_3"
    sites = planned(bert_base, "int8_residual_both").sites
    found = {s.address.removeprefix(f"{layer}/") for s in sites if s.path.startswith(layer)}
    dense = [
        "attention/self/query",
        "attention/self/key",
        "attention/self/value",
        "attention/output/dense",
        "intermediate/dense",
        "output/dense",
    ]
    expected = {f"{d}:weight:kernel" for d in dense} | {f"{d}:linear_input:input" for d in dense}
    expected |= {f"attention/self:matmul_input:{port}" for port in ("q", "k", "v", "probabilities")}
    for addition in ("attention/output/dense", "output/dense"):
        expected |= {f"{addition}:residual:skip", f"{addition}:residual_other:other"}
    assert found == expected


def test_embeddings_layer_norms_biases_and_the_head_stay_float(bert_base):
    plan = planned(bert_base, "int8_residual_both")
    assert {s.role for s in plan.sites} == {
        "weight",
        "linear_input",
        "matmul_input",
        "residual",
        "residual_other",
        "model_output",
    }
    assert [(s.path, s.reason) for s in plan.skipped] == [
        ("cls/squad/output_weights", "no rule for role logits")
    ]


def test_the_only_model_output_is_the_last_layer_norm(bert_base):
    outputs = [s for s in planned(bert_base, "int8_residual").sites if s.role == "model_output"]
    assert [s.path for s in outputs] == [f"bert/encoder/layer_{LAYERS - 1}/output/LayerNorm"]


def test_weights_have_a_range_for_each_output_channel(bert_base):
    for site in planned(bert_base, "int8_residual").sites:
        if site.role == "weight":
            assert site.range_shape == site.shape[-1:]
        else:
            assert site.range_shape == ()


@pytest.mark.parametrize("recipe", ["ft2", "ft3", "trt"])
def test_query_key_and_value_form_one_group_of_kernels_of_products_and_of_operands(
    bert_base, recipe
):
    groups = {}
    for site in planned(bert_base, recipe).sites:
        if site.group:
            groups.setdefault(site.group, []).append(site)
    assert len(groups) == 3 * LAYERS
    assert all(len(members) == 3 for members in groups.values())


DISABLED = {
    "ft1": {"linear_output", "attention_scores", "residual", "residual_other", "model_output"},
    "ft2": {"residual_other", "attention_scores", "model_output"},
    "ft3": {"residual_other", "model_output"},
    "trt": {"linear_output", "attention_scores"},
}


@pytest.mark.parametrize("recipe", DISABLED)
def test_modes_disable_the_roles_of_the_reference(bert_base, recipe):
    plan = planned(bert_base, recipe)
    assert {s.role for s in plan.sites if not s.enabled} == DISABLED[recipe]
    assert not {s.role for s in plan.sites if s.enabled} & DISABLED[recipe]


@pytest.fixture(scope="module")
def ft2():
    case = models.own_bert(1)
    return case, tfquant.quantize(case.model, "ft2", calibration=case.batches, progress=False)


def test_calibrated_ft2_ranges_of_query_key_and_value_are_equal(ft2):
    case, model = ft2
    ranges = model.ranges()
    self = "bert/encoder/layer_0/attention/self"
    for addresses in (
        [f"{self}/{p}:weight:kernel" for p in ("query", "key", "value")],
        [f"{self}/{p}:linear_output:output" for p in ("query", "key", "value")],
        [f"{self}:matmul_input:{p}" for p in ("q", "k", "v")],
    ):
        assert len({(float(ranges[a][0]), float(ranges[a][1])) for a in addresses}) == 1
    kernels = {f"{self}/{p}/kernel" for p in ("query", "key", "value")}
    qkv = [v.numpy() for v in case.model.trainable_variables if v.path in kernels]
    assert float(ranges[f"{self}/key:weight:kernel"][1]) == max(np.abs(k).max() for k in qkv)


def test_disabled_sites_are_calibrated_but_their_range_has_no_effect(ft2):
    case, model = ft2
    batch = case.batches[0]
    before = model(batch)["start_logits"].numpy()
    quantizers = model.quantizers
    disabled = [s.address for s in model.plan.sites if not s.enabled]
    enabled = [s.address for s in model.plan.sites if s.enabled and s.role == "linear_output"]
    for address in disabled:
        assert np.isfinite(quantizers[address].lower.numpy()).all()
        quantizers[address].set_range(-1e-6, 1e-6)
    np.testing.assert_array_equal(model(batch)["start_logits"].numpy(), before)
    kept = model.ranges()[enabled[0]]
    quantizers[enabled[0]].set_range(-1e-6, 1e-6)
    assert (model(batch)["start_logits"].numpy() != before).any()
    quantizers[enabled[0]].set_range(*kept)


def addresses(case: models.Case, role: str) -> set[str]:
    edges = trace(source_of(case.model, case.batches[0])).analysis.roles.edges
    return {f"{e.path}:{e.port}" for e in edges if e.role == role}


@pytest.mark.representatives(
    "hub_bert*", "tf_keras*", "encoder_decoder*", "written*", "convolutional*", "subclassed*"
)
@pytest.mark.parametrize(
    ("name", "additions"),
    [
        (
            "hub_bert",
            [
                "transformer_layer_0/self_attention_layer/attention_output",
                "transformer_layer_0/feedforward_output_dense",
            ],
        ),
        ("functional", ["mha/attention_output", "down"]),
        ("mixed_bfloat16", ["mha/attention_output", "down"]),
        ("tf_keras_functional", ["mha/attention_output", "down"]),
        (
            "encoder_decoder",
            ["encoder/attention_output", "decoder/attention_output", "cross/attention_output"],
        ),
        ("written_out_attention", ["attention/wo"]),
        ("convolutional", ["depthwise"]),
        (
            "subclassed",
            [f"subclassed/block_0/{end}" for end in ("attention/attention_output", "down")],
        ),
    ],
)
def test_residual_additions_are_found_and_masks_and_biases_are_none(name, additions):
    case = models.build(name, "")
    assert addresses(case, "residual") == {f"{path}:skip" for path in additions}
    assert addresses(case, "residual_other") == {f"{path}:other" for path in additions}
    assert addresses(case, "residual_sum") == {f"{path}:output" for path in additions}


@pytest.mark.representatives("hub_roberta*", "tf_keras*", "subclassed*", "convolutional*")
@pytest.mark.parametrize(
    ("name", "norms"),
    [
        (
            "hub_roberta",
            [
                "embeddings_layer_norm",
                "transformer_layer_0/self_attention_layer_norm",
                "transformer_layer_0/feedforward_layer_norm",
            ],
        ),
        ("functional", ["norm1", "norm2"]),
        ("mixed_bfloat16", ["norm1", "norm2"]),
        ("tf_keras_functional", ["norm", "norm2"]),
        (
            "subclassed",
            ["subclassed/block_0/norm1", "subclassed/block_0/norm2", "subclassed/final_norm"],
        ),
        ("convolutional", []),
    ],
)
def test_layer_norms_are_found_however_they_are_computed(name, norms):
    case = models.build(name, "")
    assert addresses(case, "layernorm_input") == {f"{path}:input" for path in norms}
    assert addresses(case, "layernorm_output") == {f"{path}:output" for path in norms}


GAMMA, BETA = (tf.Variable(np.ones(8, np.float32), name=f"ln/{name}") for name in ("gamma", "beta"))
KERNEL = tf.Variable(np.ones((8, 8), np.float32), name="w/kernel")


def by_square_root(x, mean):
    return (
        GAMMA * (x - mean) / tf.sqrt(tf.reduce_mean((x - mean) ** 2, -1, keepdims=True) + 1e-6)
        + BETA
    )


def by_standard_deviation(x, mean):
    return GAMMA * (x - mean) / (tf.math.reduce_std(x, -1, keepdims=True) + 1e-6) + BETA


def by_moments(x, mean):
    return tf.nn.batch_normalization(x, *tf.nn.moments(x, -1, keepdims=True), BETA, GAMMA, 1e-6)


def by_mean_of_squares(x, mean):
    return (
        GAMMA
        * (x - mean)
        * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) - mean * mean + 1e-6)
        + BETA
    )


def by_root_mean_square(x, mean):
    return x * tf.math.rsqrt(tf.reduce_mean(tf.pow(x, 2), -1, keepdims=True) + 1e-6) * GAMMA


@pytest.mark.parametrize(
    "normalise",
    [by_square_root, by_standard_deviation, by_moments, by_mean_of_squares, by_root_mean_square],
)
def test_layer_norms_written_out_are_found_from_their_input_to_the_end_of_scale_and_shift(
    normalise,
):
    def network(x):
        h = x @ KERNEL
        return 3.0 * tf.nn.relu(normalise(h, tf.reduce_mean(h, -1, keepdims=True)))

    graph = trace(source_of(network, signature=tf.TensorSpec([None, 4, 8])))
    edges = {e.role: e for e in graph.analysis.roles.edges if e.role.startswith("layernorm")}
    assert {e.path for e in edges.values()} == {"ln"}
    assert edges["layernorm_input"].tensor.op.type in ("BatchMatMulV2", "Reshape")
    assert {op.type for op in edges["layernorm_output"].tensor.consumers()} == {"Relu"}


def test_a_root_mean_square_that_is_not_applied_is_no_layer_norm():
    def network(x):
        h = x @ KERNEL
        return h + tf.sqrt(tf.reduce_mean(h * h, -1, keepdims=True))

    graph = trace(source_of(network, signature=tf.TensorSpec([None, 4, 8])))
    assert not [e for e in graph.analysis.roles.edges if e.role.startswith("layernorm")]


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("functional", "norm2"),
        ("tf_keras_functional", "norm2"),
        ("subclassed", "subclassed/final_norm"),
        ("encoder_decoder", "cross_norm"),
    ],
)
def test_the_model_output_is_the_hidden_state_behind_the_last_block(name, output):
    assert addresses(models.build(name, ""), "model_output") == {f"{output}:output"}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("functional", ["up"]),
        ("hub_bert", ["transformer_layer_0/feedforward_intermediate_dense"]),
        ("sequential", ["sequential/first"]),
    ],
)
def test_activation_outputs_belong_to_the_layer_before(name, layers):
    assert addresses(models.build(name, ""), "activation_output") == {
        f"{path}:output" for path in layers
    }


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("own_bert", ["bert/embeddings:word_embeddings", "bert/embeddings:token_type_embeddings"]),
        ("hub_bert", ["token_embedding:embeddings", "segment_embedding:embeddings"]),
        ("tied_embeddings", ["embedding:embeddings"]),
    ],
)
def test_looked_up_tables_are_embeddings(name, tables):
    assert addresses(models.build(name, ""), "embedding") == set(tables)


def test_a_product_with_one_hot_rows_is_a_lookup_and_reported_if_no_rule_takes_it():
    table = tf.Variable(np.ones((5, 4), np.float32), name="types/table")
    kernel = tf.Variable(np.ones((4, 3), np.float32), name="dense/kernel")
    signature = (tf.TensorSpec([None, 7], tf.int32),)

    def network(ids):
        return tf.one_hot(ids, 5) @ table @ kernel

    plan = tfquant.plan(network, signature=signature)
    assert [s.path for s in plan.sites] == ["dense", "dense"]
    assert [(s.path, s.reason) for s in plan.skipped] == [("types", "no rule for role embedding")]
    everything = tfquant.Recipe((tfquant.Rule(tfquant.QuantSpec()),))
    assert tfquant.plan(network, everything, signature=signature).site(
        "types:embedding:table"
    ).shape == (5, 4)


def test_pooler_and_head_have_roles_of_their_own():
    assert addresses(models.build("hub_bert", ""), "pooler") == {
        "pooled_dense:input",
        "pooled_dense:kernel",
        "pooled_dense:output",
    }
    assert addresses(models.build("functional", ""), "logits") == {
        "head:input",
        "head:kernel",
        "head:output",
    }


def test_a_tied_table_has_one_range_for_both_of_its_uses():
    spec = tfquant.QuantSpec()
    recipe = tfquant.Recipe((tfquant.Rule(spec, ("weight", "embedding")),))
    case = models.tied_embeddings()
    site = tfquant.plan(case.model, recipe).site("embedding:embedding:embeddings")
    assert site.members == ("embedding/embeddings:weight:kernel", "embedding:embedding:embeddings")


class Attending(keras.layers.Layer):
    """softmax(x x^T) x with dropout of the probabilities, twice for the two ways dropout is
    written.
    """

    def __init__(self, mask):
        super().__init__(name="attending")
        self.mask = mask

    def build(self, shape):
        self.value = self.add_weight(
            name="kernel", shape=(shape[-1], shape[-1]), initializer="identity"
        )

    def call(self, x, training=False):
        p = tf.nn.softmax(tf.matmul(x, x, transpose_b=True) * 50.0)
        if training:
            mask = 2.0 * tf.cast(tf.random.uniform(tf.shape(p)) >= 0.5, p.dtype)
            p = p * mask if self.mask else tf.nn.dropout(p, 0.5)
        return tf.matmul(p, tf.matmul(x, self.value))


@pytest.mark.parametrize("mask", [False, True])
def test_probabilities_are_quantized_before_dropout_scales_them_up(mask):
    """Behind it the largest, which prediction sees as 1, would be clipped from 2 to 1 in
    training.
    """
    x = keras.Input((4, 4))
    model = keras.Model(x, Attending(mask)(x))
    batch = np.eye(4, dtype=np.float32)[None].repeat(64, 0)  # each token attends to itself alone
    quantized = tfquant.quantize(model, "int8_residual_float", calibration=[batch])
    trained = quantized(batch, training=True).numpy()
    kept = trained[:, np.arange(4), np.arange(4)]
    np.testing.assert_allclose(np.unique(kept.round(2)), [0.0, 2.0])
    edges = {site.address: edge for site, edge in engine_of(quantized).placements(True)}
    (probabilities,) = [
        edge for address, edge in edges.items() if address.endswith(":probabilities")
    ]
    assert probabilities.tensor.op.type == "Softmax"

"""The encoders beside BERT: their sites by role, the same in training and inference, and what tells
roles apart in them.
"""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tests.few import few
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import make_plan
from tfquant.graph.trace import trace

LAYERS, NETWORKS = 2, 3  # feed-forward networks of a MobileBERT layer
SIZES = dict(
    vocab_size=models.VOCAB,
    hidden_size=models.WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=models.HEADS,
    intermediate_size=models.INNER,
    max_position_embeddings=34,
    initializer_range=0.2,
    hidden_dropout_prob=0.1,
)
NARROW = dict(embedding_size=6, intra_bottleneck_size=8, num_feedforward_networks=NETWORKS)
CONFIGS = {
    "roberta": modeling.RobertaConfig(**SIZES),
    "distilbert": modeling.DistilBertConfig(**SIZES),
    "mobilebert": modeling.MobileBertConfig(**SIZES, **NARROW),
    "mobilebert_layer_norm": modeling.MobileBertConfig(
        **SIZES, **NARROW, normalization_type="layer_norm"
    ),
    "mobilebert_narrow_attention": modeling.MobileBertConfig(
        **SIZES, **NARROW, use_bottleneck_attention=True
    ),
}
ARCHITECTURES = list(CONFIGS)

# Of one layer, by hand: linears, additions, layer norms. A MobileBERT layer has one or two dense
# layers into the bottleneck, one out of it, four around the attention and two for each network;
# additions behind the attention, each network and the way out.
LINEARS = {
    "roberta": 6,
    "distilbert": 6,
    "mobilebert": 2 + 1 + 4 + 2 * NETWORKS,
    "mobilebert_layer_norm": 2 + 1 + 4 + 2 * NETWORKS,
    "mobilebert_narrow_attention": 1 + 1 + 4 + 2 * NETWORKS,
}
ADDITIONS = {
    name: 2 if config.model_type != "mobilebert" else 1 + NETWORKS + 1
    for name, config in CONFIGS.items()
}
NORMS = {
    "roberta": 2,
    "distilbert": 2,
    "mobilebert": 2 + ADDITIONS["mobilebert"],
    "mobilebert_layer_norm": 2 + ADDITIONS["mobilebert"],
    "mobilebert_narrow_attention": 1 + ADDITIONS["mobilebert"],
}


def classifier(name: str):
    return modeling.build_classifier(CONFIGS[name], 3, seed=0)


def batches() -> list[dict[str, np.ndarray]]:
    return models.tokens(("input_ids", "input_mask"), (4, 6), (5, 9), segments="segment_ids")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def traced(request):
    """(name, inference trace, training trace)"""
    source = source_of(classifier(request.param))
    return request.param, trace(source), trace(source, training=True)


def expected_sites(name: str) -> dict[str, int]:
    """Sites by role that an int8_residual recipe without sharing has."""
    outside = 1 if name.startswith("mobilebert") else 0  # the dense layer of the embeddings
    linears = LAYERS * LINEARS[name] + outside
    residuals = LAYERS * ADDITIONS[name]
    return {
        "weight": linears,
        "linear_input": linears,
        "matmul_input": 4 * LAYERS,
        "residual": residuals,
        "model_output": 1,
    }


@pytest.mark.representatives("roberta-*", "distilbert-*", "mobilebert-*")
@pytest.mark.parametrize("recipe", ["int8_residual", "trt"])
def test_sites_are_as_many_as_the_architecture_has_linears_products_and_additions(traced, recipe):
    name, inference, training = traced
    expected = expected_sites(name)
    if recipe == "trt":
        expected |= {
            "residual_other": expected["residual"],
            "linear_output": expected["weight"],
            "attention_scores": LAYERS,
        }
    unshared = dataclasses.replace(tfquant.recipe(recipe), share=False)
    for graph in (inference, training):
        plan = make_plan(graph, unshared)
        assert collections.Counter(site.role for site in plan.sites) == expected
        heads = {
            "mobilebert": "mobilebert/pooler/dense",
            "roberta": "classifier/dense",
            "distilbert": "pre_classifier/dense",
        }
        reasons = {s.path: s.reason for s in plan.skipped}
        head = heads[CONFIGS[name].model_type]
        assert reasons == {
            head: "no rule for role pooler",
            "output_weights": "no rule for role logits",
        }


def test_training_and_inference_traces_have_the_same_edges(traced):
    _, inference, training = traced
    found = [[e.address for e in graph.analysis.roles.edges] for graph in (inference, training)]
    assert sorted(found[0]) == sorted(found[1]) and len(set(found[0])) == len(found[0])


def test_norms_activations_and_the_last_hidden_state_are_found(traced):
    name, inference, _ = traced
    edges = inference.analysis.roles.edges
    by_role = collections.Counter(e.role for e in edges)
    assert by_role["layernorm_input"] == by_role["layernorm_output"] == LAYERS * NORMS[name] + 1
    networks = NETWORKS if name.startswith("mobilebert") else 1
    assert by_role["activation_output"] == LAYERS * networks + 1  # and that of the head
    last = "output/bottleneck" if name.startswith("mobilebert") else "output"
    (output,) = [e for e in edges if e.role == "model_output"]
    assert output.path == f"{CONFIGS[name].model_type}/encoder/layer_{LAYERS - 1}/{last}/LayerNorm"


def test_a_block_leaves_the_hidden_state_that_the_next_one_takes(traced):
    name, inference, training = traced
    scope = f"{CONFIGS[name].model_type}/encoder/layer_"
    last = "output/bottleneck" if name.startswith("mobilebert") else "output"
    states = [f"{scope}{i}/{last}/LayerNorm" for i in range(LAYERS)]
    if (
        name == "mobilebert_narrow_attention"
    ):  # all of the next attention lies in its bottleneck, and is added to what enters that
        states[0] = f"{scope}1/bottleneck/input/LayerNorm"
    expected = [
        (f"{scope}{i}/attention/self", f"{state}:layernorm_output:output")
        for i, state in enumerate(states)
    ]
    for graph in (inference, training):
        assert [(b.path, b.output) for b in graph.analysis.blocks] == expected


@pytest.mark.representatives("mobilebert-int8_residual")
@pytest.mark.parametrize("recipe", ["int8_residual", "trt"])
@pytest.mark.parametrize("name", few(["roberta", "distilbert", "mobilebert"], ("mobilebert",)))
def test_calibrated_model_stays_near_the_float_one_in_inference_and_trains(name, recipe):
    model = modeling.build_classifier(
        dataclasses.replace(CONFIGS[name], num_hidden_layers=1), 3, seed=0
    )
    data = batches()
    quantized = tfquant.quantize(model, recipe, calibration=data, progress=False)
    exact, got = (np.asarray(m(data[0], training=False)["logits"]) for m in (model, quantized))
    assert (got != exact).any()
    np.testing.assert_allclose(got, exact, atol=0.15 * np.abs(exact).max())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(data[0], training=True)["logits"] ** 2)
    kernels = [v for v in model.trainable_variables if v.path.endswith("kernel")]
    gradients = tape.gradient(loss, [v.value for v in kernels])
    assert all(g is not None and np.isfinite(g).all() and np.any(g) for g in gradients)


def roles(network, *shape: int) -> dict[str, list[str]]:
    """Paths of the edges of a function of one tensor, by role."""
    found = collections.defaultdict(list)
    for edge in trace(source_of(network, signature=tf.TensorSpec(shape))).analysis.roles.edges:
        found[edge.role].append(edge.path)
    return found


def variable(name: str, *shape: int) -> tf.Variable:
    return tf.Variable(np.ones(shape, np.float32), name=name)


A, B, C = (variable(f"{name}/kernel", 8, 8) for name in "abc")
SCALE, SHIFT = variable("norm/gamma", 8), variable("norm/beta", 8)


def test_a_projected_shortcut_is_a_residual_named_after_the_longer_way():
    found = roles(lambda x: tf.nn.relu(x @ A) @ B + x @ C, None, 8)
    assert found["residual"] == found["residual_other"] == ["b"]
    edges = trace(
        source_of(lambda x: x @ C + tf.nn.relu(x @ A) @ B, signature=tf.TensorSpec((None, 8)))
    ).analysis.roles.edges
    (skip,) = [e for e in edges if e.role == "residual"]
    assert skip.consumer[1] == 0  # the way through C, whichever side it stands on


def test_the_sum_of_two_linears_of_one_tensor_is_no_residual():
    assert not roles(lambda x: x @ A + x @ B, None, 8)["residual"]


def test_a_scale_and_shift_of_each_channel_is_a_norm_unless_it_is_computed():
    norms = roles(lambda x: tf.nn.relu((x @ A) * SCALE + SHIFT) @ B, None, 8)
    assert norms["layernorm_input"] == norms["layernorm_output"] == ["norm"]
    folded = roles(lambda x: tf.nn.relu((x @ A) * tf.math.rsqrt(SCALE + 1e-3) + SHIFT) @ B, None, 8)
    assert not folded["layernorm_input"]
    only_scaled = roles(lambda x: tf.nn.relu((x @ A) * SCALE) @ B, None, 8)
    assert not only_scaled["layernorm_input"]


def test_a_head_that_ends_in_a_sigmoid_has_logits_and_no_pooler():
    encoder = modeling.Bert(models.bert_config(1), pooler=False, seed=0)
    head = variable("score/kernel", models.WIDTH, 1)

    def probability(ids):
        return tf.sigmoid(encoder(ids, tf.ones_like(ids), tf.zeros_like(ids))[:, 0] @ head)

    edges = trace(
        source_of(probability, signature=tf.TensorSpec((None, 6), tf.int32))
    ).analysis.roles.edges
    assert {e.path for e in edges if e.role == "logits"} == {"score"}
    assert not [e for e in edges if e.role == "pooler"]

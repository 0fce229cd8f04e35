"""Attention is ONNX Runtime's own operation in files for it where it computes that and no site lies
inside, and nowhere else.
"""

import collections

import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tests.export.agreement import agreement_with
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export import MismatchError, divergence
from tfquant.export.onnx import writer
from tfquant.export.onnx.fusion import find_regions
from tfquant.export.request import ExportRequest
from tfquant.model import engine_of
from tfquant.runtimes import onnxruntime, open_file

FLOAT = tfquant.recipe("int8_residual_float")
FUSED, TARGET = "MultiHeadAttention", "onnxruntime"
HEADS = 2


def quantized(case: models.Case, recipe="cpu_onnxruntime"):
    return tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)


def nodes(path) -> list:
    return list(onnx.load(path).graph.node)


def count(path, kind: str = FUSED) -> int:
    return collections.Counter(node.op_type for node in nodes(path))[kind]


@pytest.fixture(scope="module")
def bert():
    return models.own_bert(layers=2)


@pytest.fixture(scope="module")
def model(bert):
    return quantized(bert)


# BERT.


@pytest.mark.parametrize("mode", few(["quantized", "float"], ["quantized"]))
def test_a_bert_answers_alike_with_fused_and_written_out_attention(tmp_path, bert, model, mode):
    fused, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    found = export(model, fused, target=TARGET, mode=mode, check_data=bert.batches)
    export(model, plain, mode=mode)
    assert (count(fused), count(fused, "Softmax"), count(fused, "MatMul")) == (2, 0, 13)
    assert (count(plain), count(plain, "Softmax"), count(plain, "MatMul")) == (0, 2, 17)
    assert str(found).count(f"{12 if mode == 'quantized' else 0} of 17 products in integers") == 1
    # Of other sizes than those of calibration, with padding.
    batches = models.tokens(("input_ids", "input_mask"), (1, 2), (5, 17), segments="segment_ids")
    for batch in batches:
        answers = [open_file(path)(batch) for path in (fused, plain)]
        for name, one in answers[1].items():
            assert (
                np.abs(answers[0][name] - one).max()
                <= (1e-5 if mode == "float" else 1e-4) * np.abs(one - one.mean()).mean()
            )
    agreement = agreement_with(
        model, onnxruntime.open_file(str(fused), as_written=True), batches, mode
    )
    assert agreement.mean < 2e-3 * agreement.spread and agreement.same == 1.0


def test_the_site_of_the_context_stands_behind_the_merged_heads(tmp_path, model):
    found = export(model, tmp_path / "model.onnx", target=TARGET)
    made = [node.output[0] for node in nodes(tmp_path / "model.onnx") if node.op_type == FUSED]
    rounding = {
        node.input[0]: node.output[0]
        for node in nodes(tmp_path / "model.onnx")
        if node.op_type == "QuantizeLinear"
    }
    contexts = [
        f"bert/encoder/layer_{i}/attention/output/dense:linear_input:input/codes" for i in range(2)
    ]
    assert [rounding.get(name) for name in made] == contexts
    assert found.sites[0] == len(rounding) == 8


# test_a_site_on_any_operand_keeps_its_attention_written_out stands for it.
@pytest.mark.long
def test_an_attention_with_a_site_inside_is_written_out(tmp_path, bert):
    model = quantized(bert, "int8_residual_asymmetric")
    export(model, tmp_path / "model.onnx", target=TARGET, check_data=bert.batches, tolerance=1.0)
    assert count(tmp_path / "model.onnx") == 0
    engine = engine_of(model)
    assert not [region for region in find_regions(engine, attention=True) if region.kind == FUSED]
    assert (
        len(
            [
                region
                for region in find_regions(engine, "float", attention=True)
                if region.kind == FUSED
            ]
        )
        == 2
    )


@pytest.mark.representatives("q", "probabilities")
@pytest.mark.parametrize("port", ["q", "k", "v", "probabilities"])
def test_a_site_on_any_operand_keeps_its_attention_written_out(bert, port):
    rule = tfquant.Rule(
        tfquant.QuantSpec("int8"), role="matmul_input", path="*/layer_0/*", port=port
    )
    model = tfquant.quantize(bert.model, tfquant.recipe("cpu_onnxruntime").with_rules(rule))
    (region,) = [
        region for region in find_regions(engine_of(model), attention=True) if region.kind == FUSED
    ]
    assert "layer_1" in region.target.name


def test_other_targets_hold_operations_of_onnx_alone(model):
    for signed in (False, True):
        built = writer.build(ExportRequest(engine_of(model), "quantized"), signed=signed)
        assert {entry.domain for entry in built.opset_import} <= {"", "ai.onnx.ml"}
        assert {node.domain for node in built.graph.node} == {""}


@pytest.mark.long
def test_every_opset_takes_it(tmp_path, bert, model):
    for opset in (17, 21):
        found = export(
            model, tmp_path / "model.onnx", target=TARGET, opset=opset, check_data=bert.batches
        )
        assert count(tmp_path / "model.onnx") == 2 and found.agreement.same == 1.0


# What is an attention, and what only looks like one.


def split(x: tf.Tensor) -> tf.Tensor:
    """[B, S, N * D] -> [B, N, S, D]"""
    sizes = tf.shape(x)
    return tf.transpose(
        tf.reshape(x, [sizes[0], sizes[1], HEADS, x.shape[-1] // HEADS]), [0, 2, 1, 3]
    )


def split_otherwise(x: tf.Tensor) -> tf.Tensor:
    """Head by head, not value by value."""
    sizes = tf.shape(x)
    return tf.transpose(
        tf.reshape(x, [sizes[0], sizes[1], x.shape[-1] // HEADS, HEADS]), [0, 3, 1, 2]
    )


def merge(x: tf.Tensor) -> tf.Tensor:
    x = tf.transpose(x, [0, 2, 1, 3])
    sizes = tf.shape(x)
    return tf.reshape(x, [sizes[0], sizes[1], x.shape[2] * x.shape[3]])


def scores_of(q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    return tf.matmul(split(q), split(k), transpose_b=True)


def context_of(scores: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    return merge(tf.matmul(tf.nn.softmax(scores), split(v)))


def by_einsum(q, k, v, bias):
    q, k, v = (
        tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), HEADS, x.shape[-1] // HEADS])
        for x in (q, k, v)
    )
    scores = tf.exp(tf.einsum("bqnh,bknh->bnqk", q, k) / 3.0 + bias)
    return tf.einsum("bnqk,bknh->bqnh", scores / tf.reduce_sum(scores, -1, keepdims=True), v)


ATTENTIONS = {
    "scaled behind": lambda q, k, v, bias: context_of(scores_of(q, k) * 0.5 + bias, v),
    "scaled before": lambda q, k, v, bias: context_of(bias + scores_of(0.3 * q, k), v),
    "not scaled": lambda q, k, v, bias: context_of(scores_of(q, k) + bias, v),
    "without a bias": lambda q, k, v, bias: context_of(scores_of(q, k) / 2.0, v),
    "key by query": lambda q, k, v, bias: context_of(
        tf.transpose(scores_of(k, q), [0, 1, 3, 2]) * 0.5 + bias, v
    ),
    "by einsum, softmax by hand": by_einsum,
}
LOOKING_LIKE_IT = {
    "bias scaled as well": lambda q, k, v, bias: context_of((scores_of(q, k) + bias) * 0.5, v),
    "bias multiplied": lambda q, k, v, bias: context_of(scores_of(q, k) * bias, v),
    "mask by selection": lambda q, k, v, bias: context_of(
        tf.where(bias > 0.0, scores_of(q, k), -1e9), v
    ),
    "two biases": lambda q, k, v, bias: context_of(scores_of(q, k) + bias + tf.square(bias), v),
    "scores squared": lambda q, k, v, bias: context_of(tf.square(scores_of(q, k)) + bias, v),
    "heads split otherwise": lambda q, k, v, bias: merge(
        tf.matmul(tf.nn.softmax(scores_of(q, k) + bias), split_otherwise(v))
    ),
    "probabilities cut off": lambda q, k, v, bias: merge(
        tf.matmul(tf.nn.relu(tf.nn.softmax(scores_of(q, k) + bias) - 0.1), split(v))
    ),
    "softmax of the queries": lambda q, k, v, bias: merge(
        tf.matmul(
            tf.transpose(
                tf.nn.softmax(tf.transpose(scores_of(q, k) + bias, [0, 1, 3, 2])), [0, 1, 3, 2]
            ),
            split(v),
        )
    ),
}


def network_of(function, bias_shape=(None, 1, 1, None)):
    """Of query, key and value, [B, S or T, 8]; values are 12 wide, and a product follows."""
    shapes = {"q": (None, None, 8), "k": (None, None, 8), "v": (None, None, 12), "bias": bias_shape}

    @tf.function(
        input_signature=[tf.TensorSpec(shape, name=name) for name, shape in shapes.items()]
    )
    def network(q, k, v, bias):
        context = function(q, k, v, bias) + 0.0 * tf.reduce_sum(
            bias
        )  # which is an input of all of them
        return tf.matmul(tf.reshape(context, [-1, 12]), tf.eye(12, 5))

    return network


OF_KEYS = (None, 1, 1, None)
WAYS = [(name, OF_KEYS) for name in ATTENTIONS] + [
    ("scaled behind", shape) for shape in ((1, HEADS, None, None), (1, None, None))
]


@pytest.mark.parametrize(("name", "bias_shape"), WAYS, ids=str)
def test_every_way_to_write_attention_is_found_and_answers_alike(tmp_path, name, bias_shape):
    network, path = network_of(ATTENTIONS[name], bias_shape), tmp_path / "model.onnx"
    export(tfquant.quantize(network, FLOAT), path, target=TARGET, mode="float")
    assert count(path) == 1 and count(path, "Softmax") == 0
    rng, (batch, queries, keys) = np.random.default_rng(0), (3, 4, 7)
    shapes = {"q": (batch, queries, 8), "k": (batch, keys, 8), "v": (batch, keys, 12)}
    shapes["bias"] = (
        (batch, 1, 1, keys) if bias_shape == OF_KEYS else (*bias_shape[:-2], queries, keys)
    )
    feed = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    np.testing.assert_allclose(open_file(path)(feed)["output"], network(*feed.values()), atol=1e-5)


@pytest.mark.parametrize("name", LOOKING_LIKE_IT)
def test_what_only_looks_like_attention_stays_as_it_is(name):
    model = tfquant.quantize(network_of(LOOKING_LIKE_IT[name]), FLOAT)
    assert FUSED not in [
        region.kind for region in find_regions(engine_of(model), "float", attention=True)
    ]


def test_probabilities_that_are_read_elsewhere_are_computed():
    def network(q, k, v, bias):
        probabilities = tf.nn.softmax(scores_of(q, k) + bias)
        return merge(tf.matmul(probabilities, split(v))) + tf.reduce_max(probabilities)

    model = tfquant.quantize(network_of(network), FLOAT)
    assert FUSED not in [
        region.kind for region in find_regions(engine_of(model), "float", attention=True)
    ]


# Models of others.


@pytest.mark.representatives("encoder_decoder-2")
@pytest.mark.parametrize(
    ("name", "fused"),
    few(
        [
            ("encoder_decoder", 2),
            ("written_out_attention", 1),
            ("subclassed", 1),
            ("functional", 0),
            ("hub_bert", 0),
        ],
        [("encoder_decoder", 2), ("written_out_attention", 1), ("functional", 0)],
    ),
)
def test_models_of_every_kind(tmp_path, name, fused):
    """Keras masks by selection, which is no bias: the decoder of one, and two whole models."""
    case = models.build(name, str(tmp_path))
    model = quantized(case)
    found = export(
        model, tmp_path / "model.onnx", target=TARGET, check_data=case.batches, tolerance=1.0
    )
    assert (
        count(tmp_path / "model.onnx") == fused
        and found.agreement.mean < 0.03 * found.agreement.spread
    )
    agreement = agreement_with(
        model, onnxruntime.open_file(str(tmp_path / "model.onnx"), as_written=True), case.batches
    )
    assert agreement.mean < 2e-3 * agreement.spread


# The comparison with the simulation.


def test_sites_around_a_fused_attention_are_compared_with_the_simulation(bert, model):
    order = ExportRequest(engine_of(model), "quantized")
    found = divergence.differences(order, "onnxruntime", bert.batches[1], fused_attention=True)
    assert [one.site for one in found] == [
        site.address for site in order.sites() if not site.is_weight
    ]
    assert all(one.mean < 1e-4 for one in found)


def test_a_fused_file_that_answers_otherwise_is_refused_with_the_first_site(
    tmp_path, bert, model, monkeypatch
):
    path, build = tmp_path / "model.onnx", writer.build

    def faulty(order, **options):
        proto = build(order, **options)
        for node in proto.graph.node:
            if node.op_type == FUSED and "layer_1" in node.name:
                next(a for a in node.attribute if a.name == "scale").f = -20.0
        return proto

    export(model, path, target=TARGET)
    assert tfquant.compare(model, path, bert.batches).same == 1.0
    monkeypatch.setattr(writer, "build", faulty)
    export(model, path, target=TARGET)
    with pytest.raises(
        MismatchError,
        match="they part at site bert/encoder/layer_1/attention/output/dense:linear_input:input",
    ):
        tfquant.compare(model, path, bert.batches, tolerance=0.0)

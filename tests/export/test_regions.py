"""Parts that ONNX has one operation for are found by what they compute, and only where no site lies
inside.
"""

import collections

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export.errors import ExportError
from tfquant.export.onnx.fusion import find_regions
from tfquant.model import engine_of

FLOAT = tfquant.recipe("int8_residual_float")


def regions_of(case: models.Case, recipe=FLOAT, mode: str = "quantized") -> list:
    return find_regions(
        engine_of(tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)),
        mode,
    )


def kinds(regions) -> dict[str, int]:
    return dict(collections.Counter(region.kind for region in regions))


def of_function(function, *shapes) -> list:
    """Regions of a function of float tensors; the recipe's rules have a product to match."""

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def network(*inputs):
        result = function(*inputs)
        return tf.matmul(tf.reshape(result, [-1, result.shape[-1]]), tf.eye(result.shape[-1], 2))

    batches = [
        tuple(
            np.random.default_rng(0).normal(size=[size or 3 for size in shape]).astype(np.float32)
            for shape in shapes
        )
    ]
    model = tfquant.quantize(network, FLOAT, calibration=batches, progress=False)
    return find_regions(engine_of(model))


@pytest.fixture(scope="module")
def bert():
    return models.own_bert()


def test_of_a_bert_every_layernorm_gelu_product_and_reshape(bert):
    # 7 products: query, key, value, the output of attention, both of the feed-forward part, the
    # answer's ends.
    assert kinds(regions_of(bert, "int8_residual_asymmetric")) == {
        "LayerNormalization": 3,
        "Gelu": 1,
        "MatMul": 7,
        "Reshape": 4,
    }


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3])
def test_parameters_of_a_layernorm_are_those_of_the_layer(epsilon):
    x = keras.Input((None, 9))
    layer = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")
    model = keras.Model(x, keras.layers.Dense(2)(layer(x)))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(1.0, 0.5, 9), rng.normal(0.0, 3.0, 9)])
    batch = rng.normal(size=(2, 5, 9)).astype(np.float32)
    found = find_regions(
        engine_of(tfquant.quantize(model, FLOAT, calibration=[batch], progress=False))
    )
    norm = next(region for region in found if region.kind == "LayerNormalization")
    gamma, beta = layer.get_weights()
    np.testing.assert_allclose(norm.parameters["scale"], gamma, atol=1e-6)
    np.testing.assert_array_equal(norm.parameters["bias"], beta)
    assert norm.attributes == {"axis": -1, "epsilon": pytest.approx(epsilon)}


def rms(x):
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-6)


def without_root(x):
    deviation = x - tf.reduce_mean(x, -1, keepdims=True)
    return deviation / (
        tf.sqrt(tf.reduce_mean(tf.square(deviation), -1, keepdims=True)) + 0.5
    )  # epsilon behind the root


def of_the_first_axis(x):
    deviation = x - tf.reduce_mean(x, 1, keepdims=True)
    return deviation * tf.math.rsqrt(tf.reduce_mean(tf.square(deviation), 1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("function", [rms, without_root, of_the_first_axis])
def test_what_only_looks_like_a_layernorm_stays_as_it_is(function):
    assert "LayerNormalization" not in kinds(of_function(function, (None, 8, 8)))


@pytest.mark.parametrize(
    ("function", "approximate"),
    [
        (lambda x: tf.nn.gelu(x, approximate=False), "none"),
        (lambda x: tf.nn.gelu(x, approximate=True), "tanh"),
        (lambda x: 0.5 * x * tf.math.erfc(-x * 2.0**-0.5), "none"),
        (lambda x: x * tf.sigmoid(1.702 * x), None),
        (lambda x: x * tf.tanh(tf.nn.softplus(x)), None),
        (lambda x: 0.5 * x * (1.0 + tf.math.erf(x)), None),
        (tf.tanh, None),
    ],
)
def test_gelu_is_told_from_its_likes(function, approximate):
    gelus = [region for region in of_function(function, (None, 32)) if region.kind == "Gelu"]
    assert [region.attributes["approximate"] for region in gelus] == (
        [approximate] if approximate else []
    )


def test_a_site_inside_keeps_a_part_from_being_one_operation():
    x = keras.Input((None, 8))
    model = keras.Model(x, keras.layers.Dense(4, use_bias=False)(x))
    batch = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    recipe = FLOAT.with_rules(
        tfquant.Rule(tfquant.QuantSpec("int8"), role="linear_output")
    )  # lies between product and reshape
    quantized = {
        r: tfquant.quantize(model, r, calibration=[batch], progress=False) for r in (FLOAT, recipe)
    }
    assert kinds(find_regions(engine_of(quantized[FLOAT]))) == {"MatMul": 1}
    assert "MatMul" not in kinds(find_regions(engine_of(quantized[recipe])))
    assert kinds(find_regions(engine_of(quantized[recipe]), "float")) == {"MatMul": 1}


def test_a_reshape_that_mixes_open_sizes_is_left_alone():
    def keeping(x):
        return tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1], 2, 4])

    def mixing(x):
        return tf.reshape(x, [tf.shape(x)[1], tf.shape(x)[0], 2, 4])

    (region,) = [r for r in of_function(keeping, (None, None, 8)) if r.target.shape.rank == 4]
    assert region.parameters["shape"].tolist() == [0, 0, 2, 4]
    assert not [r for r in of_function(mixing, (None, None, 8)) if r.target.shape.rank == 4]


@pytest.mark.representatives("per_channel")
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_products_over_several_axes_become_products_of_matrices(tmp_path, granularity):
    case = models.functional()  # heads are axes of the kernels: abc,cde->abde and abcd,cde->abe
    recipe = FLOAT.with_spec(roles=["weight"], granularity=granularity)
    model, path = (
        tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False),
        tmp_path / "model.onnx",
    )
    assert export(model, path, check_data=case.batches).agreement.same == 1.0
    graph = onnx.load(path).graph
    stored = {t.name: list(t.dims) for t in graph.initializer}
    assert stored["mha/query:weight:kernel/codes"] == [16, 16] and stored[
        "mha/attention_output:weight:kernel/codes"
    ] == [16, 16]
    assert stored["mha/query:weight:kernel/scale"] == ([16] if granularity == "per_channel" else [])
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert (
        sum(node.op_type == "MatMul" and node.input[1] in dequantized for node in graph.node) == 6
    )


@pytest.mark.representatives("20-1")
@pytest.mark.parametrize(("opset", "gelus"), [(17, 0), (20, 1)])
def test_single_operations_in_the_file(tmp_path, bert, opset, gelus):
    model, path = (
        tfquant.quantize(bert.model, FLOAT, calibration=bert.batches, progress=False),
        tmp_path / "model.onnx",
    )
    export(model, path, opset=opset, check_data=bert.batches, tolerance=1.0)
    found = collections.Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (found["LayerNormalization"], found["Gelu"], found["Erf"], found["Reshape"]) == (
        3,
        gelus,
        1 - gelus,
        4,
    )
    assert not any(
        found[kind] for kind in ("ReduceMean", "GlobalAveragePool", "Sqrt", "ReduceProd")
    )


# tests/export/test_onnx.py and its neighbours have networks in float.
@pytest.mark.long
def test_the_float_network_is_written_too(tmp_path, bert):
    model, path = tfquant.quantize(bert.model, FLOAT), tmp_path / "float.onnx"  # no range is needed
    found = export(model, path, mode="float", check_data=bert.batches)
    assert found.sites == (0, 0) and found.agreement.largest < 1e-5
    assert not [node for node in onnx.load(path).graph.node if "Quantize" in node.op_type]


OF_THE_POOL = (
    "hub_bert subclassed tf_keras_functional encoder_decoder convolutional called_twice"
    " tied_embeddings nested loop saved_model"
)


@pytest.mark.filterwarnings("ignore:.*quantized products in integers")  # of convolutions
@pytest.mark.representatives("subclassed")
@pytest.mark.parametrize("name", few(OF_THE_POOL.split()))
def test_models_of_every_kind(tmp_path, name):
    case = models.build(name, str(tmp_path))
    model = tfquant.quantize(case.model, FLOAT, calibration=case.batches, progress=False)
    found = export(model, tmp_path / "model.onnx", check_data=case.batches, tolerance=1.0)
    assert found.agreement.mean < 0.03 * found.agreement.spread and sum(found.sites) == len(
        model.plan.sites
    )


def test_a_network_in_bfloat16_is_refused_with_the_way_out(tmp_path):
    case = models.mixed_bfloat16()
    model = tfquant.quantize(case.model, FLOAT, calibration=case.batches, progress=False)
    with pytest.raises(ExportError, match="computes in bfloat16.*build it in float32"):
        export(model, tmp_path / "model.onnx")

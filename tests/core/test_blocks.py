"""Blocks that share a scale (microscaling) against a plain loop in NumPy."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule, blocks
from tfquant.graph.plan import RecipeError

# Name -> (type of an element, exponent of its largest value, its largest value).
MICROSCALING = {
    "mxfp8": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
    "mxfp6": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4, 28.0),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxint8": (None, 6, 127.0),
}


def by_loop(x, name, size, axis):
    dtype, exponent, limit = MICROSCALING[name]
    x = np.moveaxis(x, axis, -1).astype(np.float32)
    result = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], size):
            block = x[index][start : start + size]
            largest = np.abs(block[np.isfinite(block)]).max(initial=0)
            scale = np.float32(1)
            if largest:
                scale = np.float32(2.0 ** (np.floor(np.log2(float(largest))) - exponent))
            units = np.clip(block / scale, -limit, limit)
            codes = np.rint(units) if dtype is None else units.astype(dtype).astype(np.float32)
            result[index][start : start + size] = codes * scale
    return np.moveaxis(result, -1, axis)


def numbers(*shape):
    rng = np.random.default_rng(1)
    spread = np.exp2(rng.integers(-20, 20, shape))
    return (rng.standard_normal(shape) * spread).astype(np.float32)


@pytest.mark.parametrize("name", MICROSCALING)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_every_block_has_the_power_of_two_of_its_largest_number(name, axis):
    x = numbers(40, 7, 64)
    x[0, :, :32] = 0.0
    spec = QuantSpec(name)
    result = blocks.quantize_dequantize(tf.constant(x), spec, axis).numpy()
    np.testing.assert_array_equal(result, by_loop(x, name, 32, axis))


@pytest.mark.parametrize("compiled", [False, True])
def test_sizes_that_are_known_late_and_short_last_blocks(compiled):
    x, spec = numbers(3, 50, 70), QuantSpec("mxfp6", block_size=16)
    signature = [tf.TensorSpec([None, None, 70], tf.float32)]
    for axis in (1, 2):
        function = tf.function(
            lambda x, axis=axis: blocks.quantize_dequantize(x, spec, axis, compiled=compiled),
            input_signature=signature,
        )
        np.testing.assert_array_equal(function(x).numpy(), by_loop(x, "mxfp6", 16, axis))


def test_infinite_numbers_saturate_and_nan_stays_alone():
    x = np.float32([[1.0, -3.0, np.inf, -np.inf], [0.5, np.nan, 2.0, 0.0]])
    result = blocks.quantize_dequantize(tf.constant(x), QuantSpec("mxfp4", block_size=4), 1)
    np.testing.assert_array_equal(result, [[1, -3, 3, -3], [0.5, np.nan, 2, 0]])


@pytest.mark.parametrize("format", ["int4", "e2m1", "nf4_6"])
@pytest.mark.parametrize("scale_format", ["float32", "e5m3", "power_of_two"])
def test_scales_of_other_formats(format, scale_format):
    x = np.abs(numbers(6, 32)) + 1e-3
    spec = QuantSpec(format, "per_block", block_size=8, dynamic=True, scale_format=scale_format)
    _, scales = blocks.scaled_blocks(tf.constant(x), spec, 1)
    exact = x.reshape(6, 4, 8).max(-1) / spec.codebook.quant_max
    found = scales.numpy().reshape(6, 4)
    if scale_format == "float32":
        np.testing.assert_allclose(found, exact, rtol=2e-7)
    elif scale_format == "power_of_two":
        np.testing.assert_array_equal(found, np.exp2(np.ceil(np.log2(exact))))
    else:
        inside = np.clip(exact, 2.0**-17, 61440)
        spacing = np.exp2(np.maximum(np.floor(np.log2(inside)), -14) - 3)
        np.testing.assert_array_equal(found, np.rint(inside / spacing) * spacing)
    levels = {"int4": np.arange(-7, 8), "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6]}
    if format in levels:
        result = blocks.quantize_dequantize(tf.constant(x), spec, 1).numpy().reshape(6, 4, 8)
        units = result / found[..., None]
        distance = np.abs(units[..., None] - np.asarray(levels[format], np.float32)).min(-1)
        assert distance.max() < 1e-5


@pytest.fixture(scope="module")
def bert(tiny_bert_config):
    import modeling

    return modeling.build_squad_model(tiny_bert_config)


def blocks_of(*roles, **fields):
    return Recipe((Rule(QuantSpec("mxfp8", **({"block_size": 4} | fields)), role=roles),))


def test_blocks_lie_along_the_axis_that_a_product_sums_over(bert):
    plan = tfquant.plan(bert, blocks_of("weight", "linear_input", "matmul_input", "embedding"))
    axes = {}
    for site in plan.sites:
        axes.setdefault(site.role if site.role != "matmul_input" else site.port, set()).add(
            (len(site.shape), site.block_axis + len(site.shape))
        )
    assert axes["weight"] == {(2, 0)} and axes["embedding"] == {(2, 1)}
    assert axes["linear_input"] <= {(3, 2), (4, 3)}
    assert axes["q"] == axes["k"] == {(3, 2)} and axes["probabilities"] == {(4, 3)}
    assert axes["v"] == {(3, 1)}  # tokens


def test_a_network_with_blocks_computes_what_the_loop_does(make_two_dense):
    model = make_two_dense()
    quantized = tfquant.quantize(model, blocks_of("weight", "linear_input"))
    x = numbers(3, 6)
    (w1, w2) = (model.get_layer(name).kernel.numpy() for name in ("first", "second"))
    hidden = by_loop(x, "mxfp8", 4, 1) @ by_loop(w1, "mxfp8", 4, 0)
    expected = by_loop(np.maximum(hidden, 0), "mxfp8", 4, 1) @ by_loop(w2, "mxfp8", 4, 0)
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(x, training=True))
    gradient = tape.gradient(loss, model.get_layer("second").kernel.value)
    inputs = by_loop(np.maximum(hidden, 0), "mxfp8", 4, 1)
    np.testing.assert_allclose(gradient, inputs.T @ np.ones((3, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"block_axis": 3}, r"blocks along axis 3 at .*has shape .*set block_axis to -2 \.\.\. 1"),
        ({"block_axis": 0}, "of which rows are looked up: leave block_axis out"),
    ],
)
def test_an_axis_that_does_not_fit_is_refused(bert, fields, said):
    with pytest.raises(RecipeError, match=said):
        tfquant.plan(bert, blocks_of("embedding", **fields))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"granularity": "per_block", "dynamic": True}, "per_block needs block_size, at least 2"),
        ({"granularity": "per_block", "block_size": 32}, "set dynamic: true, got source 'stored'"),
        ({"block_size": 32}, "block_size belongs to granularity per_block"),
        ({"format": "mxfp4", "block_size": 1}, "at least 2 elements, got 1"),
        ({"format": "mxfp4", "scale_format": "e4m3"}, "unknown scale_format 'e4m3'; known"),
        ({"format": "mxfp4", "symmetric": False}, "has no zero point: set symmetric: true"),
        ({"source": "delayed", "history": 0}, "history must be at least 1 step, got 0"),
        ({"history": 3}, "history belongs to source: delayed"),
        ({"source": "delayed", "update": "lsq"}, "has no range to train"),
        ({"source": "none", "method": "mse"}, "its method must be max"),
        ({"source": "later"}, "unknown source 'later'; known: stored, dynamic, delayed, none"),
        ({"dynamic": True, "source": "none"}, "exclude each other"),
        ({"format": "e4m3", "quant_max": 500}, "lies above the largest value"),
        ({"quant_max": 64}, "maps the largest magnitude to 127: leave out quant_max"),
        ({"ste": "identity", "update": "lsq"}, "set ste to inclusive or strict"),
    ],
)
def test_specs_that_contradict_themselves_are_refused_in_one_line(fields, said):
    with pytest.raises(ValueError, match=said) as error:
        QuantSpec(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*MICROSCALING, "int8", "e4m3"])
def test_specs_survive_files(name):
    for spec in (
        QuantSpec(name),
        QuantSpec(name, source="delayed", history=7, granularity="per_tensor", block_size=None)
        if name not in MICROSCALING
        else QuantSpec(name, block_axis=0),
    ):
        assert QuantSpec.from_dict(spec.to_dict()) == spec

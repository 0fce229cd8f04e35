"""Floating point formats against `ml_dtypes`.

Every code, every bfloat16, ties, ranges, and models.
"""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import calib
import tfquant
from tfquant import formats, kernels, qdq
from tfquant.gradients import Gradient
from tfquant.scale import LARGEST_AMAX, Scale

# The oracle table: a format is a row.
ORACLES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e3m4_ieee": ml_dtypes.float8_e3m4,
}
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")


@pytest.fixture(params=ORACLES)
def name(request) -> str:
    return request.param


def book(name: str) -> calib.ScaledCodebook:
    return formats.get(name).codebook(Scale())


def nearest(x: np.ndarray, name: str) -> np.ndarray:
    """The oracle's rounding, saturating; NaN stays NaN, which not every type has."""
    limit = float(ml_dtypes.finfo(ORACLES[name]).max)
    return np.where(
        np.isnan(x), x, np.clip(x, -limit, limit).astype(ORACLES[name]).astype(np.float32)
    )


def reference(x: np.ndarray, amax: np.ndarray | float, name: str) -> np.ndarray:
    """QDQ by the oracle; `amax` broadcasts."""
    limit = np.float32(ml_dtypes.finfo(ORACLES[name]).max)
    scale = np.asarray(amax, np.float32) * (np.float32(1) / limit)
    return nearest(x / scale, name) * scale


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    """By plain operations, in units of the scale."""
    return formats.get(name).rounded(tf.constant(x), tf.constant(1.0)).numpy()


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    """All but the bits of NaN."""
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.int32), wanted[~nan].view(np.int32))


def values(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def test_every_code_has_its_value_and_every_value_its_code(name):
    format, codes = formats.get(name), np.arange(2 ** formats.get(name).bits)
    wanted = codes.astype(np.uint8).view(ORACLES[name]).astype(np.float32)
    finite = np.isfinite(wanted)
    assert_same_bits(format.decode(codes, book(name))[finite], wanted[finite])
    np.testing.assert_array_equal(format.encode(wanted[finite], book(name)), codes[finite])
    assert np.isnan(format.decode(codes[~finite], book(name))).all()
    assert book(name).limit == book(name).quant_max == wanted[finite].max()


def test_every_bfloat16_is_rounded_as_by_ml_dtypes_and_saturates(name):
    x = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    wanted = nearest(x, name)
    assert_same_bits(rounded(x, name), wanted)
    assert_same_bits(
        kernels.CompiledKernel(formats.get(name).rounded)(tf.constant(x), tf.constant(1.0)).numpy(),
        wanted,
    )
    number, limit = ~np.isnan(wanted), np.float32(book(name).limit)
    np.testing.assert_array_equal(book(name).quantize(x[number], -limit, limit), wanted[number])


def test_neighbours_of_every_threshold_are_rounded_once(name):
    """bfloat16 holds no number next to a tie: these are float32."""
    levels = np.array(book(name).levels, np.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    sides = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([middles, *sides, values(10_000), values(10_000) * np.float32(1e-3)])
    assert_same_bits(rounded(x, name), nearest(x, name))


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 2)])
@pytest.mark.parametrize("compiled", [True, False])
def test_qdq_is_the_oracle_in_units_of_the_scale_eager_and_in_graphs_of_open_size(
    name, axes, compiled
):
    x = values((6, 130, 40))
    amax = np.abs(x).max(tuple(axis for axis in range(3) if axis not in axes)) * np.float32(0.7)
    wanted = reference(
        x, amax.reshape([n if axis in axes else 1 for axis, n in enumerate(x.shape)]), name
    )

    def apply(x):
        return qdq.quantize_dequantize(x, -amax, amax, book(name), axes, compiled=compiled)

    assert_same_bits(apply(tf.constant(x)).numpy(), wanted)
    open_shape = [size if axis in axes else None for axis, size in enumerate(x.shape)]
    graph = tf.function(apply, autograph=False, input_signature=[tf.TensorSpec(open_shape)])
    assert graph.get_concrete_function().outputs[0].shape.as_list() == open_shape
    assert_same_bits(graph(x).numpy(), wanted)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_other_types_are_float32_arithmetic_and_one_cast(name, dtype):
    x = tf.cast(values((40, 3)), dtype)
    y = qdq.quantize_dequantize(x, -2.0, 2.0, book(name))
    assert y.dtype == dtype
    wanted = tf.cast(reference(tf.cast(x, tf.float32).numpy(), 2.0, name), dtype)
    np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(wanted, tf.float32))


def test_nan_stays_nan_infinity_saturates_and_a_range_of_zero_gives_zeros(name):
    x = tf.constant([np.nan, np.inf, -np.inf, 0.0])
    np.testing.assert_allclose(
        qdq.quantize_dequantize(x, -2.0, 2.0, book(name)), [np.nan, 2, -2, 0], rtol=1e-6
    )
    zeros = qdq.quantize_dequantize(tf.constant([0.0, 1.0, -1e30]), 0.0, 0.0, book(name)).numpy()
    assert np.isfinite(zeros).all() and abs(zeros).max() < 1e-29
    large = qdq.quantize_dequantize(
        tf.constant([LARGEST_AMAX, -3e38]), -LARGEST_AMAX, LARGEST_AMAX, book(name)
    )
    np.testing.assert_allclose(large, [LARGEST_AMAX, -LARGEST_AMAX], rtol=1e-6)


@pytest.mark.parametrize("axes", [(), (1,)])
@pytest.mark.parametrize(("ste", "ends"), [("inclusive", 1.0), ("strict", 0.0)])
def test_the_gradient_passes_inside_the_range_and_nowhere_else(name, axes, ste, ends):
    x = tf.constant([[-5.0, -2.0, -0.001, 0.0], [0.3, 1.999, 2.0, 2.001]])
    amax = tf.fill([4], 2.0) if axes else tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = qdq.quantize_dequantize(x, -amax, amax, book(name), axes, gradient=Gradient(ste))
    np.testing.assert_array_equal(tape.gradient(y, x), [[0, ends, 1, 1], [1, 1, ends, 0]])


@pytest.mark.parametrize("gradient", ["rounding", "clipping"])
def test_the_gradient_of_the_range_is_its_closed_form(name, gradient):
    x, dy, amax = values((40, 5)), values((40, 5), seed=1), tf.Variable(1.7)
    with tf.GradientTape() as tape:
        y = qdq.quantize_dequantize(
            tf.constant(x), -amax, amax, book(name), range_gradient=gradient
        )
        loss = tf.reduce_sum(y * dy)
    level = reference(x, 1.7, name).astype(np.float64) / np.float64(
        np.float32(1.7)
    )  # shares of amax
    moved = level - x / np.float64(np.float32(1.7)) if gradient == "rounding" else 0.0
    wanted = (dy * np.where(np.abs(x) <= np.float32(1.7), moved, level)).sum()
    np.testing.assert_allclose(tape.gradient(loss, amax), wanted, rtol=1e-4)


def test_sizes_that_are_compiled_for_are_few_and_cover_all():
    sizes = np.arange(1, 5000)
    found = kernels.compiled_size(tf.constant(sizes, tf.int32)).numpy()
    assert (found >= sizes).all() and (found < sizes * 1.13 + 1).all()
    assert len(np.unique(found[sizes >= 1024])) <= 8 * np.log2(5) + 1
    np.testing.assert_array_equal(
        kernels.compiled_size(tf.constant([8 * 384 * 1536, 2**24 + 1])),
        [8 * 384 * 1536, 2**24 + 2**21],
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"symmetric": False}, "is for symmetric: true"),
        ({"narrow_range": False}, "is for narrow_range: true"),
        ({"unsigned": True}, "has a sign: set unsigned: false"),
    ],
)
def test_what_a_format_with_a_sign_and_no_zero_point_cannot_be_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=f"number format '{name}' {message}"):
        tfquant.QuantSpec(name, **fields)


def test_entropy_which_takes_uniform_codes_is_refused_when_the_spec_is_built(name):
    message = f"'entropy' needs codes .* those of {name}"
    with pytest.raises(calib.CalibrationError, match=message):
        tfquant.QuantSpec(name, method="entropy")
    with pytest.raises(calib.CalibrationError, match=message):
        recipe_of(name).with_method("entropy", roles=["linear_input"])
    with pytest.raises(calib.CalibrationError, match=message):
        recipe_of("int8").with_method("entropy").with_spec(roles=["*"], format=name)
    data = recipe_of(name).to_dict()
    data["rules"][1]["spec"]["method"] = {"name": "entropy"}
    with pytest.raises(ValueError, match=f"rule 'linear_input': .*{message}"):
        tfquant.Recipe.from_dict(data)


def recipe_of(name: str, **changes) -> tfquant.Recipe:
    return tfquant.Recipe(
        (
            tfquant.Rule(tfquant.QuantSpec(name, granularity="per_channel", **changes), "weight"),
            tfquant.Rule(tfquant.QuantSpec(name, unsigned="auto", **changes), "linear_input"),
        ),
        name=f"{name} everywhere",
    )


def layers_by_hand(model: keras.Model, x: np.ndarray, ranges: dict, name: str) -> np.ndarray:
    """The two dense layers with operands rounded by the oracle."""
    for layer, activation in (("first", lambda v: np.maximum(v, 0)), ("second", lambda v: v)):
        kernel, bias = (np.asarray(weight) for weight in model.get_layer(layer).weights)
        amax = {
            role: ranges[address][1]
            for address in ranges
            for role in [address.split(":")[1]]
            if layer in address
        }
        x = reference(x, amax["linear_input"], name)
        x = activation(x @ reference(kernel, amax["weight"], name) + bias)
    return x


@pytest.mark.representatives("e4m3-mse", "e5m2-percentile", "e3m2-max")
@pytest.mark.parametrize("method", ["max", "mse", "percentile"])
def test_a_calibrated_model_computes_with_the_oracles_weights_and_activations(
    make_two_dense, name, method
):
    model, x = make_two_dense(), values((200, 6))
    quantized = tfquant.quantize(
        model, recipe_of(name).with_method(method, roles=["*"]), [x], progress=False
    )
    np.testing.assert_allclose(
        quantized(x), layers_by_hand(model, x, quantized.ranges(), name), rtol=1e-4, atol=1e-5
    )


def test_dynamic_ranges_follow_the_tensor_at_hand(make_two_dense, name):
    recipe = recipe_of(name).with_spec(
        roles=["linear_input"], dynamic=True, granularity="per_token"
    )
    model, x = make_two_dense(), values((4, 6))
    quantized = tfquant.quantize(model, recipe, [x], progress=False)
    rows = [quantized(row[None]).numpy() for row in x]
    np.testing.assert_allclose(quantized(x), np.concatenate(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.representatives("e4m3-lsq", "e5m2-moving_average")
@pytest.mark.parametrize("update", ["lsq", "pact", "moving_average"])
def test_training_moves_ranges_and_a_checkpoint_brings_them_back(
    make_two_dense, tmp_path, name, update
):
    model, x = make_two_dense(), values((64, 6))
    quantized = tfquant.quantize(model, recipe_of(name, update=update), [x], progress=False)
    quantized.compile(keras.optimizers.SGD(0.01), "mse")
    before = {address: ends[1].copy() for address, ends in quantized.ranges().items()}
    losses = quantized.fit(x, values((64, 3), seed=2), epochs=4, batch_size=16, verbose=0).history[
        "loss"
    ]
    assert losses[-1] < losses[0]
    assert any((before[address] != ends[1]).any() for address, ends in quantized.ranges().items())
    tfquant.save(quantized, tmp_path / "model.ckpt")
    again = tfquant.load(tmp_path / "model.ckpt", make_two_dense(seed=5))
    np.testing.assert_array_equal(again(x), quantized(x))
    assert again.recipe == quantized.recipe


@pytest.mark.representatives("e4m3")
def test_a_calibration_file_keeps_the_format_and_fits_no_other(make_two_dense, tmp_path, name):
    model, x = make_two_dense(), values((50, 6))
    quantized = tfquant.quantize(model, recipe_of(name), [x], progress=False)
    calibration = tfquant.calibrate(quantized, [x], progress=False)
    calibration.save(tmp_path / "ranges.npz")
    again = tfquant.quantize(
        model, recipe_of(name), calib.Calibration.load(tmp_path / "ranges.npz")
    )
    np.testing.assert_array_equal(again(x), quantized(x))
    with pytest.raises(
        ValueError, match=f"the calibration is for codes {name}, the recipe wants codes -127..127"
    ):
        tfquant.quantize(model, recipe_of("int8"), calibration)

"""A checkpoint that does not fit, is damaged or holds NaN leaves the model as it was, with one line
that names what.
"""

import keras
import numpy as np
import pytest

import calib
import tfquant
from tfquant import checkpoint
from tfquant.model import engine_of

ROWS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
KERNEL, RANGES = "scores/kernel", "tfquant/ranges/scores:linear_input:input/"


def build(seed=0):
    keras.utils.set_random_seed(seed)
    x = keras.Input([6], name="features")
    return keras.Model(x, keras.layers.Dense(3, name="scores")(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> value of a calibrated checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    tfquant.save(
        tfquant.quantize(build(), "int8_residual_float", [ROWS], progress=False),
        folder / "model.ckpt",
    )
    return dict(checkpoint.read(folder / "model.ckpt"))


def spoiled(value, number):
    value = np.array(value)
    value.reshape(-1)[-1] = number
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {KERNEL: spoiled(s[KERNEL], np.nan)}, "scores/kernel holds NaN or Inf"),
        (lambda s: {KERNEL: spoiled(s[KERNEL], -np.inf)}, "scores/kernel holds NaN or Inf"),
        (
            lambda s: {"scores/bias": spoiled(s["scores/bias"], np.nan)},
            "scores/bias holds NaN or Inf",
        ),
        (lambda s: {KERNEL: np.full([6, 3], "x")}, "scores/kernel is of type string"),
        (lambda s: {KERNEL: np.ones([6, 3], np.int32)}, "scores/kernel is of type int32"),
        (lambda s: {KERNEL: np.ones([3, 6], np.float32)}, "shapes differ"),
        (lambda s: {RANGES + "upper": np.float32(np.inf)}, "upper is NaN or infinite"),
        (lambda s: {RANGES + "lower": np.float32(-np.inf)}, "lower is NaN or infinite"),
        (
            lambda s: {RANGES + "lower": np.float32(9.0), RANGES + "upper": np.float32(1.0)},
            "lies above the upper end",
        ),
        (lambda s: {RANGES + "upper": np.ones([7], np.float32)}, "range has shape"),
        (lambda s: {RANGES + "upper": None}, "holds no tfquant/ranges/.*upper"),
        (lambda s: {"tfquant/recipe": "[" * 100_000}, "tfquant/recipe: .*nested deeper"),
        (lambda s: {"tfquant/recipe": "[]"}, "tfquant/recipe is damaged"),
        (lambda s: {"tfquant/recipe": np.ones(3)}, "tfquant/recipe is damaged"),
        (lambda s: {"tfquant/sites": "{}"}, "tfquant/sites is damaged"),
        (lambda s: {"tfquant/sites": "[1, 2]"}, "tfquant/sites is damaged"),
        (lambda s: {"tfquant/sites": '[["a\\u001b[31m", []]]'}, "tfquant/sites is damaged"),
        (lambda s: {"tfquant/sites": '[["a\\u001b[31m:weight:kernel", []]]'}, "sites differ"),
        (lambda s: {"tfquant/weights": '["a\\u001b[31m"]'}, r"Left over: \['a\\x1b"),
        (lambda s: {"tfquant/weights": "7"}, "tfquant/weights is damaged"),
        (lambda s: {"tfquant/weights": None}, "holds weights but no recipe"),
    ],
)
def test_what_is_wrong_in_a_checkpoint_is_named_and_nothing_is_loaded(
    saved, tmp_path, change, message
):
    changed = {
        name: value for name, value in {**saved, **change(saved)}.items() if value is not None
    }
    checkpoint.write(tmp_path / "model.ckpt", changed)
    model = build(seed=1)
    before = [variable.numpy() for variable in model.weights]
    with pytest.raises(ValueError, match=message) as caught:
        tfquant.load(tmp_path / "model.ckpt", model)
    assert "model.ckpt" in str(caught.value) or "site scores" in str(caught.value)
    assert str(caught.value).isprintable()
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_a_calibration_file_with_a_range_that_is_not_finite_is_refused_and_changes_nothing(
    tmp_path, number, end
):
    quantized = tfquant.quantize(build(), "int8_residual_float", [ROWS], progress=False)
    before = {address: np.array(ends) for address, ends in quantized.ranges().items()}
    calibration = calib.Calibration.from_bytes(
        tfquant.calibrate(quantized, [ROWS], progress=False).to_bytes()
    )
    address = next(iter(calibration))
    getattr(calibration[address], end)[...] = number
    calibration.save(tmp_path / "c.npz")
    with pytest.raises(
        calib.CalibrationFileError, match="c.npz: damaged.*has a range that is not finite"
    ):
        tfquant.apply(quantized, tmp_path / "c.npz")
    for address, ends in quantized.ranges().items():
        np.testing.assert_array_equal(ends, before[address])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["weight", "range"])
def test_a_variable_that_is_not_finite_is_not_saved(tmp_path, place, broken):
    model = tfquant.quantize(build(), "int8_residual_float", [ROWS], progress=False)
    if place == "weight":
        variable = model.original.get_layer("scores").kernel
        variable.assign(spoiled(variable.numpy(), broken))
    else:
        engine_of(model).quantizers.check_calibrated()
        quantizer = next(iter(engine_of(model).quantizers.values()))
        variable = quantizer.variables["upper"]
        variable.assign(np.full(variable.shape, broken))
    name = KERNEL if place == "weight" else "tfquant/ranges/.*/upper"
    with pytest.raises(ValueError, match=f"was not written: variable {name} holds NaN or Inf"):
        tfquant.save(model, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())

"""Elastic binarization: values and gradients of the paper against NumPy, its start, checkpoints."""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.core.conftest import two_dense_layers
from tfquant import elastic
from tfquant.export import ExportError
from tfquant.graph.plan import RecipeError
from tfquant.model import engine_of
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

X = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32) + 0.2
ELASTIC = Recipe((Rule(QuantSpec("binary", update="elastic", unsigned="auto"), "linear_input"),))
SIGNED, UNSIGNED = "first:linear_input:input", "second:linear_input:input"


@pytest.fixture(scope="module")
def quantized():
    return tfquant.quantize(two_dense_layers(), ELASTIC, [X], progress=False)


def expected(x, scale, shift, unsigned, dy):
    """Values and gradients, element by element, after equations 5 to 8 of the paper."""
    y, dx, dscale, dshift = np.zeros(x.shape), np.zeros(x.shape), 0.0, 0.0
    for i, value in enumerate(x):
        u = (value - shift) / scale
        if unsigned:
            code, inside = float(u >= 0.5), 0 <= u <= 1
            slope = 0.0 if u < 0 else -u if u < 0.5 else 1 - u if u <= 1 else 1.0
        else:
            code, inside = (1.0 if u >= 0 else -1.0), abs(u) <= 1
            slope = code
        y[i], dx[i] = scale * code, dy[i] * inside
        dscale += dy[i] * slope
        dshift -= dy[i] * inside
    return y, dx, dscale, dshift


@pytest.mark.parametrize("unsigned", [False, True])
def test_values_and_gradients_are_those_of_the_paper(unsigned):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    scale, shift = tf.constant(0.9), tf.constant(0.15)
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch([tensor, scale, shift])
        y = elastic.binarized(tensor, scale, shift, unsigned=unsigned)
        loss = tf.reduce_sum(y * dy)
    result = [y.numpy(), *(g.numpy() for g in tape.gradient(loss, [tensor, scale, shift]))]
    for one, two in zip(result, expected(x, 0.9, 0.15, unsigned, dy), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    broken = elastic.binarized(tf.constant([np.nan, 1.0]), scale, shift, unsigned=unsigned)
    np.testing.assert_allclose(broken, [np.nan, 0.9], rtol=1e-6)


def test_it_starts_from_the_least_squares_scale_without_a_shift(quantized):
    signed, unsigned = (quantized.quantizers[a].learned for a in (SIGNED, UNSIGNED))
    assert signed.shift.numpy() == 0 and unsigned.shift.numpy() == 0
    np.testing.assert_allclose(signed.value, np.abs(X).mean(), rtol=0.01)
    first = quantized.original.layers[1]
    hidden = np.maximum(X @ first.kernel.numpy() + first.bias.numpy(), 0)
    codebook = quantized.plan.site(UNSIGNED).spec.codebook
    assert codebook.levels == (0.0, 1.0)

    def error(scale):
        return np.square(hidden - scale * (hidden >= scale / 2)).sum()

    best = min(error(scale) for scale in np.linspace(0.01, hidden.max(), 500))
    assert error(unsigned.value.numpy()) <= 1.05 * best


def test_scale_and_shift_are_trained_and_saved(tmp_path):
    quantized = tfquant.quantize(two_dense_layers(), ELASTIC, [X], progress=False)
    learned = quantized.quantizers[SIGNED].learned
    before = learned.value.numpy()
    quantized.compile("adam", "mse")
    quantized.fit(X, X[:, :3], epochs=2, verbose=0)
    assert learned.value.numpy() != before and learned.shift.numpy() != 0
    tfquant.save(quantized, tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", two_dense_layers(seed=1))
    np.testing.assert_array_equal(loaded(X), quantized(X))
    assert loaded.quantizers[SIGNED].learned.shift.numpy() == learned.shift.numpy()
    # What comes out of the first quantizer are two values.
    engine = engine_of(loaded)
    site = loaded.plan.site(SIGNED)
    y = engine.quantizers[site.address](tf.constant(X)).numpy()
    np.testing.assert_allclose(np.unique(np.abs(y)), learned.value.numpy())


def test_the_scale_of_gradients_is_that_of_lsq(quantized):
    learned = quantized.quantizers[SIGNED].learned
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(learned.binarized(x))
    gradient = tape.gradient(loss, learned.value)
    np.testing.assert_allclose(gradient, np.where(X >= 0, 1, -1).sum() / np.sqrt(6), rtol=1e-5)
    assert learned.constraints()["elastic_scale"](tf.constant(-1.0)).numpy() > 0


def test_files_hold_scale_and_shift(quantized, tmp_path):
    quantized.quantizers[SIGNED].learned.shift.assign(0.1)
    for target, name in (("packed", "model.safetensors"), ("saved_model", "folder")):
        tfquant.export(quantized, tmp_path / name, target=target)
    loaded = tfquant.load_packed(tmp_path / "model.safetensors", two_dense_layers(seed=3))
    np.testing.assert_array_equal(loaded(X), quantized(X))
    served = tf.saved_model.load(str(tmp_path / "folder")).signatures["serving_default"]
    np.testing.assert_allclose(
        tf.nest.flatten(served(x=tf.constant(X)))[0], quantized(X), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ExportError, match="number format 'binary' does not exist"):
        tfquant.export(quantized, tmp_path / "model.onnx", target="onnx")


def test_sequential_calibration_rounds_to_the_two_values():
    model = tfquant.quantize(two_dense_layers(), ELASTIC)
    tfquant.calibrate(model, [X], order="sequential", progress=False)
    np.testing.assert_allclose(model.quantizers[SIGNED].learned.value, np.abs(X).mean(), rtol=0.01)


def test_parameters_are_refused():
    rule = Rule(QuantSpec("binary", update="elastic"), "weight")
    with pytest.raises(RecipeError, match="a parameter: leave out update: elastic there"):
        tfquant.plan(two_dense_layers(), Recipe((rule,)))

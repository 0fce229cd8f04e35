"""Gradients of inputs and ranges against closed forms in float64, and training of ranges through
Keras.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from calib import Grid
from tests.few import few
from tfquant import qdq
from tfquant.gradients import Gradient
from tfquant.learned import PARAMETER_PATH, LearnedRange

SIGNED = Grid(-127, 127, True)
FULL = Grid(-8, 7, True)
UNSIGNED = Grid(0, 255, True)
ASYMMETRIC = Grid(0, 15, False)
RNG = np.random.default_rng(7)
X = RNG.normal(size=(6, 5)).astype(np.float32)
DY = RNG.normal(size=X.shape).astype(np.float32)


def symmetric_reference(x, dy, amax, grid, gradient):
    """dL/damax of L = sum(dy * y), element by element."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    scale = grid.qmax / amax
    low = -amax if grid.qmin < 0 else 0.0
    total = 0.0
    for value, weight in zip(x.ravel(), dy.ravel(), strict=True):
        code = np.clip(np.round(np.clip(value * scale, grid.qmin, grid.qmax)), grid.qmin, grid.qmax)
        if low <= value <= amax:
            total += weight * (code - value * scale) / grid.qmax if gradient == "rounding" else 0.0
        else:
            total += weight * code / grid.qmax
    return total


@pytest.mark.parametrize("gradient", ["rounding", "clipping"])
@pytest.mark.parametrize("grid", [SIGNED, FULL, UNSIGNED])
@pytest.mark.parametrize("amax", [0.7, 1.5, 9.0])
def test_gradient_of_a_symmetric_range_is_its_closed_form(grid, gradient, amax):
    variable = tf.Variable(amax)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        lower = -variable if grid.qmin < 0 else 0.0 * variable
        y = qdq.quantize_dequantize(x, lower, variable, grid, range_gradient=gradient)
        loss = tf.reduce_sum(y * DY)
    d_range, d_x = tape.gradient(loss, [variable, x])
    np.testing.assert_allclose(
        d_range, symmetric_reference(X, DY, np.float32(amax), grid, gradient), rtol=1e-4, atol=1e-5
    )
    low = -amax if grid.qmin < 0 else 0.0
    np.testing.assert_array_equal(d_x, np.where((low <= X) & (X <= np.float32(amax)), DY, 0))


@pytest.mark.parametrize("gradient", ["rounding", "clipping"])
def test_per_channel_ranges_get_the_gradient_of_their_own_channel(gradient):
    amax = tf.Variable(np.linspace(0.5, 2.0, 5), dtype=tf.float32)
    with tf.GradientTape() as tape:
        y = qdq.quantize_dequantize(
            tf.constant(X), -amax, amax, SIGNED, (1,), range_gradient=gradient
        )
        loss = tf.reduce_sum(y * DY)
    expected = [
        symmetric_reference(X[:, c], DY[:, c], amax.numpy()[c], SIGNED, gradient) for c in range(5)
    ]
    np.testing.assert_allclose(tape.gradient(loss, amax), expected, rtol=1e-4, atol=1e-5)


def test_gradient_of_clipped_values_is_the_finite_difference():
    """Where everything is clipped the output is a smooth function of the range, so differences give
    the true gradient.
    """
    x, dy = tf.constant([5.0, 9.0, -4.0, -7.0]), tf.constant([1.0, -2.0, 0.5, 3.0])

    def loss(lower, upper):
        return tf.reduce_sum(
            dy * qdq.quantize_dequantize(x, lower, upper, ASYMMETRIC, range_gradient="rounding")
        )

    lower, upper = tf.Variable(-1.0), tf.Variable(2.0)  # step 0.2, zero is a code
    with tf.GradientTape() as tape:
        value = loss(lower, upper)
    d_lower, d_upper = tape.gradient(value, [lower, upper])
    # A range half as wide again keeps zero the same code.
    difference = float(loss(-1.5, 3.0) - value)
    assert -0.5 * float(d_lower) + 1.0 * float(d_upper) == pytest.approx(difference, rel=1e-5)
    np.testing.assert_allclose([d_lower, d_upper], [3.5, -1.0], rtol=1e-5)


def asymmetric_reference() -> tuple[float, float]:
    """dL/dlower and dL/dupper of L = sum(dy * y) for the range -0.8 to 1.6: 15 steps of 0.16, zero
    is code 5.
    """
    x, dy = X.astype(np.float64), DY.astype(np.float64)
    position = (x + 0.8) / 0.16
    error = (np.round(position) - position) / 15
    inside, above, below = (x >= -0.8) & (x <= 1.6), x > 1.6, x < -0.8
    return (dy * np.where(inside, -error, below)).sum(), (dy * np.where(inside, error, above)).sum()


def test_gradient_of_an_asymmetric_range_is_its_closed_form():
    lower, upper = tf.Variable(-0.8), tf.Variable(1.6)
    with tf.GradientTape() as tape:
        y = qdq.quantize_dequantize(
            tf.constant(X), lower, upper, ASYMMETRIC, range_gradient="rounding"
        )
        loss = tf.reduce_sum(y * DY)
    np.testing.assert_allclose(
        tape.gradient(loss, [lower, upper]), asymmetric_reference(), rtol=1e-3, atol=1e-4
    )


def test_gradient_of_a_relative_offset_is_that_of_both_ends_times_the_width():
    learned = LearnedRange("tqt", ASYMMETRIC, (), "layer:linear_input:input")
    learned.set_range(np.float32(-0.8), np.float32(1.6))
    with tf.GradientTape() as tape:
        y = qdq.quantize_dequantize(
            tf.constant(X), *learned.range(), ASYMMETRIC, range_gradient="rounding"
        )
        loss = tf.reduce_sum(y * DY)
    d_lower, d_upper = asymmetric_reference()
    expected = [2.4 * (d_lower + d_upper), 2.4 * np.log(2.0) * (d_upper * 2 / 3 - d_lower / 3)]
    np.testing.assert_allclose(
        tape.gradient(loss, [learned.offset, learned.value]), expected, rtol=1e-3, atol=1e-4
    )


def test_a_relative_offset_keeps_zero_inside_the_range():
    learned = LearnedRange("tqt", ASYMMETRIC, (), "layer:linear_input:input")
    keep = learned.constraints()["relative_offset"]
    np.testing.assert_array_equal(keep(tf.constant([-1.5, -0.3, 0.2])), np.float32([-1, -0.3, 0]))


def test_strict_keeps_the_gradient_from_values_on_an_end():
    x = tf.constant([-1.0, -0.5, 1.0])
    for ste, expected in (("inclusive", [1, 1, 1]), ("strict", [0, 1, 0])):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = qdq.quantize_dequantize(
                x, tf.constant(-1.0), tf.constant(1.0), SIGNED, gradient=Gradient(ste)
            )
        np.testing.assert_array_equal(tape.gradient(y, x), expected)


@pytest.mark.parametrize("update", ["lsq", "tqt", "pact"])
@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED, ASYMMETRIC])
def test_a_learned_range_starts_where_it_was_calibrated(update, grid):
    learned = LearnedRange(update, grid, (2,), "layer:weight:kernel")
    lower = np.float32([0, 0]) if grid is UNSIGNED else np.float32([-3, -0.5])
    upper = np.float32([3, 0.5])
    learned.set_range(lower, upper)
    np.testing.assert_allclose(learned.range(), [lower, upper], rtol=1e-6, atol=1e-7)


def test_gradient_of_the_parameters_follows_from_that_of_the_width():
    grid, amax, elements = SIGNED, np.float32(1.3), X.size
    d_width = symmetric_reference(X, DY, amax, grid, "rounding")
    expected = {
        "lsq": d_width * 127 / np.sqrt(elements * 127),
        "tqt": d_width * amax * np.log(2.0),
        "pact": symmetric_reference(X, DY, amax, grid, "clipping"),
    }
    for update, value in expected.items():
        learned = LearnedRange(update, grid, (), "layer:weight:kernel")
        learned.set_range(-amax, amax)
        with tf.GradientTape() as tape:
            ends = learned.range(tf.constant(elements))
            y = qdq.quantize_dequantize(
                tf.constant(X), *ends, grid, range_gradient=learned.parametrization.gradient
            )
            loss = tf.reduce_sum(y * DY)
        np.testing.assert_allclose(
            tape.gradient(loss, learned.value), value, rtol=1e-3, err_msg=update
        )


def small_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input([8])
    hidden = keras.layers.Dense(16, activation="relu", name="first")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="second")(hidden))


def quantized(update: str, **changes) -> tfquant.QuantizedModel:
    spec = tfquant.QuantSpec(format="int4", update=update, **changes)
    recipe = tfquant.Recipe((tfquant.Rule(spec, role=("weight", "linear_input")),))
    return tfquant.quantize(small_model(), recipe, [DATA[0]])


DATA = (RNG.normal(size=(64, 8)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32))


@pytest.mark.parametrize("changes", [{}, {"symmetric": False}])
@pytest.mark.parametrize("update", few(["lsq", "tqt", "pact"], ("tqt",)))
def test_fit_trains_learned_ranges_and_lowers_the_loss(update, changes):
    model = quantized(update, **changes)
    before = model.ranges()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    history = model.fit(*DATA, epochs=12, verbose=0).history["loss"]
    after = model.ranges()
    assert history[-1] < history[0]
    # PACT learns from clipped values alone, and a range found as the largest value clips none of
    # the weights at first.
    moved = [a for a in before if not np.array_equal(before[a][1], after[a][1])]
    assert len(moved) == len(before) or (update == "pact" and moved)
    assert all((lower <= 0).all() and (upper > 0).all() for lower, upper in after.values())


def test_frozen_ranges_stay_and_moving_ones_follow_the_data():
    for update in ("frozen", "moving_average"):
        model = quantized(update, decay=0.5) if update == "moving_average" else quantized(update)
        before = model.ranges()
        address = next(a for a in before if "first" in a and "linear_input" in a)
        model(3.0 * DATA[0], training=False)
        np.testing.assert_array_equal(model.ranges()[address], before[address])
        model(3.0 * DATA[0], training=True)
        factor = 2.0 if update == "moving_average" else 1.0  # half way from 1 to 3
        np.testing.assert_allclose(
            model.ranges()[address], factor * np.array(before[address]), rtol=1e-5
        )


def test_a_saved_learned_range_comes_back_to_the_last_bit(tmp_path):
    model = quantized("lsq")
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    model.fit(*DATA, verbose=0)
    tfquant.save(model, tmp_path / "model")
    again = tfquant.load(tmp_path / "model", small_model())
    for one, other in zip(model.quantizers.values(), again.quantizers.values(), strict=True):
        for name, variable in one.variables.items():
            np.testing.assert_array_equal(variable, other.variables[name])
    np.testing.assert_array_equal(model(DATA[0]), again(DATA[0]))


def test_frozen_ranges_of_a_checkpoint_can_be_loaded_as_learned_ones(tmp_path):
    model = quantized("frozen")
    tfquant.save(model, tmp_path / "model")
    again = tfquant.load(
        tmp_path / "model",
        small_model(),
        change=lambda recipe: recipe.with_spec(roles=["weight"], update="tqt"),
    )
    learned = [v.path for v in again.trainable_variables if v.path.endswith("log2_threshold")]
    assert len(learned) == 2
    np.testing.assert_allclose(again(DATA[0]), model(DATA[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["lsq", "tqt", "pact"])
def test_weight_decay_leaves_learned_ranges_alone(update):
    import re

    model = quantized(update, symmetric=False)
    paths = [v.path for v in model.trainable_variables if re.search(PARAMETER_PATH, v.path)]
    assert len(paths) == 2 * len(model.plan.sites)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"update": "lsk"}, "unknown update"),
        ({"ste": "loose"}, "ste must be"),
        ({"decay": 1.0}, "decay must be"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tfquant.QuantSpec(**changes)


@pytest.mark.parametrize("weight", [True, False])
def test_the_scale_of_a_steps_gradient_counts_a_whole_weight_but_one_example_of_an_activation(
    weight,
):
    model = quantized("lsq")
    address = "first:weight:kernel" if weight else "first:linear_input:input"
    quantizer = model.quantizers[address]
    grid, amax = quantizer.site.spec.grid, np.float32(1.3)
    quantizer.set_range(-amax, amax)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizer(tf.constant(X)) * DY)
    elements = X.size if weight else X.shape[1]
    expected = (
        symmetric_reference(X, DY, amax, grid, "rounding")
        * grid.qmax
        / np.sqrt(elements * grid.qmax)
    )
    np.testing.assert_allclose(tape.gradient(loss, quantizer.learned.value), expected, rtol=1e-3)

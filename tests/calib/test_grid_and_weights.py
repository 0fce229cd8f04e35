"""The integer grid against TensorFlow's kernels, and ranges of weights against sorting and
loops.
"""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from calib import (
    Grid,
    Method,
    NonFiniteError,
    Statistics,
    methods,
    per_channel_range,
    weight_statistics,
)

NARROW, ASYMMETRIC = Grid(-127, 127), Grid(-128, 127, symmetric=False)
VALUES = hypothesis.extra.numpy.arrays(
    np.float32, 30, elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


def test_integer_grids_have_the_usual_ends():
    assert Grid.integer(8) == Grid(-127, 127, True)
    assert Grid.integer(8, narrow=False) == Grid(-128, 127, True)
    assert Grid.integer(8, signed=False) == Grid(0, 255, True)
    assert Grid.integer(4, symmetric=False) == Grid(-8, 7, False)
    assert [(g.num_codes, g.quant_max) for g in (Grid(-127, 127), Grid(0, 255), ASYMMETRIC)] == [
        (255, 127),
        (256, 255),
        (256, 255),
    ]


@pytest.mark.parametrize("arguments", [(5, 5), (-100, 127), (3, -3), (1, 255)])
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError, match="grid"):
        Grid(*arguments)
    for bits in (0, 1, 33):
        with pytest.raises(ValueError, match="bits"):
            Grid.integer(bits)


@pytest.mark.parametrize("narrow", [True, False])
@hypothesis.settings(deadline=None)
@hypothesis.given(VALUES)
def test_symmetric_fake_quantization_equals_tensorflow(narrow, values):
    grid = Grid(-127 if narrow else -128, 127)
    # TensorFlow's kernel takes the scale from the end that needs the larger step: the lower end of
    # a full grid is 128/127.
    lower = -4.0 if narrow else -4.0 * 128 / 127
    expected = tf.quantization.quantize_and_dequantize_v2(
        values,
        lower,
        4.0,
        num_bits=8,
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=narrow,
    )
    step = 4 / 127
    found = grid.quantize(values, -4, 4)
    on_a_tie = (
        np.abs(np.abs(values / step) % 1 - 0.5) < 1e-4
    )  # the kernel multiplies by a rounded inverse
    np.testing.assert_allclose(found[~on_a_tie], expected.numpy()[~on_a_tie], atol=1e-5)
    assert (
        np.abs(found - np.clip(values, -4 - 1.01 * step * (not narrow), 4)).max() <= step / 2 + 1e-5
    )


@hypothesis.settings(deadline=None)
@hypothesis.given(VALUES)
def test_asymmetric_fake_quantization_equals_tensorflow(values):
    # Ends on the grid, so that the kernel's nudging of the range changes nothing.
    step = 1 / 16
    lower, upper = -100 * step, 155 * step
    expected = tf.quantization.fake_quant_with_min_max_args(values, lower, upper, num_bits=8)
    found = Grid(0, 255, symmetric=False).quantize(values, lower, upper)
    on_a_tie = (
        np.abs(np.abs(values / step) % 1 - 0.5) < 1e-4
    )  # TensorFlow's kernel rounds halves up
    np.testing.assert_allclose(found[~on_a_tie], expected.numpy()[~on_a_tie], atol=1e-5)


def test_an_empty_range_quantizes_to_zero():
    for grid in (NARROW, Grid(0, 255), ASYMMETRIC):
        np.testing.assert_array_equal(grid.quantize(np.float32([-1, 0, 5]), 0, 0), [0, 0, 0])


def weights(shape=(40, 6), seed=0):
    return np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)


@pytest.mark.parametrize("axis, others", [(0, (1, 2)), (1, (0, 2)), (-1, (0, 1))])
def test_weight_statistics_hold_the_extremes_of_every_channel(axis, others):
    array = weights((4, 5, 6))
    statistics = weight_statistics(array, axis)
    np.testing.assert_array_equal(statistics.minimum, array.min(others))
    np.testing.assert_array_equal(statistics.maximum, array.max(others))
    assert statistics.count == 120 and statistics.histogram is None and statistics.constant


@pytest.mark.parametrize("name", methods.GENERAL)
@pytest.mark.parametrize("grid", [NARROW, Grid(0, 255), ASYMMETRIC, Grid(-2, 1, symmetric=False)])
def test_per_channel_ranges_equal_those_of_each_channel_alone(name, grid):
    array = weights()
    lower, upper = per_channel_range(array, 1, name, grid)
    assert lower.shape == upper.shape == (6,) and lower.dtype == np.float32
    for channel in range(6):
        alone = per_channel_range(array[:, channel], None, name, grid)
        assert alone[0].shape == () and (alone[0], alone[1]) == (lower[channel], upper[channel])
    assert (lower <= 0).all() and (0 <= upper).all()
    assert (np.maximum(-lower, upper) <= np.abs(array).max(0)).all()


@pytest.mark.parametrize("percentile", [50, 95, 99.9])
def test_per_channel_percentile_equals_sorting(percentile):
    array = weights((500, 3))
    method = Method.parse("percentile", percentile=percentile)
    _, upper = per_channel_range(array, 1, method, NARROW)
    np.testing.assert_allclose(upper, np.percentile(np.abs(array), percentile, axis=0), rtol=1e-6)
    lower, upper = per_channel_range(array, 1, method, ASYMMETRIC)
    rest = (100 - percentile) / 2
    np.testing.assert_allclose(
        [lower, upper], np.percentile(array, [rest, 100 - rest], axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("grid", [Grid(-7, 7), Grid(-1, 1), Grid(-8, 7, symmetric=False)])
def test_per_channel_mse_comes_near_the_best_of_many_ranges(grid):
    array = weights((200, 4))

    def error(low, high):
        step = (
            np.maximum(-low, high) / grid.qmax
            if grid.symmetric
            else (high - low) / (grid.qmax - grid.qmin)
        )
        zero = 0 if grid.symmetric else np.round(grid.qmin - low / step)
        codes = np.clip(np.round(array / step) + zero, grid.qmin, grid.qmax)
        return (((codes - zero) * step - array) ** 2).sum(0)

    shares = np.linspace(0.05, 1, 60)
    if grid.symmetric:
        amax = np.abs(array).max(0)
        best = np.min([error(-share * amax, share * amax) for share in shares], 0)
    else:
        best = np.min(
            [error(a * array.min(0), b * array.max(0)) for a in shares for b in shares], 0
        )
    found = error(*per_channel_range(array, 1, "mse", grid))
    assert (found <= 1.1 * best).all() and (
        found < error(*per_channel_range(array, 1, "max", grid))
    ).any()


@pytest.mark.parametrize("name", methods.GENERAL)
def test_a_dead_channel_gets_an_empty_range(name):
    array = weights()
    array[:, 2] = 0
    for grid in (NARROW, ASYMMETRIC):
        lower, upper = per_channel_range(array, 1, name, grid)
        assert lower[2] == upper[2] == 0 and (upper[[0, 1, 3]] > 0).all()


def test_weights_that_cannot_have_a_range_are_refused_by_name():
    array = weights()
    array[3, 3] = np.nan
    with pytest.raises(NonFiniteError, match="dense/kernel: 1 of 240 weights are NaN or Inf"):
        per_channel_range(array, 1, "max", NARROW, name="dense/kernel")
    with pytest.raises(ValueError, match="dense/kernel: the weight is empty"):
        weight_statistics(np.zeros((0, 3)), name="dense/kernel")
    with pytest.raises(ValueError, match="dense/kernel: no channel axis 2"):
        weight_statistics(weights(), 2, name="dense/kernel")
    with pytest.raises(ValueError, match="choose one of"):
        per_channel_range(weights(), 1, "lsq", NARROW)


def test_per_tensor_weight_statistics_have_a_histogram():
    statistics = weight_statistics(weights(), None, True, 64)
    assert isinstance(statistics, Statistics) and statistics.histogram.counts.sum() == 240
    assert statistics.histogram.signed and statistics.histogram.counts.size == 64

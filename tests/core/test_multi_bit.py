"""Multi-bit codes against exhaustive search, and against the algorithm in NumPy, row by row."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfquant import QuantSpec, formats
from tfquant.formats.fitted import rounded
from tfquant.formats.multi_bit import MultiBit, midpoints, nearest, scales_of, signed_sums, sums
from tfquant.scale import Scale

DYNAMIC = Scale(source="dynamic")


def signs(bits):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=bits)))


def solve(b, w):
    return np.linalg.lstsq(b, w, rcond=None)[0]


def assign(w, scales):
    """Signs of the nearest sum, found among all of them."""
    every = signs(len(scales))
    return every[np.abs(w[:, None] - (every @ scales)[None]).argmin(1)]


def alternating(w, bits, cycles=2, refined=False):
    """Errors of the greedy start and after each cycle, and the last scales; float64."""
    w, rest, b, scales = w.astype(np.float64), w.astype(np.float64), [], []
    for _ in range(bits):
        scales.append(np.abs(rest).mean())
        b.append(np.where(rest >= 0, 1.0, -1.0))
        if refined:
            scales = list(solve(np.stack(b, 1), w))
        rest = w - np.stack(b, 1) @ np.array(scales)
    codes, errors = np.stack(b, 1), []
    for _ in range(cycles + 1):
        scales = solve(codes, w)
        codes = assign(w, scales)
        errors.append(((w - codes @ scales) ** 2).sum())
    return errors, scales


def fit(w, format):
    values = format.fit_rows(tf.constant(w), tf.ones_like(w)).numpy()
    places = nearest(tf.constant(w), tf.constant(values)).numpy()
    return values, ((w - np.take_along_axis(values, places, 1)) ** 2).sum(1)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rows_are_fitted_as_the_algorithm_in_numpy_does(bits, refined):
    w = np.random.default_rng(bits).normal(size=(5, 200)).astype(np.float32)
    values, errors = fit(w, MultiBit(bits, refined))
    for row, found, error in zip(w, values, errors, strict=True):
        expected, scales = alternating(row, bits, refined=refined)
        np.testing.assert_allclose(error, min(expected), rtol=1e-4)
        if expected[-1] == min(expected):
            np.testing.assert_allclose(found, np.sort(signs(bits) @ scales), atol=2e-4)


def test_errors_do_not_increase_over_cycles_and_lie_below_the_greedy_start():
    w = np.random.default_rng(0).laplace(size=(40, 300)).astype(np.float32)
    for bits in (2, 3, 4):
        errors = np.stack([fit(w, MultiBit(bits, cycles=cycles))[1] for cycles in range(5)])
        assert (np.diff(errors, axis=0) <= 0).all()
        assert (errors[2] < errors[0]).mean() > 0.9


@pytest.mark.parametrize("bits", [1, 2])
def test_small_problems_come_close_to_the_best_of_all_codes(bits):
    random = np.random.default_rng(3)
    ratios = []
    for _ in range(20):
        w = random.normal(size=6).astype(np.float32)
        best = np.inf
        for codes in itertools.product(signs(bits), repeat=6):
            b = np.array(codes)
            best = (
                min(best, ((w - b @ solve(b, w)) ** 2).sum()) if bits == 1 or b[0, 0] > 0 else best
            )
        error = fit(w[None], MultiBit(bits, cycles=5))[1][0]
        assert error >= best * (1 - 1e-4) - 1e-6
        ratios.append((error + 1e-6) / (best + 1e-6))
    assert np.median(ratios) < (1.001 if bits == 1 else 2.0)


def test_one_bit_is_the_mean_magnitude():
    w = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    mean = np.abs(w).mean(1)
    np.testing.assert_allclose(fit(w, MultiBit(1))[0], np.stack([-mean, mean], 1), rtol=1e-5)


def test_sums_and_boundaries_are_sorted_and_ties_go_up():
    values = sums(tf.constant([[1.0, 0.25]]))
    np.testing.assert_array_equal(values, [[-1.25, -0.75, 0.75, 1.25]])
    np.testing.assert_array_equal(midpoints(values), [[-1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(
        nearest(tf.constant([[-1.0, 0.0, 0.99, 9.0]]), values), [[1, 2, 2, 3]]
    )


@pytest.mark.parametrize("axes", [(0,), (0, 1), (1,)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_quantizing_again_changes_no_bit(bits, axes):
    x = tf.constant(np.random.default_rng(7).normal(size=(24, 10)).astype(np.float32))
    format = formats.get(f"mb{bits}")
    once = rounded(x, format.fit(x, axes, DYNAMIC))
    assert len(np.unique(once.numpy())) > 1
    np.testing.assert_array_equal(rounded(once, format.fit(once, axes, DYNAMIC)), once)


def test_groups_of_zeros_of_nan_and_of_padding():
    format, x = formats.get("mb2"), np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    x[1] = 0.0
    x[2, 3] = np.inf
    levels = format.fit(tf.constant(x), (1,), DYNAMIC)
    assert levels.values.shape == (4, 1, 4) and levels.thresholds.shape == (4, 1, 3)
    values = levels.values.numpy()[:, 0]
    assert (values[1] == 0).all() and np.isnan(values[2]).all() and np.isfinite(values[3]).all()
    valid = np.array([1, 1, 1, 0, 1, 0], np.float32)[None]
    part = format.fit(tf.constant(x), (1,), DYNAMIC, tf.constant(valid)).values.numpy()[:, 0]
    alone = format.fit(tf.constant(x[:, [0, 1, 2, 4]]), (1,), DYNAMIC).values.numpy()[:, 0]
    np.testing.assert_allclose(part, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mb0", "mb5", "mb1_refined"])
def test_other_numbers_of_bits_are_refused(name):
    with pytest.raises(ValueError, match="multi-bit codes have 1 to 4 bits"):
        formats.get(name)


def test_a_scale_that_is_not_its_own_is_refused():
    with pytest.raises(ValueError, match="'mb2' has float32 scales of its own"):
        QuantSpec("mb2", source="none")


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_are_found_again_from_their_sums_bit_for_bit(bits, refined):
    w = np.random.default_rng(bits).normal(size=(200, 300)).astype(np.float32)
    values, _ = fit(w, MultiBit(bits, refined))
    scales = scales_of(values[:, np.newaxis])
    assert scales.shape == (200, 1, bits) and (np.diff(scales) <= 0).all() and (scales >= 0).all()
    np.testing.assert_array_equal(np.sort(signed_sums(scales)[:, 0], -1), values)
    # Term by term in Python's numbers, rounded to float32 after each.
    for place in range(2**bits):
        total = np.float32(0)
        for index, scale in enumerate(scales[7, 0]):
            total = np.float32(total + (scale if place >> index & 1 else -scale))
        assert signed_sums(scales)[7, 0, place] == total


def test_values_that_are_no_sums_have_no_scales():
    sums_of_two = np.float32([[-3, -1, 1, 3]])
    np.testing.assert_array_equal(scales_of(sums_of_two), [[2, 1]])
    assert scales_of(np.float32([[-3, -1, 1.1, 3]])) is None
    assert scales_of(np.float32([[-3, 1, 3, 3]])) is None
    assert scales_of(np.concatenate([sums_of_two, np.float32([[0, 1, 2, 7]])])) is None
    np.testing.assert_array_equal(scales_of(np.zeros((1, 4), np.float32)), [[0, 0]])

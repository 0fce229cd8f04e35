"""Quantize-dequantize against NumPy.

A float32 transcription of the documented formula, and exact arithmetic in float64.
"""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calib import Grid
from tfquant import formats, qdq
from tfquant.quantizer import Quantizer
from tfquant.scale import LARGEST_AMAX, Scale
from tfquant.site import Site
from tfquant.spec import QuantSpec

BITS = range(2, 17)
KINDS = ("narrow", "full", "unsigned", "asymmetric")


def grid_of(bits: int, kind: str) -> Grid:
    half = 2 ** (bits - 1)
    return {
        "narrow": Grid(1 - half, half - 1),
        "full": Grid(-half, half - 1),
        "unsigned": Grid(0, 2 * half - 1),
        "asymmetric": Grid(0, 2 * half - 1, symmetric=False),
    }[kind]


def formula(x, lower, upper, grid, channel_axes=()):
    """The formula of the module's docstring in float32, operation by operation; ranges lie along
    `channel_axes`.
    """
    x, lower, upper = (np.asarray(a, np.float32) for a in (x, lower, upper))
    if channel_axes:
        shape = [n if axis in channel_axes else 1 for axis, n in enumerate(x.shape)]
        lower, upper = lower.reshape(shape), upper.reshape(shape)
    tiny = np.float32(2.0**-100)
    shift = np.float32(0)
    if grid.symmetric:
        width, low, high = (
            np.maximum(np.maximum(abs(lower), abs(upper)), tiny),
            grid.qmin,
            np.float32(grid.qmax),
        )
    else:
        lower, upper = np.minimum(lower, np.float32(0)), np.maximum(upper, np.float32(0))
        width, low, high = np.maximum(upper - lower, tiny), 0, np.float32(grid.qmax - grid.qmin)
        shift = -np.rint(-lower / (width / high)) * (width / high)
    scale, step = high / width, width / high
    clipped = np.minimum(np.maximum(x - shift, np.float32(low) * step), width)
    return (np.rint(clipped * scale) * step + shift).astype(np.float32)


def exact(x, lower, upper, grid):
    """(values, code before rounding, step) in float64, from the meaning of a grid and not from the
    formula.
    """
    x, lower, upper = (np.asarray(a, np.float64) for a in (x, lower, upper))
    if grid.symmetric:
        step, zero = np.maximum(abs(lower), abs(upper)) / grid.qmax, 0.0
    else:
        lower, upper = np.minimum(lower, 0), np.maximum(upper, 0)
        step = (upper - lower) / (grid.qmax - grid.qmin)
        zero = np.rint(grid.qmin - lower / step)
    code = x / step + zero
    return (np.clip(np.rint(code), grid.qmin, grid.qmax) - zero) * step, code, step


def range_of(kind: str) -> tuple[float, float]:
    return {"asymmetric": (-0.7, 2.9), "unsigned": (0.0, 2.9)}.get(kind, (-2.9, 2.9))


def values_around(lower: float, upper: float, seed: int = 0) -> np.ndarray:
    """Inside, outside, ends, neighbours of the ends, zeros of both signs, very small and very large
    values.
    """
    rng = np.random.default_rng(seed)
    ends = np.array([lower, upper], np.float32)
    edges = [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38, np.inf, -np.inf]
    near = [
        *ends,
        *np.nextafter(ends, np.float32(np.inf)),
        *np.nextafter(ends, np.float32(-np.inf)),
        *(1.01 * ends),
    ]
    return np.concatenate(
        [rng.normal(0, upper, 400), rng.uniform(lower, upper, 400), edges, near]
    ).astype(np.float32)


def run(x, lower, upper, grid, channel_axes=()):
    x = x if tf.is_tensor(x) else tf.constant(x, tf.float32)
    return qdq.quantize_dequantize(
        x, tf.constant(lower, tf.float32), tf.constant(upper, tf.float32), grid, channel_axes
    )


def gradient(x, lower, upper, grid, channel_axes=(), upstream=None):
    x = x if tf.is_tensor(x) else tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = run(x, lower, upper, grid, channel_axes)
    return tape.gradient(y, x, None if upstream is None else tf.cast(upstream, y.dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_per_tensor_follows_the_formula_bit_for_bit(bits, kind):
    grid, (lower, upper) = grid_of(bits, kind), range_of(kind)
    x = values_around(lower, upper)
    np.testing.assert_array_equal(
        run(x, lower, upper, grid).numpy(), formula(x, lower, upper, grid)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_per_channel_follows_the_formula_bit_for_bit(bits, kind):
    grid, (lower, upper) = grid_of(bits, kind), range_of(kind)
    factors = np.array([0.01, 1.0, 3.0, 1e4], np.float32)
    with np.errstate(over="ignore"):  # the largest values become infinite, which is another edge
        x = np.stack(
            [f * values_around(lower, upper, seed=i) for i, f in enumerate(factors)], axis=1
        )
    lowers, uppers = factors * np.float32(lower), factors * np.float32(upper)
    expected = formula(x, lowers, uppers, grid, (1,))
    np.testing.assert_array_equal(run(x, lowers, uppers, grid, (1,)).numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_values_are_the_nearest_codes_of_exact_arithmetic(bits, kind):
    grid, (lower, upper) = grid_of(bits, kind), range_of(kind)
    x = np.random.default_rng(bits).uniform(1.2 * lower, 1.2 * upper, 2000).astype(np.float32)
    expected, code, step = exact(x, lower, upper, grid)
    error = abs(run(x, lower, upper, grid).numpy() - expected) / step
    tie = abs(code - np.floor(code) - 0.5) < 0.02  # where float32 may round to the other side
    assert error[~tie].max() < 0.02
    assert error.max() < 1.02


@pytest.mark.parametrize("kind", KINDS)
def test_exact_ties_go_to_the_even_code(kind):
    grid = grid_of(8, kind)  # ranges that make the step exactly 1
    lower, upper = {"unsigned": (0.0, 255.0), "asymmetric": (-128.0, 127.0)}.get(
        kind, (-127.0, 127.0)
    )
    codes = np.arange(max(grid.qmin, int(lower)), int(upper), dtype=np.float32)
    x, expected = codes + np.float32(0.5), np.where(codes % 2 == 0, codes, codes + 1)
    np.testing.assert_array_equal(run(x, lower, upper, grid), expected)
    ends = (np.full(len(x), lower, np.float32), np.full(len(x), upper, np.float32))
    np.testing.assert_array_equal(run(x, *ends, grid, (0,)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_grid_ends_and_number_of_levels(kind):
    for bits in BITS:
        grid, (lower, upper) = grid_of(bits, kind), range_of(kind)
        x = np.linspace(2.2 * min(lower, -upper), 1.2 * upper, 250_000 if bits > 12 else 30_000)
        codes = np.unique(
            np.rint(run(x, lower, upper, grid).numpy() / exact(x, lower, upper, grid)[2])
        ).astype(int)
        zero = 0 if grid.symmetric else int(np.rint(-lower / exact(x, lower, upper, grid)[2]))
        assert (codes[0], codes[-1]) == (grid.qmin - zero, grid.qmax - zero)
        assert len(codes) == grid.qmax - grid.qmin + 1


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_along_any_axes_are_quantized_each_by_its_range(axes, kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    shape = tuple(x.shape[a] for a in axes)
    uppers = rng.uniform(0.2, 2.0, shape).astype(np.float32)
    lowers = (
        np.zeros_like(uppers)
        if kind == "unsigned"
        else -uppers * np.float32(0.5 if kind == "asymmetric" else 1)
    )
    grid = grid_of(6, kind)
    y = run(x, lowers, uppers, grid, axes).numpy()
    for channel in np.ndindex(shape):
        cut = tuple(channel[axes.index(a)] if a in axes else slice(None) for a in range(3))
        np.testing.assert_array_equal(
            y[cut], formula(x[cut], lowers[channel], uppers[channel], grid)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_gives_the_same_numbers_and_gradient_as_per_tensor(kind):
    grid, (lower, upper) = grid_of(8, kind), range_of(kind)
    x = values_around(lower, upper)[:, None]
    np.testing.assert_array_equal(run(x, [lower], [upper], grid, (1,)), run(x, lower, upper, grid))
    np.testing.assert_array_equal(
        gradient(x, [lower], [upper], grid, (1,)), gradient(x, lower, upper, grid)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float64])
def test_other_types_are_float32_arithmetic_and_one_cast(dtype, kind):
    grid, (lower, upper) = grid_of(8, kind), range_of(kind)
    x = tf.cast(np.random.default_rng(2).normal(0, 2, (40, 3)), dtype)
    y = run(x, lower, upper, grid)
    assert y.dtype == dtype
    expected = tf.cast(formula(tf.cast(x, tf.float32).numpy(), lower, upper, grid), dtype)
    np.testing.assert_array_equal(tf.cast(y, tf.float64), tf.cast(expected, tf.float64))
    channels = run(x, [lower] * 3, [upper] * 3, grid, (1,))
    assert channels.dtype == dtype
    np.testing.assert_array_equal(tf.cast(channels, tf.float64), tf.cast(expected, tf.float64))
    dx = gradient(x, lower, upper, grid)
    assert dx.dtype == dtype and set(np.unique(tf.cast(dx, tf.float32))) == {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_zero_range_gives_zeros_without_nan(kind):
    grid = grid_of(8, kind)
    x = np.array([[0.0, 1.0, -1.0, 1e30]], np.float32)
    for y in (run(x, 0.0, 0.0, grid), run(x, [0.0] * 4, [0.0] * 4, grid, (1,))):
        assert np.isfinite(y).all() and abs(y.numpy()).max() < 1e-29
    assert np.isfinite(gradient(x, 0.0, 0.0, grid)).all()
    mixed = run(x, [0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], grid, (1,)).numpy()
    assert mixed[0, 1] == pytest.approx(1.0, abs=0.01) and abs(mixed[0, [0, 2, 3]]).max() < 1e-29


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_largest_range_allowed_is_still_exact(bits, kind):
    grid, amax = grid_of(bits, kind), LARGEST_AMAX
    lower = {"unsigned": 0.0, "asymmetric": -0.25 * amax}.get(kind, -amax)
    x = np.array([3.4e38, amax, 0.61 * amax, 0.0, -amax, -3.4e38], np.float32)
    expected = exact(x, lower, amax, grid)[0]
    np.testing.assert_allclose(run(x, lower, amax, grid).numpy(), expected, rtol=1e-5)
    ends = [np.full(6, v, np.float32) for v in (lower, amax)]
    np.testing.assert_allclose(run(x, *ends, grid, (0,)).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_never_turned_into_a_number(kind):
    x = np.array([np.nan, 1.0], np.float32)
    for y in (
        run(x, *range_of(kind), grid_of(8, kind)),
        run(x, *([v] * 2 for v in range_of(kind)), grid_of(8, kind), (0,)),
    ):
        np.testing.assert_array_equal(np.isnan(y), [True, False])


@pytest.mark.parametrize("kind", ["narrow", "full", "unsigned"])
@pytest.mark.parametrize("axes", [(), (0,)])
def test_gradient_passes_inside_and_at_both_ends_and_nowhere_else(kind, axes):
    lower, upper = np.float32(0.0 if kind == "unsigned" else -2.9), np.float32(2.9)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    x = np.array(
        [
            upper,
            np.nextafter(upper, up),
            np.nextafter(upper, down),
            lower,
            np.nextafter(lower, up),
            -10.0,
            10.0,
            0.5,
        ]
    )
    upstream = np.arange(1.0, 9.0, dtype=np.float32)
    ends = (np.full(8, lower), np.full(8, upper)) if axes else (lower, upper)
    dx = gradient(x, *ends, grid_of(8, kind), axes, upstream)
    np.testing.assert_array_equal(dx, upstream * [1, 0, 1, 1, 1, 0, 0, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("axes", [(), (1,)])
def test_gradient_is_the_closed_form_mask_times_upstream(bits, kind, axes):
    grid, (lower, upper) = grid_of(bits, kind), range_of(kind)
    rng = np.random.default_rng(bits)
    x = rng.normal(0, 3, (50, 4)).astype(np.float32)
    upstream = rng.normal(size=x.shape).astype(np.float32)
    low, high = lower, upper
    if kind == "asymmetric":  # the range is moved so that zero is a code
        step = (upper - lower) / (grid.qmax - grid.qmin)
        low = -np.rint(-lower / step) * step
        high = low + (upper - lower)
    assert (abs(x - low) > 1e-5).all() and (abs(x - high) > 1e-5).all()
    ends = ([lower] * 4, [upper] * 4) if axes else (lower, upper)
    np.testing.assert_array_equal(
        gradient(x, *ends, grid, axes, upstream), upstream * ((x >= low) & (x <= high))
    )


def test_gradient_inside_a_traced_function_equals_the_eager_one():
    grid = grid_of(8, "narrow")
    x = tf.constant(values_around(-2.9, 2.9))
    traced = tf.function(lambda t: (run(t, -2.9, 2.9, grid), gradient(t, -2.9, 2.9, grid)))
    y, dx = traced(x)
    np.testing.assert_array_equal(y, run(x, -2.9, 2.9, grid))
    np.testing.assert_array_equal(dx, gradient(x, -2.9, 2.9, grid))


@pytest.mark.parametrize("axes", [(), (1,)])
def test_ranges_get_no_gradient(axes):
    shape = (3,) if axes else ()
    lower, upper = tf.Variable(tf.fill(shape, -1.0)), tf.Variable(tf.fill(shape, 1.0))
    for kind in KINDS:
        with tf.GradientTape() as tape:
            y = qdq.quantize_dequantize(tf.ones([2, 3]), lower, upper, grid_of(8, kind), axes)
        found = tape.gradient(y, [lower, upper], unconnected_gradients="zero")
        assert all((g.numpy() == 0).all() for g in found), kind


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_agrees_with_tensorflows_fake_quant_but_for_ties(bits):
    grid = grid_of(bits, "asymmetric")
    for seed, (lower, upper) in enumerate(
        [(-0.7, 2.9), (-1.0, 0.01), (0.0, 5.0), (-3.0, 0.0), (-1e-3, 1e3)]
    ):
        x = (
            np.random.default_rng(seed)
            .uniform(1.3 * lower - 0.1, 1.3 * upper + 0.1, 1000)
            .astype(np.float32)
        )
        theirs = tf.quantization.fake_quant_with_min_max_args(
            x, lower, upper, num_bits=bits
        ).numpy()
        _, code, step = exact(x, lower, upper, grid)
        error = abs(run(x, lower, upper, grid).numpy() - theirs) / step
        tie = abs(code - np.floor(code) - 0.5) < 0.02
        assert error.max() < 1.02
        assert error[~tie].max() < 0.02


def test_asymmetric_range_that_leaves_zero_out_is_widened_to_it():
    grid = grid_of(8, "asymmetric")
    x = values_around(0.0, 4.0)
    np.testing.assert_array_equal(run(x, 1.0, 4.0, grid), run(x, 0.0, 4.0, grid))
    np.testing.assert_array_equal(run(x, -4.0, -1.0, grid), run(x, -4.0, 0.0, grid))


@pytest.mark.parametrize("kind", ["narrow", "full"])
def test_symmetric_range_takes_the_larger_end(kind):
    grid, x = grid_of(8, kind), values_around(-2.0, 2.0)
    np.testing.assert_array_equal(run(x, -2.0, 0.5, grid), run(x, -2.0, 2.0, grid))
    np.testing.assert_array_equal(run(x, -0.5, 2.0, grid), run(x, -2.0, 2.0, grid))


def test_unsigned_turns_negative_values_into_zero():
    y = run(np.array([-3.0, -1e-3, 0.0, 1.0], np.float32), 0.0, 1.0, grid_of(8, "unsigned")).numpy()
    np.testing.assert_array_equal(y, [0.0, 0.0, 0.0, 1.0])


# Any float32 range that is neither zero for float32 arithmetic nor overflows it.
_ends = st.floats(2.0**-60, 2.0**60, width=32)
_shares = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30)


@st.composite
def cases(draw):
    """(x, lower, upper, grid, channel_axes): values up to twice the range."""
    kind, bits = draw(st.sampled_from(KINDS)), draw(st.integers(2, 16))
    upper = np.float32(draw(_ends))
    share = draw(st.floats(0, 1, width=32))
    lower = {"unsigned": np.float32(0), "asymmetric": -upper * np.float32(share)}.get(kind, -upper)
    x = np.array(draw(_shares), np.float32) * upper
    if draw(st.booleans()):
        return x[:, None], np.array([lower]), np.array([upper]), grid_of(bits, kind), (1,)
    return x, lower, upper, grid_of(bits, kind), ()


def bounds(lower, upper, grid):
    """Smallest and largest representable value, and the step."""
    _, _, step = exact(0.0, lower, upper, grid)
    zero = 0 if grid.symmetric else np.rint(-np.float64(lower) / step)
    return float((grid.qmin - zero) * step), float((grid.qmax - zero) * step), float(step)


@settings(deadline=None, max_examples=120)
@given(cases())
def test_quantizing_twice_changes_nothing(case):
    x, *rest = case
    once = run(x, *rest)
    np.testing.assert_array_equal(run(once, *rest), once)


@settings(deadline=None, max_examples=120)
@given(cases())
def test_order_is_kept(case):
    x, *rest = case
    y = run(np.sort(x, axis=0), *rest).numpy()
    assert (np.diff(y, axis=0) >= 0).all()


@settings(deadline=None, max_examples=120)
@given(cases())
def test_error_is_at_most_half_a_step_inside_and_the_distance_to_the_end_outside(case):
    x, lower, upper, grid, axes = case
    low, high, step = bounds(np.ravel(lower)[0], np.ravel(upper)[0], grid)
    # Halfway between two codes zero may become either, as float32 has it, and the range lies one
    # step apart.
    assume(grid.symmetric or abs((-np.float64(np.ravel(lower)[0]) / step) % 1.0 - 0.5) > 1e-4)
    error = abs(run(x, lower, upper, grid, axes).numpy().astype(np.float64) - x)
    outside = np.maximum(np.maximum(low - x, x - high), 0.0)
    assert (error <= np.maximum(outside, 0.5 * step) + 0.02 * step).all()


@settings(deadline=None, max_examples=120)
@given(cases())
def test_zero_is_exactly_representable(case):
    x, *rest = case
    assert (run(np.zeros_like(x), *rest).numpy() == 0).all()


def quantizer(shape=(), **spec):
    axes = tuple(range(len(shape)))
    return Quantizer(
        Site("weight", "layer", "kernel", QuantSpec(**spec), "rule", shape or (4,), axes)
    )


def test_quantizer_has_no_range_until_it_is_given_one():
    site = quantizer()
    assert not site.calibrated and np.isnan(site.lower.numpy())
    site.set_range(-2.0, 2.0)
    assert site.calibrated
    x = values_around(-2.0, 2.0)
    np.testing.assert_array_equal(
        site(tf.constant(x)), formula(x, -2.0, 2.0, formats.get("int8").codebook(Scale()))
    )


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (
            np.zeros(3),
            np.ones(3),
            r"layer:weight:kernel: range has shape \[3\], the site needs \[2\]",
        ),
        ([-1.0, np.nan], [1.0, 1.0], "layer:weight:kernel: range is not finite"),
        ([0.0, 0.0], [np.inf, 1.0], "layer:weight:kernel: range is not finite"),
        (
            [-1.0, 3.0],
            [1.0, 2.0],
            "layer:weight:kernel: lower end of the range lies above the upper end",
        ),
        ([-1.0, -3e38], [1.0, 1.0], "layer:weight:kernel: range -3e.38 ... 1.* is too wide"),
    ],
)
def test_quantizer_refuses_a_bad_range_and_keeps_the_old_one(lower, upper, message):
    site = quantizer((2,))
    site.set_range([-1.0, -2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=message) as caught:
        site.set_range(lower, upper)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(site.lower, [-1.0, -2.0])
    np.testing.assert_array_equal(site.upper, [1.0, 2.0])

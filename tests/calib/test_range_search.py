"""Searches for ranges against published numbers, brute force and SciPy."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from calib import (
    CalibrationError,
    EmptyStatisticsError,
    Grid,
    Histogram,
    Method,
    Statistics,
    losses,
    per_channel_range,
)

# The data and results of Qualcomm's transformer-quantization: margin 0.5, 100 candidates, grids
# -2**(b-1) .. 2**(b-1) - 1 and 0 .. 2**b - 1.
INDEX = np.arange(256)
DATA = 0.5 * np.sin(0.37 * INDEX) + 0.05 * ((INDEX % 7) - 3)
DATA[[10, 77]] = 3, -2.2
DATA = DATA.astype(np.float32)
GRID, GOLDEN = (
    Method("mse", {"search": search, "margin": 0.5}) for search in ("grid", "golden_section")
)
LOGITS = np.array([[2, -1, 0.3], [0.1, 0.2, -3]], np.float32)


def codes(bits: int, symmetric: bool) -> Grid:
    return (
        Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if symmetric
        else Grid(0, 2**bits - 1, symmetric=False)
    )


def quantized(x: np.ndarray, grid: Grid, lower: float, upper: float) -> np.ndarray:
    """Written out once more, in float32."""
    x, lower, upper = np.float32(x), np.float32(lower), np.float32(upper)
    step = (
        max(-lower, upper) / grid.qmax
        if grid.symmetric
        else (upper - lower) / (grid.qmax - grid.qmin)
    )
    zero = np.float32(0) if grid.symmetric else np.round(grid.qmin - lower / step)
    return (np.clip(np.round(x / step) + zero, grid.qmin, grid.qmax) - zero) * step


def mean_error(x: np.ndarray, grid: Grid, lower: float, upper: float) -> float:
    return float(np.mean((quantized(x, grid, lower, upper).astype(np.float64) - x) ** 2))


def entropy(rows: np.ndarray, grid: Grid, lower: float, upper: float) -> float:
    return float(
        -(
            scipy.special.softmax(rows, -1)
            * scipy.special.log_softmax(quantized(rows, grid, lower, upper), -1)
        ).sum()
    )


def statistics_of(values: np.ndarray, signed: bool, bins: int = 1 << 14) -> Statistics:
    return Statistics(
        values.min(), values.max(), values.size, 1, Histogram.of(values, signed=signed, bins=bins)
    )


def heavy(size: int = 3000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size=size).astype(np.float32)


# Published numbers


@pytest.mark.parametrize(
    "bits, method, clip, error",
    [
        (2, GRID, 0.455, 0.046471),
        (2, GOLDEN, 2.60002, 0.135202),
        (4, GRID, 2.135, 0.010379),
        (4, GOLDEN, 2.14789, 0.010376),
        (8, GRID, 3.150, 4.5075e-5),
        (8, GOLDEN, 3.00332, 4.5509e-5),
    ],
)
def test_symmetric_searches_give_the_published_clip_and_error(bits, method, clip, error):
    grid = codes(bits, True)
    lower, upper = per_channel_range(DATA, None, method, grid)
    assert upper == pytest.approx(clip, abs=3e-5) and lower == -upper
    assert mean_error(DATA, grid, lower, upper) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    "bits, method, lower, upper, error",
    [
        (2, GRID, -0.665, 0.665, 0.046477),
        (2, GOLDEN, -0.57764, 0.79343, 0.043624),
        (4, GRID, -1.88067, 2.45933, 0.008141),
        (4, GOLDEN, -1.63730, 2.72302, 0.008138),
        (8, GOLDEN, -2.20981, 2.99713, 3.4450e-5),
    ],
)
def test_asymmetric_searches_give_the_published_range_and_error(bits, method, lower, upper, error):
    grid = codes(bits, False)
    found = per_channel_range(DATA, None, method, grid)
    assert found == pytest.approx((lower, upper), abs=2e-4)
    assert mean_error(DATA, grid, *found) == pytest.approx(error, rel=1e-4)


def test_channels_that_reach_as_far_as_the_tensor_give_the_published_clip():
    # The published search looks as far as the whole tensor reaches in every channel, this one as
    # far as the channel does.
    rows = DATA.reshape(4, 64)
    _, by_grid = per_channel_range(rows, 0, GRID, codes(4, True))
    _, by_section = per_channel_range(rows, 0, GOLDEN, codes(4, True))
    assert by_grid[0] == pytest.approx(2.87, abs=1e-5)
    np.testing.assert_allclose(by_section[:3], [2.76842, 1.87216, 0.61987], atol=2e-4)
    for row, clip, published in zip(rows, by_grid, [2.87, 1.855, 0.595, 0.56], strict=True):
        # Both step through their candidates and miss the best by up to half a step.
        assert mean_error(row, codes(4, True), -clip, clip) < 1.02 * mean_error(
            row, codes(4, True), -published, published
        )


@pytest.mark.parametrize(
    "options, lower, upper",
    [({"search": "golden_section"}, -2.84096, 2.20559), ({"candidates": 20}, -3.5, 2.5)],
)
def test_cross_entropy_gives_the_published_ranges(options, lower, upper):
    stats = Statistics(LOGITS.min(), LOGITS.max(), LOGITS.size, 1, rows=LOGITS)
    found = Method("cross_entropy", {"margin": 0.5, **options}).estimate(stats, codes(4, False))
    assert found == pytest.approx((lower, upper), abs=6e-4)


def test_percentile_of_both_tails_gives_the_published_range():
    values = (np.arange(-500, 501) / 100).astype(np.float32)
    stats = statistics_of(values, signed=True, bins=1 << 16)
    method, grid = Method("percentile", {"percentile": 99.8}), codes(8, False)
    for lower, upper in (
        method.estimate(stats, grid),
        per_channel_range(values[np.newaxis], 0, method, grid),
    ):
        assert (float(np.squeeze(lower)), float(np.squeeze(upper))) == pytest.approx(
            (-4.99, 4.99), abs=3e-4
        )  # two bins


# Brute force


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize(
    "grid", [Grid(-7, 7), codes(4, True), Grid(0, 15)], ids=["narrow", "full", "unsigned"]
)
def test_the_grid_search_of_one_end_equals_trying_every_candidate(grid, margin):
    values = heavy()
    reach = (values.max() if grid.unsigned else abs(values).max()) + margin
    ends = reach * np.arange(1, 41) / 40
    errors = [mean_error(values, grid, 0 if grid.unsigned else -end, end) for end in ends]
    method = Method("mse", {"search": "grid", "candidates": 40, "margin": margin})
    assert per_channel_range(values, None, method, grid)[1] == pytest.approx(
        ends[np.argmin(errors)], rel=1e-6
    )


@pytest.mark.parametrize("bits", [1, 3, 4, 5])
def test_the_grid_search_of_two_ends_equals_trying_every_candidate(bits):
    values, grid = heavy(400) + np.float32(1), codes(bits, False)
    best = None
    for k in range(1, 31):
        half = float(abs(values).max()) * k / 30
        for j in range(max(1, 2**bits // 4)):
            for sign in (1, -1):
                shift = sign * j * 2 * half / (2**bits - 1)
                ends = max(shift - half, min(values.min(), 0)), min(shift + half, values.max())
                error = mean_error(values, grid, *ends)
                best = error if best is None else min(best, error)
    method = Method("mse", {"search": "grid", "candidates": 30})
    assert mean_error(
        values, grid, *per_channel_range(values, None, method, grid)
    ) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("search", ["grid", "golden_section"])
def test_data_on_one_side_of_zero_leave_one_end_to_find(search, sign):
    values, grid = sign * abs(heavy()), codes(4, False)
    ends = np.sort(per_channel_range(values, None, Method("mse", {"search": search}), grid))
    assert ends[(sign + 1) // 2 - 1] == 0
    best = scipy.optimize.brute(
        lambda r: mean_error(abs(values), grid, 0, r[0]), ((0.3, abs(values).max()),), Ns=2000
    )
    found = mean_error(abs(values), grid, 0, np.abs(ends).max())
    assert found < 1.02 * mean_error(abs(values), grid, 0, best[0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_golden_section_of_four_bits_and_more_comes_near_the_best(symmetric):
    values = heavy(2000)
    for bits in (4, 8):
        grid = codes(bits, symmetric)
        section, tried = (
            mean_error(
                values,
                grid,
                *per_channel_range(values, None, Method("mse", {"search": search}), grid),
            )
            for search in ("golden_section", "grid")
        )
        assert section < 1.1 * tried


@pytest.mark.parametrize(
    "grid",
    [codes(4, True), Grid(0, 15), codes(3, False)],
    ids=["symmetric", "unsigned", "asymmetric"],
)
def test_squared_errors_from_sums_equal_those_of_every_value(grid):
    values, counts = heavy(500), np.random.default_rng(1).integers(0, 5, 500)
    upper = np.linspace(0.1, float(values.max()), 30)
    lower = (
        np.zeros(30)
        if grid.unsigned
        else -upper
        if grid.symmetric
        else np.linspace(float(values.min()), 0, 30)
    )
    found = losses.squared_error(values, counts, grid, up_to_constant=True)(lower, upper)
    values = values.astype(np.float64)
    errors = [
        (counts * (quantized(values, grid, a, b) - values) ** 2).sum()
        for a, b in zip(lower, upper, strict=True)
    ]
    np.testing.assert_allclose(found + (counts * values**2).sum(), errors, rtol=1e-6)


@pytest.mark.parametrize("search", ["grid", "golden_section"])
@pytest.mark.parametrize(
    "grid",
    [codes(4, True), codes(8, False), Grid(0, 15)],
    ids=["symmetric", "asymmetric", "unsigned"],
)
def test_a_histogram_gives_about_the_range_of_the_values(grid, search):
    values, method = heavy(), Method("mse", {"search": search})
    values = np.maximum(values, 0) if grid.unsigned else values
    found = method.estimate(statistics_of(values, signed=not grid.symmetric), grid)
    exact = per_channel_range(values, None, method, grid)
    assert mean_error(values, grid, *found) < 1.02 * mean_error(values, grid, *exact)


def test_cross_entropy_by_grid_equals_trying_every_candidate():
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 3
    for grid in (codes(3, True), codes(2, False)):
        reach = abs(rows).max()
        ends = [(-reach * k / 25, reach * k / 25) for k in range(1, 26)]
        ends = (
            ends
            if grid.symmetric
            else [(max(low, rows.min()), min(high, rows.max())) for low, high in ends]
        )
        best = min(entropy(rows, grid, *pair) for pair in ends)
        stats = Statistics(rows.min(), rows.max(), rows.size, 1, rows=rows)
        found = Method("cross_entropy", {"candidates": 25}).estimate(stats, grid)
        assert entropy(rows, grid, *map(float, found)) == pytest.approx(best, rel=1e-5)


# What holds for every search

SEARCHES = [
    Method("mse", {"search": s, "margin": m})
    for s in ("grid", "golden_section")
    for m in (0.0, 0.25)
]


@pytest.mark.parametrize("method", SEARCHES, ids=str)
@pytest.mark.parametrize(
    "grid",
    [Grid(-127, 127), codes(2, False), codes(8, False), Grid(0, 255), codes(16, False)],
    ids=str,
)
def test_ranges_hold_zero_and_end_at_most_a_margin_beyond_the_data(method, grid):
    margin = method.options["margin"]
    for values in (
        heavy(300),
        heavy(300) + 4,
        abs(heavy(50)),
        -abs(heavy(50)),
        np.float32([0.7]),
        np.float32([-3, 1e-3]),
    ):
        lower, upper = method.estimate(
            statistics_of(values, signed=not grid.symmetric, bins=256), grid
        )
        amax = abs(values).max() + margin + 1e-6
        assert lower.dtype == upper.dtype == np.float32 and lower.shape == upper.shape == ()
        assert -amax <= lower <= 0 <= upper <= amax
        if not grid.symmetric:
            assert (
                min(values.min(), 0) - margin - 1e-6 <= lower
                and upper <= max(values.max(), 0) + margin + 1e-6
            )


@pytest.mark.parametrize("method", SEARCHES, ids=str)
def test_zeros_and_dead_channels_have_an_empty_range(method):
    weights = heavy(40).reshape(10, 4)
    weights[:, 1] = 0
    for grid in (codes(4, True), codes(4, False)):
        lower, upper = per_channel_range(weights, 1, method, grid)
        assert lower[1] == upper[1] == 0 and (upper[[0, 2, 3]] > 0).all()
        assert method.estimate(
            statistics_of(np.zeros(5, np.float32), signed=not grid.symmetric), grid
        ) == (0, 0)


def test_a_channel_has_the_range_it_has_alone():
    weights = heavy(600).reshape(150, 4)
    for search in ("grid", "golden_section"):
        method = Method("mse", {"search": search})
        lower, upper = per_channel_range(weights, 1, method, codes(4, False))
        for channel in range(4):
            assert per_channel_range(weights[:, channel], None, method, codes(4, False)) == (
                lower[channel],
                upper[channel],
            )


# What is refused


def test_cross_entropy_needs_rows_and_is_not_for_weights():
    with pytest.raises(
        EmptyStatisticsError,
        match="^head: no rows of logits were kept; calibrate with method 'cross_entropy'",
    ):
        Method("cross_entropy").estimate(Statistics(0, 1, 4, 1), codes(8, True), site="head")
    with pytest.raises(
        CalibrationError,
        match="^kernel: method 'cross_entropy' is for logits and this is a weight; use max, ",
    ):
        per_channel_range(heavy(), None, "cross_entropy", codes(8, True), name="kernel")


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "mse",
            {"search": "random"},
            "search must be one of bins, grid, golden_section, got 'random'",
        ),
        (
            "mse",
            {"search": "grid", "candidates": 0},
            "candidates must be an integer of at least 1, got 0",
        ),
        (
            "mse",
            {"search": "grid", "margin": -0.5},
            "margin must be a finite number of at least 0, got -0.5",
        ),
        ("mse", {"search": "grid", "margin": float("nan")}, "margin must be a finite number"),
        ("mse", {"candidates": 50}, "candidates does not apply to search 'bins', only to grid"),
        (
            "mse",
            {"margin": 0.5},
            "margin does not apply to search 'bins', only to grid and golden_section",
        ),
        (
            "mse",
            {"search": "golden_section", "candidates": 20},
            "candidates does not apply to search 'golden_section', only to grid",
        ),
        (
            "mse",
            {"search": "grid", "stride": 2},
            "stride does not apply to search 'grid', only to bins",
        ),
        (
            "cross_entropy",
            {"search": "bins"},
            "search must be one of grid, golden_section, got 'bins'",
        ),
        ("cross_entropy", {"rows": 0}, "rows must be an integer of at least 1, got 0"),
        (
            "cross_entropy",
            {"search": "golden_section", "candidates": 9},
            "candidates does not apply to search 'golden_section'",
        ),
        ("moving_average", {"decay": 1.0}, "decay must be a number from 0 to below 1, got 1.0"),
        ("moving_average", {"decay": True}, "decay must be a number from 0 to below 1, got True"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"^range method '{name}': {message}"):
        Method(name, options)

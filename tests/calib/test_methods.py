"""Range methods against straightforward loops, sorting and SciPy."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from calib import (
    EmptyStatisticsError,
    Grid,
    Histogram,
    Method,
    MissingHistogramError,
    Statistics,
    methods,
    weight_statistics,
)

NARROW, UNSIGNED, ASYMMETRIC = Grid(-127, 127), Grid(0, 255), Grid(-128, 127, symmetric=False)
GRIDS = {
    "narrow": NARROW,
    "full": Grid(-128, 127),
    "unsigned": UNSIGNED,
    "asymmetric": ASYMMETRIC,
    "asymmetric unsigned": Grid(0, 255, symmetric=False),
    "two bits": Grid(-1, 1),
    "four bits": Grid(-8, 7, symmetric=False),
}
ARRAYS = hypothesis.extra.numpy.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)


def statistics_of(values, signed=False, bins=2048):
    values = np.asarray(values, np.float32)
    histogram = Histogram.of(values, signed=signed, bins=bins)
    extremes = values.min(), values.max()
    tokens = np.stack([values.ravel()] * 2, 1)  # each value is a token of its own
    return Statistics(*extremes, values.size, 1, histogram, *extremes, tokens=tokens)


def ends(name, stats, grid=NARROW, **options):
    lower, upper = Method.parse(name, **options).estimate(stats, grid)
    assert lower.dtype == upper.dtype == np.float32
    return float(lower), float(upper)


def heavy(size=20000, seed=0):
    return np.random.default_rng(seed).standard_t(3, size=size).astype(np.float32)


# --- constants of the original calibrators
# ---------------------------------------------------------------------------


def test_a_constant_one_reproduces_the_original_constants():
    stats = statistics_of(np.ones(1000))
    assert ends("percentile", stats, edge="left") == (-0.99951171875, 0.99951171875)
    assert ends("mse", stats) == (-0.999755859375, 0.999755859375)
    assert ends("percentile", stats) == pytest.approx((-1, 1), abs=1e-7)
    assert ends("max", stats) == ends("percentile", stats, edge="right") == (-1, 1)


def test_options_default_to_the_original_ones():
    assert Method("percentile").options["percentile"] == 99.99
    for name in ("mse", "entropy"):
        assert Method(name).options.items() >= {"start_bin": 128, "stride": 1}.items()
    assert Method("mse").options["search"] == "bins"


# --- percentile
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0, 1, 50, 99, 99.9, 99.99, 100])
def test_percentile_lies_within_a_bin_of_the_sorted_value(percentile):
    values = heavy()
    stats = statistics_of(values)
    kept = round(
        values.size * percentile / 100
    )  # a whole number of values for each of these percentiles
    expected = np.sort(np.abs(values))[max(kept, 1) - 1]
    _, upper = ends("percentile", stats, percentile=percentile)
    width = stats.histogram.bin_width
    assert abs(upper - expected) <= width or percentile == 0 and upper == 0
    left, right = (
        ends("percentile", stats, percentile=percentile, edge=edge)[1] for edge in ("left", "right")
    )
    assert left <= upper <= right <= left + width * (1 + 1e-6)


def test_the_hundredth_percentile_is_the_true_extreme():
    values = heavy()
    assert ends("percentile", statistics_of(values), percentile=100)[1] == np.abs(values).max()
    assert ends("percentile", statistics_of(values, signed=True), ASYMMETRIC, percentile=100) == (
        values.min(),
        values.max(),
    )


def test_percentile_is_exact_where_a_share_is_a_whole_number_of_values():
    values = np.arange(1, 10001) / 10000  # 9,999 of them are at most 0.9999
    stats = statistics_of(values, bins=1 << 17)
    right = ends("percentile", stats, edge="right")[1]
    assert 0.9999 <= right < 0.9999 + stats.histogram.bin_width


def test_percentile_is_two_sided_on_an_asymmetric_grid():
    values = np.concatenate([heavy(), 3 + heavy(seed=1)])
    stats = statistics_of(values, signed=True, bins=1 << 16)
    lower, upper = ends("percentile", stats, ASYMMETRIC, percentile=99)
    np.testing.assert_allclose(
        [lower, upper], np.percentile(values, [0.5, 99.5]), atol=2 * stats.histogram.bin_width
    )


# --- mse
# --------------------------------------------------------------------------------------------------


def looped_mse(histogram, qmax, start):
    """The definition, one candidate at a time: (amax, its score) of the first smallest score."""
    best, least = None, np.inf
    last = np.flatnonzero(histogram.counts)[-1]
    for i in range(start, last + 1):
        amax = histogram.centers[i]
        codes = np.round(np.clip(histogram.centers, -amax, amax) * qmax / amax)
        score = np.mean((codes * amax / qmax - histogram.centers) ** 2 * histogram.counts)
        if score < least:
            best, least = amax, score
    return best


@pytest.mark.parametrize("grid", [NARROW, Grid(-7, 7), UNSIGNED])
@pytest.mark.parametrize("seed", range(3))
def test_mse_equals_the_loop_over_candidates(grid, seed):
    values = np.abs(heavy(5000, seed))
    stats = statistics_of(values)
    upper = ends("mse", stats, grid)[1]
    assert upper == min(np.float32(looped_mse(stats.histogram, grid.qmax, 128)), values.max())


def test_mse_works_with_few_bins_by_starting_lower():
    stats = statistics_of(np.abs(heavy(5000)), bins=64)
    used = np.flatnonzero(stats.histogram.counts)[-1] + 1
    assert ends("mse", stats, Grid(-3, 3))[1] == np.float32(
        looped_mse(stats.histogram, 3, used // 8)
    )


def squared_error(values, counts, grid, lower, upper):
    step = (upper - lower) / (grid.qmax - grid.qmin)
    zero = round(grid.qmin - lower / step)
    codes = np.clip(np.round(values / step) + zero, grid.qmin, grid.qmax)
    return np.sum(counts * ((codes - zero) * step - values) ** 2)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 1.0])
def test_asymmetric_mse_comes_near_the_best_of_all_pairs_of_ends(shift):
    grid = Grid(-8, 7, symmetric=False)
    stats = statistics_of(heavy(3000) + shift, signed=True, bins=128)
    histogram = stats.histogram
    pairs = [(low, high) for low in histogram.centers[:64] for high in histogram.centers[64:]]
    best = min(squared_error(histogram.centers, histogram.counts, grid, *pair) for pair in pairs)
    found = squared_error(histogram.centers, histogram.counts, grid, *ends("mse", stats, grid))
    widest = squared_error(histogram.centers, histogram.counts, grid, *ends("max", stats, grid))
    assert found <= 1.05 * best and found < 0.8 * widest


# --- entropy
# --------------------------------------------------------------------------------------------------


def slow_divergence(counts, start, stop, levels):
    """KL divergence of one candidate range, bin by bin."""
    inside = counts[start:stop]
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    # Whole numbers: a bin belongs to the group its place falls in when the range is cut in equal
    # parts.
    group = np.arange(inside.size) * levels // inside.size
    quantized = np.zeros_like(inside)
    for index in range(levels):
        filled = (group == index) & (inside > 0)
        if filled.any():
            quantized[filled] = inside[group == index].sum() / filled.sum()
    return scipy.stats.entropy(reference, quantized) if quantized.any() else np.inf


def last_smallest(scores):
    scores = np.array(scores)
    return np.flatnonzero(scores <= scores.min() + 1e-12)[-1]


@pytest.mark.representatives("values0-grid0", "values1-grid1", "values2-grid2")
@pytest.mark.parametrize("grid", [NARROW, Grid(-7, 7), UNSIGNED])
@pytest.mark.parametrize(
    "values", [heavy(4000), np.round(heavy(300) * 3) / 3, np.geomspace(0.001, 50, 40)]
)
def test_entropy_equals_scipy_over_all_candidates(grid, values):
    stats = statistics_of(np.abs(values), bins=512)
    counts = stats.histogram.counts.astype(float)
    counts[0] = counts[1]
    stops = np.arange(128, np.flatnonzero(counts)[-1] + 2)
    scores = [slow_divergence(counts, 0, stop, grid.qmax + 1) for stop in stops]
    expected = np.float32(stops[last_smallest(scores)] * stats.histogram.bin_width)
    assert ends("entropy", stats, grid)[1] == min(expected, np.float32(np.abs(values).max()))
    fast = methods.entropy.divergences(counts, np.zeros_like(stops), stops, grid.qmax + 1)
    np.testing.assert_allclose(fast, scores, atol=1e-9)


def test_divergences_of_ranges_within_both_ends_equal_scipy():
    random = np.random.default_rng(1)
    counts = random.integers(0, 4, 36).astype(float)
    starts, stops = np.triu_indices(37, 1)
    for levels in (4, 16, 50):
        fast = methods.entropy.divergences(counts, starts, stops, levels)
        slow = [slow_divergence(counts, a, b, levels) for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_allclose(fast, slow, atol=1e-9)


def test_entropy_clips_a_far_outlier():
    assert (
        ends("entropy", statistics_of(np.append(np.random.default_rng(0).normal(size=20000), 20)))[
            1
        ]
        < 8
    )


def test_asymmetric_entropy_searches_the_upper_end_then_the_lower():
    stats = statistics_of(np.append(heavy(4000), 1 + heavy(4000, 1)), signed=True, bins=256)
    counts = stats.histogram.counts.astype(float)
    counts[128] = counts[129]
    filled = np.flatnonzero(counts)
    first, last = filled[0], filled[-1] + 1
    stops = 128 + np.arange(20, last - 128 + 1)
    upper = stops[last_smallest([slow_divergence(counts, first, stop, 16) for stop in stops])]
    starts = 128 - np.arange(20, 128 - first + 1)
    lower = starts[last_smallest([slow_divergence(counts, start, upper, 16) for start in starts])]
    expected = (np.array([lower, upper]) - 128) * stats.histogram.bin_width
    found = ends("entropy", stats, Grid(-8, 7, symmetric=False), start_bin=20)
    assert found == (max(expected[0], stats.minimum), min(expected[1], stats.maximum))


def test_no_method_changes_the_statistics():
    for signed, grid in ((False, NARROW), (True, ASYMMETRIC)):
        stats = statistics_of(heavy(), signed=signed)
        before = stats.histogram.counts.copy()
        for name in methods.GENERAL:
            assert ends(name, stats, grid) == ends(name, stats, grid)
        np.testing.assert_array_equal(stats.histogram.counts, before)


# --- max and moving average
# --------------------------------------------------------------------------------------------------


def test_max_and_moving_average_work_per_channel():
    stats = Statistics([-1, -5, 2], [3, 1, 4], 30, 2, None, [-1, -4, 2], [2, 1, 3])
    for name, grid, lower, upper in (
        ("max", NARROW, [-3, -5, -4], [3, 5, 4]),
        ("max", UNSIGNED, [0, 0, 0], [3, 1, 4]),
        ("max", ASYMMETRIC, [-1, -5, 0], [3, 1, 4]),
        ("moving_average", NARROW, [-2, -4, -3], [2, 4, 3]),
        ("moving_average", ASYMMETRIC, [-1, -4, 0], [2, 1, 3]),
    ):
        found = Method(name).estimate(stats, grid)
        np.testing.assert_array_equal(found, [lower, upper])


def test_a_weight_is_its_own_moving_average_and_other_sites_need_one():
    weight = weight_statistics(np.array([[1.0, -2.0], [3.0, 4.0]]), 0)
    np.testing.assert_array_equal(Method("moving_average").estimate(weight, NARROW)[1], [2, 4])
    with pytest.raises(EmptyStatisticsError, match="layer: no moving average"):
        Method("moving_average").estimate(Statistics(0, 1, 4, 1), NARROW, site="layer")


# --- what holds for every method
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("name", methods.GENERAL)
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(ARRAYS)
def test_every_range_holds_zero_and_never_exceeds_the_data(grid, name, values):
    lower, upper = ends(name, statistics_of(values, signed=not grid.symmetric, bins=256), grid)
    amax = np.abs(values).max()
    assert -amax <= lower <= 0 <= upper <= amax
    if grid.unsigned:
        assert lower == 0 and upper <= max(values.max(), 0)
    elif grid.symmetric:
        assert lower == -upper
    else:
        assert min(values.min(), 0) <= lower and upper <= max(values.max(), 0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("name", methods.GENERAL)
def test_all_zero_data_give_an_empty_range(grid, name):
    assert ends(name, statistics_of(np.zeros(9), signed=not grid.symmetric), grid) == (0, 0)


@pytest.mark.parametrize("name", methods.GENERAL)
def test_data_in_a_single_bin_give_that_value(name):
    assert ends(name, statistics_of(np.full(100, 0.7)))[1] == pytest.approx(0.7, rel=2e-3)
    lower, upper = ends(name, statistics_of(np.full(100, -0.7), signed=True), ASYMMETRIC)
    assert lower == pytest.approx(-0.7, rel=2e-3) and upper == 0


@pytest.mark.parametrize("name", methods.GENERAL)
def test_scaling_the_data_by_a_power_of_two_scales_the_range(name):
    values = heavy(3000)
    for grid, signed in ((NARROW, False), (ASYMMETRIC, True)):
        once, scaled = (
            ends(name, statistics_of(factor * values, signed), grid) for factor in (1, 64)
        )
        np.testing.assert_allclose(scaled, 64 * np.array(once), rtol=1e-6)


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_a_signed_histogram_serves_symmetric_grids_too(name):
    values = heavy(4000)
    signed, unsigned = (
        statistics_of(values, signed=True, bins=1024),
        statistics_of(values, bins=512),
    )
    assert ends(name, signed) == ends(name, unsigned)
    assert ends(name, signed, UNSIGNED) == pytest.approx(
        ends(name, statistics_of(np.maximum(values, 0), bins=512), UNSIGNED)
    )


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_an_unsigned_histogram_serves_an_asymmetric_grid_only_if_nothing_is_negative(name):
    values = np.abs(heavy(4000))
    assert ends(name, statistics_of(values, bins=512), ASYMMETRIC) == ends(
        name, statistics_of(values, signed=True, bins=1024), ASYMMETRIC
    )
    with pytest.raises(MissingHistogramError, match="a/b: .*signed=True"):
        Method(name).estimate(statistics_of(-values), ASYMMETRIC, site="a/b")


@pytest.mark.parametrize("name", methods.GENERAL)
def test_empty_statistics_are_an_error_that_names_the_site(name):
    empty = Statistics(np.inf, -np.inf, 0, 0, Histogram(np.zeros(64, np.int64), 1.0, False))
    with pytest.raises(EmptyStatisticsError, match="encoder/output: no value was seen"):
        Method(name).estimate(empty, NARROW, site="encoder/output")


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_a_missing_histogram_is_an_error_that_names_the_site(name):
    with pytest.raises(MissingHistogramError, match="encoder/output: .*needs a histogram"):
        Method(name).estimate(Statistics(0, 1, 4, 1), NARROW, site="encoder/output")


# --- names and options
# --------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_list_the_valid_ones():
    with pytest.raises(
        ValueError, match="'kl'; choose one of max, percentile, mse, entropy, moving_average"
    ):
        Method("kl")
    with pytest.raises(ValueError, match="no option 'percent'; valid options: percentile, edge"):
        Method.parse("percentile", percent=99)
    with pytest.raises(ValueError, match="no option 'stride'; valid options: none"):
        Method.parse("max", stride=2)


@pytest.mark.parametrize(
    "name, options",
    [
        ("percentile", {"percentile": 100.1}),
        ("percentile", {"percentile": -1}),
        ("percentile", {"percentile": None}),
        ("percentile", {"percentile": float("nan")}),
        ("percentile", {"edge": "middle"}),
        ("mse", {"stride": 0}),
        ("entropy", {"start_bin": -1}),
        ("entropy", {"start_bin": 1.5}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"{name}.*{option}"):
        Method.parse(name, **options)


@pytest.mark.parametrize("name", methods.NAMES)
def test_methods_survive_a_dictionary_and_compare_by_value(name):
    method = Method(name)
    assert Method.from_dict(method.to_dict()) == method == Method.parse(name)
    assert len({method, Method(name)}) == 1
    assert Method("percentile", {"percentile": 99.9}) != Method("percentile")
    with pytest.raises(ValueError, match="without a name"):
        Method.from_dict({})

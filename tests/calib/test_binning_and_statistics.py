"""Histograms on the power-of-two grid, and merging of statistics."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest

from calib import Histogram, Statistics, merge, weight_statistics
from calib.binning import MIN_EXPONENT, check_bins, exponent_of

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
ARRAYS = hypothesis.extra.numpy.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def statistics_of(values, signed=False, bins=64):
    histogram = Histogram.of(values, signed=signed, bins=bins)
    return Statistics(values.min(), values.max(), values.size, 1, histogram)


def counted_by_loop(values, width, bins, signed):
    """The definition, one value at a time: bins closed on the side away from zero."""
    counts = [0] * bins
    for value in values:
        magnitude = abs(float(value))
        side = bins // 2 if signed else bins
        place = next((i for i in range(side) if magnitude <= (i + 1) * width), None)
        if signed:
            place = side - 1 - place if value < 0 else side + place
        counts[place] += 1
    return counts


@pytest.mark.parametrize(
    "amax, exponent", [(1.0, 0), (1.0000001, 1), (0.5, -1), (0.75, 0), (3, 2), (4, 2), (4.0001, 3)]
)
def test_the_span_is_the_smallest_power_of_two_that_reaches_the_maximum(amax, exponent):
    assert exponent_of(amax) == exponent


def test_zero_and_tiny_values_share_the_smallest_span():
    assert exponent_of(0.0) == exponent_of(1e-38) == MIN_EXPONENT


@pytest.mark.parametrize("bins", [0, 4, 100, 2049, 2.0, True, "2048"])
def test_bins_that_do_not_merge_by_pairs_are_refused(bins):
    with pytest.raises(ValueError, match="bins must be"):
        check_bins(bins)


@pytest.mark.parametrize("signed", [False, True])
@hypothesis.given(ARRAYS)
def test_counts_follow_the_definition_of_the_bins(signed, values):
    histogram = Histogram.of(values, signed=signed, bins=16)
    assert histogram.counts.tolist() == counted_by_loop(values, histogram.bin_width, 16, signed)


def test_a_constant_one_fills_the_last_bin_exactly_to_its_edge():
    histogram = Histogram.of(np.ones(5), signed=False)
    assert histogram.bin_width == 1 / 2048
    assert (
        histogram.counts[2047] == 5
        and histogram.edges[2047] == 2047 / 2048
        and histogram.edges[-1] == 1
    )


@pytest.mark.parametrize("signed", [False, True])
@hypothesis.given(st.lists(ARRAYS, min_size=2, max_size=5), st.randoms())
def test_merging_equals_a_single_pass_bit_for_bit_in_any_order(signed, batches, random):
    single = statistics_of(np.concatenate(batches), signed)
    random.shuffle(batches)
    merged = statistics_of(batches[0], signed)
    for batch in batches[1:]:
        merged = merge(merged, statistics_of(batch, signed))
    assert merged.histogram.equals(single.histogram)
    assert (merged.minimum, merged.maximum, merged.count) == (
        single.minimum,
        single.maximum,
        single.count,
    )
    assert merged.batches == len(batches)


@hypothesis.given(ARRAYS)
def test_folding_a_signed_histogram_gives_that_of_the_magnitudes(values):
    folded = Histogram.of(values, signed=True, bins=32).folded()
    assert folded.equals(Histogram.of(np.abs(values), signed=False, bins=16))


@hypothesis.given(ARRAYS)
def test_rectifying_a_signed_histogram_counts_negative_values_as_zero(values):
    histogram = Histogram.of(values, signed=True, bins=32).rectified()
    expected = counted_by_loop(np.maximum(values, 0), histogram.bin_width, 16, False)
    assert histogram.counts.tolist() == expected


def test_bins_grow_by_doubling_and_their_number_never_changes():
    values = np.float32(10.0) ** np.arange(-3, 4)  # a ratio of a million
    merged = statistics_of(values[:1], bins=2048)
    for value in values[1:]:
        merged = merge(merged, statistics_of(np.array([value], np.float32), bins=2048))
    assert merged.histogram.counts.size == 2048 and merged.histogram.counts.sum() == 7
    assert merged.histogram.bin_width == 1024 / 2048


def test_a_histogram_coarsens_but_cannot_be_refined():
    histogram = Histogram.of(np.array([0.1, 0.9]), signed=False, bins=8)
    assert histogram.coarsened(3).counts.tolist() == [2] + [0] * 7
    with pytest.raises(ValueError, match="cannot be refined"):
        histogram.coarsened(-1)


def test_an_empty_side_leaves_the_other_unchanged_when_merged():
    empty = Statistics(np.inf, -np.inf, 0, 0, Histogram(np.zeros(64, np.int64), 2.0**-106, False))
    some = statistics_of(np.array([1.0, 2.0], np.float32))
    assert merge(empty, some).equals(some) and merge(some, empty).equals(some)
    assert empty.empty


def test_moving_averages_merge_weighted_by_batches():
    a = Statistics(0, 1, 4, 3, None, 0.0, 1.0)
    b = Statistics(-1, 5, 4, 1, None, -1.0, 5.0)
    merged = merge(a, b)
    assert float(merged.ema_minimum) == -0.25 and float(merged.ema_maximum) == 2.0


@pytest.mark.parametrize(
    "other, message",
    [
        (Statistics(np.zeros(2), np.ones(2), 2, 1), "per-tensor and per-channel"),
        (Statistics(0, 1, 2, 1), "only one of the two"),
        (
            Statistics(0, 1, 2, 1, Histogram.of(np.ones(2), signed=True, bins=64)),
            "64 unsigned bins and 64 signed bins",
        ),
        (
            Statistics(0, 1, 2, 1, Histogram.of(np.ones(2), signed=False, bins=32)),
            "64 unsigned bins and 32 unsigned",
        ),
    ],
)
def test_statistics_that_do_not_fit_are_not_merged(other, message):
    with pytest.raises(ValueError, match=message):
        merge(statistics_of(np.ones(3, np.float32)), other)


def test_a_weight_merges_with_itself_unchanged_and_not_with_another():
    weight = weight_statistics(np.array([[1.0, -2.0], [3.0, 4.0]]), 1)
    assert merge(weight, weight_statistics(np.array([[1.0, -2.0], [3.0, 4.0]]), 1)).equals(weight)
    with pytest.raises(ValueError, match="constant"):
        merge(weight, weight_statistics(np.array([[1.0, -2.0], [3.0, 5.0]]), 1))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Histogram(np.zeros(16, np.int32), 1.0, False), "int64"),
        (lambda: Histogram(np.full(16, -1), 1.0, False), "not be negative"),
        (lambda: Histogram(np.zeros(16, np.int64), 0.3, False), "power of two"),
        (lambda: Histogram(np.zeros(16, np.int64), 0.0, False), "power of two"),
        (lambda: Statistics(np.zeros(2), np.zeros(3), 1, 1), "shape"),
        (lambda: Statistics(0, 1, 1, 1, None, 0.0), "go together"),
        (lambda: Statistics(0, 1, -1, 1), "not be negative"),
    ],
)
def test_inconsistent_data_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

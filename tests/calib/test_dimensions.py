"""Extremes of embedding dimensions and their groups, against NumPy and the vectors of the paper's
code.
"""

import numpy as np
import pytest
import tensorflow as tf

import calib
from calib import (
    Calibration,
    CalibrationError,
    DimensionObserver,
    Grid,
    Grouping,
    Method,
    NonFiniteError,
    SiteCalibration,
)
from calib.outliers import outlier_report

# Two tokens of six dimensions, from the tests of Bondarenko et al.'s code.
X = np.array([[-0.1, 5, 0.2, -0.3, -40, 1], [0.3, -6, 0.1, 0.4, 2, -1.5]], np.float32)
ASYMMETRIC = Grid(0, 255, symmetric=False)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def observed(batches, masks=None, name="layer_0/output", dtype=tf.float32) -> DimensionObserver:
    """An observer that has seen the batches inside a `tf.function` of unknown sizes."""
    observer = DimensionObserver(name, batches[0].shape[-1])
    spec = tf.TensorSpec([None] * (batches[0].ndim - 1) + [batches[0].shape[-1]], dtype)
    signature = (
        [spec] if masks is None else [spec, tf.TensorSpec([None] * (masks[0].ndim - 1) + [1])]
    )
    step = tf.function(observer.update, input_signature=signature)
    for index, batch in enumerate(batches):
        step(tf.cast(batch, dtype), *(() if masks is None else (masks[index],)))
    return observer


def statistics_of(*batches: np.ndarray) -> calib.Statistics:
    return observed(batches).statistics()


def calibration_of(
    statistics: dict, groups: int = 3, order: str = "h", samples: int = 1
) -> Calibration:
    """One site `x`, grouped by the ranges of `h`, which is no site."""
    grouping = Grouping.of(groups, statistics["x"].minimum.size, order, statistics[order])
    site = SiteCalibration.estimate(
        statistics["x"], Method("max"), ASYMMETRIC, grouping, address="x"
    )
    return Calibration(
        {"x": site}, samples=samples, dimensions={a: s for a, s in statistics.items() if a != "x"}
    )


# Observer


@pytest.mark.parametrize("shape", [(2, 5, 8), (7, 8), (2, 3, 4, 8)])
def test_extremes_are_those_of_all_values_of_each_dimension(shape):
    batches = [normal(*shape, seed=1), 10 * normal(*shape, seed=2), 0.01 * normal(*shape, seed=3)]
    rows = np.concatenate([batch.reshape(-1, 8) for batch in batches])
    found = observed(batches).statistics()
    np.testing.assert_array_equal(found.minimum, rows.min(0))
    np.testing.assert_array_equal(found.maximum, rows.max(0))
    assert (found.count, found.batches) == (rows.size, 3) and found.histogram is None


@pytest.mark.parametrize("mask_shape", [(3, 6, 1), (3, 1, 1), (1, 6, 1)])
def test_padding_does_not_count_even_where_it_is_nan(mask_shape):
    x, mask = (
        normal(3, 6, 4),
        (np.random.default_rng(1).random(mask_shape) < 0.5).astype(np.float32),
    )
    mask.flat[0] = 1.0
    whole = np.broadcast_to(mask > 0, x.shape)
    x[~whole] = np.nan
    found = observed([x], [mask]).statistics()
    np.testing.assert_array_equal(found.minimum, np.nanmin(x, (0, 1)))
    np.testing.assert_array_equal(found.maximum, np.nanmax(x, (0, 1)))
    assert found.count == whole.sum()


def test_a_batch_of_padding_alone_changes_nothing():
    x = normal(2, 3, 4)
    found = observed(
        [x, 100 * x], [np.ones((2, 3, 1), np.float32), np.zeros((2, 3, 1), np.float32)]
    ).statistics()
    np.testing.assert_array_equal(found.maximum, x.max((0, 1)))
    assert found.batches == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_site_and_batch(value):
    broken = normal(5, 8)
    broken[3, 2] = value
    observer = observed([normal(5, 8), broken, normal(5, 8)])
    with pytest.raises(NonFiniteError, match="layer_0/output: NaN or Inf in calibration batch 1"):
        observer.statistics()


def test_bfloat16_is_observed_in_float32():
    x = normal(5, 8)
    found = observed([x], dtype=tf.bfloat16).statistics()
    np.testing.assert_array_equal(
        found.maximum, tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy().max(0)
    )


def test_observers_of_parts_join_to_that_of_the_whole():
    batches = [4.0**n * normal(3, 8, seed=n) for n in range(5)]
    whole, parts = (
        observed(batches),
        [observed(batches[::2]), observed(batches[1::2]), DimensionObserver("idle", 8)],
    )
    parts[2].join([part.tallies() for part in parts])
    assert parts[2].statistics().equals(whole.statistics())


@pytest.mark.parametrize(
    "x, mask, error, message",
    [
        (np.zeros((2, 4), np.int32), None, TypeError, "site: only floating"),
        (
            np.zeros((2, 5), np.float32),
            None,
            ValueError,
            "site: the last axis must have size 4, the tensor is .2, 5.",
        ),
        (
            np.zeros((2, 4), np.float32),
            np.ones((2, 4), np.float32),
            ValueError,
            "site: a mask of rows",
        ),
        (
            np.zeros((2, 4), np.float32),
            np.ones((3, 1), np.float32),
            ValueError,
            "site: mask .* does not broadcast",
        ),
    ],
)
def test_what_does_not_fit_is_refused(x, mask, error, message):
    with pytest.raises(error, match=message):
        DimensionObserver("site", 4).update(tf.constant(x), mask)


# Groups


def test_groups_of_dimensions_side_by_side_have_the_ranges_of_the_papers_code():
    grouping = Grouping.of(3, 6)
    np.testing.assert_array_equal(grouping.group_of, [0, 0, 1, 1, 2, 2])
    site = SiteCalibration.estimate(statistics_of(X), Method("max"), ASYMMETRIC, grouping)
    np.testing.assert_array_equal(site.lower, np.float32([-6, -0.3, -40]))
    np.testing.assert_array_equal(site.upper, np.float32([5, 0.4, 2]))


def test_sorted_groups_have_the_ranges_of_the_papers_code():
    grouping = Grouping.of(3, 6, "x", statistics_of(X))
    np.testing.assert_array_equal(
        grouping.group_of, [0, 2, 0, 1, 2, 1]
    )  # the order is 2, 0, 3, 5, 1, 4
    site = SiteCalibration.estimate(statistics_of(X), Method("max"), ASYMMETRIC, grouping)
    np.testing.assert_array_equal(
        site.lower[grouping.group_of], np.float32([-0.1, -40, -0.1, -1.5, -40, -1.5])
    )
    np.testing.assert_array_equal(site.upper[grouping.group_of], np.float32([0.3, 5, 0.3, 1, 5, 1]))


@pytest.mark.parametrize("groups", [1, 6])
def test_one_group_is_the_tensor_and_as_many_as_dimensions_are_each_its_own(groups):
    site = SiteCalibration.estimate(
        statistics_of(X),
        Method("max"),
        Grid(-127, 127),
        Grouping.of(groups, 6, "x", statistics_of(X)),
    )
    spread = site.upper[site.grouping.group_of]
    np.testing.assert_array_equal(
        spread, np.abs(X).max(0) if groups == 6 else np.full(6, 40, np.float32)
    )


def test_equal_ranges_keep_their_order():
    same = statistics_of(np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.float32))
    np.testing.assert_array_equal(Grouping.of(2, 4, "x", same).group_of, [0, 0, 1, 1])


@pytest.mark.parametrize("groups", [0, 4, 7])
def test_groups_of_unequal_size_are_refused(groups):
    with pytest.raises(ValueError, match=f"6 dimensions cannot be divided into {groups} groups"):
        Grouping.of(groups, 6)


def test_an_order_of_other_dimensions_is_refused():
    with pytest.raises(
        ValueError, match="the order of 4 dimensions needs a range of each of them at x"
    ):
        Grouping.of(2, 4, "x", statistics_of(X))


def test_an_order_of_what_was_never_reached_is_refused_with_its_address():
    nothing = observed([X], [np.zeros((2, 1), np.float32)]).statistics()
    with pytest.raises(calib.EmptyStatisticsError, match="h: no value was seen"):
        Grouping.of(3, 6, "h", nothing)


# Files


def test_groups_and_dimensions_survive_the_file(tmp_path):
    calibration = calibration_of({"x": statistics_of(X), "h": statistics_of(X[:, ::-1])})
    calibration.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    assert again.equals(calibration) and again.to_bytes() == calibration.to_bytes()
    np.testing.assert_array_equal(again["x"].grouping.group_of, [1, 2, 1, 0, 2, 0])
    np.testing.assert_array_equal(again.dimension_statistics("h").maximum, X[:, ::-1].max(0))
    assert not calibration.equals(Calibration(calibration, samples=1))
    assert not calibration.equals(calibration_of({"x": statistics_of(X), "h": statistics_of(X)}))


def test_merging_groups_dimensions_anew_by_the_ranges_of_both():
    first, second = normal(5, 6, seed=1), normal(5, 6, seed=2) * np.float32([1, 9, 1, 30, 1, 1])
    one, other = (
        calibration_of({"x": statistics_of(x), "h": statistics_of(x)}) for x in (first, second)
    )
    both = statistics_of(first, second)
    assert one.merge(other).equals(calibration_of({"x": both, "h": both}, samples=2))
    assert not one["x"].grouping.equals(one.merge(other)["x"].grouping)


def test_calibrations_with_other_groups_are_not_merged():
    statistics = {"x": statistics_of(X), "h": statistics_of(X)}
    with pytest.raises(CalibrationError, match="x: cannot merge groups of dimensions"):
        calibration_of(statistics).merge(calibration_of(statistics, groups=2))


def test_dimensions_of_a_site_that_only_one_calibration_kept_are_not_taken_for_those_of_all_data():
    site = SiteCalibration.estimate(calib.weight_statistics(X), Method("max"), Grid(-127, 127))
    one, other = (
        Calibration({"s": site}, dimensions={"s": statistics_of(X)}),
        Calibration({"s": site}),
    )
    assert not one.merge(other).keeps_dimensions("s")
    with pytest.raises(
        CalibrationError,
        match="s: ranges of its dimensions were not kept; calibrate with dimensions=True",
    ):
        one.merge(other).dimension_statistics("s")


def test_a_method_that_needs_a_histogram_leaves_groups_alone():
    calibration = calibration_of({"x": statistics_of(X), "h": statistics_of(X)})
    with pytest.raises(calib.MissingHistogramError, match="keeps one; use method 'max'"):
        calibration.reestimate("percentile")
    assert calibration.reestimate("max").equals(calibration)


# Outliers


def test_the_report_names_dimensions_whose_range_is_many_times_the_median(tmp_path):
    x = normal(400, 16)
    x[:, 5] *= 40
    x[:, 11] *= 15
    calibration = Calibration(
        {}, dimensions={"a": statistics_of(x), "b": statistics_of(normal(50, 4))}
    )
    report = outlier_report(calibration, tmp_path / "plots")
    assert [list(site.dimensions) for site in report.sites] == [[5, 11], []]
    np.testing.assert_allclose(report.sites[0].ranges, x.max(0) - x.min(0), rtol=1e-6)
    assert "5, 11" in str(report) and "6 times the median" in str(report)
    for path in report.plots:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert len(report.plots) == 2
    assert [list(site.dimensions) for site in outlier_report(calibration, factor=20).sites] == [
        [5],
        [],
    ]


def test_a_report_without_dimensions_or_with_a_bad_factor_is_refused():
    with pytest.raises(
        CalibrationError, match="keeps no ranges of dimensions; calibrate with dimensions=True"
    ):
        outlier_report(Calibration({}))
    with pytest.raises(ValueError, match="factor must be a number above 1"):
        outlier_report(Calibration({}, dimensions={"a": statistics_of(X)}), factor=1)


def test_a_grouped_site_is_drawn_and_tabled(tmp_path):
    calibration = calibration_of({"x": statistics_of(X), "h": statistics_of(X)})
    calibration.plot("x", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert "0..255 x3" in calibration.table()

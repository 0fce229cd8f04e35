"""Range methods on levels that are not equally far apart, from histograms and from exact values."""

import ml_dtypes
import numpy as np
import pytest

from calib import (
    Calibration,
    CalibrationError,
    Histogram,
    Method,
    ScaledCodebook,
    SiteCalibration,
    Statistics,
    methods,
    per_channel_range,
    weight_statistics,
)

MAGNITUDES = [0.0, 1, 2, 3, 4, 6, 8, 12]
E2M1 = ScaledCodebook.nearest([-m for m in MAGNITUDES[:0:-1]] + MAGNITUDES, name="e2m1")
E4M3 = ScaledCodebook.nearest(
    np.unique(
        [
            v
            for v in np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float)
            if np.isfinite(v)
        ]
    ),
    name="e4m3",
)
POWERS = ScaledCodebook((-1, -0.5, 0, 0.5, 1), (-0.75, -0.375, 0.375, 0.75), 1.0)
TAPERED = ScaledCodebook.nearest([-64.0, -8, -4, -2, -1, 0, 1, 2, 4, 8, 64], quant_max=8.0)
UNSIGNED = ScaledCodebook.nearest(MAGNITUDES)
CODEBOOKS = {"e2m1": E2M1, "e4m3": E4M3, "powers": POWERS, "tapered": TAPERED, "unsigned": UNSIGNED}
BOOKS = pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS.keys())
ABLE = [name for name in methods.GENERAL if name != "entropy"]


def heavy(size=4000, seed=0):
    return np.random.default_rng(seed).standard_t(3, size=size).astype(np.float32)


def statistics_of(values, bins=1 << 13):
    histogram = Histogram.of(values, signed=True, bins=bins)
    extremes = values.min(), values.max()
    rows = values.reshape(-1, 8)
    tokens = np.stack([rows.min(1), rows.max(1)], 1)
    return Statistics(*extremes, values.size, 1, histogram, *extremes, tokens=tokens)


def nearest_level(x, codebook, amax):
    """Independent of `quantize`: thresholds counted one by one, in float64."""
    scale = float(amax) / codebook.quant_max
    index = (x[:, np.newaxis].astype(np.float64) >= np.array(codebook.thresholds) * scale).sum(1)
    return np.array(codebook.levels)[index] * scale


def error(x, codebook, amax):
    return float(np.mean((nearest_level(x, codebook, amax) - x) ** 2))


@BOOKS
@pytest.mark.parametrize("name", ABLE)
def test_ranges_are_symmetric_and_never_exceed_the_data(codebook, name):
    values = heavy()
    for lower, upper in (
        Method(name).estimate(statistics_of(values), codebook),
        per_channel_range(values, None, name, codebook),
    ):
        assert lower == (0 if codebook.unsigned else -upper)
        assert 0 < upper <= (values.max() if codebook.unsigned else np.abs(values).max())


@BOOKS
@pytest.mark.parametrize("search", ["bins", "grid"])
def test_mse_comes_near_the_best_of_many_ranges(codebook, search):
    values = np.abs(heavy()) if codebook.unsigned else heavy()
    method = Method("mse", {"search": search})
    best = min(
        error(values, codebook, end) for end in np.linspace(0.01, 1, 400) * np.abs(values).max()
    )
    for _, upper in (
        method.estimate(statistics_of(values), codebook),
        per_channel_range(values, None, method, codebook),
    ):
        assert error(values, codebook, upper) <= 1.03 * best


@BOOKS
def test_error_from_sums_over_sorted_values_ranks_ranges_as_the_error_of_each_value(codebook):
    values = np.abs(heavy(6000)) if codebook.unsigned else heavy(6000)
    method = Method("mse", {"search": "grid", "candidates": 50})
    _, upper = per_channel_range(values, None, method, codebook)
    ends = np.abs(values).max() * np.arange(1, 51) / 50
    assert upper == np.float32(ends[np.argmin([error(values, codebook, end) for end in ends])])


@BOOKS
def test_channels_get_the_ranges_that_each_has_alone(codebook):
    array = heavy(600).reshape(100, 6)
    for name in ABLE:
        lower, upper = per_channel_range(array, 1, name, codebook)
        for channel in range(6):
            alone = per_channel_range(array[:, channel], None, name, codebook)
            assert (lower[channel], upper[channel]) == alone


@BOOKS
def test_entropy_is_refused_by_name(codebook):
    with pytest.raises(
        CalibrationError,
        match="a/b: range method 'entropy' needs codes .* equally far apart.*use one of max",
    ):
        Method("entropy").estimate(statistics_of(heavy()), codebook, site="a/b")
    with pytest.raises(CalibrationError, match=f"kernel: .*those of {codebook} are not"):
        per_channel_range(heavy(), None, "entropy", codebook, name="kernel")


def test_logits_get_a_range_of_least_cross_entropy():
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    stats = Statistics(rows.min(), rows.max(), rows.size, 1, rows=rows)
    lower, upper = Method("cross_entropy").estimate(stats, E4M3)
    assert lower == -upper and 0 < upper <= np.abs(rows).max()


@BOOKS
def test_calibrations_of_such_formats_survive_a_file(codebook, tmp_path):
    values = heavy()
    sites = {
        "x": SiteCalibration.estimate(statistics_of(values), Method("mse"), codebook),
        "w": SiteCalibration.of_weight(values.reshape(40, 100), 1, Method("mse"), codebook),
    }
    calibration = Calibration(sites, samples=3)
    calibration.save(tmp_path / "file.npz")
    loaded = Calibration.load(tmp_path / "file.npz")
    assert loaded.equals(calibration) and str(codebook) in loaded.table()
    assert loaded.reestimate("max")["x"].codebook == codebook


def test_an_array_whose_errors_overflow_keeps_its_whole_range():
    values = np.float32([[-3e38, 3e38, 1e38, -2.5e38]])
    for codebook in (E2M1, E4M3, POWERS):
        assert per_channel_range(values, 0, "mse", codebook)[1] == np.float32(3e38)
    assert weight_statistics(values).maximum == np.float32(3e38)

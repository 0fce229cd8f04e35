"""Methods that follow the extremes of batches.

What an observer keeps for them, in files, merges and other methods.
"""

import numpy as np
import pytest
import tensorflow as tf

from calib import (
    Calibration,
    CalibrationError,
    Grid,
    Method,
    Observer,
    SiteCalibration,
    Statistics,
    merge,
)
from calib.calibration import storage

ASYMMETRIC = Grid(0, 255, symmetric=False)
# Published: running min-max with momentum 0.9 over these batches ends at (-1.28, 2.11).
BATCHES = ([-1.0, 0.5, 2.0], [-3.0, 1.0], [-2.0, 4.0])


def observed(method: Method, batches=BATCHES) -> Statistics:
    observer = Observer("site", signed=True, decay=method.decay, seed=0)
    for batch in batches:
        observer.update(tf.constant(batch))
    return observer.statistics()


def site_of(method: Method, batches=BATCHES) -> Calibration:
    return Calibration(
        {"site": SiteCalibration.estimate(observed(method, batches), method, ASYMMETRIC)},
        samples=len(batches),
    )


@pytest.mark.parametrize("count, lower, upper", [(1, -1, 2), (2, -1.2, 1.9), (3, -1.28, 2.11)])
def test_a_moving_average_copies_the_first_batch_and_weighs_the_old_value_with_its_decay(
    count, lower, upper
):
    method = Method("moving_average", {"decay": 0.9})
    assert method.estimate(observed(method, BATCHES[:count]), ASYMMETRIC) == pytest.approx(
        (lower, upper), rel=1e-6
    )


def test_current_minmax_is_that_of_the_last_batch():
    method = Method("current_minmax")
    for count, ends in ((1, (-1, 2)), (2, (-3, 1)), (3, (-2, 4))):
        assert method.estimate(observed(method, BATCHES[:count]), ASYMMETRIC) == ends
    assert method.estimate(observed(method), Grid(-127, 127)) == (-4, 4)
    assert Method("max").estimate(observed(method), ASYMMETRIC) == (-3, 4)


def test_averages_of_another_decay_are_refused_and_reestimating_keeps_such_sites():
    calibration = site_of(Method("max"))
    for method, decay in (
        (Method("current_minmax"), "0"),
        (Method("moving_average", {"decay": 0.9}), "0.9"),
    ):
        with pytest.raises(
            CalibrationError,
            match=f"^site: moving averages were kept with a decay of 0.99, not {decay}; ",
        ):
            method.estimate(calibration["site"].statistics, ASYMMETRIC, site="site")
        with pytest.raises(
            CalibrationError,
            match=f"method '{method}' reads what none of the 1 sites matching '\\*' keeps",
        ):
            calibration.reestimate(method)
    assert calibration.reestimate("moving_average")["site"].upper < 4
    mixed = calibration.merge(Calibration({"other": site_of(Method("current_minmax"))["site"]}))
    again = mixed.reestimate("current_minmax")
    assert (
        again["site"].equals(calibration["site"]) and str(again["other"].method) == "current_minmax"
    )


def test_after_one_batch_every_average_is_that_batch():
    stats = observed(Method("max"), BATCHES[:1])
    for method in (Method("current_minmax"), Method("moving_average", {"decay": 0.5})):
        assert method.estimate(stats, ASYMMETRIC) == (-1, 2)


def test_the_last_batch_of_merged_runs_is_that_of_the_second():
    method = Method("current_minmax")
    one, two = site_of(method, BATCHES[:2]), site_of(method, BATCHES[2:])
    assert one.merge(two).equals(site_of(method))
    assert two.merge(one)["site"].lower == -3


def test_statistics_of_unlike_averages_or_rows_are_not_merged():
    with pytest.raises(ValueError, match="moving averages have decays of 0.99 and 0.5"):
        merge(Statistics(0, 1, 4, 1), Statistics(0, 1, 4, 1, ema_decay=0.5))
    with pytest.raises(ValueError, match="rows of values were kept of only one"):
        merge(Statistics(0, 1, 4, 1), Statistics(0, 1, 4, 1, rows=np.ones((2, 2), np.float32)))
    with pytest.raises(ValueError, match=r"rows must be float32 \[rows, size\], got float64 \[2\]"):
        Statistics(0, 1, 4, 1, rows=np.ones(2))
    both = [Statistics(0, 1, 4, 1, rows=np.full((n, 2), n, np.float32)) for n in (1, 2)]
    np.testing.assert_array_equal(merge(*both).rows, [[1, 1], [2, 2], [2, 2]])


def test_the_file_keeps_the_decay_and_files_of_before_have_the_one_there_was(tmp_path, monkeypatch):
    calibration = site_of(Method("moving_average", {"decay": 0.9}))
    calibration.save(tmp_path / "new.npz")
    assert Calibration.load(tmp_path / "new.npz").equals(calibration)
    header, arrays = storage.unpack(calibration.to_bytes(), "file")
    (entry,) = header["sites"]
    del entry["ema_decay"], entry["method"]["decay"]
    old = storage.read_statistics(entry, arrays, 0)
    assert old.ema_decay == Method.from_dict(entry["method"]).decay == 0.99

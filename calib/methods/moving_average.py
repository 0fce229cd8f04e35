"""Exponential moving average of the batches' extremes."""

import numpy as np

from calib.errors import EmptyStatisticsError
from calib.grid import Grid
from calib.methods._common import Range, asymmetric, require_data, symmetric
from calib.statistics import Statistics

NEEDS_HISTOGRAM = False


def estimate(stats: Statistics, grid: Grid) -> Range:
    """Range of the averaged batch minimum and maximum; a constant tensor (a weight) has its own extremes.

    The decay is the observer's; the average starts at the first batch's extremes.
    """
    require_data(stats)
    lower, upper = stats.ema_minimum, stats.ema_maximum
    if lower is None or upper is None:
        if not stats.constant:
            raise EmptyStatisticsError("no moving average was kept; observe the site again or use method 'max'")
        lower, upper = stats.minimum, stats.maximum
    if grid.two_sided:
        return asymmetric(lower, upper, stats)
    amax = np.maximum(upper, 0) if grid.unsigned else np.maximum(np.abs(lower), np.abs(upper))
    return symmetric(amax, stats, grid)

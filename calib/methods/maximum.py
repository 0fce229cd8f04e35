"""The exact extremes."""

from calib.grid import Grid
from calib.methods._common import Range, asymmetric, require_data, symmetric, true_amax
from calib.statistics import Statistics

NEEDS_HISTOGRAM = False


def estimate(stats: Statistics, grid: Grid) -> Range:
    """Range of the smallest and largest value seen; per tensor or per channel."""
    require_data(stats)
    if grid.two_sided:
        return asymmetric(stats.minimum, stats.maximum, stats)
    return symmetric(true_amax(stats, grid), stats, grid)

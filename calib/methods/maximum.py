"""Max method: the exact extremes."""

from calib.codebook import Codebook, Range
from calib.methods._common import asymmetric, require_data, symmetric, true_amax
from calib.statistics import Statistics

NEEDS_HISTOGRAM = False


def estimate(stats: Statistics, codebook: Codebook) -> Range:
    """Range of the smallest and largest value seen, per tensor or per channel."""
    require_data(stats)
    if not codebook.symmetric:
        return asymmetric(stats.minimum, stats.maximum, stats)
    return symmetric(true_amax(stats, codebook), stats, codebook)

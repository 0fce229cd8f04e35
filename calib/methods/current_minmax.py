"""Extremes of the last batch (`current_minmax` of Qualcomm's transformer-quantization)."""

from calib.codebook import Codebook, Range
from calib.methods import moving_average
from calib.statistics import Statistics

NEEDS_HISTOGRAM = False
DECAY = 0.0  # a moving average that forgets at once


def can_use(stats: Statistics) -> bool:
    return moving_average.can_use(stats, DECAY)


def estimate(stats: Statistics, codebook: Codebook) -> Range:
    """Range of the last batch's minimum and maximum; of its own extremes for a constant tensor (a
    weight).
    """
    return moving_average.estimate(stats, codebook, decay=DECAY)

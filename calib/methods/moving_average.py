"""Exponential moving average of the batches' extremes (`running_minmax` of Qualcomm's
transformer-quantization).
"""

import numpy as np

from calib.codebook import Codebook, Range
from calib.errors import CalibrationError, EmptyStatisticsError
from calib.methods._common import asymmetric, require_data, symmetric
from calib.statistics import DECAY, Statistics

NEEDS_HISTOGRAM = False


def check_options(decay: float) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise ValueError(
            "range method 'moving_average': decay must be a number from 0 to below 1, got"
            f" {decay!r}"
        )


def can_use(stats: Statistics, decay: float) -> bool:
    """Return whether averages of this decay were stored; over one batch all decays are equal."""
    return stats.constant or (
        stats.ema_minimum is not None and (stats.ema_decay == decay or stats.batches <= 1)
    )


def estimate(stats: Statistics, codebook: Codebook, *, decay: float = DECAY) -> Range:
    """Range of the averaged batch minimum and maximum; of its own extremes for a constant tensor (a
    weight).

    The average starts at the first batch's extremes.

    Args:
        stats: with moving averages of this decay.
        codebook: values of the number format.
        decay: weight of the old value in every step, 0 to below 1. Qualcomm's `running_minmax` has
          0.9 (`--act-momentum`).
    """
    check_options(decay)
    require_data(stats)
    lower, upper = stats.ema_minimum, stats.ema_maximum
    if lower is None or upper is None:
        if not stats.constant:
            raise EmptyStatisticsError(
                "no moving average was kept; observe the site again or use method 'max'"
            )
        lower, upper = stats.minimum, stats.maximum
    elif not can_use(stats, decay):
        raise CalibrationError(
            f"moving averages were kept with a decay of {stats.ema_decay:g}, not {decay:g};"
            " calibrate with this method in the recipe"
        )
    if not codebook.symmetric:
        return asymmetric(lower, upper, stats)
    amax = np.maximum(upper, 0) if codebook.unsigned else np.maximum(np.abs(lower), np.abs(upper))
    return symmetric(amax, stats, codebook)

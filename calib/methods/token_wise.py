"""Token-wise clipping: the range ends at a quantile of the extremes of single tokens.

Outlier Suppression (Wei et al. 2022, arXiv:2209.13325, section 4.2, coarse stage). Few tokens, such
as separators, hold the outliers of an encoder, and clipping them costs little: what is searched is
the share of tokens that stay unclipped.
"""

import numpy as np

from calib import losses
from calib.codebook import Codebook, Range
from calib.errors import EmptyStatisticsError
from calib.methods._common import asymmetric, distribution, require_data, symmetric
from calib.statistics import Statistics

NEEDS_HISTOGRAM = True
_LEAST_SHARE = 0.5


def check_options(share: float | None, candidates: int, tokens: int) -> None:
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if share is not None and not (number and 0 < share <= 1):
        raise ValueError(
            "range method 'token_wise': share must be a number above 0 and up to 1, or none to"
            f" search it, got {share!r}"
        )
    for option, value in (("candidates", candidates), ("tokens", tokens)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(
                f"range method 'token_wise': {option} must be an integer of at least 1, got"
                f" {value!r}"
            )


def can_use(stats: Statistics, share: float | None, candidates: int, tokens: int) -> bool:
    """Return whether extremes of tokens were stored, as a calibration with this method does."""
    return stats.constant or stats.tokens is not None


def estimate(
    stats: Statistics,
    codebook: Codebook,
    *,
    share: float | None = None,
    candidates: int = 100,
    tokens: int = 16384,
) -> Range:
    """Range up to a quantile of the tokens' maxima and down to the same quantile of their minima;
    of its own extremes for a constant tensor (a weight), which has no tokens.

    The share of the least squared quantization error over all values is chosen, the largest such
    share among equals.

    Args:
        stats: with a histogram and extremes of tokens, per tensor.
        codebook: values of the number format.
        share: of the tokens whose maximum lies in the range, and likewise of their minimum; None:
            searched from 1 to 0.5.
        candidates: how many shares are tried, closer together near 1.
        tokens: how many tokens (rows along the last axis, without padding) a calibration keeps the
            extremes of: the first ones.
    """
    check_options(share, candidates, tokens)
    require_data(stats)
    if stats.tokens is None and stats.constant:
        return _range(stats.minimum, stats.maximum, stats, codebook)
    if stats.tokens is None or not stats.tokens.size:
        raise EmptyStatisticsError(
            "no extremes of tokens were kept; calibrate with method 'token_wise' in the recipe"
        )
    smallest, largest = stats.tokens[:tokens].astype(np.float64).T
    shares = shares_tried(candidates) if share is None else np.array([float(share)])
    lower = np.asarray(np.minimum(-np.quantile(-smallest, shares), 0), np.float32)
    upper = np.asarray(np.maximum(np.quantile(largest, shares), 0), np.float32)
    if codebook.symmetric:
        upper = upper if codebook.unsigned else np.maximum(upper, -lower)
        lower = np.zeros_like(upper) if codebook.unsigned else -upper
    best = 0
    if len(shares) > 1:
        points = distribution(stats, codebook, "token_wise").points()
        # Where most tokens are zero or nearly so, a candidate may be too narrow to divide by.
        with np.errstate(over="ignore"):
            best = int(np.argmin(losses.squared_error(*points, codebook)(lower, upper)))
    return _range(lower[best], upper[best], stats, codebook)


def shares_tried(candidates: int) -> np.ndarray:
    """Shares of tokens in the order of the search, float64 [candidates], from 1 down to 0.5."""
    return 1 - (1 - _LEAST_SHARE) * (np.arange(candidates) / max(candidates - 1, 1)) ** 2


def _range(lower, upper, stats: Statistics, codebook: Codebook) -> Range:
    if codebook.symmetric:
        amax = (
            np.maximum(upper, 0) if codebook.unsigned else np.maximum(np.abs(lower), np.abs(upper))
        )
        return symmetric(amax, stats, codebook)
    return asymmetric(lower, upper, stats)

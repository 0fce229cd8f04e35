"""Search for the range of least loss: over a grid of candidates, or by golden section.

Both follow Bondarenko et al., "Understanding and Overcoming the Challenges of Efficient Transformer
Quantization" (EMNLP 2021). A symmetric grid, or data on one side of zero, leave one end to find; an
asymmetric grid on data of both signs leaves half the width r of the range and its shift t, for (t -
r, t + r).
"""

import numpy as np
from scipy import optimize

from calib.codebook import Codebook
from calib.losses import Loss

SEARCHES = ("grid", "golden_section")
MAX_CANDIDATES = 100_000  # beyond any use: 100 are the default
_LEAST = 0.01  # of the reach: the smallest end that golden section looks at
# Shifts of one width that the grid search tries to each side. Grids up to 8 bits have a shift a
# step; of finer ones, whose shifts would run into the thousands, these are spread over the same
# span.
_SHIFTS = 64


def check_options(method: str, candidates: int, margin: float) -> None:
    """Raise ValueError unless ``candidates`` is an integer of 1 to `MAX_CANDIDATES` and ``margin``
    a finite number from 0.
    """
    if (
        isinstance(candidates, bool)
        or not isinstance(candidates, int | np.integer)
        or candidates < 1
    ):
        raise ValueError(
            f"range method {method!r}: candidates must be an integer of at least 1, got"
            f" {candidates!r}"
        )
    if candidates > MAX_CANDIDATES:
        raise ValueError(
            f"range method {method!r}: candidates must be at most {MAX_CANDIDATES:,}, got"
            f" {candidates:,}"
        )
    if (
        isinstance(margin, bool)
        or not isinstance(margin, int | float)
        or not 0 <= margin < float("inf")
    ):
        raise ValueError(
            f"range method {method!r}: margin must be a finite number of at least 0, got {margin!r}"
        )


def least_loss(
    loss: Loss,
    minimum: float,
    maximum: float,
    codebook: Codebook,
    *,
    search: str,
    candidates: int,
    margin: float,
) -> tuple[float, float]:
    """Range of least loss, which contains 0 and ends at most ``margin`` beyond the data; (0, 0) for
    data that are all zero.

    Args:
        loss: of candidate ranges.
        minimum, maximum: extremes of the data.
        codebook: values of the number format.
        search: one of `SEARCHES`. `grid` tries equal steps and returns the first of the best.
          `golden_section` (SciPy's bounded
            minimizer) takes some 30 evaluations, nested for two ends, and may stop in a poor local
            minimum where the loss has several, as with 2 bits: prefer `grid` below 4 bits.
        candidates: of the grid search, for the width of the range.
        margin: how far beyond the data candidates reach, in their unit.
    """
    lowest, highest = min(float(minimum), 0.0), max(float(maximum), 0.0)
    if codebook.unsigned:
        lowest = 0.0
    if lowest == highest:
        return 0.0, 0.0
    if codebook.symmetric or lowest == 0.0 or highest == 0.0:
        reach = max(-lowest, highest) + margin
        if codebook.symmetric:
            sides = (0.0, 1.0) if codebook.unsigned else (-1.0, 1.0)
        else:
            sides = (0.0, 1.0) if lowest == 0.0 else (-1.0, 0.0)
        return _one_end(loss, sides, reach, search, candidates)
    return _two_ends(loss, (lowest - margin, highest + margin), codebook, search, candidates)


def _one_end(
    loss: Loss, sides: tuple[float, float], reach: float, search: str, candidates: int
) -> tuple[float, float]:
    """Range r * sides for the best r up to ``reach``."""
    if search == "grid":
        ends = (reach * np.arange(1, candidates + 1) / candidates).astype(np.float32)
        best = float(
            ends[np.argmin(loss(ends * np.float32(sides[0]), ends * np.float32(sides[1])))]
        )
    else:
        best = _bounded(lambda r: loss(r * sides[0], r * sides[1])[0], _LEAST * reach, reach)[0]
    return best * sides[0], best * sides[1]


def _two_ends(
    loss: Loss, limits: tuple[float, float], codebook: Codebook, search: str, candidates: int
) -> tuple[float, float]:
    """Best range within ``limits``, searched over half its width and its shift."""
    reach = max(-limits[0], limits[1])
    codes = codebook.num_codes
    shifts = max(1, codes // 4)
    if search == "grid":
        halves = reach * np.arange(1, candidates + 1) / candidates
        count = min(shifts, _SHIFTS)
        steps = np.arange(count) * (shifts / count) * 2 / (codes - 1)  # in halves of the width
        offsets = np.concatenate([steps, -steps[1:]]) * halves[:, np.newaxis]
        lower = np.maximum(offsets - halves[:, np.newaxis], limits[0]).ravel().astype(np.float32)
        upper = np.minimum(offsets + halves[:, np.newaxis], limits[1]).ravel().astype(np.float32)
        best = int(np.argmin(loss(lower, upper)))
        return float(lower[best]), float(upper[best])

    def shifted(half: float) -> tuple[float, float]:
        """Best shift of a range of this half width, and its loss."""
        span = shifts * 2 * half / (codes - 1)
        return _bounded(lambda t: loss(t - half, t + half)[0], -span, span)

    half = _bounded(lambda r: shifted(r)[1], _LEAST * reach, reach)[0]
    shift = shifted(half)[0]
    # Not shifted so far that the range leaves zero out, or beyond the data.
    return min(max(shift - half, limits[0]), 0.0), max(min(shift + half, limits[1]), 0.0)


def _bounded(function, lower: float, upper: float) -> tuple[float, float]:
    """Minimize a function between bounds; return (argument, value)."""
    result = optimize.minimize_scalar(function, bounds=(lower, upper), method="bounded")
    return float(result.x), float(result.fun)

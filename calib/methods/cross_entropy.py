"""Cross-entropy method: range with the least cross-entropy between the softmax of logits and that
of quantized logits.
"""

import numpy as np

from calib import losses, range_search
from calib.codebook import Codebook, Range
from calib.errors import EmptyStatisticsError
from calib.methods._common import require_data
from calib.statistics import Statistics

NEEDS_HISTOGRAM = False


def check_options(search: str, candidates: int, margin: float, rows: int) -> None:
    if search not in range_search.SEARCHES:
        raise ValueError(
            "range method 'cross_entropy': search must be one of"
            f" {', '.join(range_search.SEARCHES)}, got {search!r}"
        )
    range_search.check_options("cross_entropy", candidates, margin)
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1:
        raise ValueError(
            f"range method 'cross_entropy': rows must be an integer of at least 1, got {rows!r}"
        )
    if candidates != 100 and search != "grid":
        raise ValueError(
            f"range method 'cross_entropy': candidates does not apply to search {search!r}, only to"
            " grid"
        )


def can_use(stats: Statistics, search: str, candidates: int, margin: float, rows: int) -> bool:
    """Return whether rows of values were stored, as a calibration with this method does."""
    return stats.rows is not None


def estimate(
    stats: Statistics,
    codebook: Codebook,
    *,
    search: str = "grid",
    candidates: int = 100,
    margin: float = 0.0,
    rows: int = 1024,
) -> Range:
    """Range with the least sum of -softmax(x) . log softmax(Q(x)) along the last axis, over the
    stored rows.

    Source: `--cross-entropy-layer` of Qualcomm's transformer-quantization, which has a margin
    of 0.5. Prefer the grid search: the loss of few rows has several minima, of which golden section
    finds some.

    Args:
        stats: with rows, per tensor.
        codebook: values of the number format.
        search: `grid` or `golden_section`, see `calib.range_search`.
        candidates: of `grid`: how many widths are tried.
        margin: how far beyond the data a range may reach, in the unit of the logits.
        rows: how many rows (examples; of a tensor with tokens, real tokens) a calibration keeps:
          the first ones.
    """
    check_options(search, candidates, margin, rows)
    require_data(stats)
    if stats.rows is None or not stats.rows.size:
        raise EmptyStatisticsError(
            "no rows of logits were kept; calibrate with method 'cross_entropy' in the recipe"
        )
    kept = stats.rows[:rows]
    ends = range_search.least_loss(
        losses.cross_entropy(kept, codebook),
        kept.min(),
        kept.max(),
        codebook,
        search=search,
        candidates=candidates,
        margin=margin,
    )
    return np.asarray(ends[0], np.float32), np.asarray(ends[1], np.float32)

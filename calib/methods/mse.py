"""Range with the smallest mean squared quantization error."""

import numpy as np

from calib import losses, range_search
from calib.codebook import Codebook, Range
from calib.methods._common import asymmetric, check_search, distribution, per_channel, symmetric
from calib.statistics import Statistics
from calib.trials import least_of_trials

NEEDS_HISTOGRAM = True
SEARCHES = ("bins", *range_search.SEARCHES)


def check_options(start_bin: int, stride: int, search: str, candidates: int, margin: float) -> None:
    check_search("mse", start_bin, stride)
    if search not in SEARCHES:
        raise ValueError(
            f"range method 'mse': search must be one of {', '.join(SEARCHES)}, got {search!r}"
        )
    range_search.check_options("mse", candidates, margin)
    for option, value, default, of in (
        ("start_bin", start_bin, 128, ("bins",)),
        ("stride", stride, 1, ("bins",)),
        ("candidates", candidates, 100, ("grid",)),
        ("margin", margin, 0.0, range_search.SEARCHES),
    ):
        if value != default and search not in of:
            raise ValueError(
                f"range method 'mse': {option} does not apply to search {search!r}, only to"
                f" {' and '.join(of)}"
            )


def estimate(
    stats: Statistics,
    codebook: Codebook,
    *,
    start_bin: int = 128,
    stride: int = 1,
    search: str = "bins",
    candidates: int = 100,
    margin: float = 0.0,
) -> Range:
    """Range with the least squared error among the candidates of the search.

    Each bin's values are taken to sit at its centre. `bins` tries the centres of bins as the end of
    the range, the first of the best wins; on an asymmetric grid both ends are searched: first
    shrunk together, then in turn until neither moves. `grid` and `golden_section` are those of
    Qualcomm's transformer-quantization (`--act-opt-method`, `--weight-opt-method`), over the values
    of all batches, see `calib.range_search`; a margin of 0.5 is what it has. `bins` and `grid` find
    good ranges for any number of bits; golden section is the fastest with two ends, and can be far
    off below 4 bits.

    Args:
        stats: with a histogram, or exact.
        codebook: values of the number format.
        start_bin: of `bins`: first bin tried, counted from zero; lowered to an eighth of the bins
            in use if those are few.
        stride: of `bins`: step between the bins tried.
        search: `bins`, `grid` or `golden_section`.
        candidates: of `grid`: how many widths are tried.
        margin: of `grid` and `golden_section`: how far beyond the data a range may reach, in the
            unit of the data.
    """
    check_options(start_bin, stride, search, candidates, margin)
    values = distribution(stats, codebook, "mse")
    if search == "bins":
        loss = losses.squared_error(*values.points(), codebook)
        lower, upper = least_of_trials(loss, values.trials(codebook, start_bin, stride), codebook)
        return (
            symmetric(upper, stats, codebook)
            if codebook.symmetric
            else asymmetric(lower, upper, stats)
        )
    ranges, options = [], {"search": search, "candidates": candidates, "margin": margin}
    extremes = zip(np.atleast_1d(stats.minimum), np.atleast_1d(stats.maximum), strict=True)
    for points, ends in zip(values.channels(), extremes, strict=True):
        loss = losses.squared_error(*points, codebook, up_to_constant=True)
        ranges.append(range_search.least_loss(loss, *ends, codebook, **options))
    lower, upper = (per_channel(ends, stats) for ends in zip(*ranges, strict=True))
    return lower, upper

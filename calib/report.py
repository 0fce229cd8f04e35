"""Reports of a calibration: a table of all sites, and plots of their histograms."""

import numpy as np
from tqdm import tqdm

from calib import figures, tables
from calib.statistics import Histogram

_COLUMNS = (
    "site",
    "method",
    "grid",
    "lower",
    "upper",
    "minimum",
    "maximum",
    "cut %",
    "values",
    "batches",
)


def table(calibration) -> str:
    """Table of all sites; for several ranges their number and the outermost ends."""
    rows = []
    for address, site in calibration.items():
        stats = site.statistics
        cut = clipped_share(stats.histogram, site)
        channels = f" x{site.lower.size}" if stats.per_channel else ""
        outermost = (site.lower.min(), site.upper.max(), stats.minimum.min(), stats.maximum.max())
        rows.append(
            (
                address,
                str(site.method),
                f"{site.codebook}{channels}",
                *(f"{value:.6g}" for value in outermost),
                "-" if cut is None else f"{100 * cut:.4f}",
                f"{stats.count:,}",
                str(stats.batches),
            )
        )
    title = f"{len(calibration)} sites, {calibration.samples} samples"
    return tables.render(tables.build(title, _COLUMNS, rows, left=("site", "method", "grid")))


def clipped_share(histogram: Histogram | None, site) -> float | None:
    """Share of the values outside the range, from bin positions; None without a histogram."""
    if histogram is None or not histogram.counts.any():
        return None
    centers, half = histogram.centers, histogram.bin_width / 2
    low = site.lower if histogram.signed else -np.inf
    high = site.upper if histogram.signed else np.maximum(-site.lower, site.upper)
    outside = (centers - half >= high) | (centers + half <= low)
    return float(histogram.counts[outside].sum() / histogram.counts.sum())


def plot(address: str, site, path: str) -> None:
    """Plot one site as PNG.

    Counts on a logarithmic axis (ranges of all channels when there is no histogram).
    """
    figure = figures.new_figure(8, 4)
    axes = figure.add_subplot()
    histogram = site.statistics.histogram
    if histogram is None:
        _draw_channels(axes, site)
    else:
        _draw_histogram(axes, histogram, site)
    axes.set_title(address, fontsize=9)
    axes.legend(fontsize=8, loc="upper right")
    figures.write_png(figure, path)


def _draw_histogram(axes, histogram: Histogram, site) -> None:
    axes.stairs(histogram.counts, histogram.edges, fill=True, alpha=0.6)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.5)
    ends = (site.lower, site.upper) if histogram.signed else (np.maximum(-site.lower, site.upper),)
    chosen = f"{site.method}: [{float(site.lower):.5g}, {float(site.upper):.5g}]"
    for position, end in enumerate(ends):
        axes.axvline(float(end), color="tab:red", label=None if position else chosen)
    stats = site.statistics
    extremes = (stats.minimum, stats.maximum)
    if not histogram.signed:
        extremes = (np.maximum(np.abs(stats.minimum), np.abs(stats.maximum)),)
    for position, extreme in enumerate(extremes):
        axes.axvline(
            float(extreme), color="black", linestyle=":", label=None if position else "extremes"
        )
    # The bins reach to a power of two; what is shown ends where the data and the range do.
    shown = [float(x) for x in (*ends, *extremes)] + ([] if histogram.signed else [0.0])
    margin = 0.04 * (max(shown) - min(shown)) or 1.0
    axes.set_xlim(min(shown) - margin, max(shown) + margin)
    axes.set_xlabel("value" if histogram.signed else "magnitude")
    axes.set_ylabel("count")


def _draw_channels(axes, site) -> None:
    stats = site.statistics
    borders = np.arange(stats.minimum.size + 1) - 0.5
    axes.stairs(
        stats.maximum, borders, baseline=stats.minimum, fill=True, alpha=0.4, label="extremes"
    )
    lower, upper = site.lower, site.upper
    if site.grouping is not None:
        lower, upper = lower[site.grouping.group_of], upper[site.grouping.group_of]
    for end, label in ((lower, str(site.method)), (upper, None)):
        axes.stairs(end, borders, baseline=None, color="tab:red", linewidth=0.7, label=label)
    axes.set_xlabel("channel" if stats.constant else "embedding dimension")
    axes.set_ylabel("value")


def plot_all(calibration, directory: str) -> list[str]:
    """Plot one PNG per site, numbered so that names are unique; return the paths."""
    paths = figures.numbered_paths(directory, list(calibration))
    sites = tqdm(calibration.items(), desc="plots", unit="site")
    for path, (address, site) in zip(paths, sites, strict=True):
        plot(address, site, path)
    return paths

"""Outlier analysis: embedding dimensions of a tensor whose range is many times the usual one."""

import os
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from calib import figures, tables
from calib.errors import CalibrationError
from calib.grouping import widths
from calib.statistics import Statistics

FACTOR = 6.0


@dataclass(frozen=True, eq=False)
class Outliers:
    """Ranges of the dimensions of one tensor, and those that exceed a multiple of the median.

    Attributes:
        address: of the site.
        minimum, maximum: float32 [dimensions], extremes over all calibration batches.
        ranges: float64 [dimensions], maximum - minimum.
        factor: how many times the median range makes an outlier.
    """

    address: str
    minimum: np.ndarray
    maximum: np.ndarray
    ranges: np.ndarray
    factor: float

    @property
    def median(self) -> float:
        return float(np.median(self.ranges))

    @property
    def dimensions(self) -> np.ndarray:
        """Indices of the outliers, int64, the widest first."""
        result = np.flatnonzero(self.ranges > self.factor * self.median)
        return result[np.argsort(-self.ranges[result], kind="stable")]


@dataclass(frozen=True, eq=False)
class OutlierReport:
    """Outlying dimensions at every site whose extremes per dimension were stored; `print` it.

    Attributes:
        sites: in the order of the calibration.
        factor: see `Outliers`.
        plots: paths of the pictures.
    """

    sites: tuple[Outliers, ...]
    factor: float
    plots: tuple[str, ...] = ()

    def __str__(self) -> str:
        title = (
            f"dimensions whose range exceeds {self.factor:g} times the median,"
            f" {len(self.sites)} tensors"
        )
        columns = ("tensor", "dimensions", "median range", "widest range", "outliers", "which")
        rows = []
        for site in self.sites:
            result = site.dimensions
            shown = ", ".join(map(str, result[:8])) + (", ..." if len(result) > 8 else "")
            numbers = (f"{site.median:.5g}", f"{site.ranges.max():.5g}", str(len(result)))
            rows.append((site.address, str(site.ranges.size), *numbers, shown))
        return tables.render(tables.build(title, columns, rows, left=("tensor", "which")))

    def _repr_html_(self) -> str:
        return tables.as_html(str(self))


def find(address: str, statistics: Statistics, factor: float = FACTOR) -> Outliers:
    """Find the outlying dimensions of one tensor.

    Args:
        address: of the site.
        statistics: of each dimension.
        factor: above 1.

    Raises:
        ValueError: the factor is not above 1.
        EmptyStatisticsError: nothing was seen.
    """
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor > 1:
        raise ValueError(
            "factor must be a number above 1: how many times the median range an outlier has, got"
            f" {factor!r}"
        )
    return Outliers(
        address, statistics.minimum, statistics.maximum, widths(statistics, address), float(factor)
    )


def outlier_report(
    calibration, folder: str | os.PathLike | None = None, *, factor: float = FACTOR
) -> OutlierReport:
    """Find the embedding dimensions with outlying ranges at every tensor for which dimensions were
    observed.

    Such dimensions are why one range for a whole tensor fails, and what groups of dimensions put
    together (Bondarenko et al. 2021, arXiv:2109.12948, section 3).

    Args:
        calibration: from `tfquant.calibrate`: with ``dimensions=True`` of all activation sites that
          have an embedding axis, else of
            sites whose ranges lie along it.
        folder: where a PNG file of each tensor is put; made if missing. None: no pictures.
        factor: an outlier's range exceeds so many times the median range of the tensor's
          dimensions.

    Raises:
        CalibrationError: the calibration keeps no ranges of dimensions.
        ValueError: the factor is not above 1.
        CalibrationFileError: a picture cannot be written.
    """
    beside = [address for address in calibration.dimensions if address not in calibration]
    addresses = [
        address for address in [*calibration, *beside] if calibration.keeps_dimensions(address)
    ]
    if not addresses:
        raise CalibrationError(
            "the calibration keeps no ranges of dimensions; calibrate with dimensions=True"
        )
    sites = tuple(
        find(address, calibration.dimension_statistics(address), factor) for address in addresses
    )
    plots = () if folder is None else _plot_all(sites, os.fspath(folder))
    return OutlierReport(sites, float(factor), plots)


def _plot_all(sites: tuple[Outliers, ...], folder: str) -> tuple[str, ...]:
    paths = figures.numbered_paths(folder, [site.address for site in sites], "_dimensions")
    for path, site in zip(paths, tqdm(sites, desc="plots", unit="tensor"), strict=True):
        plot(site, path)
    return tuple(paths)


def plot(site: Outliers, path: str) -> None:
    """Plot the extremes of every dimension as PNG, outliers marked and, as far as there is room,
    numbered.
    """
    figure = figures.new_figure(8, 4)
    axes = figure.add_subplot()
    borders = np.arange(site.ranges.size + 1) - 0.5
    axes.stairs(
        site.maximum, borders, baseline=site.minimum, fill=True, alpha=0.6, label="extremes"
    )
    result = site.dimensions
    if result.size:
        label = f"range above {site.factor:g} x median"
        axes.vlines(
            result,
            site.minimum[result],
            site.maximum[result],
            color="tab:red",
            linewidth=1.5,
            label=label,
        )
    for dimension in result[:8]:
        axes.annotate(
            str(dimension),
            (dimension, site.maximum[dimension]),
            fontsize=7,
            ha="center",
            va="bottom",
        )
    half = site.median / 2
    axes.axhspan(
        -half, half, color="black", alpha=0.1, linewidth=0, label=f"median range {site.median:.4g}"
    )
    axes.set_xlabel("embedding dimension")
    axes.set_ylabel("value")
    axes.set_title(site.address, fontsize=9)
    axes.legend(fontsize=8, loc="upper right")
    figures.write_png(figure, path)

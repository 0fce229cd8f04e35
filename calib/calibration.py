"""The result of a calibration: for every site its statistics and range; saved, merged, re-estimated without data."""

import fnmatch
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from calib import storage
from calib.errors import CalibrationError, MissingHistogramError
from calib.grid import Grid
from calib.methods import Method
from calib.statistics import Statistics, merge
from calib.weights import per_channel_range, weight_statistics


@dataclass(frozen=True, eq=False)
class SiteCalibration:
    """Statistics of one site and the range chosen from them.

    Attributes:
        statistics: what was seen.
        method: how the range was chosen.
        grid: the integers it is for.
        lower, upper: float32, shape () or (C,).
    """

    statistics: Statistics
    method: Method
    grid: Grid
    lower: np.ndarray
    upper: np.ndarray

    def __post_init__(self):
        for name in ("lower", "upper"):
            value = np.asarray(getattr(self, name), np.float32)
            if value.shape != self.statistics.minimum.shape:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}, the statistics {list(self.statistics.minimum.shape)}"
                )
            object.__setattr__(self, name, value)

    @classmethod
    def estimate(cls, statistics: Statistics, method: Method, grid: Grid, *, address: str = "") -> "SiteCalibration":
        """Chooses the range; errors name ``address``."""
        return cls(statistics, method, grid, *method.estimate(statistics, grid, site=address))

    @classmethod
    def of_weight(
        cls, array: np.ndarray, axis: int | None, method: Method, grid: Grid, *, address: str = "", bins: int = 2048
    ) -> "SiteCalibration":
        """Range of a constant tensor, from its values."""
        name = address or "weight"
        statistics = weight_statistics(array, axis, grid.two_sided, bins, name=name)
        return cls(statistics, method, grid, *per_channel_range(array, axis, method, grid, name=name))

    def can_use(self, method: Method) -> bool:
        """Whether ``method`` can be applied to what was kept."""
        return method.can_use(self.statistics)

    def equals(self, other: "SiteCalibration") -> bool:
        """Bit-for-bit equality."""
        return (
            (self.method, self.grid) == (other.method, other.grid)
            and np.array_equal(self.lower, other.lower)
            and np.array_equal(self.upper, other.upper)
            and self.statistics.equals(other.statistics)
        )


class Calibration(Mapping[str, SiteCalibration]):
    """Immutable mapping from site address to `SiteCalibration`.

    Attributes:
        samples: number of examples that were run through the model.
    """

    def __init__(self, sites: Mapping[str, SiteCalibration], *, samples: int = 0):
        if samples < 0:
            raise ValueError(f"number of calibration samples must not be negative, got {samples}")
        self._sites = dict(sites)
        self.samples = int(samples)

    def __getitem__(self, address: str) -> SiteCalibration:
        return self._sites[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} sites, {self.samples} samples)"

    def _known(self) -> str:
        return f"there are {len(self)} sites, e.g. {next(iter(self))!r}" if self else "the calibration is empty"

    def equals(self, other: "Calibration") -> bool:
        """Bit-for-bit equality, the order of sites apart."""
        return (
            self.samples == other.samples
            and self.keys() == other.keys()
            and all(site.equals(other[address]) for address, site in self.items())
        )

    def to_bytes(self) -> bytes:
        """The content of the file `save` writes; the same calibration always gives the same bytes."""
        return storage.pack(self._sites, self.samples)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "calibration data") -> "Calibration":
        """Inverse of `to_bytes`; CalibrationFileError, naming ``source``, if the bytes are damaged."""
        header, arrays = storage.unpack(data, source)
        with storage.damage(source):
            sites = {
                entry["address"]: SiteCalibration(
                    storage.read_statistics(entry, arrays, index),
                    Method.from_dict(entry["method"]),
                    Grid.from_dict(entry["grid"]),
                    arrays[f"{index}/lower"],
                    arrays[f"{index}/upper"],
                )
                for index, entry in enumerate(header["sites"])
            }
            return cls(sites, samples=header["samples"])

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file (no pickle); an existing file is replaced only when the new one is complete."""
        storage.write(os.fspath(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads a file written by `save`.

        Raises:
            FileNotFoundError: no such file.
            CalibrationFileError: damaged, of another version, or not a calibration file.
        """
        return cls.from_bytes(storage.read(os.fspath(path)), source=os.fspath(path))

    def merge(self, other: "Calibration") -> "Calibration":
        """Joins two calibrations, of other data or other sites; ranges of common sites are estimated anew.

        Raises:
            CalibrationError: a common site has another method or grid, or statistics that do not fit.
        """
        sites = dict(self._sites)
        for address, theirs in other.items():
            sites[address] = _merge_site(address, sites[address], theirs) if address in sites else theirs
        return Calibration(sites, samples=self.samples + other.samples)

    def reestimate(self, method: Method | str, address_glob: str = "*", **options: object) -> "Calibration":
        """Chooses the ranges of matching sites with another method, without data.

        ``options`` are those of a method given by name, such as ``percentile=99.9``.

        Sites whose statistics cannot serve the method (per-channel weights keep no histogram, moving averages have one decay)
        keep their range; it is an error only when none of the matching sites can be served.

        Raises:
            CalibrationError: no site matches, or no matching site kept what the method reads.
            MissingHistogramError: that is a histogram.
        """
        method = Method(method, options) if isinstance(method, str) else method
        matching = [address for address in self if fnmatch.fnmatchcase(address, address_glob)]
        if not matching:
            raise CalibrationError(f"no site matches {address_glob!r}; {self._known()}")
        able = [address for address in matching if self[address].can_use(method)]
        if not able and not method.needs_histogram:
            raise CalibrationError(
                f"method {str(method)!r} reads what none of the {len(matching)} sites matching {address_glob!r} keeps: calibrate "
                "with this method in the recipe"
            )
        if not able:
            raise MissingHistogramError(
                f"method {method.name!r} needs a histogram and none of the {len(matching)} sites matching "
                f"{address_glob!r} keeps one; use method 'max' or quantize the weights anew"
            )
        sites = dict(self._sites)
        for address in able:
            site = self[address]
            sites[address] = SiteCalibration.estimate(site.statistics, method, site.grid, address=address)
        return Calibration(sites, samples=self.samples)

    def table(self) -> str:
        """All sites, one a line: range, extremes, what was cut, and how the range was chosen."""
        from calib import report

        return report.table(self)

    def plot(self, address: str, path: str | os.PathLike) -> None:
        """Draws a site's histogram (logarithmic counts) with its range into a PNG file."""
        from calib import report

        if address not in self:
            raise CalibrationError(f"no site {address!r}; {self._known()}")
        report.plot(address, self[address], os.fspath(path))

    def plot_all(self, directory: str | os.PathLike) -> list[str]:
        """Draws every site into ``directory`` (made if missing); returns the paths."""
        from calib import report

        return report.plot_all(self, os.fspath(directory))


def _merge_site(address: str, ours: SiteCalibration, theirs: SiteCalibration) -> SiteCalibration:
    for what, a, b in (("method", ours.method, theirs.method), ("grid", ours.grid, theirs.grid)):
        if a != b:
            raise CalibrationError(f"{address}: cannot merge {what} {a} with {b}; make them alike first")
    try:
        statistics = merge(ours.statistics, theirs.statistics)
    except ValueError as error:
        raise CalibrationError(f"{address}: {error}") from None
    if statistics.constant:  # the range came from the values, which both calibrations saw
        return replace(ours, statistics=statistics)
    return SiteCalibration.estimate(statistics, ours.method, ours.grid, address=address)

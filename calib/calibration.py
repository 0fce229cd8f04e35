"""Calibration result: statistics and range of every site; saved, merged, re-estimated."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from calib import patterns, storage
from calib.codebook import Codebook, codebook_from_dict
from calib.errors import CalibrationError, MissingHistogramError
from calib.grouping import Grouping
from calib.methods import Method
from calib.statistics import Statistics, merge
from calib.weights import per_channel_range, weight_statistics


@dataclass(frozen=True, eq=False)
class SiteCalibration:
    """Statistics of one site and the range chosen from them.

    Attributes:
        statistics: statistics of the values.
        method: range method.
        codebook: values of the number format of the range.
        lower, upper: float32, shape () or (C,); (groups,) where dimensions are grouped.
        grouping: groups of the dimensions; None where each has its own range, or the tensor has one
          range.
    """

    statistics: Statistics
    method: Method
    codebook: Codebook
    lower: np.ndarray
    upper: np.ndarray
    grouping: Grouping | None = None

    def __post_init__(self):
        wanted = self.statistics.minimum.shape if self.grouping is None else (self.grouping.groups,)
        for name in ("lower", "upper"):
            value = np.asarray(getattr(self, name), np.float32)
            if value.shape != wanted:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}, the statistics are for {list(wanted)}"
                )
            object.__setattr__(self, name, value)

    @classmethod
    def estimate(
        cls,
        statistics: Statistics,
        method: Method,
        codebook: Codebook,
        grouping: Grouping | None = None,
        *,
        address: str = "",
    ) -> "SiteCalibration":
        """Estimate the range; errors name ``address``."""
        seen = statistics if grouping is None else grouping.reduced(statistics)
        return cls(
            statistics, method, codebook, *method.estimate(seen, codebook, site=address), grouping
        )

    @classmethod
    def of_weight(
        cls,
        array: np.ndarray,
        axis: int | None,
        method: Method,
        codebook: Codebook,
        *,
        address: str = "",
        bins: int = 2048,
    ) -> "SiteCalibration":
        """Calibrate a constant tensor from its values."""
        name = address or "weight"
        statistics = weight_statistics(array, axis, not codebook.symmetric, bins, name=name)
        return cls(
            statistics,
            method,
            codebook,
            *per_channel_range(array, axis, method, codebook, name=name),
        )

    @property
    def grid(self) -> Codebook:
        """Former name of `codebook`."""
        return self.codebook

    def can_use(self, method: Method) -> bool:
        """Return whether the stored statistics are sufficient for ``method``."""
        return method.can_use(self.statistics)

    def equals(self, other: "SiteCalibration") -> bool:
        """Return whether two site calibrations are equal bit for bit."""
        return (
            (self.method, self.codebook) == (other.method, other.codebook)
            and np.array_equal(self.lower, other.lower)
            and np.array_equal(self.upper, other.upper)
            and self.statistics.equals(other.statistics)
            and (
                other.grouping is None
                if self.grouping is None
                else self.grouping.equals(other.grouping)
            )
        )


class Calibration(Mapping[str, SiteCalibration]):
    """Immutable mapping from site address to `SiteCalibration`.

    Attributes:
        samples: number of examples that were run through the model.
        dimensions: address -> statistics of each embedding dimension, [dimensions], of tensors
          whose sites do not store them: sites with one range that were requested, and the tensors
          that other sites' dimensions are sorted by.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteCalibration],
        *,
        samples: int = 0,
        dimensions: Mapping[str, Statistics] | None = None,
    ):
        if samples < 0:
            raise ValueError(f"number of calibration samples must not be negative, got {samples}")
        self._sites = dict(sites)
        self.samples = int(samples)
        self.dimensions = dict(dimensions or {})

    def __getitem__(self, address: str) -> SiteCalibration:
        return self._sites[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} sites, {self.samples} samples)"

    def _known(self) -> str:
        return (
            f"there are {len(self)} sites, e.g. {next(iter(self))!r}"
            if self
            else "the calibration is empty"
        )

    def equals(self, other: "Calibration") -> bool:
        """Return whether two calibrations are equal bit for bit, in any order of sites."""
        return (
            self.samples == other.samples
            and self.dimensions.keys() == other.dimensions.keys()
            and all(
                statistics.equals(other.dimensions[address])
                for address, statistics in self.dimensions.items()
            )
            and self.keys() == other.keys()
            and all(site.equals(other[address]) for address, site in self.items())
        )

    def to_bytes(self) -> bytes:
        """Serialize the calibration as the bytes that `save` writes; deterministic."""
        return storage.pack(self._sites, self.samples, self.dimensions)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "calibration data") -> "Calibration":
        """Deserialize the bytes of `to_bytes`; raise CalibrationFileError, naming ``source``, if
        they are damaged.
        """
        header, arrays = storage.unpack(data, source)
        with storage.damage(source):
            sites = {
                entry["address"]: SiteCalibration(
                    storage.read_statistics(entry, arrays, index),
                    Method.from_dict(entry["method"]),
                    codebook_from_dict(entry["grid"]),
                    arrays[f"{index}/lower"],
                    arrays[f"{index}/upper"],
                    storage.read_grouping(entry, arrays, index),
                )
                for index, entry in enumerate(header["sites"])
            }
            for address, site in sites.items():
                statistics = site.statistics
                if not (
                    np.isfinite(site.lower).all()
                    and np.isfinite(site.upper).all()
                    and (site.lower <= site.upper).all()
                ):
                    raise ValueError(
                        f"site {address!r} has a range that is not finite, or whose ends are the"
                        " wrong way round"
                    )
                if np.isnan(statistics.minimum).any() or np.isnan(statistics.maximum).any():
                    raise ValueError(f"site {address!r} has NaN in its statistics")
            return cls(
                sites, samples=header["samples"], dimensions=storage.read_dimensions(header, arrays)
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz file (no pickle); an existing file is replaced only when the new one is
        complete.
        """
        storage.write(os.fspath(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: no such file.
            CalibrationFileError: damaged, of another version, or not a calibration file.
        """
        return cls.from_bytes(storage.read(os.fspath(path)), source=os.fspath(path))

    def merge(self, other: "Calibration") -> "Calibration":
        """Merge two calibrations of different data or sites; ranges of common sites are
        re-estimated.

        Raises:
            CalibrationError: a common site has another method or number format, or statistics that
              do not fit.
        """
        sites = dict(self._sites)
        dimensions = _merge_dimensions(self, other)
        for address, theirs in other.items():
            sites[address] = (
                _merge_site(address, sites[address], theirs) if address in sites else theirs
            )
        merged = Calibration(sites, samples=self.samples + other.samples, dimensions=dimensions)
        regrouped = {
            address: _regrouped(address, grouping, merged)
            for address in other
            if address in self and (grouping := sites[address].grouping) is not None
        }
        return Calibration(sites | regrouped, samples=merged.samples, dimensions=dimensions)

    def reestimate(
        self, method: Method | str, address_glob: str = "*", **options: object
    ) -> "Calibration":
        """Estimate the ranges of matching sites with another method, without data.

        ``options`` are those of a method given by name, such as ``percentile=99.9``.

        Sites whose statistics cannot serve the method (per-channel weights keep no histogram,
        moving averages have one decay) keep their range; it is an error only when none of the
        matching sites can be served.

        Raises:
            ValueError: the pattern is an invalid regular expression.
            CalibrationError: no site matches, or no matching site kept what the method reads.
            MissingHistogramError: that is a histogram.
        """
        method = Method(method, options) if isinstance(method, str) else method
        patterns.check(address_glob, "address_glob")
        matching = [address for address in self if patterns.matches(address_glob, address)]
        if not matching:
            raise CalibrationError(f"no site matches {address_glob!r}; {self._known()}")
        able = [address for address in matching if self[address].can_use(method)]
        if not able and not method.needs_histogram:
            raise CalibrationError(
                f"method {str(method)!r} reads what none of the {len(matching)} sites matching"
                f" {address_glob!r} keeps: calibrate with this method in the recipe"
            )
        if not able:
            raise MissingHistogramError(
                f"method {method.name!r} needs a histogram and none of the {len(matching)} sites"
                f" matching {address_glob!r} keeps one; use method 'max' or estimate the"
                " weights again"
            )
        sites = dict(self._sites)
        for address in able:
            site = self[address]
            sites[address] = SiteCalibration.estimate(
                site.statistics, method, site.codebook, site.grouping, address=address
            )
        return Calibration(sites, samples=self.samples, dimensions=self.dimensions)

    def keeps_dimensions(self, address: str) -> bool:
        """Return whether `dimension_statistics` are available for ``address``."""
        if address in self.dimensions:
            return True
        return (
            address in self
            and self[address].statistics.per_channel
            and not self[address].statistics.constant
        )

    def dimension_statistics(self, address: str) -> Statistics:
        """Statistics of each embedding dimension of a site, or of the edge its dimensions are
        sorted by.

        Raises:
            CalibrationError: it was not kept for this address.
        """
        if self.keeps_dimensions(address):
            return (
                self.dimensions[address] if address in self.dimensions else self[address].statistics
            )
        if address not in self:
            raise CalibrationError(f"no site {address!r}; {self._known()}")
        raise CalibrationError(
            f"{address}: ranges of its dimensions were not kept; calibrate with dimensions=True"
        )

    def table(self) -> str:
        """Table of all sites: range, extremes, share of clipped values, range method."""
        from calib import report

        return report.table(self)

    def plot(self, address: str, path: str | os.PathLike) -> None:
        """Plot a site's histogram (logarithmic counts) with its range as a PNG file."""
        from calib import report

        if address not in self:
            raise CalibrationError(f"no site {address!r}; {self._known()}")
        report.plot(address, self[address], os.fspath(path))

    def plot_all(self, directory: str | os.PathLike) -> list[str]:
        """Plot every site into ``directory`` (created if missing); return the paths."""
        from calib import report

        return report.plot_all(self, os.fspath(directory))


def _merge_dimensions(ours: Calibration, theirs: Calibration) -> dict[str, Statistics]:
    """Merge the statistics of dimensions of two calibrations; drop those that only one of them kept
    for a common site, as they cover part of the data.
    """
    merged = {}
    for address in ours.dimensions | theirs.dimensions:
        result = [each.dimensions[address] for each in (ours, theirs) if address in each.dimensions]
        if len(result) == 2:
            try:
                merged[address] = merge(*result)
            except ValueError as error:
                raise CalibrationError(f"{address}: {error}") from None
        elif address not in ours or address not in theirs:
            merged[address] = result[0]
    return merged


def _regrouped(address: str, old: Grouping, calibration: Calibration) -> SiteCalibration:
    """Group the dimensions of a merged site again, as the ranges of the edge they are sorted by may
    differ now.
    """
    site = calibration[address]
    statistics = calibration.dimension_statistics(old.order) if old.order else None
    grouping = Grouping.of(old.groups, old.group_of.size, old.order, statistics)
    return SiteCalibration.estimate(
        site.statistics, site.method, site.codebook, grouping, address=address
    )


def _merge_site(address: str, ours: SiteCalibration, theirs: SiteCalibration) -> SiteCalibration:
    groupings = [
        None if site.grouping is None else site.grouping.to_dict() for site in (ours, theirs)
    ]
    for what, a, b in (
        ("method", ours.method, theirs.method),
        ("grid", ours.codebook, theirs.codebook),
        ("groups of dimensions", *groupings),
    ):
        if a != b:
            raise CalibrationError(
                f"{address}: cannot merge {what} {a} with {b}; calibrate both with one recipe"
            )
    try:
        statistics = merge(ours.statistics, theirs.statistics)
    except ValueError as error:
        raise CalibrationError(f"{address}: {error}") from None
    if statistics.constant:  # the range came from the values, which both calibrations saw
        return replace(ours, statistics=statistics)
    return SiteCalibration.estimate(
        statistics, ours.method, ours.codebook, ours.grouping, address=address
    )

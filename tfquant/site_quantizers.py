"""Quantizers of all sites of a plan: their ranges, set together from one calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

import calib
from tfquant.distributed.group import Group, Single
from tfquant.quantizer import Quantizer, UncalibratedError
from tfquant.site import Site

Ranges = dict[str, tuple[np.ndarray, np.ndarray]]  # address -> (lower, upper)


class SiteQuantizers(Mapping[str, Quantizer]):
    """Map site address -> quantizer, in the order of the plan; dynamic sites have none.

    Attributes:
      calibration: the calibration that the ranges were set from; None if they were loaded, or were
        never set.
      group: the processes whose batches moving averages and delayed scales follow together.
      rate: speed of moving averages in training as a multiple of the usual; at 0 they stand still.
    """

    def __init__(self, rate: tf.Variable):
        self.rate = rate
        self.calibration: calib.Calibration | None = None
        self._sites: list[Site] = []
        self._current: dict[str, Quantizer] = {}
        self._known: dict[str, Quantizer] = {}  # those of sites of earlier plans as well
        self.group: Group = Single()

    def __getitem__(self, address: str) -> Quantizer:
        return self._current[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def follow(self, sites: Iterable[Site]) -> None:
        """Hold the quantizers of `sites` from now on; a site that an earlier plan had, with the
        same spec and range shape, keeps its range.
        """
        self._sites = list(sites)
        self._current = {
            site.address: self._quantizer(site) for site in self._sites if not site.spec.stateless
        }
        self._known |= self._current

    def _quantizer(self, site: Site) -> Quantizer:
        known = self._known.get(site.address)
        if known is not None and known.fits(site):
            known.site = site
            return known
        quantizer = Quantizer(site, self.rate)
        quantizer.group = self.group
        return quantizer

    def share(self, group: Group) -> None:
        """Let ranges follow the batches of all ranks of `group` from now on."""
        self.group = group
        for quantizer in self._known.values():
            quantizer.group = group

    @property
    def variables(self) -> list[tf.Variable]:
        """State variables of all quantizers."""
        return [v for quantizer in self.values() for v in quantizer.variables.values()]

    @property
    def uncalibrated(self) -> list[str]:
        """Addresses of the sites whose range is not known."""
        return [address for address, quantizer in self.items() if not quantizer.calibrated]

    def check_calibrated(self, training: bool = False) -> None:
        """Raise UncalibratedError if a site has no range.

        Args:
          training: whether delayed scales, which training finds, need none.
        """
        missing = self.uncalibrated
        if training:
            missing = [a for a in missing if self[a].site.spec.scale.source != "delayed"]
        if missing:
            raise UncalibratedError(
                f"site {missing[0]} has no range ({len(missing)} of {len(self)} sites have"
                " none): run tfquant.calibrate(model, batches), load ranges with tfquant.load, or"
                " model.set_mode('float')"
            )

    def apply(self, calibration: calib.Calibration) -> None:
        """Set all ranges from a calibration, or none if it does not fit.

        Raises:
          ValueError: it lacks a site, or a range does not fit.
        """
        calibrated = {a: q for a, q in self.items() if q.site.spec.scale.calibrated}
        missing = [a for a in calibrated if a not in calibration]
        if missing:
            raise ValueError(
                f"the calibration has no range for site {missing[0]} ({len(missing)} of"
                f" {len(self)} are missing): it was made with another model or recipe;"
                " calibrate again"
            )
        ranges, groups = {}, {}
        for address, quantizer in calibrated.items():
            entry, shape = calibration[address], quantizer.site.range_shape
            _check_grouping(quantizer.site, entry.grouping)
            groups[address] = None if entry.grouping is None else entry.grouping.group_of
            if entry.lower.size != np.prod(shape, dtype=int):
                raise ValueError(
                    f"site {address}: the calibration has {entry.lower.size} ranges, the site needs"
                    f" {list(shape)}; calibrate again"
                )
            ranges[address] = (entry.lower.reshape(shape), entry.upper.reshape(shape))
        ranges = fused_ranges(self._sites, ranges)
        before = [(variable, variable.numpy()) for variable in self.variables]
        try:
            for address, quantizer in calibrated.items():
                quantizer.set_range(*ranges[address], groups[address])
        except ValueError:
            for variable, value in before:
                variable.assign(value)
            raise
        self.calibration = calibration


def fused_ranges(sites: Iterable[Site], ranges: Ranges) -> Ranges:
    """Give the sites of one fusion group their smallest lower and largest upper end.

    Args:
      sites: those whose ranges are wanted.
      ranges: address -> (lower, upper), float32 of the site's range shape.

    Returns:
      The same addresses with the ranges of groups merged.
    """
    groups: dict[str, list[str]] = {}
    for site in sites:
        if site.group:
            groups.setdefault(site.group, []).append(site.address)
    ranges = dict(ranges)
    for members in groups.values():
        lower = np.min([ranges[a][0] for a in members], axis=0)
        upper = np.max([ranges[a][1] for a in members], axis=0)
        ranges.update({a: (lower, upper) for a in members})
    return ranges


def _check_grouping(site: Site, grouping: calib.Grouping | None) -> None:
    """Raise ValueError if the groups of dimensions in a calibration are not those of the site."""
    wanted = (
        None
        if site.spec.layout.groups is None
        else (site.spec.layout.groups, site.order, site.shape[-1])
    )
    calibrated = (
        None if grouping is None else (grouping.groups, grouping.order, grouping.group_of.size)
    )
    if wanted != calibrated:
        has, wants = (
            (
                "no groups of dimensions"
                if one is None
                else f"{one[0]} groups of {one[2]} dimensions sorted by {one[1] or 'nothing'}"
            )
            for one in (calibrated, wanted)
        )
        raise ValueError(
            f"site {site.address}: the calibration has {has}, the recipe wants {wants}: calibrate"
            " with this recipe"
        )

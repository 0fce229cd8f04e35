"""Sites in other formats.

Their specs, and quantizers with ranges from what was seen when the model was calibrated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import calib
from tfquant.calibration import weight_entry
from tfquant.engine import Engine
from tfquant.graph.plan import deciding_spec
from tfquant.quantizer import Quantizer
from tfquant.recipes.exact import with_specs
from tfquant.rules import Recipe
from tfquant.site import Site
from tfquant.site_quantizers import fused_ranges
from tfquant.spec import QuantSpec
from tfquant.weights import parameter_values


class Alternatives:
    """Everything about sites in other formats that follows without data.

    Attributes:
      quantizers: address -> quantizers in the other formats, in the order of `formats`.

    Args:
      engine: of a calibrated model.
      calibration: with statistics of all sites of the model.
      sites: that may have another format.
      formats: which.
      method: how ranges in these formats are estimated; None: as in the model. Those along the
        embedding keep theirs.

    Raises:
      ValueError: a format does not exist, or the calibration did not keep what the method needs.
    """

    def __init__(
        self,
        engine: Engine,
        calibration: calib.Calibration,
        sites: Iterable[Site],
        formats: Iterable[str],
        method: calib.Method | None,
    ):
        self._engine, self._calibration, self._method = engine, calibration, method
        self._sites = list(sites)
        self._edges = engine.placements().edges
        values = parameter_values(engine) if any(site.is_weight for site in self._sites) else {}
        self._entries: dict[tuple[str, str], calib.SiteCalibration] = {}
        self.quantizers: dict[str, list[Quantizer]] = {site.address: [] for site in self._sites}
        for format in formats:
            changed = [
                dataclasses.replace(site, spec=self._spec(site.spec, format))
                for site in self._sites
            ]
            for site in changed:
                self._entries[site.address, format] = self._estimated(site, values)
            self._add_quantizers(changed, format)

    def recipe(self, chosen: Mapping[str, str], name: str) -> Recipe:
        """The recipe of the model with other formats for some sites: address -> format."""
        recipe = self._engine.plan.recipe
        specs = {
            member: self._spec(spec, format)
            for address, format in chosen.items()
            for member in self._engine.plan.site(address).members
            if (spec := deciding_spec(recipe, self._edges[member])) is not None
        }
        return (
            with_specs(recipe, specs, self._edges, "mixed precision", name=name)
            if specs
            else recipe
        )

    def calibration(self, chosen: Mapping[str, str]) -> calib.Calibration:
        """The calibration of the model with the ranges of some sites estimated for another
        format.
        """
        entries = dict(self._calibration) | {
            address: self._entries[address, format] for address, format in chosen.items()
        }
        return calib.Calibration(
            entries, samples=self._calibration.samples, dimensions=self._calibration.dimensions
        )

    def _spec(self, spec: QuantSpec, format: str) -> QuantSpec:
        method = spec.method if self._method is None or spec.layout.per_embedding else self._method
        return dataclasses.replace(spec, format=format, method=method)

    def _estimated(self, site: Site, values) -> calib.SiteCalibration:
        if site.address in values:
            return weight_entry(site, values[site.address])
        if site.address not in self._calibration:
            raise ValueError(
                f"the calibration has no site {site.address}: pass one that was made with this"
                " model and recipe"
            )
        entry = self._calibration[site.address]
        if not entry.can_use(site.spec.method):
            raise ValueError(
                f"site {site.address}: the calibration did not keep what method {site.spec.method}"
                " needs: pass another method, or calibrate with it in the recipe"
            )
        return calib.SiteCalibration.estimate(
            entry.statistics,
            site.spec.method,
            site.spec.codebook,
            entry.grouping,
            address=site.address,
        )

    def _add_quantizers(self, sites: list[Site], format: str) -> None:
        entries = {site.address: self._entries[site.address, format] for site in sites}
        ranges = {
            site.address: (
                entry.lower.reshape(site.range_shape),
                entry.upper.reshape(site.range_shape),
            )
            for site, entry in zip(sites, entries.values(), strict=True)
        }
        ranges = fused_ranges(sites, ranges)
        for site in sites:
            grouping = entries[site.address].grouping
            quantizer = Quantizer(site)
            quantizer.set_range(
                *ranges[site.address], None if grouping is None else grouping.group_of
            )
            self.quantizers[site.address].append(quantizer)

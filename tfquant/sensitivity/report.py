"""The result of a sensitivity analysis: a table, JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

from calib import figures, tables

UNITS = {"sqnr": "SQNR, dB", "kl": "KL divergence, nats"}


@dataclasses.dataclass(frozen=True)
class GroupSensitivity:
    """One site or group of sites.

    Attributes:
      name: of the group; the address where it is one site.
      sites: addresses.
      value: the measure with this group switched.
      difference: `value` less the measure of the baseline.
      bits: of the parameters that the group quantizes, as they are quantized; 0 where it quantizes
        activations alone.
      outputs: name of an output of the model -> its measure; empty for a metric.
    """

    name: str
    sites: tuple[str, ...]
    value: float
    difference: float
    bits: int
    outputs: dict[str, float]


@dataclasses.dataclass(frozen=True)
class SensitivityReport:
    """Report of `tfquant.sensitivity`.

    Attributes:
      groups: the most sensitive first.
      measure: `sqnr` (dB), `kl` (nats), or the name of a metric.
      switch: `on`, one group quantized in a float network, or `off`, one group in float in a
        quantized network.
      baseline: what `difference` is to: `float` or `quantized`. The SQNR of the float network is
        infinite, so that it is never that.
      float_value, quantized_value: the measure with no site and with all sites quantized.
      samples: how many examples were run.
    """

    groups: tuple[GroupSensitivity, ...]
    measure: str
    switch: str
    baseline: str
    float_value: float
    quantized_value: float
    samples: int

    def group(self, name: str) -> GroupSensitivity:
        """The group of a name.

        Raises:
          KeyError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(
            f"no group {name!r}; there are {len(self.groups)}, such as"
            f" {[g.name for g in self.groups[:3]]}"
        )

    def table(self) -> str:
        """All groups, one a line."""
        unit = UNITS.get(self.measure, self.measure)
        title = (
            f"{self.title}, {self.samples} samples; float {self.float_value:.5g}, quantized"
            f" {self.quantized_value:.5g}"
        )
        columns = ("group", "sites", unit, f"to {self.baseline}", "parameters, KiB")
        rows = [
            (
                group.name,
                str(len(group.sites)),
                f"{group.value:.5g}",
                f"{group.difference:+.4g}",
                f"{group.bits / 8192:,.1f}" if group.bits else "-",
            )
            for group in self.groups
        ]
        return tables.render(tables.build(title, columns, rows, left=("group",)))

    def _repr_html_(self) -> str:
        return tables.as_html(self.table())

    @property
    def title(self) -> str:
        what = (
            "all in float, one quantized" if self.switch == "on" else "all quantized, one in float"
        )
        return f"sensitivity of {len(self.groups)} groups, {what}"

    def to_json(self) -> str:
        """Standard JSON: what is not finite is a string."""
        return json.dumps(
            _map_numbers(dataclasses.asdict(self), lambda x: x if math.isfinite(x) else str(x)),
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> SensitivityReport:
        """Inverse of `to_json`.

        Raises:
          ValueError: it is not what that writes.
        """
        try:
            data = json.loads(text)
            groups = tuple(
                GroupSensitivity(
                    group["name"],
                    tuple(group["sites"]),
                    float(group["value"]),
                    float(group["difference"]),
                    int(group["bits"]),
                    {name: float(value) for name, value in group["outputs"].items()},
                )
                for group in data["groups"]
            )
            ends = float(data["float_value"]), float(data["quantized_value"])
            return cls(
                groups,
                data["measure"],
                data["switch"],
                data["baseline"],
                *ends,
                int(data["samples"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"not the JSON of a sensitivity report ({type(error).__name__}: {error})"
            ) from error

    def plot(self, path: str | os.PathLike[str]) -> None:
        """PNG: a bar for each group, the most sensitive on top, and the measure with all sites
        quantized.

        Raises:
          calib.CalibrationFileError: it cannot be written.
        """
        figure = figures.new_figure(10, 1.5 + 0.22 * len(self.groups))
        axes = figure.add_subplot()
        values = [group.value for group in self.groups]
        # Groups that change nothing have no bar: their SQNR is infinite.
        axes.barh(
            range(len(values)),
            [v if math.isfinite(v) else 0.0 for v in values],
            color="tab:blue",
            height=0.7,
        )
        if math.isfinite(self.quantized_value):
            axes.axvline(
                self.quantized_value,
                color="tab:red",
                label=f"all quantized: {self.quantized_value:.4g}",
            )
        finite = [v for v in (*values, self.quantized_value) if math.isfinite(v)]
        if self.measure == "kl" and finite and min(finite) > 0 and max(finite) > 30 * min(finite):
            axes.set_xscale("log")
            axes.set_xlim(left=min(finite) / 3)  # the float network's 0 is nowhere on such an axis
        elif math.isfinite(self.float_value):
            axes.axvline(
                self.float_value,
                color="black",
                linestyle=":",
                label=f"float: {self.float_value:.4g}",
            )
        axes.set_yticks(range(len(values)), [group.name for group in self.groups], fontsize=7)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlabel(UNITS.get(self.measure, self.measure))
        axes.set_title(f"{self.title}, {self.samples} samples", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        figures.write_png(figure, path)


def _map_numbers(value: Any, change) -> Any:
    if isinstance(value, dict):
        return {key: _map_numbers(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_numbers(item, change) for item in value]
    return change(value) if isinstance(value, float) else value

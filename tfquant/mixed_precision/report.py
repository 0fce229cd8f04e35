"""The way a search for mixed precision has gone: a table and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from calib import tables
from tfquant import formats as number_formats


@dataclasses.dataclass(frozen=True)
class Try:
    """One choice of formats that was measured.

    Attributes:
      formats: address of a site -> its format, of sites that have another than in the recipe of the
        model.
      value: the measure.
      loss: how much worse than the float network's: KL divergence, minus the SQNR, or the
        difference of a metric.
      bits: of all parameters that are quantized.
    """

    formats: dict[str, str]
    value: float
    loss: float
    bits: int


@dataclasses.dataclass(frozen=True)
class SearchReport:
    """Report of `tfquant.mixed_precision`.

    Attributes:
      target: `fewest` or `smallest`.
      measure: `sqnr` (dB), `kl` (nats), or the name of a metric.
      max_loss: that was allowed.
      float_value: the measure of the float network.
      orders: for each format the sites, or sites with one common range, in the order in which they
        were tried, with the loss that each has alone.
      tries: what was measured, in this order.
      best: what was chosen, measured on the network that the recipe makes; where the target cannot
        be met, what came nearest.
    """

    target: str
    measure: str
    max_loss: float
    float_value: float
    orders: tuple[tuple[tuple[str, float], ...], ...]
    tries: tuple[Try, ...]
    best: Try

    def table(self) -> str:
        """All tries, one a line, and what was chosen."""
        title = (
            f"mixed precision: {self.target}, {self.measure}, loss at most {self.max_loss:.5g};"
            f" {len(self.tries)} tries"
        )
        columns = ("try", "other formats", self.measure, "loss", "parameters, KiB", "within")
        rows = []
        for number, entry in enumerate(self.tries, start=1):
            within = "yes" if entry.loss <= self.max_loss else "no"
            size = f"{entry.bits / 8192:,.1f}"
            values = (f"{entry.value:.5g}", f"{entry.loss:.5g}")
            rows.append((str(number), str(len(entry.formats)), *values, size, within))
        lines = [tables.render(tables.build(title, columns, rows, left=("within",)))]
        lines += [f"{format}: {address}" for address, format in self.best.formats.items()]
        lines.append(f"loss {self.best.loss:.5g}, parameters {self.best.bits / 8192:,.1f} KiB")
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        return tables.as_html(self.table())

    @property
    def note(self) -> str:
        """What the chosen formats mean for size and speed of exported files; empty for 8 bits."""
        names = sorted(set(self.best.formats.values()))
        kinds = {name: _kernels(number_formats.get(name).bits) for name in names}
        return "\n".join(f"{name}: {said}" for name, said in kinds.items() if said)

    def to_json(self) -> str:
        """Standard JSON: what is not finite is a string."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(plain(dataclasses.asdict(self)), indent=2)

    @classmethod
    def from_json(cls, text: str) -> SearchReport:
        """Inverse of `to_json`.

        Raises:
          ValueError: it is not what that writes.
        """
        try:
            data = json.loads(text)
            orders = tuple(
                tuple((str(name), float(loss)) for name, loss in order) for order in data["orders"]
            )
            tries = tuple(map(_read_try, data["tries"]))
            ends = float(data["max_loss"]), float(data["float_value"])
            return cls(
                data["target"], data["measure"], *ends, orders, tries, _read_try(data["best"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"not the JSON of a search for mixed precision ({type(error).__name__}: {error})"
            ) from error


class TargetError(ValueError):
    """No choice of formats meets the target.

    Attributes:
      report: the way that was gone; its `best` is what came nearest.
    """

    def __init__(self, message: str, report: SearchReport):
        super().__init__(message)
        self.report = report


def _kernels(bits: int) -> str:
    """How runtimes store and compute codes of so many bits; empty for 8."""
    if bits > 8:
        return "no runtime has 16-bit kernels as fast as those of 8 bits, LiteRT has none"
    if bits == 8:
        return ""
    if bits > 4:
        return (
            "files for runtimes store a byte a value, no smaller or faster than 8 bits; target"
            " 'packed' stores the bits"
        )
    return (
        "half a byte a value from opset 21 on, which ONNX Runtime computes in float and slower than"
        " 8 bits; with opset=17 a byte a value, computed in integers; target 'packed' stores the"
        " bits"
    )


def _read_try(data: Mapping[str, Any]) -> Try:
    return Try(dict(data["formats"]), float(data["value"]), float(data["loss"]), int(data["bits"]))

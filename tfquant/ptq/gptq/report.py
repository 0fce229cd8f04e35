"""GPTQ report by layer: a table and JSON."""

from __future__ import annotations

import dataclasses
import json

from calib import tables
from tfquant.ptq.gptq.options import Options


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """GPTQ result of one weight.

    Attributes:
      address: of its site.
      shape: of the variable.
      mse_nearest: mean squared error of the layer's product with weights rounded to nearest, over
        all samples and outputs, for the inputs that GPTQ has seen.
      mse_gptq: the same with the weights of GPTQ.
      changed: share of the weights that differ from rounding to nearest by more than a quarter of
        their scale.
      kept_nearest: why the weights stay rounded to nearest; empty if they do not.
      rows: samples there were.
      seconds: of the rounding, data collection not included.
    """

    address: str
    shape: tuple[int, ...]
    mse_nearest: float
    mse_gptq: float
    changed: float
    kept_nearest: str
    rows: int
    seconds: float

    @property
    def mse(self) -> float:
        """Output mean squared error with the weights that were kept."""
        return self.mse_nearest if self.kept_nearest else self.mse_gptq


@dataclasses.dataclass(frozen=True)
class GPTQReport:
    """Report of `gptq`; `print` shows its table.

    Attributes:
      layers: one result a weight, in the order they were rounded.
      skipped: (address, reason) of chosen weights that were left as they were.
      options: as they were used.
      seconds: all in all.
    """

    layers: tuple[LayerResult, ...]
    skipped: tuple[tuple[str, str], ...]
    options: Options
    seconds: float

    def layer(self, address: str) -> LayerResult:
        """Result of a site.

        Raises:
          KeyError: it was not rounded with GPTQ.
        """
        for result in self.layers:
            if result.address == address:
                return result
        raise KeyError(
            f"{address} was not rounded with GPTQ;"
            f" {', '.join(r.address for r in self.layers[:3])}, ... were"
        )

    def table(self) -> str:
        """Table of all layers and of the omitted sites."""
        title = f"GPTQ: {len(self.layers)} weights, {self.seconds:.0f} s"
        columns = (
            *("site", "shape", "MSE nearest", "GPTQ", "GPTQ / nearest", "changed %", "s"),
            "kept",
        )
        rows = [
            (
                r.address,
                "x".join(map(str, r.shape)),
                f"{r.mse_nearest:.4g}",
                f"{r.mse_gptq:.4g}",
                f"{r.mse_gptq / r.mse_nearest:.3f}" if r.mse_nearest else "-",
                f"{100 * r.changed:.2f}",
                f"{r.seconds:.1f}",
                f"nearest: {r.kept_nearest}" if r.kept_nearest else "GPTQ",
            )
            for r in self.layers
        ]
        grid = tables.build(title, columns, rows, left=("site", "kept"))
        skipped = (f"left out: {address}: {reason}" for address, reason in self.skipped)
        return "\n".join([tables.render(grid), *skipped])

    def _repr_html_(self) -> str:
        return tables.as_html(self.table())

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> GPTQReport:
        data = json.loads(text)
        layers = tuple(
            LayerResult(**{**layer, "shape": tuple(layer["shape"])}) for layer in data["layers"]
        )
        return cls(
            layers, tuple(map(tuple, data["skipped"])), Options(**data["options"]), data["seconds"]
        )

"""GPTQ report by layer: a table and JSON."""

from __future__ import annotations

import dataclasses

from calib import tables
from tfquant.ptq.gptq.options import Options
from tfquant.ptq.layer_report import LayerReport


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


class GPTQReport(LayerReport[LayerResult, Options]):
    """Report of `gptq`; `print` shows its table."""

    METHOD, RESULT, OPTIONS = "GPTQ", LayerResult, Options

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
        return self._with_skipped(grid)

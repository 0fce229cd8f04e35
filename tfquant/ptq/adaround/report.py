"""AdaRound report by layer: a table, JSON, a plot."""

from __future__ import annotations

import dataclasses
import os

from calib import figures, tables
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.layer_report import LayerReport


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """AdaRound result of one weight.

    Attributes:
      address: of its site.
      shape: of the variable.
      compared: what was to stay as it was: `product`, `activation` (behind the activation function)
        or `rows` (of a table).
      mse_nearest: mean squared error of that with weights rounded to nearest.
      mse_soft: with the rounding as it was learned, before it became hard.
      mse_hard: with the rounding made hard.
      changed: share of the weights that are rounded otherwise than to nearest now.
      kept_nearest: why the weights stay rounded to nearest; empty if they do not.
      rows: samples there were.
      seconds: that learning took, data collection not included.
    """

    address: str
    shape: tuple[int, ...]
    compared: str
    mse_nearest: float
    mse_soft: float
    mse_hard: float
    changed: float
    kept_nearest: str
    rows: int
    seconds: float

    @property
    def mse(self) -> float:
        """Output mean squared error with the weights that were kept."""
        return self.mse_nearest if self.kept_nearest else self.mse_hard


class AdaRoundReport(LayerReport[LayerResult, Options]):
    """Report of `adaround`; `print` shows its table."""

    METHOD, RESULT, OPTIONS = "AdaRound", LayerResult, Options

    def table(self) -> str:
        """Table of all layers and of the omitted sites."""
        title = (
            f"AdaRound: {len(self.layers)} weights, {self.options.iterations} iterations,"
            f" {self.seconds:.0f} s"
        )
        columns = (
            "site",
            "shape",
            "compared",
            "MSE nearest",
            "soft",
            "hard",
            "hard / nearest",
            "changed %",
            "s",
            "kept",
        )
        rows = []
        for r in self.layers:
            ratio = f"{r.mse_hard / r.mse_nearest:.3f}" if r.mse_nearest else "-"
            rows.append(
                (
                    r.address,
                    "x".join(map(str, r.shape)),
                    r.compared,
                    *(f"{v:.4g}" for v in (r.mse_nearest, r.mse_soft, r.mse_hard)),
                    ratio,
                    f"{100 * r.changed:.2f}",
                    f"{r.seconds:.1f}",
                    f"nearest: {r.kept_nearest}" if r.kept_nearest else "learned",
                )
            )
        grid = tables.build(title, columns, rows, left=("site", "compared", "kept"))
        return self._with_skipped(grid)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the errors of all layers, rounded to nearest and with AdaRound, as PNG.

        Raises:
          calib.CalibrationFileError: it cannot be written.
        """
        figure = figures.new_figure(10, 2 + 0.22 * len(self.layers))
        axes = figure.add_subplot()
        places = range(len(self.layers))
        for name, color in (("nearest", "tab:gray"), ("soft", "tab:orange"), ("hard", "tab:blue")):
            axes.plot(
                [getattr(r, f"mse_{name}") for r in self.layers],
                places,
                "o",
                color=color,
                label=name,
                markersize=4,
            )
        axes.set_yticks(places, [r.address for r in self.layers], fontsize=7)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("mean squared error of the output")
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        figures.write_png(figure, path)

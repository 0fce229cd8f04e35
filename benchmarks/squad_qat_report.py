"""The table and the learning curves of `results/squad_qat.json`.

python -m benchmarks.squad_qat_report            prints the Markdown table of docs/benchmarks.md
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.results import FOLDER
from calib.figures import new_figure, write_png

Rows = Mapping[str, Mapping[str, Any]]
SMOOTHED = 10  # logged points that make one of a curve


def table(rows: Rows) -> str:
    """Markdown.

    Exact match, F1, and the difference of F1 to float training, with its standard error over the
    questions.
    """
    lines = ["| training | exact match | F1 | to float |", "|---|---|---|---|"]
    for name, figures in rows.items():
        difference = (
            f"{figures['to_float']:+.2f} ± {figures['to_float_error']:.2f}"
            if "to_float" in figures
            else ""
        )
        lines.append(
            f"| {name} | {figures['exact_match']:.2f} | {figures['f1']:.2f} | {difference} |"
        )
    return "\n".join(lines)


def plot(rows: Rows, path: pathlib.Path) -> None:
    """Training loss over steps, smoothed.

    Distilled rows are left out: their loss has another scale.
    """
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for name, figures in rows.items():
        if not figures["loss"] or "distilled" in name:
            continue
        steps, loss = np.asarray(figures["loss"]).T
        width = min(SMOOTHED, len(loss))
        axes.plot(
            steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), label=name
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"training loss, mean of {10 * SMOOTHED} steps")
    axes.legend(fontsize="small")
    write_png(figure, path)


if __name__ == "__main__":
    print(table(json.loads((FOLDER / "squad_qat.json").read_text())["rows"]))

"""The table and plot of `results/squad_ptq.json`.

python -m benchmarks.squad_report            prints the Markdown table of docs/benchmarks.md
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

from benchmarks.results import FOLDER
from calib.figures import new_figure, write_png

Rows = Mapping[str, Mapping[str, float]]


def table(rows: Rows) -> str:
    """Markdown: a line a method, a column a placement; F1 and what it lost to float."""
    base = rows["float"]["f1"]
    cells = {tuple(name.split("|")): figures for name, figures in rows.items() if "|" in name}
    placements = list(dict.fromkeys(p for p, _ in cells if p.startswith("int8_")))
    methods = list(dict.fromkeys(m for p, m in cells if p in placements))
    lines = [
        (
            f"Float: F1 {base:.2f}, EM {rows['float']['exact_match']:.2f},"
            f" {rows['float']['questions']} questions."
        ),
        "",
        "| ranges | " + " | ".join(f"`{p}`" for p in placements) + " |",
        "|---|" + "---|" * len(placements),
    ]
    for method in methods:
        row = [_cell(cells.get((p, method)), base) for p in placements]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    for (placement, method), figures in cells.items():
        if placement not in placements:
            lines.append(
                f"| {placement}, {method} | {_cell(figures, base)} |" + " |" * (len(placements) - 1)
            )
    return "\n".join(lines)


def _cell(figures: Mapping[str, float] | None, base: float) -> str:
    return "" if figures is None else f"{figures['f1']:.2f} ({figures['f1'] - base:+.2f})"


def plot(rows: Rows, path: pathlib.Path) -> None:
    """Bars of F1 lost to float, grouped by placement."""
    base = rows["float"]["f1"]
    names = [n for n in rows if n.startswith("int8_")]
    placements = list(dict.fromkeys(n.split("|")[0] for n in names))
    methods = list(dict.fromkeys(n.split("|")[1] for n in names))
    figure = new_figure(9, 4)
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        lost = [
            base - rows[f"{p}|{method}"]["f1"] if f"{p}|{method}" in rows else 0.0
            for p in placements
        ]
        axes.bar([x + i * width for x in range(len(placements))], lost, width, label=method)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(placements))], placements)
    axes.set_ylabel("F1 lost to float")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(fontsize="small")
    write_png(figure, path)


if __name__ == "__main__":
    print(table(json.loads((FOLDER / "squad_ptq.json").read_text())["rows"]))

"""The table of `results/glue.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE"}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the median of every task, their mean, and how far that is from float."""
    if not rows:
        return "Not measured yet."
    base = rows["float"]["average"] if "float" in rows else None
    lines = [f"| | {' | '.join(NAMES.values())} | mean | to float |", "|---|" + "---|" * (len(NAMES) + 2)]
    for name, figures in rows.items():
        cells = [f"{figures['medians'][task]:.2f}" for task in NAMES]
        away = "" if base is None or name == "float" else f"{figures['average'] - base:+.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {figures['average']:.2f} | {away} |")
    return "\n".join(lines)

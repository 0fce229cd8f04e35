"""The table of `results/outliers.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown.

    Exact match, F1, its difference to float, and dimensions whose range is many times the usual,
    over all tensors.
    """
    lines = [
        "| activations | exact match | F1 | to float | outlying dimensions |",
        "|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        lost = "" if name == "float" else f"{figures['f1'] - rows['float']['f1']:+.2f}"
        lines.append(
            f"| {name} | {figures['exact_match']:.2f} | {figures['f1']:.2f} | {lost} |"
            f" {figures.get('outliers', '')} |"
        )
    return "\n".join(lines)

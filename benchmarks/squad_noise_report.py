"""Table of `results/squad_noise.json` in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a group of sites, two columns a checkpoint."""
    lines = ["| quantized | " + " | | ".join(rows) + " | |", "|---" * (1 + 2 * len(rows)) + "|"]
    for group in next(iter(rows.values()), {"groups": {}})["groups"]:
        result = [figures["groups"][group] for figures in rows.values()]
        cells = " | ".join(f"{one['divergence']:.4f} | {100 * one['same']:.1f} %" for one in result)
        lines.append(f"| {group} | {cells} |")
    return "\n".join(lines)

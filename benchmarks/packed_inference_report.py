"""The tables of `results/packed_inference.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(rows: Mapping[str, Mapping[str, Any]], model: str) -> str:
    """Markdown: size and milliseconds of a call of every file of a model, and how many times as
    fast as float it is; F1 where it was measured.

    Args:
      rows: of the result file.
      model: name in `benchmarks.packed_inference.CONFIGS`.
    """
    start = f"{model}, batch 1, "
    shapes = {n.removeprefix(start): row for n, row in rows.items() if n.startswith(start)}
    bytes_of = rows.get(f"{model}, sizes", {}).get("bytes", {})
    if not shapes or not bytes_of:
        return "Not measured yet."
    scores = {file: rows.get(f"{model}, F1 of {file}", {}).get("f1") for file in bytes_of}
    scored = any(score is not None for score in scores.values())
    base = next(iter(bytes_of.values()))
    heads = [model, "MiB", "of float", *(f"{shape}, ms" for shape in shapes)]
    heads += ["F1"] if scored else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for file, size in bytes_of.items():
        cells = [file, f"{size / 2**20:.1f}", f"{size / base:.2f}"]
        for row in shapes.values():
            cells.append(f"{row['p50'][file]:.1f} ({row['speed'][file]:.2f}x)")
        if scored:
            cells.append("" if scores[file] is None else f"{scores[file]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

"""Tables of 8-bit formats in docs/benchmarks.md: cost of rounding, SQuAD, MRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfquant.recipes.op_groups import FUSION_LEVELS

Rows = Mapping[str, Any]


def rounding_table(rows: Rows) -> str:
    """Time of one rounding of each format, as a multiple of int8's."""
    lines = ["| format | time / int8's |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{n}` | {row['times_int8']:.2f} |" for n, row in rows.items())])


def squad_table(rows: Rows) -> str:
    """F1 of each format at each level of op fusion."""
    lines = [
        "| format | " + " | ".join(FUSION_LEVELS) + " |",
        "|---" * (1 + len(FUSION_LEVELS)) + "|",
    ]
    for name, row in rows.items():
        if name == "float":
            cells = [f"{row['f1'][name]:.2f}"] * len(FUSION_LEVELS)
        else:
            cells = [f"{row['f1'][level]:.2f}" for level in FUSION_LEVELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mrpc_table(rows: Rows) -> str:
    """Median, spread and scores of each choice of formats, and the distance to bfloat16."""
    lines = ["| formats | median | to bfloat16 | spread | seeds |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        if "average" not in row:  # not measured to its end
            continue
        scores = list(row["scores"]["mrpc"].values())
        distance = row["average"] - rows["bfloat16"]["average"]
        cells = [f"{row['average']:.2f}", f"{distance:+.2f}", f"{max(scores) - min(scores):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{s:.2f}' for s in scores)} |")
    return "\n".join(lines)

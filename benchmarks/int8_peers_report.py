"""The tables of `results/int8_peers.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]


def latency_table(rows: Rows, model: str) -> str:
    """Markdown.

    Milliseconds of a call at every shape, and how many times as fast as the first pipeline it is.
    """
    shapes = {
        name.removeprefix(f"{model}, "): figures
        for name, figures in rows.items()
        if name.startswith(f"{model}, batch")
    }
    if not shapes:
        return "Not measured yet."
    first = next(iter(shapes.values()))
    lines = [
        f"| {model}, ms (times as fast) | {' | '.join(shapes)} |",
        "|---" * (len(shapes) + 1) + "|",
    ]
    for pipeline in first["p50"]:
        cells = [
            f"{figures['p50'][pipeline]:.1f} ({figures['speed'][pipeline]:.2f}x)"
            for figures in shapes.values()
        ]
        lines.append(f"| {pipeline} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_table(rows: Rows, model: str) -> str:
    """Markdown: size, products in integers and scores of every pipeline."""
    scored = {
        name.removeprefix(f"{model}, "): figures
        for name, figures in rows.items()
        if "f1" in figures
    }
    if not scored:
        return "Not measured yet."
    base = next(iter(scored.values()))
    lines = [
        "| | MiB | of float | products in integers | F1 | to float |",
        "|---|---|---|---|---|---|",
    ]
    for pipeline, figures in scored.items():
        lines.append(
            f"| {pipeline} | {figures['size'] / 2**20:.1f} | {figures['size'] / base['size']:.2f} |"
            f" {figures['integer']} of {figures['products']} | {figures['f1']:.2f} |"
            f" {figures['f1'] - base['f1']:+.2f} |"
        )
    return "\n".join(lines)


def parity_table(rows: Rows) -> str:
    """Markdown: answers of our files beside those of the simulation."""
    start = "MiniLM, parity of "
    result = {
        name.removeprefix(start): figures
        for name, figures in rows.items()
        if name.startswith(start)
    }
    if not result:
        return "Not measured yet."
    lines = [
        "| file | questions | same answers | F1 of the file | of the simulation |",
        "|---|---|---|---|---|",
    ]
    for name, figures in result.items():
        lines.append(
            f"| {name} | {figures['questions']} | {figures['same answers']:.1f} % |"
            f" {figures['f1 of the file']:.2f} | {figures['f1 of the simulation']:.2f} |"
        )
    return "\n".join(lines)


def export_cost(rows: Rows) -> str:
    """One sentence a model: what exporting it takes."""
    result = {
        name.removesuffix(", export"): figures
        for name, figures in rows.items()
        if name.endswith(", export")
    }
    return (
        "\n".join(
            f"Exporting the {model} took {figures['seconds']:.0f} s and {figures['memory']:.1f}"
            f" times the memory of its {figures['parameters'] / 2**20:.0f} MiB of float parameters."
            for model, figures in result.items()
        )
        or "Not measured yet."
    )

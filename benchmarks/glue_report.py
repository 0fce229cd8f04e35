"""The tables of `results/glue.json`, and beside it what Bondarenko et al.

(2021) report of BERT-base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE"}

# Development sets of GLUE, medians of five seeds, arXiv 2109.12948; a mean is over eight tasks
# there.
PAPER = {
    "float": ({"cola": 57.27, "sst2": 93.12, "mrpc": 88.36, "stsb": 89.09, "rte": 70.40}, 83.06),
    "W8A8, current min-max, 1 sequence": (
        {"cola": 54.74, "sst2": 92.55, "mrpc": 88.53, "stsb": 81.02, "rte": 64.98},
        71.03,
    ),
    "W8A8, 16 bits at x, h, y": ({}, 82.43),
    "W8A8, PEG-6 at x, h, y": (
        {"cola": 59.43, "sst2": 92.66, "mrpc": 88.53, "stsb": 87.92, "rte": 69.31},
        82.45,
    ),
    "W8A8, QAT": ({}, 83.26),
    "W4A8, QAT": ({}, 82.64),
    "W4A8, 2-bit token embeddings, QAT": ({}, 82.29),
}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the median of every task, their mean, how far that is from float, and how much
    smaller parameters are.

    A row that has not been measured to its end is left out.
    """
    rows = {name: figures for name, figures in rows.items() if "average" in figures}
    if not rows:
        return "Not measured yet."
    sizes = [
        f"{figures['times_smaller']:.2f}x" if "times_smaller" in figures else ""
        for figures in rows.values()
    ]
    means = {name: (figures["medians"], figures["average"]) for name, figures in rows.items()}
    own = {
        name: figures["float_average"]
        for name, figures in rows.items()
        if "float_average" in figures
    }
    return _markdown(means, "mean", ("smaller", sizes), bases=own)


def paper_table() -> str:
    """Markdown: the same rows of the paper, as far as it is known what they are."""
    return _markdown(PAPER, "GLUE")


def _markdown(
    rows: Mapping[str, tuple[Mapping[str, float], float]],
    mean: str,
    *more: tuple[str, Sequence[str]],
    bases: Mapping[str, float] | None = None,
) -> str:
    """
    Args:
        rows: to (score of each task that is known, mean of all).
        mean: head of that column.
        more: heads and cells of columns behind.
        bases: mean of float for rows that do not start from the models of the row "float".
    """
    common = rows["float"][1] if "float" in rows else None
    heads = ["", *NAMES.values(), mean, "to float", *(head for head, _ in more)]
    lines = [heads, ["---"] * len(heads)]
    for number, (name, (tasks, average)) in enumerate(rows.items()):
        base = (bases or {}).get(name, common)
        away = "" if base is None or name == "float" else f"{average - base:+.2f}"
        scores = [f"{tasks[task]:.2f}" if task in tasks else "" for task in NAMES]
        lines.append([name, *scores, f"{average:.2f}", away, *(cells[number] for _, cells in more)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""docs/compatibility.md: the compatibility table and what could not be done, from the results."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.compatibility import CHECKS

_HEADINGS = (
    "sites",
    "float mode equal",
    "error, 16 bits",
    "error, 8 bits",
    "gradients equal",
    "training step",
    "save and load",
    "ONNX",
)
# Part of an error message -> the cell of the table.
_REASONS = {
    "without a counterpart in ONNX": "no ONNX counterpart",
    "no end within": "time limit reached",
    "answers otherwise than the simulation": "file refused: answers differ",
}
_INTRODUCTION = """\
Small random configurations of every backbone and encoder of KerasHub, and thirteen families of
keras.applications, quantized with the default recipe on two random batches; `make compatibility`
makes this table. An error is the norm of the difference to the float model over the norm of its
outputs; with random weights and inputs it says nothing about accuracy on real data. *Gradients*:
those of all trainable variables in float mode against the original's. *Training step*: one step of
`fit` with quantizers. *Save and load*: into a model built a second time, equal bit for bit. *ONNX*:
written, opened by ONNX Runtime and compared with the simulation.

Images are smooth random patches with noise. Batch normalization has the statistics of a batch
and shifts of one standard deviation: with shifts of 0, deep untrained networks enlarge the last
bits of float32 to the size of their outputs, and no comparison says anything."""


def failed(row: Mapping[str, Any]) -> bool:
    """Whether any check of a row failed."""
    return any(isinstance(value, Mapping) for value in row.values())


def write_report(results: pathlib.Path, document: pathlib.Path) -> None:
    """Write the document.

    Args:
      results: JSON file of the rows.
      document: Markdown file to write.
    """
    contents = json.loads(results.read_text())
    rows = contents["rows"]
    applications = {name: row for name, row in rows.items() if not _is_backbone(name)}
    backbones = {name: row for name, row in rows.items() if _is_backbone(name)}
    versions = ", ".join(f"{name} {number}" for name, number in contents["versions"].items())
    lines = [
        "# Compatibility",
        "",
        _INTRODUCTION,
        "",
        f"Versions: {versions}. Processor: {contents['machine']['processor']}.",
        "",
        "## KerasHub",
        "",
        *_table(backbones),
        "",
        "## keras.applications",
        "",
        *_table(applications),
        "",
        "## Failures",
        "",
        *(_failures(rows) or ["None."]),
    ]
    document.write_text("\n".join(lines) + "\n")


def _is_backbone(name: str) -> bool:
    return name.endswith(("Backbone", "Encoder"))


def _table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    passed = [
        sum(name in row and not isinstance(row[name], Mapping) for row in rows.values())
        for name in CHECKS
    ]
    return [
        f"| | {' | '.join(_HEADINGS)} |",
        f"| --- |{' --- |' * len(_HEADINGS)}",
        *(
            f"| {name} | {' | '.join(_cell(row.get(c)) for c in CHECKS)} |"
            for name, row in rows.items()
        ),
        f"| **passed of {len(rows)}** | {' | '.join(map(str, passed))} |",
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "not run"
    if isinstance(value, Mapping):
        return _reason(value["error"])
    return "yes" if isinstance(value, (bool, str)) else f"{value:g}"


def _reason(error: str) -> str:
    """Reason in four words: a known one, or the first words of the message."""
    for part, reason in _REASONS.items():
        if part in error:
            return reason
    message = error.partition(": ")[2] or error
    return " ".join(message.split()[:4]).rstrip(",;:")


def _failures(rows: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    return [
        f"* {name}, {column}: {str(value['error']).replace('|', '/')}"
        for name, row in rows.items()
        for column, value in row.items()
        if isinstance(value, Mapping)
    ]

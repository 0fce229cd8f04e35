"""Sweep over number formats and levels of op fusion: perplexity of each, as a table.

Every cell is kept when it is done, so that a sweep that was cut off goes on.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from examples.quantizing import quantize
from examples.wikitext.scoring import score
from examples.wikitext.settings import Settings
from examples.wikitext.windows import Windows
from fileio.atomic import write_json, write_text
from runs.logging import log
from runs.resume import content
from tfquant.recipes.op_groups import FUSION_LEVELS
from tfquant.training_args import recipe_of_args

KEPT, TABLE = "sweep.json", "perplexity.csv"
# With them a cell does not change.
_FREE = ("output_dir", "tfds_dir", "sweep_formats")


def sweep(
    model: Any, windows: Windows, batches: Sequence[Any], settings: Settings
) -> dict[str, dict[str, float]]:
    """Score each format at each level of op fusion, and write the table.

    Args:
        model: float network.
        windows: over the text.
        batches: calibration data; formats without a scale need none.
        settings: of the run; `sweep_formats` are the formats.

    Returns:
        Perplexity by format and level.
    """
    assert settings.output_dir is not None
    path = os.path.join(settings.output_dir, KEPT)
    conditions = _conditions(settings)
    cells = _known(path, conditions)
    names = [(format, level) for format in settings.sweep_formats for level in FUSION_LEVELS]
    for number, (format, level) in enumerate(names, 1):
        cell = f"{format}, {level}"
        if cell not in cells:
            network, _, _ = quantize(
                model, recipe_of(format, level), batches, source="--calibration_file=FILE"
            )
            cells[cell] = score(network, windows, settings, cell)["perplexity"]
            write_json(path, {"conditions": conditions, "cells": cells}, make_folder=True)
        log(f"sweep {number} of {len(names)}: {cell}: perplexity {cells[cell]:.4f}")
    result = {
        format: {level: cells[f"{format}, {level}"] for level in FUSION_LEVELS}
        for format in settings.sweep_formats
    }
    write_text(os.path.join(settings.output_dir, TABLE), table(result), make_folder=True)
    return result


def recipe_of(format: str, level: str) -> Any:
    """Return the recipe of a format for activations and weights at a level of op fusion.

    Raises:
        ValueError: there is no such format.
    """
    groups = ",".join(FUSION_LEVELS[level])
    return recipe_of_args({"activation": format, "weight": format, "quantize_forward": groups})


def table(perplexities: Mapping[str, Mapping[str, float]]) -> str:
    """Return the text of a CSV file: a row for each format, a column for each level."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    # An apostrophe, so that a spreadsheet takes no name for a formula.
    levels = [f"'{level}" if level.startswith("+") else level for level in FUSION_LEVELS]
    writer.writerow(["Data Type", *levels])
    for format, row in perplexities.items():
        writer.writerow([format, *(f"{row[level]:.4f}" for level in FUSION_LEVELS)])
    return stream.getvalue()


def _conditions(settings: Settings) -> dict[str, Any]:
    """Return the options that results depend on, and the contents of texts and weights."""
    result = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in _FREE
    }
    result["weights"] = os.path.join(settings.preset or "", "model.weights.h5")
    for name in ("text_file", "calibration_file", "weights"):
        result[name] = content(result[name]) if result[name] else None
    return json.loads(json.dumps(result))


def _known(path: str, conditions: Mapping[str, Any]) -> dict[str, float]:
    """Return the cells of an earlier run under the same conditions."""
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        earlier = json.load(file)
    return earlier["cells"] if earlier.get("conditions") == conditions else {}

"""Sweep over number formats and fusion levels: F1 of each, as a table and a heat map.

Every combination is a row of the results that are kept, so that a sweep that was cut off goes on.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

import tfquant
from calib.figures import new_figure, write_png
from fileio.atomic import write_text
from runs.logging import log
from runs.networks import inference_graph
from runs.resume import content
from runs.squad.calibration import calibration_batches
from runs.squad.flags import Settings
from runs.squad.prediction import forward_of, predict
from tasks import squad
from tasks.files import write_json
from tfquant.distributed.group import Group
from tfquant.recipes.op_groups import FUSION_LEVELS
from tfquant.training_args import recipe_of_args

FOLDER, TABLE, HEAT_MAP = "sweep", "squad_f1.csv", "squad_f1.png"
FLOAT = "float"
# As in the source, so that a spreadsheet takes no name for a formula.
_COLUMNS = {level: f"'{level}" if level.startswith("+") else level for level in FUSION_LEVELS}


def sweep(
    model: keras.Model, tokenizer: squad.LibraryTokenizer, settings: Settings, group: Group
) -> dict[str, Any]:
    """Score the float network and each format at each fusion level; write table and heat map.

    Args:
        model: with its weights.
        tokenizer: of the model.
        settings: of the run; `sweep_formats` are the formats.
        group: the processes that answer together.

    Returns:
        Figures of every combination by format and level.
    """
    folder = pathlib.Path(settings.output_dir, FOLDER)
    batches: list[dict[str, np.ndarray]] = []
    cells = [(FLOAT, ""), *((f, level) for level in FUSION_LEVELS for f in settings.sweep_formats)]
    result: dict[str, dict[str, Any]] = {}
    for number, (format, level) in enumerate(cells, start=1):
        path = folder / f"{_file_name(format, level)}.json"
        wanted = _conditions(settings, format, level)
        figures = _known(path, wanted)
        if figures is None:
            started = time.perf_counter()
            network: Any = model
            if format != FLOAT:
                network = tfquant.quantize(model, _recipe(format, level))
                if network.quantizers and not network.calibrated:
                    batches = batches or calibration_batches(tokenizer, settings)
                    tfquant.calibrate(network, batches, mask="input_mask", group=group)
            own = dataclasses.replace(settings, output_dir=str(path.with_suffix("")))
            os.makedirs(own.output_dir, exist_ok=True)
            figures = predict(forward_of(inference_graph(network)), 0, tokenizer, own, group)
            figures |= {"seconds": time.perf_counter() - started}
            if group.rank == 0:
                write_json(path, {"conditions": wanted, "figures": figures})
        result.setdefault(format, {})[level] = figures
        name = f"{format}, {level}" if level else format
        log(f"sweep {number} of {len(cells)}: {name}: F1 {figures.get('f1', float('nan')):.2f}")
    if group.rank == 0:
        scores = {
            format: [levels[level]["f1"] for level in FUSION_LEVELS]
            for format, levels in result.items()
            if format != FLOAT
        }
        source = os.path.abspath(settings.init_checkpoint or "")
        folder_of_model = source if os.path.isdir(source) else os.path.dirname(source)
        rows = {os.path.basename(folder_of_model): scores}
        write_text(os.path.join(settings.output_dir, TABLE), table(rows))
        write_png(
            heat_map(scores, result[FLOAT][""]["f1"]),
            os.path.join(settings.output_dir, HEAT_MAP),
        )
    return result


def table(models: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Text of a CSV file in the form of the paper's Table 1.

    Args:
        models: name -> format -> F1 at each of `FUSION_LEVELS`, in percent.

    Returns:
        A row for each model; a column for each level and format, under two rows of names.
    """
    formats = list(next(iter(models.values())))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["Fusion", *(name for name in _COLUMNS.values() for _ in formats)])
    writer.writerow(["Data Type", *(format for _ in _COLUMNS for format in formats)])
    for name, scores in models.items():
        values = [scores[format][place] for place in range(len(_COLUMNS)) for format in formats]
        writer.writerow([name, *(f"{value:.2f}" for value in values)])
    return stream.getvalue()


def heat_map(scores: Mapping[str, Sequence[float]], of_float: float) -> Any:
    """Figure of F1 by format and fusion level.

    Args:
        scores: format -> F1 at each of `FUSION_LEVELS`, in percent.
        of_float: F1 of the float network.
    """
    figure = new_figure(9.0, 1.5 + 0.45 * len(scores))
    axes = figure.add_subplot()
    values = np.array(list(scores.values()))
    shown = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=max(of_float, 1.0))
    axes.set_xticks(range(len(FUSION_LEVELS)), list(FUSION_LEVELS), rotation=15, ha="right")
    axes.set_yticks(range(len(scores)), list(scores))
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > 0.6 * of_float else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    axes.set_title(f"SQuAD F1 by number format and fusion; float {of_float:.1f}")
    figure.colorbar(shown, ax=axes, label="F1 in percent")
    return figure


def _recipe(format: str, level: str) -> tfquant.Recipe:
    groups = ",".join(FUSION_LEVELS[level])
    return recipe_of_args({"activation": format, "weight": format, "quantize_forward": groups})


def _conditions(settings: Settings, format: str, level: str) -> dict[str, Any]:
    """What a stored result depends on."""
    names = ("max_seq_length", "doc_stride", "num_eval_iterations", "predict_batch_size", "seed")
    return {
        "format": format,
        "level": level,
        "weights": content(settings.init_checkpoint or ""),
        "predict_file": content(settings.predict_file),
        **{name: getattr(settings, name) for name in names},
    }


def _known(path: pathlib.Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Figures of an earlier run under the same conditions; None without one."""
    if not path.is_file():
        return None
    earlier = json.loads(path.read_text())
    return earlier["figures"] if earlier["conditions"] == json.loads(json.dumps(wanted)) else None


def _file_name(format: str, level: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in f"{format} {level}".strip())
    return kept.strip("_")

"""Sweep of incremental quantization over modes and bits: scores as a table and a figure.

Every cell is a run in a folder of its own, whose scores are kept, so that a sweep that was cut off
continues.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

from calib.figures import new_figure, write_png
from runs.glue.settings import Settings
from runs.logging import log
from runs.ranks import output_of
from runs.resume import record_of
from tasks import glue
from tasks.files import read_json, write_json, write_text
from tfquant.distributed.group import Group
from tfquant.recipes.incremental import format_of

TABLE, FIGURE, CELL = "measurements.csv", "measurements.png", "cell.json"
BITS = range(8, 0, -1)
# Blocks of the table, named as in INQ-pytorch's measurements.csv.
BLOCKS = {"p2": "Power of 2", "lin": "Linear", "mb": "mbq", "lin_fixed": "Linear, fixed grid"}
SWEPT = ("p2", "lin", "mb")

Scores = dict[tuple[str, str], dict[str, dict[int, float]]]  # (task, metric) -> mode -> bits


def sweep(
    settings: Settings,
    group: Group,
    runs_of: Callable[[Settings], Mapping[tuple[str, int], Settings]],
    run_task: Callable[..., float | None],
) -> dict[str, Any]:
    """Train and score every mode with every number of bits that it has.

    Args:
        settings: of the sweep.
        group: the processes that train together.
        runs_of: settings -> (task, seed) -> settings of that run.
        run_task: runs one of them, as `runs.glue.pipeline.run_task`.

    Returns:
        `task mode bits` -> final score in percent.
    """
    modes = SWEPT if settings.inq_mode is None else (settings.inq_mode,)
    cells = [(mode, bits) for mode in modes for bits in BITS if has_bits(mode, bits)]
    scores: Scores = {}
    finals: dict[str, Any] = {}
    for number, (mode, bits) in enumerate(cells, start=1):
        folder = os.path.join(settings.output_dir or "", f"{mode}_{bits}")
        cell = dataclasses.replace(
            settings, sweep=False, inq_mode=mode, n_bits=bits, output_dir=folder
        )
        for (task, seed), own in runs_of(cell).items():
            directory = own.output_dir or folder
            wanted = record_of(own, group.size)
            result = known(os.path.join(directory, CELL), wanted)
            result = None if settings.overwrite_output else result
            if result is None:
                with output_of(group, directory):
                    final = run_task(glue.TASKS[task], own, group, directory=directory, seed=seed)
                    group.gather(b"")  # rank 0 writes the scores that all read
                    result = {"final": final, "scores": _scores_in(directory)}
                    if group.rank == 0:
                        write_json(os.path.join(directory, CELL), {"conditions": wanted, **result})
            finals[f"{task} {mode} {bits}"] = round(100.0 * result["final"], 2)
            for metric, value in result["scores"].items():
                scores.setdefault((task, metric), {}).setdefault(mode, {})[bits] = value
            score = finals[f"{task} {mode} {bits}"]
            log(f"sweep {number} of {len(cells)}: {task}, {mode}, {bits} bits: {score:.2f}")
    if group.rank == 0 and settings.output_dir:
        write_text(os.path.join(settings.output_dir, TABLE), table(scores, modes))
        write_png(figure(finals, modes), os.path.join(settings.output_dir, FIGURE))
    return finals


def has_bits(mode: str, bits: int) -> bool:
    """Return whether a mode has levels of so many bits."""
    try:
        format_of(mode, bits)
    except ValueError:
        return False
    return True


def known(path: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the scores of an earlier run with the same flags; None without one."""
    if not os.path.isfile(path):
        return None
    earlier = read_json(path, "result of a sweep")
    return earlier if earlier.get("conditions") == wanted else None


def table(scores: Scores, modes: tuple[str, ...]) -> str:
    """Text of a CSV file: a block for each mode, a row for each task and metric, a column for each
    number of bits; empty where a mode has no such number.

    Args:
        scores: fractions.
        modes: in the order of the blocks.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for mode in modes:
        writer.writerow([BLOCKS[mode], *BITS, "Bits"])
        for (task, metric), of_modes in scores.items():
            values = of_modes.get(mode, {})
            shown = [f"{values[bits]:.3f}" if bits in values else "" for bits in BITS]
            writer.writerow([f"{task} ({metric})", *shown, ""])
        writer.writerow([])
    return stream.getvalue()


def figure(finals: Mapping[str, float], modes: tuple[str, ...]) -> Any:
    """Figure of final scores in percent by bits, a line for each task and mode.

    Args:
        finals: `task mode bits` -> score.
        modes: that were swept.
    """
    result = new_figure(8.0, 5.0)
    axes = result.add_subplot()
    for task in dict.fromkeys(name.split()[0] for name in finals):
        for mode in modes:
            bits = [b for b in BITS if f"{task} {mode} {b}" in finals]
            values = [finals[f"{task} {mode} {b}"] for b in bits]
            axes.plot(bits, values, marker="o", label=f"{task}, {BLOCKS[mode]}")
    axes.set_xlabel("bits of a weight")
    axes.set_ylabel("score in percent")
    axes.set_title("Incremental quantization of weights")
    axes.legend()
    return result


def _scores_in(directory: str) -> dict[str, float]:
    """Map metric -> score of a finished run; those of a second split have its name."""
    splits = read_json(os.path.join(directory, "results.json"), "results of a run")["scores"]
    return {
        f"{metric}, {split}" if number else metric: value
        for number, (split, result) in enumerate(splits.items())
        for metric, value in result.items()
    }

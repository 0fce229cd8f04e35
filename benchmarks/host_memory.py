"""What it gains to keep freed memory (tfquant/host_memory.py): a float training step, batch 8,
length 384, in fresh processes.

    python -m benchmarks.host_memory --shared=../shared

Processes with and without run in turn; the ratio is the median over rounds of the ratio within a
round.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence

from tqdm.auto import tqdm

from benchmarks import timing
from benchmarks.command_line import shared_parser
from benchmarks.results import Results

KINDS = ("returned", "kept")


def work(kind: str, shared: pathlib.Path) -> None:
    """One process.

    Prints the seconds of a step, the page faults in it and the peak memory as a line of JSON.
    """
    from benchmarks.squad_data import Squad
    from benchmarks.training_step import make_step
    from tfquant.host_memory import keep_freed_memory

    if kind == "kept" and not keep_freed_memory():
        raise SystemExit(
            "this process cannot keep freed memory: another C library than glibc, or MALLOC_..."
            " is set"
        )
    step = make_step(Squad(shared).model(dropout=True))
    faults: list[int] = []

    def counted() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    seconds = timing.interleaved({kind: counted}, rounds=8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        json.dumps(
            {
                "seconds": statistics.median(seconds[kind]),
                "page faults": statistics.median(faults[2:]),
                "peak MiB": peak,
            }
        )
    )


def measure(shared: pathlib.Path, rounds: int) -> dict:
    result: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    for _ in tqdm(range(rounds), "host memory", unit="round", leave=False):
        for kind in KINDS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.host_memory",
                f"--shared={shared}",
                f"--worker={kind}",
            ]
            done = subprocess.run(
                command,
                env=environment | {"TQDM_DISABLE": "1"},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            result[kind].append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        name: {
            kind: round(statistics.median(one[name] for one in result[kind]), 3) for kind in KINDS
        }
        for name in ("seconds", "page faults", "peak MiB")
    }
    ratio = statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(*result.values(), strict=True)
    )
    return {**figures, "speed-up": round(ratio, 3), "rounds": rounds}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=KINDS, help="be one of the processes that are timed")
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.shared)
        return
    Results("host_memory", seed=0, fresh=True).row(
        "training step", lambda: measure(options.shared.resolve(), options.rounds)
    )


if __name__ == "__main__":
    main()

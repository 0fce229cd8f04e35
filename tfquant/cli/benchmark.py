"""`python -m tfquant benchmark`.

Latency and throughput of exported files, in turn on the same inputs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

from tfquant.error_messages import one_line
from tfquant.runtimes import RUNTIMES, Session, open_file, runtime_of

if TYPE_CHECKING:
    from tfquant.latency import Measured

_COLUMNS = ("file", "batch", "length", "p50 ms", "p95 ms", "p99 ms", "rows/s", "speed")
_LONGEST = 86400  # seconds for a file, batch and length
_THREADS_PER_CORE = 16


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="time exported files",
        description=(
            "Times exported files in turn on the same inputs; ratios are to the first file."
        ),
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help=".onnx, OpenVINO's .xml, or another exported file"
    )
    parser.add_argument(
        "--runtime", choices=list(RUNTIMES), help="for all files; by their suffix if not given"
    )
    parser.add_argument(
        "--batch", default="1,8", help="rows of a call, separated by commas (default %(default)s)"
    )
    parser.add_argument(
        "--length",
        default="128,384",
        help=(
            "of all open axes beside the rows, separated by commas; with --data also `real`: each"
            " call as long as its longest row (default %(default)s)"
        ),
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="of a call (default: all cores, %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="for each file, batch and length (default %(default)s)",
    )
    parser.add_argument(
        "--data",
        help=(
            ".npz with one array for each input, rows first; without it inputs are zeros and masks"
            " ones"
        ),
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line in place of the table"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a table with a row for each file, batch and length."""
    from tqdm.auto import tqdm

    from calib import tables
    from tfquant.cli import arrays
    from tfquant.latency import Workload, measure

    rows = arrays.read(options.data) if options.data else None
    lengths = [
        length if length == "real" else _positive("--length", length)
        for length in options.length.split(",")
    ]
    if "real" in lengths and rows is None:
        raise ValueError("--length=real: needs --data")
    if not 0 < options.seconds <= _LONGEST:
        raise ValueError(f"--seconds={options.seconds}: must be positive, and at most {_LONGEST}")
    most = _THREADS_PER_CORE * (os.cpu_count() or 1)
    if not 1 <= options.threads <= most:
        raise ValueError(
            f"--threads={options.threads}: must be from 1 to {most}, {_THREADS_PER_CORE} for each"
            " core"
        )
    batches = [_positive("--batch", size) for size in options.batch.split(",")]
    sessions = {path: _opened(path, options) for path in options.files}
    table_rows: list[tuple[str, ...]] = []
    workloads = tqdm(list(itertools.product(batches, lengths)), "timing", disable=None, leave=False)
    try:
        for batch, length in workloads:
            try:
                workload = Workload.of(next(iter(sessions.values())).inputs, batch, length, rows)
                result = measure(sessions, workload, options.seconds)
            except Exception as error:  # of many kinds, each runtime's own
                reason = one_line(error, 300)
                raise ValueError(
                    f"--batch={batch} --length={length}: a file cannot take such inputs: {reason}"
                ) from error
            first = next(iter(result.values()))
            for path, measured in result.items():
                speed = measured.rows_per_second / first.rows_per_second
                if options.json:
                    figures = {"file": path, "batch": batch, "length": length}
                    figures |= measured.figures() | {"speed": round(speed, 3)}
                    print(json.dumps(figures), flush=True)
                else:
                    table_rows.append(_row(path, batch, length, measured, speed))
    finally:  # what was timed before inputs that a file cannot take, or a key, is shown as well
        workloads.close()
        if table_rows:
            print(tables.render(tables.build(None, _COLUMNS, table_rows, left=("file",))))


def _row(
    path: str, batch: int, length: int | str, measured: Measured, speed: float
) -> tuple[str, ...]:
    """Cells of a file in the order of `_COLUMNS`."""
    numbers = (measured.p50, measured.p95, measured.p99)
    times = (f"{value:.2f}" for value in numbers)
    rate = f"{measured.rows_per_second:.1f}"
    return path, str(batch), str(length), *times, rate, f"{speed:.2f}"


def _opened(path: str, options: argparse.Namespace) -> Session:
    runtime = options.runtime or runtime_of(path)
    if runtime != "tensorflow":
        return open_file(path, runtime, threads=options.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(
        options.threads
    )  # of the process: TensorFlow has none for a file
    return open_file(path, runtime)


def _positive(flag: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"{flag}: {text!r} is no positive number")
    return int(text)

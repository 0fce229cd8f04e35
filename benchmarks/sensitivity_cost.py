"""Cost of a sensitivity analysis: all activation sites on 256 windows against as many float forward
passes of the same windows.

    python -m benchmarks.sensitivity_cost --shared=../shared

The time of an analysis is that of the whole call, in which graphs are built; the float network is
timed warm, before and after. The ratio of processor time is the one that other work on the machine
does not move.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import tensorflow as tf

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, Squad

RECIPE = "int8_residual"


def short(batches: list[dict[str, np.ndarray]], length: int) -> list[dict[str, np.ndarray]]:
    """The first tokens of every window."""
    return [{name: value[:, :length] for name, value in batch.items()} for batch in batches]


def predictor(model):
    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}]
    return tf.function(lambda inputs: model(inputs, training=False), input_signature=signature)


def seconds(call) -> tuple[float, float]:
    """Of the clock, and of all processors."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(squad: Squad, windows: int, length: int, switch: str) -> dict:
    model = squad.model()
    batches = short(squad.calibration_batches(windows), length)
    quantized = tfquant.quantize(model, RECIPE, calibration=batches[:4], progress=False)
    predict = predictor(model)
    predict(batches[0])
    reports = []

    def forward() -> list:
        return [predict(batch) for batch in batches]

    passes = [seconds(forward) for _ in range(3)]
    took = seconds(
        lambda: reports.append(
            tfquant.sensitivity(quantized, batches, sites="activations", switch=switch)
        )
    )
    passes += [seconds(forward) for _ in range(3)]
    sites, one = (
        len(reports[0].groups),
        [statistics.median(times) for times in zip(*passes, strict=True)],
    )
    ratios = [
        round(all_of_it / (sites * forward), 3)
        for all_of_it, forward in zip(took, one, strict=True)
    ]
    return {
        "sites": sites,
        "windows": windows,
        "tokens": length,
        "one float forward, seconds": round(one[0], 3),
        "analysis, seconds": round(took[0], 2),
        "ratio to sites x forward": ratios[0],
        "ratio of processor time": ratios[1],
    }


def main() -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window that are kept")
    arguments = parser.parse_args()
    squad = Squad(arguments.shared)
    results = Results("sensitivity_cost", seed=12345, fresh=True)
    for switch in ("on", "off"):
        results.row(
            switch,
            lambda switch=switch: measure(squad, arguments.windows, arguments.length, switch),
        )


if __name__ == "__main__":
    main()

"""Cost of collecting statistics: 256 windows with histograms at all sites against the float forward
pass of the same windows.

    python -m benchmarks.calibration_cost --shared=../shared

Time is taken of warm functions, in turn; the time to build the observing graph is a figure of its
own. Peak memory is that of two fresh processes, one that predicts and one that calibrates.
"""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import time

import tensorflow as tf

import tfquant
from benchmarks import timing
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, Squad
from tfquant.model import engine_of
from tfquant.observer_runner import Observation

WINDOWS = 256
RECIPE = "int8_residual_both"


def predictor(model):
    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}]
    return tf.function(lambda inputs: model(inputs, training=False), input_signature=signature)


def measure_time(squad: Squad, rounds: int) -> dict:
    model = squad.model()
    batches = squad.calibration_batches(WINDOWS)
    predict = predictor(model)
    quantized = tfquant.quantize(model, RECIPE)
    start = time.perf_counter()
    observation = Observation(engine_of(quantized))
    observation.run(batches[:1], progress=False)
    build = time.perf_counter() - start
    seconds = timing.interleaved(
        {
            "float forward": lambda: [predict(b) for b in batches],
            "calibration": lambda: observation.run(batches, progress=False),
        },
        rounds=rounds,
        warm_up=1,
        label="calibrating",
    )
    sizes = [observer.nbytes for _, observer in observation.observers]
    return {
        "sites": len(sizes),
        "seconds": timing.medians(seconds),
        "ratio": round(timing.ratio(seconds, "calibration", "float forward"), 3),
        "first batch seconds, graph building included": round(build, 2),
        "observer bytes": {"largest": max(sizes), "total": sum(sizes)},
        "rounds": rounds,
    }


def measure_memory(shared: pathlib.Path) -> dict:
    peaks = {}
    for job in ("predict", "calibrate"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.calibration_cost",
            f"--shared={shared}",
            f"--peak={job}",
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[job] = json.loads(output.strip().splitlines()[-1])["peak_mib"]
    return {"peak MiB": peaks, "ratio": round(peaks["calibrate"] / peaks["predict"], 3)}


def run_for_peak(squad: Squad, job: str) -> None:
    model, batches = squad.model(), squad.calibration_batches(WINDOWS)
    if job == "predict":
        predict = predictor(model)
        for batch in batches:
            predict(batch)
    else:
        tfquant.quantize(model, RECIPE, calibration=batches, progress=False)
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def main() -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peak", choices=("predict", "calibrate"), help="only print the peak memory of this job"
    )
    arguments = parser.parse_args()
    squad = Squad(arguments.shared)
    if arguments.peak:
        run_for_peak(squad, arguments.peak)
        return
    results = Results("calibration_cost", seed=12345, fresh=True)
    results.row("time", lambda: measure_time(squad, arguments.rounds))
    results.row("memory", lambda: measure_memory(arguments.shared))


if __name__ == "__main__":
    main()

"""Cost and gain of AdaRound on an encoder: all kernels of the MiniLM in 4 bits, from windows of
the SQuAD training file.

    python -m benchmarks.adaround_cost --shared=../shared

Time is that of the whole call, in which inputs of layers are computed and weights learned;
processor time is what other work on the machine does not move. Peak memory is that of the process,
TensorFlow and the model included.
"""

from __future__ import annotations

import resource
import statistics

import numpy as np

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.sensitivity_cost import seconds, short
from benchmarks.squad_data import Squad
from tfquant import ptq

SEED, HELD = 12345, 4  # batches that rounding does not see
RECIPE = tfquant.Recipe(
    (tfquant.Rule(tfquant.QuantSpec(format="int4", granularity="per_channel"), role="weight"),)
)


def errors(
    quantized, batches: list[dict[str, np.ndarray]], exact: list[dict[str, np.ndarray]]
) -> float:
    """Mean squared error of the answers at real tokens."""
    result = []
    for batch, answers in zip(batches, exact, strict=True):
        own, real = quantized(batch), batch["input_mask"] > 0
        result += [
            float(np.mean(np.square(np.asarray(own[name]) - value)[real]))
            for name, value in answers.items()
        ]
    return statistics.mean(result)


def measure(squad: Squad, windows: int, length: int, iterations: int) -> dict:
    model = squad.model()
    batches = short(squad.calibration_batches(windows + 16 * HELD, seed=SEED), length)
    batches, held = batches[:-HELD], batches[-HELD:]
    exact = [{name: np.asarray(value) for name, value in model(batch).items()} for batch in held]
    quantized = tfquant.quantize(model, RECIPE, calibration=batches[:1], progress=False)
    nearest, reports = errors(quantized, held, exact), []
    took, work = seconds(
        lambda: reports.append(ptq.adaround(quantized, batches, iterations=iterations, seed=SEED))
    )
    report = reports[0]
    print(report)
    return {
        "windows": sum(len(batch["input_ids"]) for batch in batches),
        "tokens": length,
        "iterations": iterations,
        "weights": len(report.layers),
        "minutes": round(took / 60, 2),
        "processor minutes": round(work / 60, 2),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "error of layers, learned / nearest": round(
            statistics.median(r.mse / r.mse_nearest for r in report.layers), 3
        ),
        "error of answers, learned / nearest": round(errors(quantized, held, exact) / nearest, 3),
    }


def main() -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--windows", type=int, default=1024)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window that are kept")
    parser.add_argument("--iterations", type=int, default=1000, help="for each layer")
    arguments = parser.parse_args()
    results = Results("adaround_cost", seed=SEED, fresh=True)
    results.row(
        "MiniLM",
        lambda: measure(
            Squad(arguments.shared), arguments.windows, arguments.length, arguments.iterations
        ),
    )


if __name__ == "__main__":
    main()

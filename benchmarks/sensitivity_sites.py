"""Sensitivity of the activation sites of the MiniLM on SQuAD: a list and a picture.

python -m benchmarks.sensitivity_sites --shared=../shared
"""

from __future__ import annotations

import argparse
import json
import pathlib

import tfquant
from benchmarks.results import FOLDER, Results
from benchmarks.sensitivity_cost import RECIPE, short
from benchmarks.squad_data import Squad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared",
        type=pathlib.Path,
        default=pathlib.Path("../shared"),
        help="folder with models/ and data/",
    )
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window that are kept")
    parser.add_argument("--measure", choices=("sqnr", "kl"), default="kl")
    arguments = parser.parse_args()
    squad = Squad(arguments.shared)
    batches = short(squad.calibration_batches(arguments.windows), arguments.length)
    quantized = tfquant.quantize(squad.model(), RECIPE, calibration=batches)
    report = tfquant.sensitivity(quantized, batches, sites="activations", measure=arguments.measure)
    report.plot(FOLDER / "sensitivity_sites.png")
    print(report.table())
    Results("sensitivity_sites", seed=12345, fresh=True).row(
        RECIPE, lambda: json.loads(report.to_json())
    )


if __name__ == "__main__":
    main()

"""Sensitivity of the activation sites of the MiniLM on SQuAD: a list and a picture.

python -m benchmarks.sensitivity_sites --shared=../shared
"""

from __future__ import annotations

import json

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import FOLDER, Results
from benchmarks.sensitivity_cost import RECIPE, short
from benchmarks.squad_data import Squad


def main() -> None:
    parser = shared_parser(__doc__)
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

"""Exponents of the tensors that 8-bit formats round, of the 6-layer MiniLM on SQuAD.

    python -m benchmarks.exponents --shared=../shared

Says why formats lose what `benchmarks.eight_bit_squad` measures. Rows of results/exponents.json: of
each format, the shares of nonzero activations and weights below its smallest and above its largest
exponent; of each residual addition and input of layer norm, the exponents of the median, the 99th
percentile and the largest magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import Squad
from tfquant import QuantSpec
from tfquant.exponents import EXPONENTS, ExponentHistogram
from tfquant.recipes.op_groups import ROLES_OF_GROUPS, recipe_of

NAME, SEED, WINDOWS, BATCH = "exponents", 12345, 32, 8
FORMATS = ("posit8_1", "e4m3", "e5m2", "e3m2", "e2m1")
ROLES = ("residual_other", "layernorm_input")


def shares(histograms: tfquant.ExponentHistograms, format: str) -> dict[str, dict[str, float]]:
    """Percent of values below and above the exponents of a format, of activations and weights."""
    return {
        kind: {"below": round(100.0 * below, 2), "above": round(100.0 * above, 2)}
        for kind, (below, above) in histograms.outside(format).items()
    }


def quantiles(histogram: ExponentHistogram) -> dict[str, int]:
    """Exponents of the median, the 99th percentile and the largest value."""
    reached = np.cumsum(histogram.counts) / histogram.counts.sum()
    places = {"median": 0.5, "percentile_99": 0.99, "largest": 1.0}
    return {name: int(EXPONENTS[np.argmax(reached >= share)]) for name, share in places.items()}


def main() -> None:
    parser = shared_parser(__doc__, fresh=True)
    options = parser.parse_args()
    squad, results = Squad(options.shared.resolve()), Results(NAME, seed=SEED, fresh=options.fresh)
    spec = QuantSpec("e4m3", source="none")  # which one does not matter: inputs are counted
    network = tfquant.quantize(squad.model(), recipe_of(spec, spec, ROLES_OF_GROUPS))
    batches = squad.calibration_batches(WINDOWS, BATCH, SEED)
    histograms = tfquant.exponent_histograms(network, batches, mask="input_mask")
    rows: dict[str, dict[str, Any]] = {name: shares(histograms, name) for name in FORMATS}
    for site in network.plan.sites:
        if site.role in ROLES:
            rows[site.address] = quantiles(histograms[site.address])
    for name, row in rows.items():
        results.row(name, lambda row=row: row)


if __name__ == "__main__":
    main()

"""Accuracy of post-training quantization on real data.

    python -m benchmarks.squad_ptq --shared=../shared
    python -m benchmarks.squad_ptq --shared=../shared --methods --questions=1200

The first scores the most accurate recipe of every placement on all 4,961 questions of the dev file,
the second every range method at every placement on 1,200 of them, evenly spread. Ranges come from
256 windows of the training file. A row is kept in results/squad_ptq*.json as soon as it is known;
an interrupted run resumes there (--fresh starts over).
"""

from __future__ import annotations

import json

import tensorflow as tf

import calib
import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, DevSet, Squad
from benchmarks.squad_report import plot, table

SEED = 12345
WINDOWS = 256
PLACEMENTS = ("int8_residual_float", "int8_residual", "int8_residual_both")
METHODS = (
    calib.Method.parse("percentile", percentile=99.99),
    calib.Method.parse("mse"),
    calib.Method.parse("max"),
    calib.Method.parse("percentile", percentile=99.999),
    calib.Method.parse("entropy"),
    calib.Method.parse("moving_average"),
)


def weights_only(bits: int) -> tfquant.Recipe:
    spec = tfquant.QuantSpec(format=f"int{bits}", granularity="per_channel")
    return tfquant.Recipe((tfquant.Rule(spec, role="weight"),), name=f"weights int{bits}")


class Scorer:
    """Scores recipes and methods; calibrates each recipe once and takes the other methods from its
    statistics.
    """

    def __init__(self, squad: Squad, questions: int | None):
        self.model = squad.model()
        self.batches = squad.calibration_batches(WINDOWS, seed=SEED)
        self.dev = DevSet(squad, questions)
        self.current: tuple[str, tfquant.QuantizedModel, calib.Calibration] | None = None

    def float(self) -> dict:
        signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}]
        return self._score(
            tf.function(lambda x: self.model(x, training=False), input_signature=signature), "float"
        )

    def quantized(self, recipe: tfquant.Recipe, method: calib.Method | None = None) -> dict:
        if self.current is None or self.current[0] != recipe.name:
            quantized = tfquant.quantize(self.model, recipe)
            self.current = (recipe.name, quantized, tfquant.calibrate(quantized, self.batches))
        _, quantized, calibration = self.current
        tfquant.apply(quantized, calibration if method is None else calibration.reestimate(method))
        return self._score(quantized, f"{recipe.name} {method or ''}")

    def _score(self, predict, label: str) -> dict:
        scores = self.dev.score(predict, label)
        return {**scores, "questions": len(self.dev.examples)}


def main() -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument(
        "--questions",
        type=int,
        help="only this many questions, evenly spread (into a result file of its own)",
    )
    parser.add_argument(
        "--methods", action="store_true", help="every method at every placement as well"
    )
    arguments = parser.parse_args()
    name = "squad_ptq" + (f"_{arguments.questions}" if arguments.questions else "")
    results = Results(name, seed=SEED, fresh=arguments.fresh)
    scorer = Scorer(Squad(arguments.shared), arguments.questions)
    results.row("float", scorer.float)
    for placement in PLACEMENTS:
        recipe = tfquant.recipe(f"{placement}_asymmetric")
        results.row(f"{placement}|asymmetric recipe", lambda r=recipe: scorer.quantized(r))
    if arguments.methods:
        score_methods(results, scorer)
    print(table(results.rows))
    plot(results.rows, results.path.with_suffix(".png"))
    print(json.dumps({row: figures["f1"] for row, figures in results.rows.items()}))


def score_methods(results: Results, scorer: Scorer) -> None:
    for placement in PLACEMENTS:
        recipe = tfquant.recipe(placement)
        for method in METHODS:
            results.row(f"{placement}|{method}", lambda r=recipe, m=method: scorer.quantized(r, m))
    for bits in (8, 4):
        results.row(f"weights only|int{bits}", lambda b=bits: scorer.quantized(weights_only(b)))


if __name__ == "__main__":
    main()

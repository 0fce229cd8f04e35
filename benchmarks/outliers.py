"""What a few wide channels cost one range for a tensor, and what each of three remedies gives back.

    python -m benchmarks.outliers --shared=../shared

Two channels of the values of every attention are widened 52 times, the same in float
(`tfquant.ptq.rescale`): as outliers of large encoders do, they leave the others next to no codes.
Then the tensors that have them, values and results of attentions, have a range for each of six
groups of sorted dimensions, or 16 bits, or are equalized (`tfquant.ptq.equalize`). The last two
rows are the model as it is, with all tensors quantized where they are produced. A row is kept in
results/outliers.json as soon as it is known; an interrupted run resumes there (--fresh starts
over).
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tensorflow as tf

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.outliers_report import table
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, DevSet, Squad
from calib import outliers
from tfquant.ptq import equalize, rescale
from tfquant.recipes.quant_dict import with_quant_dict

SEED, WINDOWS = 12345, 64
FACTOR, CHANNELS = 52.0, 2
PLOTTED = "bert/encoder/layer_3/attention/self:attention_output:output"
GROUPS = dict(granularity="per_embedding_group", groups=6, permute="own")


def recipe(**changes) -> tfquant.Recipe:
    """`int8_residual_float_asymmetric` with values and results of attentions quantized where all
    heads lie side by side.

    Args:
      changes: of the specs of values and of the results of attentions.
    """
    spec = tfquant.QuantSpec(symmetric=False, **changes)
    rules = (
        tfquant.Rule(None, role="matmul_input", port="v", name="values as operands"),
        tfquant.Rule(spec, role="layer_output", path="*/attention/self/value", name="values"),
        tfquant.Rule(
            None,
            role="linear_input",
            path="*/attention/output/dense",
            name="results of attentions, head by head",
        ),
        tfquant.Rule(spec, role="attention_output", name="results of attentions"),
    )
    return tfquant.recipe("int8_residual_float_asymmetric").with_rules(
        *rules, name=f"W8A8 {changes or ''}"
    )


class Scorer:
    """Scores the model as it is and with widened channels."""

    def __init__(self, squad: Squad, questions: int, folder: pathlib.Path):
        self.squad, self.folder = squad, folder
        self.batches = squad.calibration_batches(WINDOWS, seed=SEED)
        self.dev = DevSet(squad, questions)

    def float(self, model) -> dict:
        signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}]
        return self._score(
            tf.function(lambda x: model(x, training=False), input_signature=signature), "float"
        )

    def quantized(self, model, recipe: tfquant.Recipe, picture: str = "") -> dict:
        """Of a recipe; `picture` names a file for the ranges of one tensor's dimensions."""
        quantized = tfquant.quantize(model, recipe)
        calibration = tfquant.calibrate(quantized, self.batches, dimensions=True)
        report = tfquant.outlier_report(calibration)
        if picture:
            site = next(site for site in report.sites if site.address == PLOTTED)
            outliers.plot(site, str(self.folder / f"outliers_{picture}.png"))
        result = sum(len(site.dimensions) for site in report.sites)
        return {**self._score(quantized, recipe.name), "outliers": result}

    def widened(self):
        """(model with widened channels, largest change of its float outputs)."""
        model = self.squad.model()
        rng, factors = np.random.default_rng(SEED), {}
        there = equalize(self.squad.model(), method="cross_layer", pairs="value")
        for pair in there.pairs:
            factors[pair.name] = np.ones(pair.factors.size)
            factors[pair.name][rng.choice(pair.factors.size, CHANNELS, replace=False)] = 1 / FACTOR
        return model, rescale(model, factors, self.batches[:1]).difference

    def equalized(self):
        """The same, equalized afterwards."""
        model, _ = self.widened()
        return model, equalize(model, self.batches, pairs="value").difference

    def _score(self, predict, label: str) -> dict:
        return {**self.dev.score(predict, label), "questions": len(self.dev.examples)}


def measure(results: Results, scorer: Scorer) -> None:
    def widened(quantize) -> dict:
        model, difference = scorer.widened()
        return {**quantize(model), "float_change": difference}

    def equalized() -> dict:
        model, difference = scorer.equalized()
        return {**scorer.quantized(model, recipe(), "equalized"), "float_change": difference}

    def outputs(choices: dict) -> dict:
        model = scorer.squad.model()
        base = tfquant.recipe("int8_outputs").with_spec(
            roles=["weight", "pooler", "logits"], granularity="per_channel"
        )
        return scorer.quantized(model, with_quant_dict(model, base, choices) if choices else base)

    results.row("float", lambda: scorer.float(scorer.squad.model()))
    results.row("8 bits", lambda: scorer.quantized(scorer.squad.model(), recipe()))
    results.row(
        "widened, 8 bits", lambda: widened(lambda m: scorer.quantized(m, recipe(), "widened"))
    )
    results.row(
        "widened, 8 bits, PEG-6 with permutation",
        lambda: widened(lambda m: scorer.quantized(m, recipe(**GROUPS))),
    )
    results.row(
        "widened, 8 bits, 16 bits at the wide tensors",
        lambda: widened(lambda m: scorer.quantized(m, recipe(format="int16"))),
    )
    results.row("widened, equalized, 8 bits", equalized)
    results.row("int8_outputs", lambda: outputs({}))
    results.row(
        "int8_outputs, hidden states PEG-6 with permutation", lambda: outputs({"hidden": "ngp6"})
    )


def main() -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument(
        "--questions", type=int, default=100, help="this many of the dev file, evenly spread"
    )
    arguments = parser.parse_args()
    results = Results("outliers", seed=SEED, fresh=arguments.fresh)
    asked = results.rows.get("float", {}).get("questions", arguments.questions)
    if asked != arguments.questions:
        raise SystemExit(
            f"{results.path} holds rows of {asked} questions: pass --questions={asked}, or --fresh"
        )
    measure(results, Scorer(Squad(arguments.shared), arguments.questions, results.path.parent))
    print(table(results.rows))
    print(json.dumps({row: figures["f1"] for row, figures in results.rows.items()}))


if __name__ == "__main__":
    main()

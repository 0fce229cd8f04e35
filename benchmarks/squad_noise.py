"""Where quantization costs answers: one group of sites rounded at a time, before and after
training.

    python -m benchmarks.squad_noise --shared=../shared "--row=int8_residual_asymmetric, TQT"

Takes the checkpoints that a row of benchmarks.squad_qat left. The figures are the Kullback-Leibler
divergence of the answers (start and end, softmax over the window) from those of the same weights in
float, and the share of windows whose best start and end are the same. A tensor with several
consumers has one range and is rounded for all of them: skip operands are inputs of linears as well.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, Squad
from benchmarks.squad_noise_report import table
from benchmarks.squad_qat import ROOT, ROWS, folder_of
from tasks.squad import batches, convert, read_squad
from tfquant import checkpoint

# Label -> what the addresses (path:role:port) of one of a site's consumers match.
GROUPS = {
    "all": "",
    "skip operands of additions": ":residual:",
    "feed-forward inputs": "intermediate/dense:linear_input:",
    "feed-forward activations (GELU)": r"\d/output/dense:linear_input:",
    "attention probabilities": ":matmul_input:probabilities",
    "query, key and value inputs": "/attention/self.*:linear_input:",
    "weights": ":weight:",
}
LOGITS = ("start_logits", "end_logits")


def windows(squad: Squad, number: int) -> list[dict[str, np.ndarray]]:
    """Batches of 16 of the dev file's windows, evenly spread over it."""
    examples = read_squad(squad.dev_file, training=False)
    examples = examples[:: max(1, len(examples) // number)][:number]
    result = batches(
        convert(examples, squad.tokenizer(), training=False, progress=False), 16, training=False
    )
    chosen = np.linspace(0, len(result) - 1, min(len(result), number // 16)).astype(int)
    return [{name: result[i][name] for name in INPUTS} for i in chosen]


def answers(network, data: Sequence[dict[str, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities [B, S] of starts and ends, by batch."""
    predict = tf.function(
        lambda inputs: network(inputs, training=False),
        input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}],
        jit_compile=False,
    )
    result = []
    for batch in data:
        logits = predict(batch)
        masked = [np.where(batch["input_mask"] > 0, logits[name], -1e9) for name in LOGITS]
        result.append(
            tuple(np.asarray(tf.nn.log_softmax(tf.constant(one, tf.float64))) for one in masked)
        )
    return result


def compared(base: Sequence, other: Sequence) -> dict[str, float]:
    """Mean divergence and share of equal answers over all windows."""
    divergences, equal = [], []
    for own, theirs in zip(base, other, strict=True):
        pairs = list(zip(own, theirs, strict=True))
        divergences.append(sum((np.exp(p) * (p - q)).sum(-1) for p, q in pairs) / 2)
        equal.append(np.all([p.argmax(-1) == q.argmax(-1) for p, q in pairs], axis=0))
    means = (float(np.concatenate(values).mean()) for values in (divergences, equal))
    return dict(zip(("divergence", "same"), (round(mean, 5) for mean in means), strict=True))


def only(group: str):
    """The change of a recipe that leaves every other site unrounded."""
    return lambda recipe: (
        dataclasses.replace(recipe, disable=(f"^(?!.*{group})",)) if group else recipe
    )


def measure(squad: Squad, prefix: str, number: int) -> dict:
    data = windows(squad, number)
    figures, base = {}, None
    for label, group in GROUPS.items():
        network = tfquant.load(prefix, squad.model(), change=only(group))
        if base is None:
            network.set_mode("float")
            base = answers(network, data)
        network.set_mode("quantized")
        figures[label] = compared(base, answers(network, data))
    return {"windows": sum(len(batch["input_ids"]) for batch in data), "groups": figures}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=ROOT / "output" / "squad_qat",
        help="where the rows' runs are",
    )
    parser.add_argument(
        "--row", choices=ROWS, default="int8_residual_asymmetric, TQT", help="whose checkpoints"
    )
    parser.add_argument("--windows", type=int, default=384)
    options = parser.parse_args(arguments)
    folder, squad = folder_of(options.row, options.output), Squad(options.shared.resolve())
    stages = {
        "after calibration": folder / "calibrated",
        f"trained: {options.row}": folder / "trained",
    }
    results = Results("squad_noise", seed=0, fresh=options.fresh)
    for stage, directory in stages.items():
        prefix = checkpoint.latest(directory)
        if prefix is None:
            raise SystemExit(
                f"{directory} holds no checkpoint: python -m benchmarks.squad_qat"
                f" '--rows={options.row}' makes it"
            )
        results.row(stage, lambda p=prefix: measure(squad, p, options.windows))
    print(table(results.rows))
    print(
        json.dumps(
            {
                stage: figures["groups"]["all"]["divergence"]
                for stage, figures in results.rows.items()
            }
        )
    )


if __name__ == "__main__":
    main()

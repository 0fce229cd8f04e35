"""Embedded example of run_squad.py: from nothing to the accuracy of a quantized network in a few
minutes.

It makes a data set in SQuAD's format, trains a tiny BERT on it from scratch, quantizes that after
training, without and with the residual connections, and to weights of 4 bits, and trains each of
these with quantization: in two processes where Horovod is there. One of them and the float network
are written as ONNX files, which answer in ONNX Runtime.
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from calib import tables
from runs import folders
from runs.squad import two_ranks
from runs.squad.flags import Settings
from tasks.squad import synthetic
from tfquant import checkpoint

TRAINING = Settings(
    do_train=True,
    do_predict=True,
    max_seq_length=128,
    max_query_length=24,
    train_batch_size=32,
    predict_batch_size=64,
    learning_rate=5e-4,
    num_train_epochs=8,
    save_checkpoints_steps=500,
)
NAMES = {
    "float": "float32",
    "ptq": "int8_residual_float",
    "qat": "int8_residual_float + QAT",
    "ptq_residual": "int8_residual",
    "qat_residual": "int8_residual + QAT",
    "w4a8_ptq": "w4a8_residual",
    "w4a8_qat": "w4a8_residual + QAT",
    "onnx_float": "float32, ONNX Runtime",
    "onnx": "int8 + QAT, ONNX Runtime",
}
TUNING = {"if_quant": True, "num_train_epochs": 2}
# Thresholds are trained as logarithms, so that one learning rate suits ranges of every size; it is
# higher than that of weights.
TUNING_4_BITS = {**TUNING, "range_update": "tqt", "range_learning_rate": 3e-3}
# Names of calibration and training after it, what is quantized, and how that is trained.
QUANTIZED = (
    ("ptq", "qat", {"quantize_residual": False}, TUNING),
    ("ptq_residual", "qat_residual", {"quantize_residual": True}, TUNING),
    ("w4a8_ptq", "w4a8_qat", {"quant_recipe": "w4a8_residual"}, TUNING_4_BITS),
)
# Names of networks in ONNX Runtime and of those they are made from.
EXPORTED = (("onnx_float", "float"), ("onnx", "qat"))

_OWN = re.compile(
    rf"model\.ckpt-(\d+|calibrated)\.{folders.CHECKPOINT}|checkpoint|calibrators\.npz|(nbest_)?predictions\.json"
    r"|results\.json|model\.onnx(\.data)?"
)

Figures = dict[str, Any]
Run = Callable[[Settings], Figures]


def demo(
    run: Run,
    directory: str = os.path.join("output", "demo"),
    training: Settings = TRAINING,
    **sizes: Any,
) -> dict[str, float]:
    """Run the example and print a table.

    Args:
        run: what does one run (`run_squad.run`).
        directory: where everything goes; what an earlier example left there is replaced.
        training: settings of the training, without files.
        **sizes: of the data set, see `synthetic.write_dataset`.

    Returns:
        Scores of every network, and how the exported ones compare.
    """
    started = time.perf_counter()
    print(
        f"no flags given: running the embedded example in {directory} (--help shows the flags)",
        file=sys.stderr,
    )
    files = synthetic.write_dataset(os.path.join(directory, "data"), **sizes)
    common = {
        "bert_config_file": files.config_file,
        "vocab_file": files.vocab_file,
        "train_file": files.train_file,
        "predict_file": files.dev_file,
    }
    folders = {name: os.path.join(directory, name) for name in NAMES}
    for folder in folders.values():
        remove_run(folder)
    training = dataclasses.replace(training, **common)
    runs = {"float": run(dataclasses.replace(training, output_dir=folders["float"]))}
    runs |= quantized(run, training, folders)
    runs |= exported(run, training, folders, runs)
    print_table(runs)
    return summary(runs) | {"seconds": round(time.perf_counter() - started, 1)}


def quantized(run: Run, training: Settings, folders: Mapping[str, str]) -> dict[str, Figures]:
    """Calibrate, then train each placement of `QUANTIZED`; return the figures of these runs."""
    runs: dict[str, Figures] = {}
    calibrating = dataclasses.replace(
        training,
        do_train=False,
        do_calib=True,
        if_quant=True,
        calib_batch=8,
        init_checkpoint=checkpoint.latest(folders["float"]),
    )
    for ptq, qat, placement, tuning in QUANTIZED:
        runs[ptq] = run(dataclasses.replace(calibrating, output_dir=folders[ptq], **placement))
        start = runs[ptq]["calibration"]["checkpoint"]
        runs[qat] = tuned(
            run,
            dataclasses.replace(training, output_dir=folders[qat], init_checkpoint=start, **tuning),
        )
        runs[qat]["calibration"] = runs[ptq]["calibration"]
    return runs


def exported(
    run: Run, training: Settings, folders: Mapping[str, str], sources: Mapping[str, Figures]
) -> dict[str, Figures]:
    """Export the networks of `EXPORTED` as ONNX files and score them in ONNX Runtime; empty where
    that is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        print(
            "ONNX Runtime is not installed, nothing is exported: pip install -e '.[export]'",
            file=sys.stderr,
        )
        return {}
    runs: dict[str, Figures] = {}
    exporting = dataclasses.replace(
        training, do_train=False, do_export=True, predict_with="onnxruntime"
    )
    for name, source in EXPORTED:
        start = checkpoint.latest(folders[source])
        own = {"init_checkpoint": start, "output_dir": folders[name], "if_quant": source != "float"}
        runs[name] = run(dataclasses.replace(exporting, **own))
        runs[name] |= {key: value for key, value in sources[source].items() if key == "calibration"}
    return runs


def summary(runs: Mapping[str, Figures]) -> dict[str, float]:
    """Return both scores of every network, and speed and size of the exported ones."""
    result: dict[str, float] = {}
    for name, figures in runs.items():
        result[f"{name}_f1"] = figures["prediction"]["f1"]
        result[f"{name}_exact_match"] = figures["prediction"]["exact_match"]
    if "onnx" in runs:
        ours, float32 = runs["onnx"], runs["onnx_float"]
        speedup = (
            ours["prediction"]["examples_per_second"] / float32["prediction"]["examples_per_second"]
        )
        result["onnx_speedup"] = round(speedup, 3)
        result["onnx_size_ratio"] = round(ours["export"]["size"] / float32["export"]["size"], 3)
    return result


def remove_run(folder: str) -> None:
    """Remove what a run of the example left in a folder, and nothing else."""
    logs = os.path.join(folder, "tensorboard")
    files = [*folders.matching(folder, _OWN), *folders.matching(logs, folders.EVENTS)]
    folders.remove(files, [logs, folder])


def tuned(run: Run, settings: Settings) -> Figures:
    """Train in two processes where that is possible, else in this one."""
    start = two_ranks.launcher()
    if start is None:
        return run(settings)
    try:
        return two_ranks.run(start, settings)
    except RuntimeError as error:
        print(f"two processes do not work here ({error}): continuing in one", file=sys.stderr)
        remove_run(settings.output_dir)
        return run(settings)


def print_table(runs: Mapping[str, Figures]) -> None:
    reference = runs["float"]["prediction"]["f1"]
    columns = ("network", "quantized", "exact match", "F1", "loss of F1", "examples/s")
    rows = []
    for name, figures in runs.items():
        scores, edges = figures["prediction"], figures.get("calibration", {}).get("edges", 0)
        rows.append(
            (
                NAMES[name],
                str(edges),
                f"{scores['exact_match']:.2f}",
                f"{scores['f1']:.2f}",
                f"{reference - scores['f1']:.2f}",
                f"{scores['examples_per_second']:.1f}",
            )
        )
    table = tables.build(None, columns, rows, left=("network",))
    print(f"\n{tables.render(table)}\n", file=sys.stderr)

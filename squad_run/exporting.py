"""Export: the network of a run as a file for another runtime, checked on windows of real text, and prediction with such a file."""

import dataclasses
import os
from typing import Any

import numpy as np

import tfquant
from squad_run.data import INPUTS, only, read_examples, to_features
from squad_run.flags import Settings
from squad_run.narration import say
from squad_run.prediction import Forward
from tasks import squad
from tfquant.agreement import together
from tfquant.distributed import Group
from tfquant.export.check import onnx_runner

CHECKED_WINDOWS = 64


def export(network: Any, tokenizer: squad.Tokenizer, settings: Settings, group: Group) -> dict[str, Any]:
    """Writes the network, quantized or float, to `settings.exported_file`; rank 0 does it.

    Raises:
        ExportError: the file could not be written as asked, or answers otherwise than the network.
    """
    figures: dict[str, Any] = {}
    with together(group, lambda: (0, "export")):
        if group.rank == 0:
            quantized = network if settings.if_quant else tfquant.quantize(network)
            written = tfquant.export(
                quantized,
                settings.exported_file,
                target=settings.export_target,
                mode="quantized" if settings.if_quant else "float",
                check_data=check_windows(tokenizer, settings),
                opset=settings.export_opset,
                tolerance=settings.export_tolerance,
            )
            say(f"exported {written}")
            figures = dataclasses.asdict(written) | {"same_answers": written.agreement.same}
    return figures


def check_windows(tokenizer: squad.Tokenizer, settings: Settings) -> list[dict[str, np.ndarray]]:
    """Batches of the first windows of the predict file or, without one, of the training file; no answer is looked at."""
    file = settings.predict_file or settings.train_file
    examples = read_examples(file, settings, training=False)[:CHECKED_WINDOWS]
    features = to_features(examples, tokenizer, settings, training=False)
    batches, windows = [], 0
    for batch in squad.batches(features, settings.predict_batch_size, training=False):
        batches.append(only(batch, INPUTS))
        windows += len(batch["input_ids"])
        if windows >= CHECKED_WINDOWS:
            break
    return batches


def onnx_forward(path: str) -> Forward:
    """An exported file as what prediction asks for logits.

    Raises:
        FileNotFoundError: it was not exported.
        ExportError: ONNX Runtime cannot read it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--predict_with=onnxruntime: there is no {path}: give --do_export as well, or run with it before")
    run = onnx_runner(path, INPUTS)

    def forward(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        outputs = run([batch[name] for name in INPUTS])
        return outputs["start_logits"], outputs["end_logits"]

    return forward

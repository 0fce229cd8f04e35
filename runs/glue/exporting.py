"""Export of the quantized network for another runtime, checked on validation examples."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runs.batches import only
from runs.exporting import export_file
from runs.glue.data import INPUTS, LENGTH_MULTIPLE, read
from runs.glue.networks import OUT
from runs.glue.settings import Settings
from runs.logging import log
from runs.settings import checked
from tasks import glue
from tfquant.export.targets import TARGETS

CHECKED_ROWS = 64
MUCH = 1.0  # per cent of score, from which on a loss is worth a word


def export(
    network: Any, task: glue.Task, tokenizer: Any, settings: Settings, directory: str
) -> dict[str, Any]:
    """Write the network to out/ and return figures of the file.

    Raises:
        ExportError: the file could not be written as asked, or answers otherwise than the network.
    """
    target = checked(settings.export)
    written, figures = export_file(
        network,
        os.path.join(directory, OUT, TARGETS[target].file),
        target,
        lambda: check_rows(task, tokenizer, settings),
        opset=settings.export_opset,
        tolerance=settings.export_tolerance,
    )
    own, of_file = written.agreement.scores if written.agreement is not None else (0.0, 0.0)
    if own - of_file > MUCH:
        log(
            f"NOTE: on the first {CHECKED_ROWS} rows of validation the file scores"
            f" {own - of_file:.2f} less than the network; --export-tolerance"
            f" {settings.export_tolerance} lets it pass"
        )
    return figures


def check_rows(
    task: glue.Task, tokenizer: Any, settings: Settings
) -> tuple[list[dict[str, np.ndarray]], Any]:
    """Return batches of the first validation examples, and the task's score of what answers them,
    in per cent.
    """
    examples = read(task, task.eval_splits[0], settings, progress=False).head(CHECKED_ROWS)
    features = glue.convert(
        examples, tokenizer, max_seq_length=settings.max_seq_length, progress=False
    )
    batches = list(
        glue.batches(
            features, settings.validation_batch, training=False, length_multiple=LENGTH_MULTIPLE
        )
    )

    def score(outputs: Sequence[Mapping[str, np.ndarray]]) -> float:
        predicted = glue.predictions(
            task, np.concatenate([answers["logits"] for answers in outputs])
        )
        labels = np.concatenate([batch["labels"] for batch in batches])
        return 100.0 * glue.score(task, predicted, labels)[task.final_metric]

    return [only(batch, INPUTS) for batch in batches], score

"""Export for another runtime, checked on windows of real text, and choice of the file for
prediction.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tfquant
from runs.batches import only
from runs.exporting import export_file
from runs.squad.data import INPUTS, read_examples, to_features
from runs.squad.flags import Settings
from runs.squad.prediction import decoded, scored
from tasks import squad
from tfquant.distributed.errors import together
from tfquant.distributed.group import Group
from tfquant.export.parity import Score
from tfquant.export.targets import targets_for

CHECKED_QUESTIONS = 64


def export(
    network: Any, tokenizer: squad.LibraryTokenizer, settings: Settings, group: Group
) -> dict[str, Any]:
    """Write the network, quantized or float, to `settings.exported_file`, on rank 0.

    Returns:
        Figures of the file; empty on other ranks.

    Raises:
        ExportError: the file could not be written as asked, or answers otherwise than the network.
    """
    with together(group, lambda: (0, "export")):
        if group.rank:
            return {}
        written, figures = export_file(
            network if settings.if_quant else tfquant.quantize(network),
            settings.exported_file,
            settings.target,
            lambda: check_windows(tokenizer, settings),
            mode="quantized" if settings.if_quant else "float",
            opset=settings.export_opset,
            sm=settings.export_sm,
            tolerance=settings.export_tolerance,
        )
        return figures | ({"same_answers": written.agreement.same} if written.agreement else {})


def check_windows(
    tokenizer: squad.LibraryTokenizer, settings: Settings
) -> tuple[list[dict[str, np.ndarray]], Score | None]:
    """Return windows of the first questions of the predict file or, without one, of the training
    file.

    Returns:
        Batches, and F1 of what answers them; None where the truth is not known.
    """
    file = settings.predict_file or settings.train_file
    examples = read_examples(file, settings, training=False)[:CHECKED_QUESTIONS]
    features = to_features(examples, tokenizer, settings, training=False)
    batches = list(squad.batches(features, settings.predict_batch_size, training=False))

    def f1(outputs: Sequence[Mapping[str, np.ndarray]]) -> float:
        scores = squad.RawScores(features)
        for batch, answers in zip(batches, outputs, strict=True):
            scores.add(batch["unique_ids"], answers["start_logits"], answers["end_logits"])
        return scored(examples, decoded(examples, scores, settings), settings)["f1"]

    known = any(example.answers for example in examples)
    return [only(batch, INPUTS) for batch in batches], f1 if known else None


def file_to_predict_with(settings: Settings) -> str:
    """Return the exported file that answers: what this run or --export_target names, else the one
    that exists.

    Raises:
        FileNotFoundError: it was not exported.
        ValueError: there are several that the runtime reads.
    """
    runtime = settings.predict_with
    named = settings.do_export or settings.export_target is not None
    targets = (settings.target,) if named else targets_for(runtime)
    there = [target for target in targets if os.path.exists(settings.file_of(target))]
    if not there:
        files = " or ".join(settings.file_of(target) for target in reversed(targets))
        raise FileNotFoundError(
            f"--predict_with={runtime}: there is no {files}: give --do_export as well, or run with"
            " it before"
        )
    if len(there) > 1:
        files = " and ".join(settings.file_of(target) for target in there)
        flags = " or ".join(f"--export_target={target}" for target in there)
        raise ValueError(f"--predict_with={runtime}: reads both {files}: say which with {flags}")
    return settings.file_of(there[0])

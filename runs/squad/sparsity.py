"""Structured sparsity of encoder kernels: kept in training, and verified in the checkpoint."""

from typing import Any

import keras
import numpy as np

from runs.logging import log
from runs.squad.flags import Settings
from tfquant import checkpoint
from tfquant.training import Hook, StructuredSparsity, encoder_kernels
from tfquant.training.sparsity import check, is_sparse, quantized_kernels
from tfquant.variables import path_of

USUAL = "2x4"  # what sparse tensor cores run


def hooks(model: keras.Model, settings: Settings, total_steps: int) -> list[Hook]:
    """Return the training hooks of --sparsity.

    Raises:
        ValueError: training ends before the zeros are chosen.
    """
    if not settings.sparsity:
        kernels = encoder_kernels(model.trainable_variables)
        if is_sparse(kernels, USUAL):
            log(
                f"the encoder's kernels are {USUAL} sparse; this training fills their zeros. To"
                f" keep them: --sparsity={USUAL}"
            )
        return []
    begin, end = settings.sparsity_begin_step, settings.sparsity_end_step
    if begin >= total_steps:
        raise ValueError(
            f"--sparsity_begin_step={begin}: training has only {total_steps} steps; begin before"
            " the last one"
        )
    kernels = encoder_kernels(model.trainable_variables)
    log(f"keeping {len(kernels)} encoder kernels {settings.sparsity} sparse from step {begin} on")
    if settings.if_quant and not is_sparse(kernels, settings.sparsity):
        log(
            f"they are not {settings.sparsity} sparse yet, and their ranges were calibrated so:"
            " better train with --sparsity in float first, calibrate that, then train it quantized"
        )
    return [
        StructuredSparsity(
            kernels,
            settings.sparsity,
            begin,
            begin if end is None else end,
            settings.sparsity_frequency,
        )
    ]


def verify(network: Any, model: keras.Model, prefix: str, settings: Settings) -> dict[str, Any]:
    """Verify the sparsity of the kernels in a checkpoint and, of a quantized network, of the
    quantized kernels.

    Raises:
        ValueError: names a kernel that has too few.
    """
    saved = checkpoint.read(prefix)
    names = [path_of(kernel) for kernel in encoder_kernels(model.trainable_variables)]
    check({name: np.asarray(saved[name]) for name in names}, settings.sparsity)
    figures = {"pattern": settings.sparsity, "kernels": len(names), "quantized_kernels": 0}
    if network is not model:
        quantized = quantized_kernels(network, names)
        check(quantized, settings.sparsity)
        figures["quantized_kernels"] = len(quantized)
    log(
        f"{settings.sparsity} sparsity verified on {len(names)} kernels of {prefix}"
        + (
            f", and on {figures['quantized_kernels']} of them quantized"
            if network is not model
            else ""
        )
    )
    return figures

"""Exponent histograms of a run, for --record_histogram: a file and figures in the output folder."""

import os
import time
from collections.abc import Sequence
from typing import Any

import tfquant
from runs.eight_bit import DENSITIES, HISTOGRAMS, RANGES
from runs.logging import log
from runs.training import Loss
from tfquant.distributed.group import Group

BATCHES = 16  # at most
FORMATS = ("posit8_1", "e4m3")


def record_histograms(
    network: Any, batches: Sequence[Any], loss: Loss | None, folder: str, group: Group
) -> dict[str, Any]:
    """Count the exponents of the inputs of all quantizers; write the counts and three kinds of
    figures.

    Args:
        network: float or quantized.
        batches: with labels if there is a `loss`; the same on all ranks.
        loss: of training, which counts gradients as well; None counts values in inference.
        folder: of the output.
        group: of which rank 0 writes.

    Returns:
        Figures: shares of values below and above the exponents of `FORMATS`.
    """
    started = time.perf_counter()
    histograms = tfquant.exponent_histograms(
        network, batches, loss=loss, mask="input_mask", progress=group.rank == 0
    )
    if group.rank == 0:
        histograms.save(os.path.join(folder, HISTOGRAMS))
        histograms.plot_layer_distribution(folder)
        histograms.plot_layer_range(os.path.join(folder, RANGES))
        histograms.plot_densities(os.path.join(folder, DENSITIES), FORMATS)
    log(f"exponents of {len(histograms)} quantizers in {len(batches)} batches: {HISTOGRAMS}")
    return {
        "sites": len(histograms),
        "batches": len(batches),
        "seconds": time.perf_counter() - started,
        "outside": {format: histograms.outside(format) for format in FORMATS},
    }

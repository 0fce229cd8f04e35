"""Quantization of a network by `--recipe`, and the report of a run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import calib
import tfquant
from examples.settings import ModelSettings
from fileio.atomic import write_json
from runs.logging import log
from runs.versions import versions


def quantize(
    network: Any,
    recipe: tfquant.Recipe,
    batches: Iterable[Any],
    *,
    signature: Any = None,
    source: str,
) -> tuple[Any, calib.Calibration, dict[str, Any]]:
    """Quantize a network and calibrate it.

    Args:
        network: Keras model or function.
        recipe: what is quantized, and how.
        batches: calibration data, may be empty where the recipe needs no range of activations.
        signature: specs of a function's arguments.
        source: option that names the calibration data, for messages.

    Returns:
        The quantized network, its calibration, and figures for the report.

    Raises:
        ValueError: the recipe needs data and there are none.
    """
    started = time.perf_counter()
    quantized = tfquant.quantize(network, recipe, signature=signature)
    planned = time.perf_counter()
    batches = list(batches)
    needs_data = any(
        not site.is_weight and site.spec.scale.calibrated for site in quantized.plan.sites
    )
    if needs_data and not batches:
        raise ValueError(f"recipe {recipe.name} needs ranges of activations: set {source}")
    calibration = tfquant.calibrate(quantized, batches, mask=None)
    seconds = time.perf_counter() - planned
    sites = len(quantized.plan.sites)
    log(f"quantized {sites} sites by {recipe.name}; {len(batches)} calibration batches")
    figures = {
        "recipe": recipe.name,
        "sites": sites,
        "calibration_batches": len(batches),
        "plan_seconds": round(planned - started, 2),
        "calibration_seconds": round(seconds, 2),
    }
    return quantized, calibration, figures


def write_results(settings: ModelSettings, figures: Mapping[str, Any]) -> None:
    """Write results.json with flags, versions and figures to `--output_dir`, if that is set."""
    if settings.output_dir is None:
        return
    report = {
        "flags": dataclasses.asdict(settings),
        "versions": versions("keras-hub"),
        "figures": figures,
    }
    path = os.path.join(settings.output_dir, "results.json")
    write_json(path, report, indent=1, make_folder=True)
    log(f"wrote {path}")

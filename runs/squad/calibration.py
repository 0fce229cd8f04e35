"""Calibration: ranges of a float network from windows of the training file."""

import itertools
import os
import time
from typing import Any

import keras
import numpy as np

import tfquant
from runs.batches import only
from runs.logging import log
from runs.squad.data import INPUTS, read_examples, to_features
from runs.squad.flags import Settings
from runs.squad.networks import load_float
from tasks import squad
from tfquant import checkpoint
from tfquant.distributed.group import Group


def calibrate(
    model: keras.Model, tokenizer: squad.LibraryTokenizer, settings: Settings, group: Group
) -> tuple[Any, dict[str, Any]]:
    """Calibrate every site of the float network on part of the training data, and save ranges and
    weights.
    """
    source = settings.init_checkpoint or checkpoint.latest(settings.output_dir)
    if not source:
        raise ValueError(
            f"nothing to calibrate: give --init_checkpoint ({settings.output_dir} holds no"
            " checkpoint)"
        )
    load_float(model, source, settings, new_head=not settings.do_predict)
    batches = calibration_batches(tokenizer, settings)
    recipe = settings.recipe
    started = time.perf_counter()
    network = tfquant.quantize(model, recipe)
    planned = time.perf_counter()
    if settings.verbose_logging:
        log(str(network.plan))
    calibration = tfquant.calibrate(
        network, batches, order=settings.calib_order, mask="input_mask", group=group
    )
    seconds = time.perf_counter() - planned
    prefix = os.path.join(settings.output_dir, "model.ckpt-calibrated")
    if group.rank == 0:
        os.makedirs(settings.output_dir, exist_ok=True)
        calibration.save(os.path.join(settings.output_dir, settings.calibrator_file))
        tfquant.save(network, prefix)
    windows = sum(len(batch["input_ids"]) for batch in batches)
    log(f"calibrated {len(calibration)} sites on {windows} windows; wrote {prefix}")
    return network, {
        "source": source,
        "checkpoint": prefix,
        "recipe": recipe.name,
        "order": settings.calib_order,
        "methods": sorted({str(site.method) for site in calibration.values()}),
        "sites": len(calibration),
        "edges": sum(len(site.members) for site in network.plan.sites),
        "windows": windows,
        "plan_seconds": planned - started,
        "seconds": seconds,
        "windows_per_second": windows / seconds,
    }


def calibration_batches(
    tokenizer: squad.LibraryTokenizer, settings: Settings
) -> list[dict[str, np.ndarray]]:
    """Return batches of windows of questions drawn at random; only those are turned into
    windows.
    """
    examples = read_examples(settings.train_file, settings, training=True)
    wanted = settings.calib_batch * settings.train_batch_size
    if len(examples) < wanted:
        raise ValueError(
            f"--calib_batch={settings.calib_batch} of"
            f" --train_batch_size={settings.train_batch_size} need {wanted} questions,"
            f" {settings.train_file} has {len(examples)}: lower one of them"
        )
    drawn = np.random.default_rng(settings.seed).permutation(len(examples))[:wanted]
    features = to_features([examples[i] for i in drawn], tokenizer, settings, training=True)
    result = squad.batches(features, settings.train_batch_size, training=True, seed=settings.seed)
    return [only(batch, INPUTS) for batch in itertools.islice(result, settings.calib_batch)]

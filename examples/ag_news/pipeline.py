"""A run of run_ag_news.py from its settings to its figures."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

import tfquant
from examples.ag_news import data, outputs
from examples.ag_news.classifier import Architecture, build
from examples.ag_news.encoders import build_on_encoder
from examples.ag_news.pretrained import load_pretrained
from examples.ag_news.recipes import recipe
from examples.ag_news.settings import Settings
from examples.ag_news.training import Log, Phase, train
from runs.logging import log
from tasks.wordpiece import Tokenizer
from tfquant.training import ErrorDecaySchedule

_CALIBRATION_BATCHES = 8


def run(settings: Settings) -> dict[str, Any]:
    """Train and test a classifier, write the results.

    Args:
        settings: that `check` has passed.

    Returns:
        The figures, which the results file holds as well.
    """
    assert settings.data_dir is not None and settings.vocab_file is not None
    tokenizer = Tokenizer(settings.vocab_file)
    sets = []
    for split in ("train", "test"):
        rows = data.read(settings.data_dir, split, settings.tfds_dir)
        sets.append(data.tokenize(rows, tokenizer, settings.max_length))
        log(f"{split}: {len(sets[-1])} texts")
    model = build_model(settings, tokenizer)
    network, logs = train_phases(model, sets[0], sets[1], settings)
    accuracy = np.concatenate([one.accuracy for one in logs])
    rows = np.concatenate([one.rows for one in logs])
    figures = {
        "test_accuracy": [round(value, 4) for value in accuracy.tolist()],
        "best": round(float(logs[-1].accuracy.max()), 4),
        "quantized": settings.quant_type is not None,
        **outputs.sizes(model, network, settings.max_length),
    }
    best = int(np.argmax(logs[-1].accuracy)) + len(accuracy) - len(logs[-1].accuracy)
    figures["best_epoch"] = best
    outputs.write(settings, figures, rows, accuracy, logs[-1].best)
    return figures


def build_model(settings: Settings, tokenizer: Tokenizer) -> keras.Model:
    """Return the float classifier at its start."""
    keras.utils.set_random_seed(settings.seed)
    if settings.encoder is not None or settings.preset is not None:
        return build_on_encoder(settings, tokenizer.num_ids, len(data.CLASSES))
    architecture = Architecture(
        vocabulary=tokenizer.num_ids,
        classes=len(data.CLASSES),
        positions=settings.max_length,
        **{
            name: getattr(settings, name)
            for name in (
                *("blocks", "width", "heads", "hidden", "classifier"),
                *("double_embedding", "mask_padding"),
            )
        },
    )
    model = build(architecture, settings.seed, "mixed_bfloat16" if settings.amp else None)
    if settings.pre_trained:
        assert settings.pretrained_checkpoint is not None
        load_pretrained(model, settings.pretrained_checkpoint, architecture)
    return model


def train_phases(
    model: keras.Model, train_set: data.Tokens, test_set: data.Tokens, settings: Settings
) -> tuple[Any, list[Log]]:
    """Train in float and quantized, as the options say.

    Returns:
        The network of the last phase, with its last weights, and the logs of the phases.
    """
    folder = os.path.join(settings.output_dir, f"{settings.exp_name}_checkpoints")
    latent = settings.latent_epochs if settings.latent else 0
    network, logs = model, []
    common = {
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "log_every": settings.log_every,
    }
    if settings.quant_type is None or latent:
        last = latent or settings.epochs
        phase = Phase(0, last, os.path.join(folder, "float"))
        logs.append(train(model, model, train_set, test_set, phase, **common))
    if settings.quant_type is not None:
        network = tfquant.quantize(model, recipe(settings))
        outputs.show_sites(network)
        if not network.calibrated:  # a start for ranges that follow training
            order = train_set.batches(settings.batch_size, seed=settings.seed)
            batches = [train_set.batch(rows) for rows in order[:_CALIBRATION_BATCHES]]
            inputs = [{name: batch[name] for name in data.INPUTS} for batch in batches]
            tfquant.calibrate(network, inputs, mask="input_mask")
        phase = Phase(latent, settings.epochs, os.path.join(folder, "quantized"))
        hooks = ()
        if settings.quant_method == "ir":
            of_epoch = len(train_set.batches(settings.batch_size, seed=settings.seed))
            steps = (phase.last - phase.first) * of_epoch
            hooks = (ErrorDecaySchedule(network, steps, every=of_epoch),)
        logs.append(train(model, network, train_set, test_set, phase, hooks=hooks, **common))
    return network, logs


def summary(settings: Settings, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the last line of stdout."""
    names = ("best", "best_epoch", "parameters", "packed_bytes")
    return {name: figures[name] for name in names} | {
        "results": os.path.join(settings.output_dir, f"{settings.exp_name}_results.json")
    }

"""Training of a float or quantized network on SQuAD, on one or several ranks, resumed from the last
checkpoint.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import modeling
import tfquant
from runs.eight_bit import add_lora, merge_lora
from runs.logging import log
from runs.ranks import agree_on_data
from runs.resume import TrainingSchedule, last_checkpoint, training_schedule
from runs.squad import sparsity
from runs.squad.data import INPUTS, LABELS, read_examples, to_features
from runs.squad.flags import Settings
from runs.squad.losses import distillation, squad_loss
from runs.squad.networks import load_float, load_quantized
from runs.training import fit, steps_of
from runs.training import training_batches as parts_of_batches
from tasks import squad
from tfquant.distributed.group import Group
from tfquant.training import (
    BertAdamW,
    QuantizationSchedule,
    TrainOptions,
    WarmupLinearDecay,
    error_decay_hooks,
)

MERGED = "model.ckpt-merged"  # weights with their LoRA updates


def train(
    model: keras.Model,
    config: modeling.Config,
    tokenizer: squad.LibraryTokenizer,
    settings: Settings,
    group: Group,
) -> tuple[Any, int, dict[str, Any]]:
    """Train up to the last step, from the output folder's last checkpoint if there is one."""
    saved = last_checkpoint(settings.output_dir)
    source = saved or settings.init_checkpoint
    course = training_schedule(saved, settings, group.size)
    network = model
    if settings.if_quant:
        if not source and settings.eight_bit:
            log("no --init_checkpoint: training starts from random weights")
            network = tfquant.quantize(model, settings.recipe)
        elif not source:
            raise ValueError(
                "--do_train with --if_quant starts from a calibrated checkpoint: give"
                " --init_checkpoint"
            )
        else:
            network = load_quantized(model, source, settings, training=True)
        add_lora(network, settings, settings.seed)
        network.share_ranges(group)
        check_schedule(network, settings)
    elif source and not saved:
        load_float(model, source, settings, new_head=True)
    elif not source:
        log("no --init_checkpoint: training starts from random weights")
    examples = read_examples(settings.train_file, settings, training=True)
    features = to_features(examples, tokenizer, settings, training=True)
    agree_on_data(group, features.input_ids)
    total = steps_of(len(examples), settings, course)
    hooks = sparsity.hooks(model, settings, total)
    loss = distillation(network, config, settings) if settings.distillation else squad_loss
    group.broadcast([*network.variables, *getattr(loss, "variables", ())])
    optimizer = BertAdamW(
        WarmupLinearDecay.from_proportion(course.learning_rate, total, settings.warmup_proportion)
    )
    if settings.if_quant:
        hooks.insert(0, schedule(network, optimizer, total, settings, course))
        hooks += error_decay_hooks(network, total)
        log(in_words(network, settings))
    if group.size > 1 and not saved:
        log(
            f"{group.size} processes: {total} steps of {course.examples} windows, learning rate up"
            f" to {course.learning_rate:g} ({group.size} times --learning_rate)"
        )
    options = TrainOptions(
        settings.output_dir,
        total,
        accumulation=course.own,
        checkpoint_every=settings.save_checkpoints_steps,
        keep_checkpoints=settings.keep_checkpoint_max,
        loss_scale="dynamic" if settings.loss_scale == "dynamic" else None,
    )
    summary = fit(
        model,
        network,
        loss,
        optimizer,
        options,
        lambda start: training_batches(features, settings, start, group, course),
        course,
        group,
        hooks,
        saved,
    )
    figures = {"source": source, **dataclasses.asdict(summary)}
    if settings.sparsity and group.rank == 0:
        figures["sparsity"] = sparsity.verify(network, model, summary.checkpoint, settings)
    if settings.if_quant and merge_lora(network) and group.rank == 0:
        # Beside the checkpoints of training, which keep the updates apart.
        tfquant.save(network, os.path.join(settings.output_dir, MERGED))
    return network, summary.last_step, figures


def check_schedule(network: Any, settings: Settings) -> None:
    """Refuse flags about ranges that have no effect on the updates of the checkpoint's recipe.

    Raises:
        ValueError: names every such flag.
    """
    updates = {site.spec.update for site in network.plan.sites}
    useless = []
    if settings.range_learning_rate is not None and updates <= {"frozen", "moving_average"}:
        useless.append("range_learning_rate")
    if updates <= {"frozen"}:
        useless += [
            name for name in ("range_start_step", "range_freeze_step") if getattr(settings, name)
        ]
    if useless:
        raise ValueError(
            f"{' and '.join(f'--{name}' for name in useless)} without effect: no range of this run"
            f" is trained{'' if updates <= {'frozen'} else ', they follow the data'}. Set"
            " --range_update (lsq, tqt, pact) as well, or leave"
            f" {'it' if len(useless) == 1 else 'them'} out"
        )


def in_words(network: Any, settings: Settings) -> str:
    """Return the updates of ranges and the start of quantization in this run, in one line."""
    counts = collections.Counter(site.spec.update for site in network.plan.sites)
    text = "ranges: " + ", ".join(f"{count} {update}" for update, count in sorted(counts.items()))
    if settings.range_start_step:
        text += f"; they move from step {settings.range_start_step} on"
    if settings.range_freeze_step is not None:
        text += f"; they stay after step {settings.range_freeze_step}"
    if settings.quant_start_step:
        text += f"; the first {settings.quant_start_step} steps are in float"
    return text


def schedule(
    network: Any,
    optimizer: BertAdamW,
    total: int,
    settings: Settings,
    course: TrainingSchedule,
) -> QuantizationSchedule:
    """Return the schedule of quantization and of range updates that the flags ask for."""
    for name in ("quant_start_step", "range_start_step"):
        if getattr(settings, name) >= total:
            raise ValueError(
                f"--{name}={getattr(settings, name)} is never reached: this run has {total} steps;"
                " lower it"
            )
    return QuantizationSchedule(
        network,
        optimizer,
        quant_start_step=settings.quant_start_step,
        range_start_step=settings.range_start_step,
        range_freeze_step=settings.range_freeze_step,
        range_rate=course.relative_rate(settings.range_learning_rate),
    )


def training_batches(
    features: squad.Features,
    settings: Settings,
    start: int,
    group: Group,
    schedule: TrainingSchedule,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this rank's windows, from its part number `start` on; see `runs.training`."""

    def planned(epoch: int) -> squad.Batches:
        return squad.batches(
            features, schedule.batch, training=True, seed=settings.seed, epoch=epoch
        )

    return parts_of_batches(planned, INPUTS + LABELS, start, group, schedule)

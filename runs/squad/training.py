"""Training of a float or quantized network on SQuAD, in one or several processes, resumed where it
stopped.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import modeling
from runs import resume
from runs.logging import log
from runs.ranks import agree_on_data
from runs.settings import MAX_INTEGER
from runs.squad import sparsity
from runs.squad.data import INPUTS, LABELS, read_examples, to_features
from runs.squad.flags import Settings
from runs.squad.losses import distillation, squad_loss
from runs.squad.networks import load_float, load_quantized
from runs.training import by_share, closing_line, writer
from runs.training import training_batches as dealt_batches
from tasks import squad
from tfquant import checkpoint
from tfquant.distributed.group import Group
from tfquant.training import (
    BertAdamW,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
    WarmupLinearDecay,
    seed_variables,
)


def train(
    model: keras.Model,
    config: modeling.BertConfig,
    tokenizer: squad.Tokenizer,
    settings: Settings,
    group: Group,
) -> tuple[Any, int, dict[str, Any]]:
    """Trains up to the last step, from the output folder's last checkpoint if there is one."""
    saved = checkpoint.steps(settings.output_dir)
    source = saved[-1][1] if saved else settings.init_checkpoint
    course = (
        resume.resume_from(source, settings, group.size)
        if saved
        else resume.started(settings, group.size)
    )
    network = model
    if settings.if_quant:
        if not source:
            raise ValueError(
                "--do_train with --if_quant starts from a calibrated checkpoint: give"
                " --init_checkpoint"
            )
        network = load_quantized(model, source, settings, training=True)
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
    loss, projections = squad_loss, []
    if settings.distillation:
        loss = distillation(network, config, settings)
        projections = loss.variables
    group.broadcast([*network.variables, *projections])
    optimizer = BertAdamW(
        WarmupLinearDecay.from_proportion(course.learning_rate, total, settings.warmup_proportion)
    )
    if settings.if_quant:
        hooks.insert(0, schedule(network, optimizer, total, settings, course))
        log(in_words(network, settings))
    trainer = Trainer(
        network,
        by_share(loss),
        optimizer,
        TrainOptions(
            settings.output_dir,
            total,
            accumulation=course.own,
            checkpoint_every=settings.save_checkpoints_steps,
            keep_checkpoints=settings.keep_checkpoint_max,
            loss_scale=None if settings.loss_scale == "none" else settings.loss_scale,
        ),
        weights=model.weights,
        seeds=seed_variables(model),
        write=writer(model, network, course),
        group=group,
        hooks=hooks,
        loss_variables=projections,
    )
    if saved:
        log(f"going on from step {trainer.restore()} of {total} ({saved[-1][1]})")
    elif group.size > 1:
        log(
            f"{group.size} processes: {total} steps of {course.examples} windows, learning rate up"
            f" to {course.learning_rate:g} ({group.size} times --learning_rate)"
        )
    summary = trainer.fit(lambda start: training_batches(features, settings, start, group, course))
    if summary.first_step < summary.last_step:
        log(closing_line(summary))
    figures = {"source": source, **dataclasses.asdict(summary)}
    if settings.sparsity and group.rank == 0:
        figures["sparsity"] = sparsity.verify(network, model, summary.checkpoint, settings)
    return network, summary.last_step, figures


def steps_of(questions: int, settings: Settings, course: resume.TrainingSchedule) -> int:
    total = int(questions / course.examples * settings.num_train_epochs)
    if total < 1:
        raise ValueError(
            f"{questions} questions for {settings.num_train_epochs} epochs do not make one step of"
            f" {course.examples}: raise --num_train_epochs, or lower --train_batch_size or"
            " --num_accumulation_steps"
        )
    if total > MAX_INTEGER:
        raise ValueError(
            f"{settings.num_train_epochs} epochs are {total:,} steps, at most {MAX_INTEGER:,} can"
            " be made"
        )
    return total


def check_schedule(network: Any, settings: Settings) -> None:
    """Refuses flags about ranges that have no effect on what the checkpoint's recipe does to them.

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
    """What becomes of quantization and of the ranges while this run trains, in one line."""
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
    course: resume.TrainingSchedule,
) -> QuantizationSchedule:
    """When quantization begins, and when and how fast ranges move, as the flags say."""
    for name in ("quant_start_step", "range_start_step"):
        if getattr(settings, name) >= total:
            raise ValueError(
                f"--{name}={getattr(settings, name)} is never reached: this run has {total} steps;"
                " lower it"
            )
    rate = settings.range_learning_rate
    return QuantizationSchedule(
        network,
        optimizer,
        quant_start_step=settings.quant_start_step,
        range_start_step=settings.range_start_step,
        range_freeze_step=settings.range_freeze_step,
        range_rate=1.0 if rate is None else rate * course.ranks / course.learning_rate,
    )


def training_batches(
    features: squad.Features,
    settings: Settings,
    start: int,
    group: Group,
    course: resume.TrainingSchedule,
) -> Iterator[dict[str, np.ndarray]]:
    """This rank's windows, from its part number `start` on."""

    def planned(epoch: int) -> squad.Batches:
        return squad.batches(features, course.batch, training=True, seed=settings.seed, epoch=epoch)

    return dealt_batches(planned, INPUTS + LABELS, start, group, course)

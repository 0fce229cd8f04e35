"""Training of a float or quantized network on one task, in one or several processes, resumed where
it stopped.
"""

import dataclasses
import functools
from typing import Any

import keras

from runs import resume
from runs.glue.data import INPUTS, LABELS, training_plan
from runs.glue.evaluation import LOSS, SCORE, Validation
from runs.glue.losses import distillation, loss_of
from runs.glue.outputs import logs_of, write_config
from runs.glue.schedules import schedule
from runs.glue.settings import Settings
from runs.logging import log
from runs.ranks import agree_on_data
from runs.settings import MAX_INTEGER
from runs.training import by_share, closing_line, training_batches, writer
from tasks import glue
from tfquant import checkpoint
from tfquant.distributed.group import Group
from tfquant.training import (
    BertAdamW,
    Evaluation,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
    seed_variables,
)
from tfquant.variables import path_of


def train(
    model: keras.Model,
    network: Any,
    features: glue.Features,
    task: glue.Task,
    settings: Settings,
    group: Group,
    *,
    source: str,
    validation: Validation,
    directory: str,
    seed: int,
) -> dict[str, Any]:
    """Trains up to the last step, from the folder's last checkpoint if there is one; figures of the
    training.

    Args:
        model: the float model; its weights are trained.
        network: the model itself, or what it was quantized to.
        source: folder of the model that the training starts from.
        validation: what scores the network on the way.
    """
    saved = checkpoint.steps(directory)
    course = (
        resume.resume_from(saved[-1][1], settings, group.size)
        if saved
        else resume.started(settings, group.size)
    )
    total = settings.max_steps or int(len(features) / course.examples * settings.num_epochs)
    if total < 1:
        raise ValueError(
            f"{len(features)} rows for {settings.num_epochs} epochs do not make one step of"
            f" {course.examples}: raise --num-epochs, or lower --batch-size"
        )
    if total > MAX_INTEGER:
        raise ValueError(
            f"{settings.num_epochs} epochs are {total:,} steps, at most {MAX_INTEGER:,} can be made"
        )
    agree_on_data(group, features.input_ids)
    group.broadcast(network.variables)
    rate = schedule(settings.lr_scheduler_type, course.learning_rate, total, settings.warmup_steps)
    optimizer = BertAdamW(rate, weight_decay=settings.weight_decay)
    hooks = []
    if network is not model:
        network.share_ranges(group)
        faster = settings.range_learning_rate
        relative = 1.0 if faster is None else faster * course.ranks / course.learning_rate
        hooks.append(QuantizationSchedule(network, optimizer, range_rate=relative))
    evaluation = evaluating(network, features, task, settings, course, validation, group)
    hooks += [] if evaluation is None else [evaluation]
    taught = distillation(network, task, source, settings, seed) if settings.distillation else None
    trainer = Trainer(
        network,
        by_share(taught or loss_of(task)),
        optimizer,
        TrainOptions(
            directory,
            total,
            accumulation=course.own,
            clip_norm=settings.max_grad_norm or None,
            checkpoint_every=settings.save_steps,
            keep_checkpoints=settings.save_total_limit or 0,
            log_every=settings.logging_steps,
            log_first=settings.logging_first_step,
            tensorboard=logs_of(None, settings),
            progress=settings.tqdm,
        ),
        weights=model.weights,
        seeds=seed_variables(model),
        write=writer(model, network, course),
        group=group,
        hooks=hooks,
        loss_variables=taught.variables if taught else (),
    )
    if group.rank == 0 and not saved:  # a run that goes on keeps what it was started with
        write_config(directory, settings)
    if saved:
        log(f"going on from step {trainer.restore()} of {total} ({saved[-1][1]})")
    planned = functools.partial(_planned, features, course.batch, settings, seed)
    summary = trainer.fit(
        lambda start: training_batches(planned, INPUTS + LABELS, start, group, course)
    )
    if summary.first_step < summary.last_step:
        log(closing_line(summary))
    best = evaluation and evaluation.best
    return dataclasses.asdict(summary) | ({"best": dataclasses.asdict(best)} if best else {})


def evaluating(
    network: Any,
    features: glue.Features,
    task: glue.Task,
    settings: Settings,
    course: resume.TrainingSchedule,
    validation: Validation,
    group: Group,
) -> Evaluation | None:
    """What scores the network in training, if it is to be scored."""
    if settings.eval_strategy == "no":
        return None
    metric = (settings.metric_for_best_model or SCORE).removeprefix("eval_")
    batches, every = (
        len(training_plan(features, course.batch, settings, 0, 0)),
        settings.eval_steps or settings.logging_steps,
    )

    def due(step: int) -> bool:
        if settings.eval_strategy == "steps":
            return step % every == 0
        # The first step that is made behind the last batch of an epoch, or of several.
        return step * course.batches // batches > (step - 1) * course.batches // batches

    return Evaluation(
        validation.summary,
        due,
        metric=metric,
        greater=(
            metric != LOSS if settings.greater_is_better is None else settings.greater_is_better
        ),
        keep={path_of(v): v for v in network.weights} if settings.load_best_model_at_end else None,
        group=group,
        tell=log,
    )


def _planned(
    features: glue.Features, batch: int, settings: Settings, seed: int, epoch: int
) -> glue.Batches:
    return training_plan(features, batch, settings, epoch, seed)

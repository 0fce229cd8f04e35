"""Training of a float or quantized network on one task, on one or several ranks, resumed from the
last checkpoint.
"""

import dataclasses
from typing import Any

import keras

from runs.glue import incremental
from runs.glue.data import INPUTS, LABELS, training_plan
from runs.glue.evaluation import LOSS, SCORE, Validation
from runs.glue.losses import distillation, loss_of
from runs.glue.outputs import logs_of, write_config
from runs.glue.schedules import schedule
from runs.glue.settings import Settings
from runs.logging import log
from runs.ranks import agree_on_data
from runs.resume import TrainingSchedule, last_checkpoint, training_schedule
from runs.training import fit, steps_of, training_batches
from tasks import glue
from tfquant.distributed.group import Group
from tfquant.training import (
    BertAdamW,
    Evaluation,
    Hook,
    QuantizationSchedule,
    StageRestarts,
    TrainOptions,
    error_decay_hooks,
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
    """Train up to the last step, from the folder's last checkpoint if there is one; return figures.

    Args:
        model: the float model; its weights are trained.
        network: the model itself, or what it was quantized to.
        source: folder of the model that the training starts from.
        validation: what scores the network on the way.
    """
    saved = last_checkpoint(directory)
    course = training_schedule(saved, settings, group.size)
    total = settings.max_steps or steps_of(len(features), settings, course)
    agree_on_data(group, features.input_ids)
    group.broadcast(network.variables)
    starts = None
    if settings.inq_mode:
        epoch_steps = len(features) / course.examples
        starts = incremental.starts_of(settings, total, epoch_steps)
    rate = learning_rate(settings, course, total, starts)
    optimizer = BertAdamW(rate, weight_decay=settings.weight_decay)
    hooks: list[Hook] = []
    if starts is not None:
        hooks.append(incremental.hook_of(network, settings, starts, seed))
    elif network is not model:
        network.share_ranges(group)
        relative = course.relative_rate(settings.range_learning_rate)
        if settings.quant_start_step >= total:
            raise ValueError(
                f"--quant-start-step {settings.quant_start_step}: training has only {total} steps;"
                " start before the last one"
            )
        start = settings.quant_start_step
        hooks.append(
            QuantizationSchedule(network, optimizer, quant_start_step=start, range_rate=relative)
        )
        hooks += error_decay_hooks(network, total)
    evaluation = evaluating(network, features, task, settings, course, validation, group)
    hooks += [] if evaluation is None else [evaluation]
    loss = (
        distillation(network, task, source, settings, seed)
        if settings.distillation
        else loss_of(task)
    )
    if group.rank == 0 and not saved:  # a resumed run keeps the settings of its start
        write_config(directory, settings)
    options = TrainOptions(
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
    )

    def planned(epoch: int) -> glue.Batches:
        return training_plan(features, course.batch, settings, epoch, seed)

    summary = fit(
        model,
        network,
        loss,
        optimizer,
        options,
        lambda start: training_batches(planned, INPUTS + LABELS, start, group, course),
        course,
        group,
        hooks,
        saved,
    )
    best = evaluation and evaluation.best
    return dataclasses.asdict(summary) | ({"best": dataclasses.asdict(best)} if best else {})


def learning_rate(
    settings: Settings, course: TrainingSchedule, total: int, starts: list[int] | None
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate schedule of a run.

    Args:
        settings: of the run.
        course: tells the highest rate.
        total: steps of the training.
        starts: of the stages of incremental quantization; None without.
    """

    def over(steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
        name, peak = settings.lr_scheduler_type, course.learning_rate
        return schedule(name, peak, steps, settings.warmup_steps)

    if starts is None or not settings.reset_lr:
        return over(total)
    return StageRestarts.over(starts, total, over)


def evaluating(
    network: Any,
    features: glue.Features,
    task: glue.Task,
    settings: Settings,
    course: TrainingSchedule,
    validation: Validation,
    group: Group,
) -> Evaluation | None:
    """Return the hook that scores the network in training, None without --eval-strategy."""
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

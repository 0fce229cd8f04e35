"""Training of a run on its batches: steps, checkpoints that record the run, the closing line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfquant
from runs.batches import only
from runs.logging import log
from runs.resume import RUN, TrainingSchedule
from runs.settings import MAX_INTEGER
from tasks.batching import Batches
from tfquant import checkpoint
from tfquant.distributed.group import Group
from tfquant.training import BertAdamW, Hook, Trainer, TrainOptions, TrainSummary, seed_variables

SHARE = "share"  # examples of a part of a batch, divided by those of an average part

Loss = Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor]


def steps_of(examples: int, settings: Any, schedule: TrainingSchedule) -> int:
    """Return the number of steps in all epochs.

    Args:
        examples: number of training examples.
        settings: `STEPS` names the field of epochs.
        schedule: tells how many examples a step has.

    Raises:
        ValueError: there is not one step, or there are more than can be counted.
    """
    names = settings.STEPS
    epochs = getattr(settings, names.epochs)
    total = int(examples / schedule.examples * epochs)
    if total < 1:
        flags = [settings.written(name) for name in (names.epochs, names.batch, names.batches)]
        raise ValueError(
            f"{examples} examples for {epochs} epochs do not make one step of {schedule.examples}:"
            f" raise {flags[0]}, or lower {flags[1]} or {flags[2]}"
        )
    if total > MAX_INTEGER:
        raise ValueError(
            f"{epochs} epochs are {total:,} steps, at most {MAX_INTEGER:,} can be made"
        )
    return total


def fit(
    model: keras.Model,
    network: Any,
    loss: Loss,
    optimizer: BertAdamW,
    options: TrainOptions,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    schedule: TrainingSchedule,
    group: Group,
    hooks: Sequence[Hook],
    saved: str | None,
) -> TrainSummary:
    """Train up to the last step.

    Args:
        model: the float model; its weights are trained.
        network: the model itself, or what it was quantized to.
        loss: of a network and a batch; its `variables`, if it has any, are trained too.
        optimizer: of all trained variables.
        options: of the trainer.
        batches: number of the first batch -> this rank's batches from there on.
        schedule: what makes a step.
        group: the ranks.
        hooks: called in training.
        saved: checkpoint that training resumes from, None for a new run.
    """

    def write(prefix: str, tensors: Mapping[str, Any]) -> None:
        tensors = {**tensors, RUN: schedule.record}
        if network is model:
            checkpoint.write(prefix, tensors)
        else:
            tfquant.save(network, prefix, extra=tensors)

    trainer = Trainer(
        network,
        by_share(loss),
        optimizer,
        options,
        weights=model.weights,
        seeds=seed_variables(model),
        write=write,
        group=group,
        hooks=hooks,
        loss_variables=getattr(loss, "variables", ()),
    )
    if saved:
        log(f"resuming from step {trainer.restore()} of {options.total_steps} ({saved})")
    summary = trainer.fit(batches)
    if summary.first_step < summary.last_step:
        log(closing_line(summary))
    return summary


def training_batches(
    planned: Callable[[int], Batches],
    names: tuple[str, ...],
    start: int,
    group: Group,
    schedule: TrainingSchedule,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this rank's parts of all batches, epoch after epoch without end.

    The parts of all planned batches are one sequence that the ranks take from in turn, so that it
    does not depend on their number.

    Args:
        planned: epoch -> its batches, of `schedule.batch` examples.
        names: arrays of a batch that are used.
        start: number of this rank's first part.
        group: the ranks.
        schedule: tells how many parts a batch has.
    """
    number, of_epoch, epoch, shards = (
        start * group.size + group.rank,
        len(planned(0)) * schedule.parts,
        -1,
        [],
    )
    while True:
        if number // of_epoch != epoch:
            epoch = number // of_epoch
            shards = [planned(epoch).shard(part, schedule.parts) for part in range(schedule.parts)]
        row, part = divmod(number % of_epoch, schedule.parts)
        batch = only(shards[part][row], names)
        if schedule.batch % schedule.parts:
            batch[SHARE] = np.float32(len(batch[names[0]]) * schedule.parts / schedule.batch)
        yield batch
        number += group.size


def by_share(loss: Loss) -> Loss:
    """Weight a loss by the part's size, so that the mean over unequal parts is the mean over
    examples.
    """

    def weighted(model: Any, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        value = loss(model, batch)
        return value * batch[SHARE] if SHARE in batch else value

    return weighted


def closing_line(summary: TrainSummary) -> str:
    """Return steps, time and speed in one line.

    Speeds leave out the first step, in which the network is traced.
    """
    steps = summary.last_step - summary.first_step
    line = (
        f"trained {steps} steps in {summary.seconds:.0f} s,"
        f" {summary.steady_examples_per_second:.1f} examples/s after the first"
    )
    if summary.ranks == 1:
        return line
    return (
        f"{line} ({summary.total_steady_examples_per_second:.1f} in all {summary.ranks} processes),"
        f" {100 * (summary.allreduce_share or 0.0):.1f} % of that time in all-reduce"
    )

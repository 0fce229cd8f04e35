"""How a run trains, whatever it trains on.

Batches dealt out to the processes, checkpoints that hold the run, the closing line.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfquant
from runs.batches import only
from runs.resume import RUN, TrainingSchedule
from tasks.batching import Batches
from tfquant import checkpoint
from tfquant.distributed.group import Group
from tfquant.training import TrainSummary

SHARE = "share"  # examples of a part of a batch, divided by those of an average part

Loss = Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor]


def training_batches(
    planned: Callable[[int], Batches],
    names: tuple[str, ...],
    start: int,
    group: Group,
    course: TrainingSchedule,
) -> Iterator[dict[str, np.ndarray]]:
    """Epoch after epoch without end, from this rank's part number `start` on.

    The parts of all planned batches are one sequence that the ranks take from in turn, so that it
    does not depend on their number.

    Args:
        planned: epoch -> its batches, of `course.batch` examples.
        names: what of a batch is wanted.
    """
    number, of_epoch, epoch, shards = (
        start * group.size + group.rank,
        len(planned(0)) * course.parts,
        -1,
        [],
    )
    while True:
        if number // of_epoch != epoch:
            epoch = number // of_epoch
            shards = [planned(epoch).shard(part, course.parts) for part in range(course.parts)]
        row, part = divmod(number % of_epoch, course.parts)
        batch = only(shards[part][row], names)
        if course.batch % course.parts:
            batch[SHARE] = np.float32(len(batch[names[0]]) * course.parts / course.batch)
        yield batch
        number += group.size


def by_share(loss: Loss) -> Loss:
    """The loss with larger parts of a batch counting for more, so that the mean over unequal parts
    is that over the examples.
    """

    def weighted(model: Any, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        value = loss(model, batch)
        return value * batch[SHARE] if SHARE in batch else value

    return weighted


def writer(
    model: keras.Model, network: Any, course: TrainingSchedule
) -> Callable[[str, Mapping[str, Any]], None]:
    """What saves the tensors of training, with the record of the run and, of a quantized network,
    recipe and ranges.
    """

    def write(prefix: str, tensors: Mapping[str, Any]) -> None:
        tensors = {**tensors, RUN: course.record}
        if network is model:
            checkpoint.write(prefix, tensors)
        else:
            tfquant.save(network, prefix, extra=tensors)

    return write


def closing_line(summary: TrainSummary) -> str:
    """Speeds leave out the first step, in which the network is traced."""
    steps = summary.last_step - summary.first_step
    line = (
        f"trained {steps} steps in {summary.seconds:.0f} s,"
        f" {summary.steady_examples_per_second:.1f} examples/s after the first"
    )
    if summary.ranks == 1:
        return line
    return (
        f"{line} ({summary.total_steady_examples_per_second:.1f} in all {summary.ranks} processes),"
        f" {100 * summary.allreduce_share:.1f} % of that time in all-reduce"
    )

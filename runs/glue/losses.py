"""Training losses: loss of the labels, and distillation."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from runs.batches import only
from runs.distillation_options import distillation_of
from runs.glue.data import INPUTS
from runs.glue.settings import Settings
from runs.glue.teachers import load_teacher, teacher_of
from runs.training import Loss
from tasks import glue
from tfquant.training import Distillation


def loss_of(task: glue.Task) -> Loss:
    """Return the loss of the labels for a model in training."""
    hard = hard_loss(task)
    return lambda model, batch: hard(model(only(batch, INPUTS), training=True), batch)


def hard_loss(task: glue.Task) -> Callable[[Any, Any], tf.Tensor]:
    """Return the loss of the labels: mean squared error of a regression, cross-entropy of
    classes.
    """

    def loss(outputs: Any, batch: Any) -> tf.Tensor:
        logits = tf.cast(outputs["logits"], tf.float32)
        if task.regression:
            return tf.reduce_mean(tf.square(logits[:, 0] - batch["labels"]))
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
        )

    return loss


def distillation(
    student: Any, task: glue.Task, source: str, settings: Settings, seed: int
) -> Distillation:
    """Return `hard_loss` with the distillation terms that the options ask for.

    Args:
        source: folder of the model that is quantized, which teaches if no other is given.
    """
    teacher = load_teacher(task, teacher_of(task, source, settings), settings, seed)
    return distillation_of(
        student,
        teacher,
        hard_loss(task),
        settings,
        seed,
        inputs=INPUTS,
        logits=lambda outputs, batch: [outputs["logits"]],
        regression=task.regression,
    )

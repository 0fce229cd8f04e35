"""What training minimises: what the labels say, and what a teacher adds to it."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from glue_run import networks
from glue_run.data import INPUTS
from glue_run.settings import Settings
from runs.batches import only
from runs.teaching import distillation_options
from runs.training import Loss
from tasks import glue
from tfquant.training import Distillation


def loss_of(task: glue.Task) -> Loss:
    """What the labels say, of a model in training."""
    hard = hard_loss(task)
    return lambda model, batch: hard(model(only(batch, INPUTS), training=True), batch)


def hard_loss(task: glue.Task) -> Callable[[Any, Any], tf.Tensor]:
    """(outputs, batch) -> mean squared error of a regression, cross-entropy of classes."""

    def loss(outputs: Any, batch: Any) -> tf.Tensor:
        logits = tf.cast(outputs["logits"], tf.float32)
        if task.regression:
            return tf.reduce_mean(tf.square(logits[:, 0] - batch["labels"]))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits))

    return loss


def distillation(student: Any, task: glue.Task, source: str, settings: Settings, seed: int) -> Distillation:
    """`hard_loss` and what the options say of a teacher.

    Args:
        source: folder of the model that is quantized, which teaches if no other is given.
    """
    return Distillation(
        student,
        load_teacher(task, networks.teacher_of(task, source, settings), settings, seed),
        hard_loss(task),
        inputs=lambda batch: only(batch, INPUTS),
        options=distillation_options(settings, seed),
        logits=lambda outputs, batch: [outputs["logits"]],
        mask=lambda batch: batch["input_mask"],
        regression=task.regression,
    )


def load_teacher(task: glue.Task, folder: str, settings: Settings, seed: int) -> keras.Model:
    """The teacher, in float and not to be trained."""
    teacher = networks.build(folder, task, settings, seed)
    teacher.trainable = False
    networks.load_float(teacher, folder, new_head=False, who="teacher: ")
    return teacher

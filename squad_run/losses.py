"""What training minimises: cross-entropy of the positions, and what a teacher adds to it."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import modeling
from squad_run.data import INPUTS, Batch, only
from squad_run.flags import Settings
from squad_run.networks import build, load_float
from tfquant.training import divergence


def squad_loss(model: Any, batch: Batch) -> tf.Tensor:
    """Mean of the cross-entropies of start and end over the positions of a window, padding left out."""
    outputs = model(only(batch, INPUTS), training=True)
    return hard_loss(outputs, batch)


def hard_loss(outputs: Batch, batch: Batch) -> tf.Tensor:
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(batch[f"{end}_positions"], real_logits(outputs, end, batch))
        for end in ("start", "end")
    ]
    return tf.reduce_mean(tf.stack(losses))


def real_logits(outputs: Batch, end: str, batch: Batch) -> tf.Tensor:
    """[B, S] logits, so low on padding that it has no share: else a loss would depend on how far a batch is padded."""
    return tf.where(batch["input_mask"] > 0, tf.cast(outputs[f"{end}_logits"], tf.float32), -1e9)


def distillation_loss(teacher: keras.Model, scale: float) -> Callable[[Any, Batch], tf.Tensor]:
    """Adds `scale` times the divergence from the teacher's answers, start and end added up."""

    def loss(model: Any, batch: Batch) -> tf.Tensor:
        outputs = model(only(batch, INPUTS), training=True)
        taught = teacher(only(batch, INPUTS), training=False)
        soft = [divergence(*(real_logits(o, end, batch) for o in (outputs, taught))) for end in ("start", "end")]
        return hard_loss(outputs, batch) + scale * tf.add_n(soft)

    return loss


def load_teacher(config: modeling.BertConfig, settings: Settings) -> keras.Model:
    teacher = build(config, settings, dropout=False)
    teacher.trainable = False
    load_float(teacher, settings.teacher, settings)
    return teacher

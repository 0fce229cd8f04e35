"""What training minimises: cross-entropy of the positions, and what a teacher adds to it."""

from typing import Any

import keras
import tensorflow as tf

import modeling
from runs.batches import only
from runs.distillation_options import taught_by
from runs.logging import log
from runs.squad.data import INPUTS, Batch
from runs.squad.flags import Settings
from runs.squad.networks import build, load_float
from tfquant.store import holds_ranges
from tfquant.training import Distillation

SHOWN = 3  # of what does not fit; a wrong configuration is wrong in most variables


def squad_loss(model: Any, batch: Batch) -> tf.Tensor:
    """Mean of the cross-entropies of start and end over the positions of a window, padding left
    out.
    """
    outputs = model(only(batch, INPUTS), training=True)
    return hard_loss(outputs, batch)


def hard_loss(outputs: Batch, batch: Batch) -> tf.Tensor:
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(
            batch[f"{end}_positions"], real_logits(outputs, end, batch)
        )
        for end in ("start", "end")
    ]
    return tf.reduce_mean(tf.stack(losses))


def real_logits(outputs: Batch, end: str, batch: Batch) -> tf.Tensor:
    """[B, S] logits, so low on padding that it has no share.

    Else a loss would depend on how far a batch is padded.
    """
    return tf.where(batch["input_mask"] > 0, tf.cast(outputs[f"{end}_logits"], tf.float32), -1e9)


def distillation(student: Any, config: modeling.BertConfig, settings: Settings) -> Distillation:
    """`hard_loss` and what the flags say of a teacher."""
    return taught_by(
        student,
        load_teacher(config, settings),
        hard_loss,
        settings,
        settings.seed,
        inputs=INPUTS,
        logits=lambda outputs, batch: [
            real_logits(outputs, end, batch) for end in ("start", "end")
        ],
    )


def load_teacher(config: modeling.BertConfig, settings: Settings) -> keras.Model:
    """The teacher in float: as large as the student unless it has a configuration of its own.

    Raises:
        ValueError: its checkpoint does not fit the configuration.
    """
    if settings.teacher_config_file:
        config = modeling.BertConfig.from_json_file(settings.teacher_config_file)
    teacher = build(config, settings, dropout=False)
    teacher.trainable = False
    try:
        load_float(teacher, settings.teacher, settings, who="teacher: ")
    except ValueError as error:
        _, *problems = str(error).split("\n  ")
        if not problems:
            raise
        shown = "; ".join(problems[:SHOWN]) + (
            f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        )
        config_flag = "teacher_config_file" if settings.teacher_config_file else "bert_config_file"
        raise ValueError(
            f"--teacher={settings.teacher} does not fit"
            f" --{config_flag}={getattr(settings, config_flag)} ({shown}): give the configuration"
            " of that checkpoint as --teacher_config_file"
        ) from error
    if holds_ranges(settings.teacher):
        log("teacher: its ranges are not used, it answers in float")
    return teacher

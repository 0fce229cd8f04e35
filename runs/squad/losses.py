"""Training losses: cross-entropy of the positions, and distillation."""

from typing import Any

import keras
import tensorflow as tf

import modeling
from runs.batches import only
from runs.distillation_options import distillation_of
from runs.networks import loaded_teacher
from runs.squad.data import INPUTS, Batch
from runs.squad.flags import Settings
from runs.squad.networks import build, load_float
from tfquant.training import Distillation

SHOWN = 3  # of what does not fit; a wrong configuration is wrong in most variables


def squad_loss(model: Any, batch: Batch) -> tf.Tensor:
    """Return the mean cross-entropy of start and end over the positions of a window, without
    padding.
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
    """Return [B, S] logits, so low on padding that it has no share.

    Else a loss would depend on how far a batch is padded.
    """
    return tf.where(batch["input_mask"] > 0, tf.cast(outputs[f"{end}_logits"], tf.float32), -1e9)


def distillation(student: Any, config: modeling.Config, settings: Settings) -> Distillation:
    """Return `hard_loss` with the distillation terms that the flags ask for."""
    return distillation_of(
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


def load_teacher(config: modeling.Config, settings: Settings) -> Any:
    """Load the teacher: as large as the student unless it has a configuration of its own.

    Raises:
        ValueError: its checkpoint does not fit the configuration.
    """
    if settings.teacher_config_file:
        config = modeling.config_from_file(settings.teacher_config_file)

    def load(teacher: keras.Model) -> None:
        try:
            load_float(teacher, settings.teacher, settings, who="teacher: ")
        except ValueError as error:
            _, *problems = str(error).split("\n  ")
            if not problems:
                raise
            more = len(problems) - SHOWN
            shown = "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
            own = bool(settings.teacher_config_file)
            config_flag = "teacher_config_file" if own else "bert_config_file"
            raise ValueError(
                f"--teacher={settings.teacher} does not fit"
                f" --{config_flag}={getattr(settings, config_flag)} ({shown}): give the"
                " configuration of that checkpoint as --teacher_config_file"
            ) from error

    return loaded_teacher(
        build(config, settings, dropout=False),
        load,
        settings.teacher,
        quantized="--teacher_quantized" if settings.teacher_quantized else None,
    )

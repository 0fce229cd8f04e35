"""Distillation options of the run scripts: their checks and the loss that they describe."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from encoders.memory import check_memory
from runs.batches import only
from runs.logging import log
from tfquant.training import Distillation, DistillationOptions
from tfquant.training.distillation_losses import layer_pairs

SCALES = ("distillation_loss_scale", "distillation_hidden_scale", "distillation_attention_scale")
ABOUT_ANSWERS = ("distillation_temperature", "distillation_direction")


def set_about_answers(settings: Any) -> list[str]:
    """Return the flags set by the user that tell how answers of classes are compared."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return [name for name in ABOUT_ANSWERS if getattr(settings, name) != defaults[name]]


def distillation_problems(settings: Any) -> list[str]:
    """Return contradictions among the flags of a run with --distillation, one line each.

    Args:
        settings: a dataclass with `distillation_temperature` and the like; its `written` is that of
          `runs.checks`.
    """
    if not settings.distillation:
        return []
    written, problems = settings.written, []
    scales = {name: getattr(settings, name) for name in SCALES}
    if not any(scales.values()):
        names = ", ".join(map(written, scales))
        problems.append(
            f"{names}: all distillation weights are 0; set at least one, or leave"
            f" {written('distillation')} out"
        )
    elif not settings.distillation_loss_scale:
        loss_scale = written("distillation_loss_scale", 0)
        problems += [
            f"{written(name)} has no effect with {loss_scale}: leave it out"
            for name in set_about_answers(settings)
        ]
    if settings.distillation_layers and not (
        settings.distillation_hidden_scale or settings.distillation_attention_scale
    ):
        inside = " or ".join(map(written, SCALES[1:]))
        problems.append(
            f"{written('distillation_layers')} has no effect without {inside}: set one of them, or"
            " leave it out"
        )
    try:
        parse_layers(settings.distillation_layers)
    except ValueError as error:
        problems.append(f"{written('distillation_layers', settings.distillation_layers)}: {error}")
    return problems


def parse_layers(text: str) -> dict[int, int] | None:
    """Parse pairs of layers, `0:1,1:3` -> {0: 1, 1: 3}; None if nothing is given.

    Raises:
        ValueError: the text is something else.
    """
    if not text:
        return None
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", part) for part in text.split(",")]
    layers = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(layers) != len(pairs):
        raise ValueError(
            "must be pairs student:teacher with each layer of the student once, such as 0:1,1:3"
        )
    return layers


def teacher_problems(student: Any, teacher: Any, settings: Any, where: str) -> list[str]:
    """Return contradictions between the configurations of a student and its teacher, one line each.

    Args:
        student: its configuration, an `encoders.config.BertConfig` or one of another architecture.
        teacher: that of the teacher.
        settings: see `distillation_problems`.
        where: flag that the teacher's configuration is from, as it is written on the command line.

    Raises:
        ValueError: the teacher does not fit into memory.
    """
    check_memory(teacher)
    written, problems = settings.written, []
    if teacher.vocab_size != student.vocab_size:
        problems.append(
            f"{where}: the teacher has {teacher.vocab_size} word pieces, the student"
            f" {student.vocab_size}: both read the same text, so take a teacher with the student's"
            " vocabulary"
        )
    if settings.max_seq_length > teacher.max_sequence_length:
        length = written("max_seq_length", settings.max_seq_length)
        problems.append(
            f"{length}: the teacher of {where} has only {teacher.max_sequence_length} positions"
        )
    if settings.distillation_hidden_scale or settings.distillation_attention_scale:
        try:
            layer_pairs(
                student.num_hidden_layers,
                teacher.num_hidden_layers,
                parse_layers(settings.distillation_layers),
            )
        except ValueError as error:
            problems.append(
                f"{written('distillation_layers', settings.distillation_layers or '(not given)')}:"
                f" {error}"
            )
    return problems


def distillation_options(settings: Any, seed: int) -> DistillationOptions:
    """Return the options of distillation; `settings` have `distillation_temperature` and the
    like.
    """
    return DistillationOptions(
        temperature=settings.distillation_temperature,
        direction=settings.distillation_direction,
        logits_scale=settings.distillation_loss_scale,
        hidden_scale=settings.distillation_hidden_scale,
        attention_scale=settings.distillation_attention_scale,
        layers=parse_layers(settings.distillation_layers),
        seed=seed,
    )


def distillation_of(
    student: Any,
    teacher: keras.Model,
    hard: Callable[[Any, Any], tf.Tensor],
    settings: Any,
    seed: int,
    *,
    inputs: tuple[str, ...],
    **more: Any,
) -> Distillation:
    """Return the loss of a student with a teacher, and log which layers learn from which.

    Args:
        hard: what the labels say.
        inputs: names of what both read of a batch; "input_mask" is one.
        more: of `Distillation`.
    """
    distilled = Distillation(
        student,
        teacher,
        hard,
        inputs=lambda batch: only(batch, inputs),
        mask=lambda batch: batch["input_mask"],
        options=distillation_options(settings, seed),
        **more,
    )
    if distilled.pairs:
        pairs = ", ".join(f"{ours}:{theirs}" for ours, theirs in distilled.pairs)
        log(f"layers of the student learn from those of the teacher: {pairs}")
    if distilled.variables:
        first = distilled.variables[0]
        log(
            f"{len(distilled.variables)} projections {list(first.shape)} are trained beside the"
            f" student, from {first.path} on"
        )
    return distilled

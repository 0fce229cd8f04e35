"""What the options of a run say of a teacher, and what of it cannot be; they have the same names in
every script.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
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


def about_teacher(settings: Any) -> list[str]:
    """Names of all options that a teacher has, but the one that turns it on."""
    return [
        field.name
        for field in dataclasses.fields(settings)
        if field.name.startswith(("teacher", "distillation_"))
    ]


def given(settings: Any) -> list[str]:
    """Those of them that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return [name for name in about_teacher(settings) if getattr(settings, name) != defaults[name]]


def given_about_answers(settings: Any) -> list[str]:
    """Those of them that say how answers of classes are compared."""
    return [name for name in given(settings) if name in ABOUT_ANSWERS]


def contradictions(settings: Any, written: Callable[..., str]) -> list[str]:
    """What is wrong in the options about what is learned from a teacher, one line each.

    Args:
        settings: have `distillation_temperature` and the like.
        written: (name of an option, its value if that is of interest) -> the two as they are
          written on the command line.
    """
    problems = []
    if not 0.0 < settings.distillation_temperature < math.inf:
        problems.append(
            f"{written('distillation_temperature', settings.distillation_temperature)}: must be"
            " above 0 and finite"
        )
    scales = {name: getattr(settings, name) for name in SCALES}
    problems += [
        f"{written(name, v)}: must be at least 0 and finite"
        for name, v in scales.items()
        if not 0.0 <= v < math.inf
    ]
    if not any(scales.values()):
        names = ", ".join(map(written, scales))
        problems.append(
            f"{names} are all 0: the teacher would teach nothing; raise one, or drop"
            f" {written('distillation')}"
        )
    elif not settings.distillation_loss_scale:
        loss_scale = written("distillation_loss_scale", 0)
        problems += [
            f"{written(name)} has no effect with {loss_scale}: leave it out"
            for name in given_about_answers(settings)
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
    """`0:1,1:3` -> {0: 1, 1: 3}; None if nothing is given.

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


def misfits(
    student: Any, teacher: Any, settings: Any, written: Callable[..., str], where: str
) -> list[str]:
    """What the configurations of a student and its teacher have to agree on and do not, one line
    each.

    Args:
        written: see `contradictions`.
        where: option that the teacher's configuration is from, as it is written on the command
          line.

    Raises:
        ValueError: the teacher does not fit into memory.
    """
    check_memory(teacher)
    problems = []
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
    """What a student learns from its teacher; `settings` have `distillation_temperature` and the
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


def taught_by(
    student: Any,
    teacher: keras.Model,
    hard: Callable[[Any, Any], tf.Tensor],
    settings: Any,
    seed: int,
    *,
    inputs: Sequence[str],
    **more: Any,
) -> Distillation:
    """The loss of a student with a teacher, and a line about which layers learn from which.

    Args:
        hard: what the labels say.
        inputs: names of what both read of a batch; "input_mask" is one.
        more: of `Distillation`.
    """
    taught = Distillation(
        student,
        teacher,
        hard,
        inputs=lambda batch: only(batch, inputs),
        mask=lambda batch: batch["input_mask"],
        options=distillation_options(settings, seed),
        **more,
    )
    if taught.pairs:
        pairs = ", ".join(f"{ours}:{theirs}" for ours, theirs in taught.pairs)
        log(f"layers of the student learn from those of the teacher: {pairs}")
    if taught.variables:
        first = taught.variables[0]
        log(
            f"{len(taught.variables)} projections {list(first.shape)} are trained beside the"
            f" student, from {first.path} on"
        )
    return taught

"""What the options of a run say of a teacher, and what of it cannot be; they have the same names in every script."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from tfquant.training import DistillationOptions
from tfquant.training.distillation import DIRECTIONS

SCALES = ("distillation_loss_scale", "distillation_hidden_scale", "distillation_attention_scale")
ABOUT_ANSWERS = ("distillation_temperature", "distillation_direction")


def about_teacher(settings: Any) -> list[str]:
    """Names of all options that a teacher has, but the one that turns it on."""
    return [field.name for field in dataclasses.fields(settings) if field.name.startswith(("teacher", "distillation_"))]


def given(settings: Any) -> list[str]:
    """Those of them that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return [name for name in about_teacher(settings) if getattr(settings, name) != defaults[name]]


def contradictions(settings: Any, written: Callable[..., str]) -> list[str]:
    """What is wrong in the options about what is learned from a teacher, one line each.

    Args:
        settings: have `distillation_temperature` and the like.
        written: (name of an option, its value if that is of interest) -> the two as they are written on the command line.
    """
    problems = []
    if not 0.0 < settings.distillation_temperature < math.inf:
        problems.append(f"{written('distillation_temperature', settings.distillation_temperature)}: must be above 0 and finite")
    if settings.distillation_direction not in DIRECTIONS:
        shown = written("distillation_direction", settings.distillation_direction)
        problems.append(f"{shown}: must be one of {', '.join(DIRECTIONS)}")
    scales = {name: getattr(settings, name) for name in SCALES}
    problems += [f"{written(name, v)}: must be at least 0 and finite" for name, v in scales.items() if not 0.0 <= v < math.inf]
    if not any(scales.values()):
        names = ", ".join(map(written, scales))
        problems.append(f"{names} are all 0: the teacher would teach nothing; raise one, or drop {written('distillation')}")
    elif not settings.distillation_loss_scale:
        idle, loss_scale = [name for name in given(settings) if name in ABOUT_ANSWERS], written("distillation_loss_scale", 0)
        problems += [f"{written(name)} has no effect with {loss_scale}: leave it out" for name in idle]
    return problems


def distillation_options(settings: Any, seed: int, layers: Mapping[int, int] | None = None) -> DistillationOptions:
    """What a student learns from its teacher.

    Args:
        settings: have `distillation_temperature` and the like.
        layers: layer of the student -> layer of the teacher; spread evenly if not given.
    """
    return DistillationOptions(
        temperature=settings.distillation_temperature,
        direction=settings.distillation_direction,
        logits_scale=settings.distillation_loss_scale,
        hidden_scale=settings.distillation_hidden_scale,
        attention_scale=settings.distillation_attention_scale,
        layers=layers,
        seed=seed,
    )

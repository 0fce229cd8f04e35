"""What the options of a run say of a teacher; they have the same names in every script."""

from collections.abc import Mapping
from typing import Any

from tfquant.training import DistillationOptions


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

"""All models of the compatibility table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.compatibility.language_models import text_backbones
from benchmarks.compatibility.multimodal_models import multimodal_backbones
from benchmarks.compatibility.vision_models import applications, vision_backbones


def backbones() -> dict[str, Callable[[], Any]]:
    """Return a builder for every KerasHub backbone, by class name."""
    return {**text_backbones(), **vision_backbones(), **multimodal_backbones()}


def all_models() -> dict[str, Callable[[], Any]]:
    """Return a builder for every row of the table, by name."""
    return {**backbones(), **applications()}

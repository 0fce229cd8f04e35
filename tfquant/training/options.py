"""Training options: length and output."""

import dataclasses
import os
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Length of the training and its output.

    Attributes:
        directory: where checkpoints (`model.ckpt-<step>`) go.
        total_steps: optimizer steps of the whole run, resumed ones included.
        accumulation: batches whose gradients are averaged for one step.
        clip_norm: largest global norm of a step's gradient; None does not clip.
        checkpoint_every: steps between checkpoints; the last step is always saved. 0 saves only
          that.
        keep_checkpoints: how many to keep; 0 keeps all.
        log_every: steps between TensorBoard scalars.
        log_first: those of the first step as well.
        tensorboard: folder of these; below `directory` unless it is absolute.
        loss_scale: "dynamic" scales the loss so that float16 gradients do not vanish; a step whose
          gradient overflows changes
            no weight but counts, so that data and schedule stay where a resumed run expects them.
            See `DynamicLossScale`.
        progress: show a bar.
    """

    directory: str | os.PathLike
    total_steps: int
    accumulation: int = 1
    clip_norm: float | None = 1.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1
    log_every: int = 10
    log_first: bool = False
    tensorboard: str | os.PathLike = "tensorboard"
    loss_scale: Literal["dynamic"] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("total_steps", 1),
            ("accumulation", 1),
            ("checkpoint_every", 0),
            ("log_every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm is {self.clip_norm}; it must be positive, or None for no clipping"
            )
        if self.loss_scale not in (None, "dynamic"):
            raise ValueError(f"loss_scale is {self.loss_scale!r}; it must be None or 'dynamic'")

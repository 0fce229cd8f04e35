"""Options of AdaRound."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from tfquant.ptq.adaround import rounding


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of layer reconstruction.

    Attributes:
      iterations: steps of Adam for each layer.
      batch_rows: samples in a step: tokens of a linear layer (drawn from all sequences), images of
        a convolution, look-ups of a table. The paper draws 32 images, each with all its positions;
        a batch of 8 sequences of 128 tokens is 1,024 rows.
      learning_rate: of Adam.
      regularization: lambda, weight of the sum over all weights of 1 - |2h - 1|^beta beside the
        reconstruction loss.
      rounding: `hard_sigmoid` (the paper's rectified sigmoid), `sigmoid`, or `sigmoid_temp_decay`
        (no regulariser, but a temperature that falls).
      annealing: beta, or the temperature, at the start and at the end.
      decay, decay_shape: the way between, see `rounding.decayed`.
      warmup: share of the iterations without regulariser.
      decay_start: share of what follows before `annealing` begins.
      include_activation: compare behind the activation function where one follows the layer.
      asymmetric: the layer's input comes from the network with all weights quantized, not from the
        float one.
      quantize_activations: and that network rounds its activations as well.
      seed: of the order in which rows are drawn.
    """

    iterations: int = 1000
    batch_rows: int = 512
    learning_rate: float = 1e-2
    regularization: float = 0.01
    rounding: Literal["hard_sigmoid", "sigmoid", "sigmoid_temp_decay"] = "hard_sigmoid"
    annealing: tuple[float, float] = (20.0, 2.0)
    decay: Literal["linear", "cosine", "sigmoid", "power", "exp", "log"] = "cosine"
    decay_shape: float | None = None
    warmup: float = 0.2
    decay_start: float = 0.0
    include_activation: bool = True
    asymmetric: bool = True
    quantize_activations: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("rounding", rounding.ROUNDINGS), ("decay", tuple(rounding.DECAYS))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        for name in ("iterations", "batch_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate}; it must be above 0 and finite"
            )
        if not 0.0 <= self.regularization < math.inf:
            raise ValueError(
                f"regularization is {self.regularization}; it must be at least 0 and finite"
            )
        for name in ("warmup", "decay_start"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if len(tuple(self.annealing)) != 2 or not all(0.0 < v < math.inf for v in self.annealing):
            raise ValueError(
                f"annealing is {self.annealing!r}; it must be two numbers above 0, start and end"
            )
        object.__setattr__(self, "annealing", tuple(map(float, self.annealing)))
        if self.decay_shape is not None and not 0.0 < self.decay_shape < math.inf:
            raise ValueError(f"decay_shape is {self.decay_shape}; it must be above 0 and finite")
        if self.quantize_activations and not self.asymmetric:
            raise ValueError(
                "quantize_activations needs asymmetric=True: the float network has float"
                " activations"
            )

    def schedule(self) -> tuple[np.ndarray, np.ndarray]:
        """Annealing schedule, see `rounding.schedule`."""
        return rounding.schedule(
            self.iterations,
            self.annealing,
            self.decay,
            warmup=self.warmup,
            decay_start=self.decay_start,
            shape=self.decay_shape,
        )

"""Distance of a network from the float one: by its outputs, or by a metric of the caller."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special
from tensorflow.python.util import nest

from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.graph.padding import Padding

# And what they are for the float network itself.
MEASURES = {"sqnr": math.inf, "kl": 0.0}
BETTER = ("higher", "lower")
Metric = Callable[[list[Any]], float]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Value of a measure.

    Attributes:
      value: of all outputs: their mean, or what the metric returned.
      outputs: name of an output -> value; empty for a metric.
    """

    value: float
    outputs: dict[str, float] = dataclasses.field(default_factory=dict)


class Measure:
    """A distance from the float network, or a metric.

    Attributes:
      name: `sqnr`, `kl`, or what the metric is called.

    Args:
      engine: of the model.
      flats: the inputs of every batch.
      measure: `sqnr`, `kl` or a callable, see `tfquant.sensitivity`.
      better: which values of a metric are better, `higher` or `lower`.
      mask: see `tfquant.calibrate`.

    Raises:
      ValueError: there is no such measure, or the outputs of the model do not fit it.
    """

    def __init__(
        self,
        engine: Engine,
        flats: Sequence[Sequence[tf.Tensor]],
        measure: str | Metric,
        better: str,
        mask: str | Sequence[str] | None,
    ):
        if not callable(measure) and measure not in MEASURES:
            raise ValueError(
                f"unknown measure {measure!r}; known: {', '.join(MEASURES)}, or a callable of all"
                " outputs"
            )
        if better not in BETTER:
            raise ValueError(f"better={better!r} must be {' or '.join(BETTER)}")
        self._engine, self._metric, self._better = (
            engine,
            measure if callable(measure) else None,
            better,
        )
        self.name = _called(measure) if callable(measure) else measure
        self._outputs = _named_outputs(engine)
        self._valid: dict[str, list[np.ndarray]] = {}
        outputs = {name: engine.inference.outputs[index] for name, index in self._outputs.items()}
        if self._metric is None:
            self._check_outputs()
            self._valid = _validity(
                Padding(engine.inference, outputs.items(), mask, "outputs"), outputs, flats
            )

    @property
    def compares(self) -> bool:
        """Whether it needs the outputs of the float network; a metric does not."""
        return self._metric is None

    @property
    def of_equals(self) -> float:
        """The value of outputs that are those of the float network."""
        return MEASURES[self.name]

    def __call__(
        self, outputs: Iterable[Sequence[np.ndarray]], exact: Sequence[Sequence[np.ndarray]]
    ) -> Reading:
        """Measures a network.

        Args:
          outputs: flat outputs of every batch.
          exact: those of the float network, empty where they are not needed.

        Raises:
          ValueError: NaN or infinity, naming batch and output.
        """
        if self._metric is not None:
            return Reading(self._checked(self._metric([self._packed(flat) for flat in outputs])))
        totals = {name: np.zeros(2) for name in self._outputs}
        for number, (result, wanted) in enumerate(zip(outputs, exact, strict=True)):
            for name, index in self._outputs.items():
                valid = self._valid[name][number] if name in self._valid else np.ones(1, bool)
                first, second = (np.asarray(f[index], np.float64) for f in (wanted, result))
                valid = np.broadcast_to(valid, first.shape)
                if not all(np.isfinite(values[valid]).all() for values in (first, second)):
                    raise ValueError(
                        f"batch {number}: output {name} holds NaN or infinity; check the batch and"
                        " the model"
                    )
                terms = _kl_terms if self.name == "kl" else _power_terms
                totals[name] += terms(first, second, valid)
        values = {name: self._of_terms(*terms) for name, terms in totals.items()}
        return Reading(float(np.mean(list(values.values()))), values)

    def loss(self, value: float, exact: float) -> float:
        """Loss of a value against that of the float network.

        The KL divergence, minus the SQNR, the difference of a metric.
        """
        if self._metric is None:
            return value if self.name == "kl" else -value
        return exact - value if self._better == "higher" else value - exact

    def _of_terms(self, first: float, second: float) -> float:
        if self.name == "kl":
            return float(first / max(second, 1))
        if not second:
            return math.inf
        return float(10 * np.log10(first / second)) if first else -math.inf

    def _checked(self, value: Any) -> float:
        try:
            result = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"measure {self.name} returned {one_line(repr(value), 60)}: it must return one"
                " number"
            ) from error
        if not math.isfinite(result):
            raise ValueError(
                f"measure {self.name} returned {result}: it must return a finite number"
            )
        return result

    def _packed(self, flat: Sequence[np.ndarray]) -> Any:
        return self._engine.inference.pack_outputs(flat)

    def _check_outputs(self) -> None:
        if not self._outputs:
            raise ValueError(
                f"measure={self.name!r} compares outputs of floating point, and the model has none:"
                " pass a callable"
            )
        for name, index in self._outputs.items():
            shape = self._engine.inference.outputs[index].shape
            if self.name == "kl" and (shape.rank == 0 or shape[-1] == 1):
                raise ValueError(
                    f"measure='kl' compares probabilities of classes, and output {name} has one"
                    " value: use 'sqnr'"
                )


def _validity(
    padding: Padding, outputs: Mapping[str, tf.Tensor], flats: Sequence[Sequence[tf.Tensor]]
) -> dict[str, list[np.ndarray]]:
    """Name of an output -> what of it is no padding in every batch; without those that have no axis
    of tokens.
    """
    batches = [padding.values(flat) for flat in flats]
    result = {}
    for name, tensor in outputs.items():
        masks = [validity.of(tensor) for validity in batches]
        valid = [mask.numpy() > 0 for mask in masks if mask is not None]
        if valid:
            result[name] = valid
    return result


def _called(metric: Metric) -> str:
    return getattr(metric, "__qualname__", type(metric).__qualname__)


def _named_outputs(engine: Engine) -> dict[str, int]:
    """Name of an output of floating point -> which of the flat ones it is."""
    leaves: Any = nest.flatten_with_joined_string_paths(engine.inference.output_structure)
    named = [path or "output" for path, leaf in leaves if isinstance(leaf, tf.TensorSpec)]
    return {
        name: i
        for i, (name, t) in enumerate(zip(named, engine.inference.outputs, strict=True))
        if t.dtype.is_floating
    }


def _power_terms(exact: np.ndarray, found: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Power of the signal and of the noise, sums over what is valid."""
    return np.array([np.square(exact[valid]).sum(), np.square(exact[valid] - found[valid]).sum()])


def _kl_terms(exact: np.ndarray, found: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """KL(softmax(exact) || softmax(found)) over the last axis, and the number of rows; classes that
    are padding have no part.
    """
    rows = valid.any(-1)
    valid = valid[rows]
    logs = [
        special.log_softmax(np.where(valid, logits[rows], -np.inf), -1) for logits in (exact, found)
    ]
    shares = np.exp(logs[0])
    # 0 where a class has no share: its logarithm is then minus infinity on both sides.
    apart = np.subtract(*logs, out=np.zeros_like(shares), where=valid)
    return np.array([(shares * apart).sum(), np.count_nonzero(rows)])

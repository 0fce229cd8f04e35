"""Channel indices: the producer channel of each element of a later tensor.

Found by sending numbers of channels through the graph in place of values: whatever moves them
(heads split and merged, transposes, selections, an attention with its probabilities) need not be
understood, only be linear. A second run with ones takes the factors out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph.replay import Edits
from tfquant.graph.trace import Trace
from tfquant.ptq.layers import Unsuitable


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Tensor on a scale path, and its axes that may distinguish channels, in ascending order."""

    tensor: tf.Tensor
    axes: tuple[int, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        return self.tensor.name, self.axes


class Channels:
    """Channel indices at places.

    Args:
      trace: the graph.
      sources: name of a producer's tensor -> numbers of its channels, broadcast to the tensor.
      shifts: (operation, input index) of parameters that are added on the ways.
      probabilities: names of the attention probabilities on the ways.
      places: where numbers are wanted.
      flat: inputs of the model.
    """

    def __init__(
        self,
        trace: Trace,
        sources: Mapping[str, np.ndarray],
        shifts: Sequence[tuple[tf.Operation, int]],
        probabilities: Sequence[str],
        places: Sequence[Place],
        flat: Sequence[tf.Tensor],
    ):
        distinct = {place.key: place for place in places}
        edges = {(op.name, index): tf.zeros_like for op, index in shifts}
        uniform = dict.fromkeys(probabilities, tf.ones_like)

        def run(*inputs):
            def sent(values: Mapping[str, np.ndarray]) -> list[tf.Tensor]:
                tensors = {name: _replaced_by(value) for name, value in values.items()}
                edits = Edits(edges=edges, tensors={**uniform, **tensors})
                return trace.emit(
                    list(inputs), edits, targets=[place.tensor for place in distinct.values()]
                )

            ones = sent({name: np.ones_like(value) for name, value in sources.items()})
            return [
                _ends(*pair) for pair in zip(distinct.values(), sent(sources), ones, strict=True)
            ]

        function = tf.function(run, autograph=False).get_concrete_function(*trace.input_specs)
        result = function(*flat) if distinct else []
        self._ends = {
            key: [end.numpy() for end in ends] for key, ends in zip(distinct, result, strict=True)
        }

    def at(self, place: Place) -> np.ndarray:
        """Channel indices, int64 [sizes of the place's axes].

        Raises:
          Unsuitable: several channels come together there.
        """
        smallest, largest = self._ends[place.key]
        numbers = np.rint(smallest)
        with np.errstate(invalid="ignore"):
            apart = (
                np.isfinite(smallest)
                & (np.abs(smallest - numbers) < 0.05)
                & (np.abs(largest - numbers) < 0.05)
            )
        if not apart.all():
            raise Unsuitable(f"its channels are mixed on the way to {place.tensor.op.name}")
        return numbers.astype(np.int64)


def _replaced_by(value: np.ndarray):
    return lambda tensor: tf.zeros_like(tensor) + tf.constant(value, tensor.dtype)


def _ends(place: Place, numbers: tf.Tensor, ones: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Smallest and largest index over the other axes, where any arrives."""
    others = [axis for axis in range(place.tensor.shape.rank) if axis not in place.axes]
    arrives = tf.not_equal(ones, 0)
    number = numbers / tf.where(arrives, ones, tf.ones_like(ones))
    infinity = tf.fill(tf.shape(number), tf.constant(np.inf, number.dtype))
    smallest = tf.reduce_min(tf.where(arrives, number, infinity), others)
    return smallest, tf.reduce_max(tf.where(arrives, number, -infinity), others)

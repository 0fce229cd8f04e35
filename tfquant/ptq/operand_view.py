"""Conversion of a parameter between the layouts of its variable and of its operand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph.trace import Trace


class OperandView:
    """Both layouts of one parameter, related by reshapes and transposes.

    Args:
      trace: the graph.
      reads: tensors of the variable's value.
      tensor: what follows from them; None where that is the value itself.
    """

    def __init__(self, trace: Trace, reads: Sequence[tf.Tensor], tensor: tf.Tensor | None):
        self._trace, self._reads, self._tensor = trace, tuple(reads), tensor

    def forward(self, value: tf.Tensor) -> tf.Tensor:
        if self._tensor is None:
            return value
        specified = {read.name: tf.cast(value, read.dtype) for read in self._reads}
        return self._trace.emit([], targets=[self._tensor], given=specified)[0]

    def back(self, value: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Inverse of `forward`: for a permutation that is its gradient."""
        if self._tensor is None:
            return value
        moved = self.forward(like)
        return tf.gradients(moved, like, tf.cast(value, moved.dtype))[0]

    def to_variable(self, value: np.ndarray) -> np.ndarray:
        variable_shape = self._reads[0].shape
        return called(lambda v: self.back(v, tf.zeros(variable_shape)), value)


def called(function: Callable[[tf.Tensor], tf.Tensor], value: np.ndarray) -> np.ndarray:
    """Run a function as a concrete function, as TensorFlow warns about repeated retracing."""
    spec = tf.TensorSpec(value.shape, tf.float32)
    return (
        tf.function(function, autograph=False)
        .get_concrete_function(spec)(tf.constant(np.ascontiguousarray(value)))
        .numpy()
    )

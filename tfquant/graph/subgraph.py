"""Subgraph as a function from one tensor to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph import replay
from tfquant.graph.trace import Trace


class Part:
    """Operations that compute `target` from `source`, variables and constants.

    Attributes:
      operations: in graph order, those that compute parameters included.
      names: of the operations.
    """

    def __init__(
        self, trace: Trace, source: tf.Tensor, target: tf.Tensor, operations: Sequence[tf.Operation]
    ):
        self._trace, self._source, self._target = trace, source, target
        self.operations = tuple(operations)
        self.names = frozenset(op.name for op in operations)
        self._function = None

    @classmethod
    def find(cls, trace: Trace, source: tf.Tensor, target: tf.Tensor) -> Part | None:
        """Find the subgraph; None where `target` depends on another model input, or not on
        `source`.
        """
        inputs, result, pending, met = {t.op.name for t in trace.inputs}, set(), [target], False
        while pending:
            tensor = pending.pop()
            if tensor.name == source.name:
                met = True
                continue
            if tensor.op.name in inputs:
                return None
            if tensor.op.name not in result:
                result.add(tensor.op.name)
                pending.extend(tensor.op.inputs)
        return (
            cls(trace, source, target, [op for op in trace.operations if op.name in result])
            if met
            else None
        )

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Compute the target with `value` as the source."""
        if self._function is None:
            spec = tf.TensorSpec(self._source.shape, self._source.dtype)
            self._function = tf.function(self._emit, autograph=False).get_concrete_function(spec)
        return self._function(tf.constant(value, self._source.dtype)).numpy()

    def _emit(self, value: tf.Tensor) -> tf.Tensor:
        graph, captures = tf.compat.v1.get_default_graph(), self._trace.captures
        known = {
            inside.name: graph.capture(outside)
            for outside, inside in captures
            if inside.op.name in self.names
        }
        known[self._source.name] = value
        return replay.replay(self.operations, known, [self._target])[0]

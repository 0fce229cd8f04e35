"""Expression keys: hashable description of how a parameter is computed, equal for equal
computations.

Two tensors with equal keys have the same values in the same layout: the same operations with the
same attributes were applied, in the same order, to the same variables and constants. A variable and
its transpose, two slices of one kernel and a kernel and its scaled copy therefore have different
keys; two reads of one variable have one.
"""

from __future__ import annotations

import functools
import hashlib

import tensorflow as tf

from tfquant.graph.dataflow import Dataflow

# Hand on values and layout; a cast between float types hands on the values as far as that type can
# hold them.
_SAME_OPS = frozenset(
    "Identity Snapshot StopGradient PreventGradient CheckNumerics EnsureShape".split()
)
_READ = "ReadVariableOp"
_READING_OPS = frozenset((_READ, "ResourceGather", "ResourceGatherNd", "VariableShape"))
# Constants with more elements are told apart by their operation: comparing their values would take
# longer than planning.
_LARGE = 2**14


class Expressions:
    """Keys of the parameters of one graph, computed once per tensor.

    Args:
      flow: the graph.
    """

    def __init__(self, flow: Dataflow):
        self._flow = flow
        self._keys: dict[str, str] = {}

    def key(self, tensor: tf.Tensor) -> str:
        """Key of a parameter; equal in training and inference traces where the parameter is
        computed alike.
        """
        pending = [tensor]
        while pending:
            last = pending[-1]
            missing = (
                []
                if last.name in self._keys
                else [t for t in self._operands(last) if t.name not in self._keys]
            )
            if not missing:
                pending.pop()
                if last.name not in self._keys:
                    self._keys[last.name] = self._key(last)
            pending += missing
        return self._keys[tensor.name]

    def of_variable(self, handle: str) -> str:
        """Key of a variable's value at the start of the graph.

        Args:
          handle: name of the placeholder of the variable's handle.
        """
        return _digest(_READ, self._flow.trace.paths[handle], 0)

    def is_plain(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor is the unmodified value of a variable."""
        handle = self._flow.variable_behind(tensor)
        return handle is not None and self.key(tensor) == self.of_variable(handle)

    def _operands(self, tensor: tf.Tensor) -> list[tf.Tensor]:
        """Components of the key of a tensor."""
        op = tensor.op
        if (
            self._flow.is_dynamic(tensor)
            or op.op_def is None
            or op.op_def.is_stateful
            or op.type == "Placeholder"
        ):
            return []
        return list(op.inputs)

    def _key(self, tensor: tf.Tensor) -> str:
        op, operands = tensor.op, self._operands(tensor)
        if op.type == _READ and op.inputs[0].name in self._flow.trace.paths:
            handle = op.inputs[0].name
            return _digest(_READ, self._flow.trace.paths[handle], self._writes_before(handle, op))
        if not operands and (op.type != "Const" or (tensor.shape.num_elements() or 0) > _LARGE):
            return _digest("tensor", tensor.name)
        if op.type in _SAME_OPS or (
            op.type == "Cast" and operands[0].dtype.is_floating and tensor.dtype.is_floating
        ):
            return self._keys[operands[0].name]
        # Names that begin with an underscore are notes of TensorFlow's, such as inferred shapes.
        attributes = [
            (name, value.SerializeToString(deterministic=True))
            for name, value in sorted(op.node_def.attr.items())
            if not name.startswith("_")
        ]
        return _digest(
            op.type, tensor.value_index, attributes, [self._keys[t.name] for t in operands]
        )

    def _writes_before(self, handle: str, read: tf.Operation) -> int:
        """Number of assignments to a variable that may precede a read."""
        position = self._flow.index[read.name]
        return sum(index < position for index in self._writes.get(handle, ()))

    @functools.cached_property
    def _writes(self) -> dict[str, list[int]]:
        result: dict[str, list[int]] = {}
        for handle in self._flow.trace.variables:
            writers = [
                op for op, _ in self._flow.consumers.get(handle, ()) if op.type not in _READING_OPS
            ]
            result[handle] = [self._flow.index[op.name] for op in writers]
        return result


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

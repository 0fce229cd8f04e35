"""Layer function: the output of a layer as a function of input and weight, without the values that
differ between layers.

Layers of one form share compiled functions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph import replay
from tfquant.graph.dataflow import ELEMENTWISE_OPS, Dataflow
from tfquant.layout import aligned_shape
from tfquant.ptq.layers import Layer, Unsuitable, Use

_PLACE_BOUND_ATTRS = ("_class", "_output_shapes")
# Views that leave the last axis where it is; what is computed element by element behind them needs
# them not.
_COMPUTED_OPS = ELEMENTWISE_OPS | {"Cast"}
_KEEPING_ROWS = frozenset("Identity Reshape Squeeze ExpandDims StopGradient EnsureShape".split())


class Form:
    """One use of a layer as a function of samples, weight and parameters.

    Attributes:
      key: equal for uses that are computed alike.
      parameters: names of the tensors of the variables that it reads besides the weight (a bias),
        in the order they are passed.
      parameter_handles: names of the handles of these variables.
      activated: whether the output is that of the activation function.
      features: shape of one sample of the input.
    """

    def __init__(self, flow: Dataflow, layer: Layer, use: Use, include_activation: bool):
        self._use, self._reads = use, [t.name for t in layer.reads]
        self.activated = False
        self._operations, self._skipped, self._target = [], frozenset(), use.op.outputs[0]
        if not use.lookup:
            if include_activation and use.activation is not None:
                self.activated = self._find(flow, use.activation)
            if not self.activated and not self._find(flow, use.op.outputs[0]):
                raise Unsuitable(
                    f"the weight of {use.op.type} {use.op.name} is computed from constants outside"
                    " the graph"
                )
        self.parameters = tuple(self._parameter_reads())
        self.parameter_handles = tuple(self._parameter_reads().values())
        rows = use.row_axes
        self.features = use.features
        self._order = (*rows, *(axis for axis in range(use.input.shape.rank) if axis not in rows))

    def _find(self, flow: Dataflow, target: tf.Tensor) -> bool:
        """Find the computation from input and weight to `target`; return False if it depends on
        anything else.
        """
        result, skipped, pending = set(), set(), [target]
        while pending:
            tensor = pending.pop()
            op = tensor.op
            if tensor.name == self._use.input.name or op.name in result:
                continue
            if op.type == "Placeholder":
                return False
            if op is self._use.op or op.type in _COMPUTED_OPS or flow.is_static(tensor):
                result.add(op.name)
                pending.extend(() if op.type == "ReadVariableOp" else op.inputs)
            elif (
                op.type in _KEEPING_ROWS
                and op.inputs[0].shape.rank
                and op.inputs[0].shape[-1] == tensor.shape[-1]
            ):
                result.add(op.name)
                skipped.add(op.name)
                pending.append(op.inputs[0])
            else:
                return False
        if self._use.op.name not in result:
            return False
        self._operations = [op for op in flow.operations if op.name in result]
        self._skipped, self._target = frozenset(skipped), target
        # Without the reshapes between, only what lies along the last axis still meets what it met.
        reshaped = any(
            op.name in skipped and op.type in ("Reshape", "Squeeze", "ExpandDims")
            for op in self._operations
        )
        return not reshaped or all(
            flow.trace.variables[h].shape.rank <= 1 for h in self._parameter_reads().values()
        )

    def _parameter_reads(self) -> dict[str, str]:
        """Map tensor name of a read -> name of the handle, for all variables besides the weight."""
        return {
            op.outputs[0].name: op.inputs[0].name
            for op in self._operations
            if op.type == "ReadVariableOp" and op.outputs[0].name not in self._reads
        }

    @functools.cached_property
    def key(self) -> tuple:
        use = self._use
        if use.lookup:
            return ("lookup", use.input.dtype.name)
        numbers = {
            use.input.name: -1,
            **dict.fromkeys(self._reads, -2),
            **{n: -3 - i for i, n in enumerate(self.parameters)},
        }
        parts = []
        for index, op in enumerate(op for op in self._operations if op.type != "ReadVariableOp"):
            attrs = sorted(
                (k, v.SerializeToString())
                for k, v in op.node_def.attr.items()
                if k not in _PLACE_BOUND_ATTRS
            )
            inputs = op.inputs[:1] if op.name in self._skipped else op.inputs
            parts.append(
                (
                    op.type,
                    tuple(attrs),
                    tuple(numbers[t.name] for t in inputs),
                    op.name in self._skipped,
                )
            )
            numbers.update({t.name: index * 100 + port for port, t in enumerate(op.outputs)})
        shapes = tuple(tuple(self._tensor(name).shape) for name in self.parameters)
        return ("contraction", *parts, shapes, self.features, use.row_axes, use.input.dtype.name)

    def _tensor(self, name: str) -> tf.Tensor:
        return self._use.op.graph.get_tensor_by_name(name)

    @property
    def parameter_specs(self) -> list[tf.TensorSpec]:
        """Tensor specs of the values of `parameters`."""
        return [tf.TensorSpec(t.shape, t.dtype) for t in map(self._tensor, self.parameters)]

    def signature(self, leading: int) -> list[tf.TensorSpec]:
        """Tensor specs of samples and outputs, [rows, ...], after a number of leading axes of open
        size.
        """
        dtype = self._use.input.dtype if self._use.lookup else tf.float32
        axes = [None] * (leading + 1)
        return [
            tf.TensorSpec([*axes, *self.features], dtype),
            tf.TensorSpec([*axes, None], tf.float32),
        ]

    @property
    def lookup(self) -> bool:
        """Whether the use is a table look-up."""
        return self._use.lookup

    @property
    def layout(self) -> tuple[int, ...]:
        """Axis order in which `rows` arranges an input."""
        return (*self._order, len(self._use.row_axes))

    def rows(self, value: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Real samples of an input value, [rows, *features]; float32, or the integers of a look-up.

        Args:
          value: of the input.
          valid: broadcasts to it, nonzero for real tokens, the same along all axes of one sample;
            None if all are real.
        """
        rows = np.transpose(value, self._order).reshape(-1, *self.features)
        if not self._use.lookup:
            rows = rows.astype(np.float32, copy=False)
        if valid is None:
            return rows
        axes = self._use.row_axes
        first = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(value.ndim))
        sizes = aligned_shape(value.shape, axes)
        return rows[np.transpose(np.broadcast_to(valid[first], sizes), self._order).reshape(-1) > 0]

    def __call__(
        self, rows: tf.Tensor, weight: tf.Tensor, parameters: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Output for some samples, float32 [rows, outputs]; in a graph.

        Args:
          rows: as `rows` makes them.
          weight: value of the layer's variable.
          parameters: values of `parameters`.
        """
        if self._use.lookup:
            return tf.cast(tf.gather(weight, rows), tf.float32)
        read_type = self._tensor(self._reads[0]).dtype
        known = {name: tf.cast(weight, read_type) for name in self._reads}
        known.update(zip(self.parameters, parameters, strict=True))
        known[self._use.input.name] = self._placed(rows)
        for op in self._operations:
            if op.name in self._skipped:
                known[op.outputs[0].name] = known[op.inputs[0].name]
            elif op.outputs[0].name not in known:
                replay.replay([op], known, op.outputs)
        output = known[self._target.name]
        axis = output.shape.as_list().index(None)  # the samples: all else has a fixed size
        if any(size != 1 for size in output.shape[:axis]):
            output = tf.transpose(
                output, [axis, *(i for i in range(output.shape.rank) if i != axis)]
            )
        return tf.cast(tf.reshape(output, [tf.shape(rows)[0], -1]), tf.float32)

    def _placed(self, rows: tf.Tensor) -> tf.Tensor:
        """Arrange samples as an input of the operation.

        All along the last axis of rows, which makes one product of them.
        """
        last, rank = max(self._use.row_axes), len(self._order)
        sizes = dict(zip(self._order[len(self._use.row_axes) :], self.features, strict=True))
        before = sum(axis < last for axis in sizes)
        if before:
            rows = tf.transpose(
                rows, [*range(1, before + 1), 0, *range(before + 1, len(sizes) + 1)]
            )
        shape = [-1 if axis == last else sizes.get(axis, 1) for axis in range(rank)]
        return tf.cast(tf.reshape(rows, shape), self._use.input.dtype)

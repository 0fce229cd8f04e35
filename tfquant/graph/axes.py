"""Labels of tensor axes (batch, tokens): found by emitting the graph with unique axis sizes.

Every axis of an input whose size can vary has a label and a unique size. The resulting shapes show
the labels of every other axis. Two labels are merged if the graph requires their sizes to be equal:
the lengths of token ids and of their mask are merged, those of an encoder and a decoder are not, so
that each tensor shows which of them it belongs to. Where a graph accepts no other size than the one
it was traced with, which features may share, labels are propagated through its operations (see
`tfquant.graph.axis_flow`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph

from tfquant.graph.axis_flow import PART, Factors, flow
from tfquant.graph.axis_sizes import BATCH, AxisSizes

if TYPE_CHECKING:
    from tfquant.graph.trace import Trace

# For each axis of a tensor the labels whose product is its size: () for features, (BATCH,) and (3,)
# for the batch and the tokens of one input, (BATCH, 3) for both flattened into one axis, (BATCH,
# -4) for the batch and four heads, (PART,) for some of the tokens, or these and something else.
Labels = tuple[tuple[int, ...], ...]
Shape = tuple[int | None, ...] | None
_READING = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape")


@dataclasses.dataclass(frozen=True, eq=False)
class _Emission:
    """Emitted graph in which labels have given sizes.

    Placeholders of the inputs, and tensors by the names of the old ones.
    """

    inputs: list[tf.Tensor]
    tensors: dict[str, tf.Tensor]


class Axes:
    """Labels of the axes of tensors.

    Args:
      trace: the graph.
      tensors: those whose labels are asked for.

    Attributes:
      inputs: of each input of the trace the label of each axis, None where it has none.
      labels: by name of a tensor.

    Raises:
      ValueError: the graph takes no such sizes.
    """

    def __init__(self, trace: Trace, tensors: Iterable[tf.Tensor]):
        self._trace, self._tensors = trace, {t.name: t for t in tensors}
        taken = {
            d for op in trace.operations for t in op.outputs if t.shape.rank for d in t.shape if d
        }
        self._sizes = AxisSizes(trace.inputs, taken)
        self._first = self._settled()
        if (
            _open(_shapes(self._first.tensors)) and self._sizes.pin()
        ):  # no shape shows that a loop has a fixed number of steps
            self._first = self._settled()
        self._shapes = self._executed(self._first.tensors)
        self.inputs = [
            tuple(None if a is None else self._sizes.root(a) for a in axes)
            for axes in self._sizes.labels
        ]
        self.labels: dict[str, Labels] = self._by_sizes(self._shapes)
        if self._sizes.several_lengths():
            self._keep_confirmed()
        if self._sizes.any_pinned():
            self.follow(self._tensors)

    @property
    def input_shapes(self) -> list[tf.TensorShape]:
        """Shape of each input, with sizes that the graph accepts together."""
        return self._sizes.shapes()

    def follow(self, names: Iterable[str]) -> None:
        """Recompute the labels of tensors from the operations that make them; keep those that these
        cannot determine.
        """
        for name in names:
            factors = self._flow.get(self._first.tensors[name].name)
            if factors is not None:
                self.labels[name] = tuple(_labels(axis) for axis in factors)

    def unexplained(self, names: Iterable[str]) -> set[str]:
        """Tensors with an unlabeled axis whose size is unknown or varies with the inputs."""
        names = [name for name in names if self._has_open_axis(name)]
        second = self._second if names else None
        if second is None:
            return set(names)
        return {
            name for name in names if _varies(self.labels[name], self._shapes[name], second[name])
        }

    def _has_open_axis(self, name: str) -> bool:
        sizes = self._tensors[name].shape
        return sizes.rank is None or any(
            size is None and not labels
            for size, labels in zip(sizes, self.labels[name], strict=False)
        )

    def _keep_confirmed(self) -> None:
        """Remove labels that an axis has with one set of sizes and not with another.

        Half a length may be that of another input.
        """
        if self._second is not None:
            again = self._by_sizes(self._second)
            for name, labels in self.labels.items():
                if len(again[name]) == len(labels):
                    self.labels[name] = tuple(
                        a if a == b else () for a, b in zip(labels, again[name], strict=True)
                    )

    @functools.cached_property
    def _second(self) -> dict[str, Shape] | None:
        """Shapes of the tensors with different label sizes; None if the graph accepts no others."""
        self._sizes.renew()
        while True:
            try:
                return self._executed(self._emitted().tensors)
            except ValueError as error:
                if not self._sizes.lower(str(error)):
                    return None

    def _settled(self) -> _Emission:
        while True:  # every change leaves fewer labels, or smaller sizes
            try:
                return self._emitted()
            except ValueError as error:
                if not self._sizes.settle(str(error)):
                    raise

    def _emitted(self) -> _Emission:
        with tf_func_graph.FuncGraph("tfquant_shapes").as_default():
            inputs = [
                tf.compat.v1.placeholder(old.dtype, shape)
                for old, shape in zip(self._trace.inputs, self._sizes.shapes(), strict=True)
            ]
            result = self._trace.emit(inputs, targets=list(self._tensors.values()))
        return _Emission(inputs, dict(zip(self._tensors, result, strict=True)))

    def _executed(self, emitted: Mapping[str, tf.Tensor]) -> dict[str, Shape]:
        """Shapes of tensors; where shape inference fails (loops), those of an execution."""
        shapes = _shapes(emitted)
        open_ones = _open(shapes)
        specs = [
            tf.TensorSpec(shape, old.dtype)
            for old, shape in zip(self._trace.inputs, self._sizes.shapes(), strict=True)
        ]
        if not open_ones or not all(
            spec.shape.is_fully_defined() and spec.dtype != tf.string for spec in specs
        ):
            return shapes
        targets = [self._tensors[name] for name in open_ones]
        try:
            with tf.init_scope(), _unchanged(self._trace, targets):
                function = tf.function(
                    lambda *flat: [
                        tf.shape(t) for t in self._trace.emit(list(flat), targets=targets)
                    ],
                    autograph=False,
                    jit_compile=False,
                    input_signature=specs,
                )
                zeros = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
                result = [
                    tuple(int(d) for d in size.numpy())
                    for size in function.get_concrete_function()(*zeros)
                ]
        except Exception:  # zeros of these sizes are no input that it can run on
            return shapes
        return shapes | dict(zip(open_ones, result, strict=True))

    @functools.cached_property
    def _flow(self) -> Mapping[str, Factors]:
        graph = next(iter(self._first.tensors.values())).graph
        return flow(
            graph,
            {t.name: labels for t, labels in zip(self._first.inputs, self.inputs, strict=True)},
        )

    def _by_sizes(self, shapes: Mapping[str, Shape]) -> dict[str, Labels]:
        known = self._sizes.products()
        return {name: self._of_sizes(shape, known) for name, shape in shapes.items()}

    def _of_sizes(self, shape: Shape, known: dict[Any, tuple[int, ...]]) -> Labels:
        result = [known.get(size, ()) for size in shape or ()]
        if (
            1 < len(result) < 4
            and len(result[-1]) == 1
            and result[-1] != (BATCH,)
            and self._sizes.pinned(result[-1][0])
        ):
            # As many features as tokens. Behind an axis of tokens come features, else nothing
            # tells.
            result[-1] = () if any(result[-1][0] in group for group in result[:-1]) else (PART,)
        if result.count((BATCH,)) > 1:
            first = result.index((BATCH,))
            result = [
                () if axis > first and labels == (BATCH,) else labels
                for axis, labels in enumerate(result)
            ]
        return tuple(result)


@contextlib.contextmanager
def _unchanged(trace: Trace, targets: list[tf.Tensor]) -> Iterator[None]:
    """Restore variables that the computation of `targets` assigns, such as states of generators."""
    assigned = {
        op.inputs[0].name
        for op in trace.ancestors(targets)
        if op.inputs and op.inputs[0].dtype == tf.resource and op.type not in _READING
    }
    before = [
        (variable, variable.numpy())
        for name, variable in trace.variables.items()
        if name in assigned
    ]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _shapes(tensors: Mapping[str, tf.Tensor]) -> dict[str, Shape]:
    return {name: None if t.shape.rank is None else tuple(t.shape) for name, t in tensors.items()}


def _open(shapes: Mapping[str, Shape]) -> list[str]:
    return [name for name, shape in shapes.items() if shape is None or None in shape]


def _varies(labels: Labels, before: Shape, after: Shape) -> bool:
    """Whether an unlabeled axis has an unknown size, or another one with other inputs."""
    if before is None or after is None:
        return True
    return any(
        not own and (size is None or size != first)
        for own, first, size in zip(labels, before, after, strict=True)
    )


def _labels(axis: Iterable[tuple[int | None, int]]) -> tuple[int, ...]:
    labels = tuple(
        -size if label is None else label for label, size in axis if label is not None or size != 1
    )
    return labels if any(label >= 0 for label in labels) else ()

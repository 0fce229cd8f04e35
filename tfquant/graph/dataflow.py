"""Data-flow queries on a flat graph, independent of the kind of model.

Consumers, constants, ancestors and descendants of tensors.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from tfquant.graph.trace import Trace

# Operations that hand on the values of their first input, at most moved, cast or copied.
VIEW_OPS = frozenset(
    "Identity Snapshot StopGradient PreventGradient CheckNumerics Cast Reshape Transpose ExpandDims"
    " Squeeze EnsureShape".split()
)
# Operations that read shapes, not values: alone, or besides what depends on the shape only.
SHAPE_OPS = frozenset("Shape ShapeN Size Rank".split())
SHAPES_ALONE = SHAPE_OPS | {"ZerosLike", "OnesLike"}
# Operations that change values element by element (broadcasting allowed).
ELEMENTWISE_OPS = frozenset(
    """Add AddV2 AddN Sub Mul RealDiv Div DivNoNan Neg BiasAdd Maximum Minimum
    Select SelectV2 Where ClipByValue Pow Square Sqrt
    Rsqrt Exp Erf Erfc Tanh Sigmoid Relu Relu6 LeakyRelu Elu Selu Softplus Softsign Log Log1p Abs
    Sign
    IdentityN Reciprocal
    SquaredDifference""".split()
)


class Dataflow:
    """Trace with look-up tables that the pattern finders share, each computed once."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.operations = trace.operations
        self.index = {op.name: i for i, op in enumerate(self.operations)}

    @functools.cached_property
    def consumers(self) -> dict[str, list[tuple[tf.Operation, int]]]:
        """Map tensor name -> (operation, input index) pairs that read its values or its shape."""
        result: dict[str, list[tuple[tf.Operation, int]]] = {}
        for op in self.operations:
            for i, tensor in enumerate(op.inputs):
                result.setdefault(tensor.name, []).append((op, i))
        return result

    @functools.cached_property
    def output_names(self) -> frozenset[str]:
        return frozenset(t.name for t in self.trace.outputs)

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Names of operations whose values an output or a side effect needs.

        The others were left over by tracing, or tell others their shape alone: Keras calls the cell
        of a recurrent layer once outside its loop to learn what to allocate.
        """
        used: set[str] = {t.op.name for t in self.trace.outputs}
        definition = self.trace.graph.op_def_for_type  # `op.op_def` parses it again for each one
        for op in reversed(self.operations):
            if op.name in used or definition(op.type).is_stateful:
                used.add(op.name)
                if op.type not in SHAPES_ALONE:
                    used.update(t.op.name for t in op.inputs)
                used.update(control.name for control in op.control_inputs)
        return frozenset(used)

    def value_consumers(self, tensor: tf.Tensor) -> list[tuple[tf.Operation, int]]:
        """Consumers that read values rather than only the shape."""
        return [
            (op, i) for op, i in self.consumers.get(tensor.name, ()) if op.type not in SHAPES_ALONE
        ]

    @functools.cached_property
    def _dynamic(self) -> frozenset[str]:
        """Names of tensors whose values depend on an input of the model or on a random number."""
        dynamic = {t.name for t in self.trace.inputs}
        for op in self.operations:
            if op.type in SHAPE_OPS:
                continue
            random = "Random" in op.type and "KeyCounter" not in op.type
            if random or any(t.name in dynamic for t in op.inputs):
                dynamic.update(t.name for t in op.outputs)
        return frozenset(dynamic)

    def is_dynamic(self, tensor: tf.Tensor) -> bool:
        return tensor.name in self._dynamic

    def is_parameter(self, tensor: tf.Tensor) -> bool:
        """Return whether float values depend on variables and constants alone."""
        return tensor.dtype.is_floating and not self.is_dynamic(tensor)

    def is_fixed(self, tensor: tf.Tensor) -> bool:
        """Return whether a parameter does not even depend on the shape of an input.

        It has the same values in every batch.
        """
        return tensor.dtype.is_floating and self.is_static(tensor)

    def is_static(self, tensor: tf.Tensor) -> bool:
        """Return whether values of any type depend on variables and constants alone."""
        return not self.is_dynamic(tensor) and tensor.name not in self._from_shapes

    @functools.cached_property
    def _from_shapes(self) -> frozenset[str]:
        """Names of tensors computed from shapes of input-dependent tensors."""
        result: set[str] = set()
        for op in self.operations:
            if any(
                t.name in result or (op.type in SHAPE_OPS and t.name in self._dynamic)
                for t in op.inputs
            ):
                result.update(t.name for t in op.outputs)
        return frozenset(result)

    def variable_behind(self, tensor: tf.Tensor) -> str | None:
        """Name of the handle placeholder of the largest variable that a parameter is computed from;
        None for constants.
        """
        return self._variables_behind.get(tensor.name)

    @functools.cached_property
    def _variables_behind(self) -> dict[str, str]:
        sizes = {
            n: v.shape.num_elements() or 0
            for n, v in self.trace.variables.items()
            if v.dtype.is_floating
        }
        behind = {name: name for name in sizes}
        for op in self.operations:
            if op.type in SHAPE_OPS:
                continue
            sources = [behind[t.name] for t in op.inputs if t.name in behind]
            if sources:
                largest = max(sources, key=sizes.__getitem__)
                behind.update((t.name, largest) for t in op.outputs)
        return behind

    def root(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tensor behind reshapes, transposes, casts and copies that holds the same values."""
        while tensor.op.type in VIEW_OPS:
            tensor = tensor.op.inputs[0]
        return tensor

    def unscaled(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tensor before views, dropout and a multiplication that gamma migration inserted."""
        while True:
            tensor = self.through_dropout(tensor)
            if not self.is_rescaling(tensor.op):
                return tensor
            tensor = tensor.op.inputs[0]

    def is_rescaling(self, op: tf.Operation) -> bool:
        """Return whether gamma migration inserted an operation: the product of the output of a
        layer norm with the scale of that norm.
        """
        migration = self.trace.migration
        return migration is not None and op.name in migration.rescaling

    def through_dropout(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tensor before views and dropout.

        Before a selection against, or product with, what does not carry values.
        """
        while True:
            tensor = self.root(tensor)
            kept = self.undropped(tensor.op)
            if kept is None:
                return tensor
            tensor = tensor.op.inputs[kept]

    def undropped(self, op: tf.Operation) -> int | None:
        """Index of the input before dropout, if `op` is dropout or a part of it.

        Mask, or scale of what is kept.
        """
        if op.type in ("SelectV2", "Select") and self._is_random(op.inputs[0]):
            return 1
        return self._unmasked(op) if op.type == "Mul" else None

    def _unmasked(self, mul: tf.Operation) -> int | None:
        """Operand of a product with a dropout mask or a dropout scale (a scalar constant above
        one).
        """
        for kept, other in ((0, mul.inputs[1]), (1, mul.inputs[0])):
            if self._is_random(other):
                return kept
            if other.op.type == "Const" and other.shape.rank == 0:
                following = self.value_consumers(mul.outputs[0])
                if following and all(
                    op.type in ("SelectV2", "Mul") and self._has_random_input(op)
                    for op, _ in following
                ):
                    return kept
        return None

    @functools.cached_property
    def _random(self) -> frozenset[str]:
        """Names of tensors computed from random numbers, constants and shapes alone."""
        random: set[str] = set()
        for op in self.operations:
            if "Random" in op.type and "KeyCounter" not in op.type:
                random.update(t.name for t in op.outputs)
            elif any(t.name in random for t in op.inputs) and all(
                t.name in random or not self.is_dynamic(t) for t in op.inputs
            ):
                random.update(t.name for t in op.outputs)
        return frozenset(random)

    def _is_random(self, tensor: tf.Tensor) -> bool:
        return tensor.name in self._random

    def _has_random_input(self, op: tf.Operation) -> bool:
        return any(self._is_random(t) for t in op.inputs)

    @functools.cached_property
    def _producers(self) -> list[tuple[int, ...]]:
        """Indices of the operations that make the dynamic inputs of each operation."""
        return [
            tuple({self.index[t.op.name] for t in op.inputs if t.name in self._dynamic})
            for op in self.operations
        ]

    def walk_back(
        self, start: tf.Tensor, through: Callable[[tf.Operation], bool], not_before: int = 0
    ) -> Iterator[tf.Operation]:
        """Yield ancestors of `start`, latest first, entering the inputs only of operations that
        `through` accepts.

        Args:
          through: operations whose inputs are followed; the others are listed and stop the walk.
          not_before: operations with a lower graph index are left out.
        """
        # A heap, as inputs come earlier in the graph than what they are inputs of: whoever looks
        # for the latest match stops there.
        pending = [-self.index[start.op.name]]
        seen = set(pending)
        while pending and (index := -heapq.heappop(pending)) >= not_before:
            op = self.operations[index]
            yield op
            if through(op):
                for producer in self._producers[index]:
                    if -producer not in seen:
                        seen.add(-producer)
                        heapq.heappush(pending, -producer)

    def walk_forward(
        self, start: Iterable[tf.Tensor], through: Callable[[tf.Operation], bool]
    ) -> Iterator[tf.Operation]:
        """Yield value consumers of `start` and their descendants, earliest first, continuing behind
        operations that `through` accepts.
        """
        pending: list[int] = []
        seen: set[int] = set()

        def add(tensors: Iterable[tf.Tensor]) -> None:
            for index in {
                self.index[op.name] for t in tensors for op, _ in self.value_consumers(t)
            }:
                if index not in seen:
                    seen.add(index)
                    heapq.heappush(pending, index)

        add(start)
        while pending:
            op = self.operations[heapq.heappop(pending)]
            yield op
            if through(op):
                add(op.outputs)


def parent(path: str) -> str:
    """Parent path: `a/b/c` -> `a/b`; a path without a parent is returned unchanged."""
    return path.rpartition("/")[0] or path


def common_parent(paths: Iterable[str]) -> str:
    """Longest common ancestor of `paths` (`a/self/query`, `a/self/key` -> `a/self`)."""
    parts = [p.split("/") for p in paths]
    if not parts:
        return ""
    prefix = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        prefix.append(level[0])
    if len(prefix) == min(len(p) for p in parts):
        prefix = prefix[:-1]
    return "/".join(prefix)


def distinct(paths: Iterable[str]) -> list[str]:
    """Make `paths` unique, in order: a duplicate becomes `path#2`, or the next free number."""
    paths = list(paths)
    taken, seen, result = set(paths), set(), []
    for path in paths:
        if path in seen:
            path = next(
                name
                for name in (f"{path}#{count}" for count in itertools.count(2))
                if name not in taken
            )
            taken.add(path)
        seen.add(path)
        result.append(path)
    return result

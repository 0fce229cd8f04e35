"""Gamma migration: move the learned scale of a layer norm out of the norm, into what reads it.

Outlier Suppression (Wei et al. 2022, arXiv:2209.13325, section 4.1). A layer norm computes
x_hat * gamma + beta; the channels that gamma amplifies become outliers of everything behind it.
Behind the migration the norm computes x_hat + beta / gamma, the weights of the linear layers that
read it are multiplied by gamma along their input channels, and every other reader, such as a
residual connection, gets one multiplication by gamma. Float outputs are the same up to rounding.

The graph is changed, not the variables: gamma, beta and kernels keep their values and their
meaning, so that the original model, checkpoints and weight decay are not affected, and gradients
reach gamma through every place where it moved to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph

from tfquant.graph.contractions import Contraction, product_equation
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.layernorm import LayerNorm
from tfquant.graph.migration import Migration
from tfquant.graph.model_adapter import ModelAdapter
from tfquant.graph.plan import RecipeError
from tfquant.graph.replay import Edits, replay
from tfquant.graph.trace import Trace, trace
from tfquant.rules import Recipe

# Channels whose |gamma| is below this share of the largest keep their scale in the norm: beta /
# gamma has no bound there.
SMALLEST_SHARE = 2.0**-10
# Views that keep the order of elements: with the same last axis, channels stay what they are.
_ORDERED_VIEWS = frozenset("Identity Snapshot Reshape ExpandDims Squeeze EnsureShape".split())
_STATISTICS_OPS = frozenset("Rsqrt Sqrt FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3".split())


class NotMigratable(Exception):
    """The scale of a layer norm cannot be migrated, and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Move:
    """Migration of one norm.

    Attributes:
      norm: the layer norm.
      scale: handle placeholder of gamma.
      parameters: edges of gamma and beta into the norm, to be divided.
      weights: (operation, input index, axis of the input channels) of the weights that are
        multiplied.
      others: edges of all other readers.
      carriers: names of tensors that hold the norm's output, dropout included.
    """

    norm: LayerNorm
    scale: str
    parameters: tuple[tuple[str, int], ...]
    weights: tuple[tuple[tf.Operation, int, int], ...]
    others: tuple[tuple[str, int], ...]
    carriers: frozenset[str]


def traced(source: ModelAdapter, recipe: Recipe, training: bool = False) -> Trace:
    """Trace a model, with the migration if a recipe asks for it.

    Args:
      source: of the model.
      recipe: its `gamma_migration` decides.
      training: as for `tfquant.graph.trace.trace`.

    Raises:
      TraceError: as for `tfquant.graph.trace.trace`.
      RecipeError: the model has no layer norm whose scale can be migrated.
    """
    result = trace(source, training)
    if not recipe.gamma_migration:
        return result
    result = migrated(result)
    if result.migration is not None and not result.migration.norms:
        reasons = [f"{path}: {reason}" for path, reason in result.migration.skipped]
        raise RecipeError(
            f"recipe {recipe.name!r}: gamma_migration finds no layer norm whose scale can be moved"
            f" ({reasons[0] if reasons else 'there is no layer norm'}); leave it out"
        )
    return result


def migrated(original: Trace) -> Trace:
    """Return a trace of the same model with the scale of every suitable layer norm migrated.

    Args:
      original: of the float network.

    Returns:
      A new trace over the same variables; its `migration` lists the norms, and those that were left
      with the reason. The same graph where none is suitable.
    """
    moves, skipped = [], []
    finder = _Finder(original)
    for norm in original.analysis.structure.layernorms:
        try:
            moves.append(finder.move(norm))
        except NotMigratable as error:
            skipped.append((norm.path, str(error)))
    paths = tuple(move.norm.path for move in moves)
    migration = Migration(paths, tuple(skipped), frozenset())
    if not moves:
        return dataclasses.replace(original, migration=migration)
    return _rewritten(original, moves, migration)


class _Finder:
    """Finder of the readers and parameters of layer norms."""

    def __init__(self, trace: Trace):
        structure = trace.analysis.structure
        self._flow: Dataflow = structure.flow
        self._linears = {c.op.name: c for c in structure.contractions if c.kind == "linear"}

    def move(self, norm: LayerNorm) -> _Move:
        """Migration of a norm.

        Raises:
          NotMigratable: it has no scale for each channel, or no linear layer takes its output.
        """
        if norm.output.dtype != tf.float32:
            raise NotMigratable(f"it computes in {norm.output.dtype.name}, not in float32")
        size = norm.output.shape[-1] if norm.output.shape.rank else None
        if size is None:
            raise NotMigratable("the number of its channels is not known")
        scale, parameters = self._parameters(norm)
        weights, others, carriers = self._readers(norm, size)
        if not weights:
            raise NotMigratable("no linear layer takes its output along the normalized axis")
        return _Move(norm, scale, parameters, weights, others, carriers)

    def _parameters(self, norm: LayerNorm) -> tuple[str, tuple[tuple[str, int], ...]]:
        """Handle of gamma, and the edges of gamma and beta."""
        start, size = norm.input.op.name, norm.output.shape[-1]
        between = [
            op
            for op in self._flow.walk_back(
                norm.output, lambda op: op.name != start, not_before=self._flow.index[start]
            )
            if op.name != start
        ]
        if not any(op.type in _STATISTICS_OPS for op in between):
            raise NotMigratable("it computes no statistics")
        scales, edges = set(), []
        for op in between:
            for index, tensor in enumerate(op.inputs):
                handle = self._flow.variable_behind(tensor)
                if handle is None or not self._flow.is_fixed(tensor):
                    continue
                if tensor.shape.num_elements() != size or tensor.shape[-1] != size:
                    raise NotMigratable(f"{tensor.op.name} has no number for each of its channels")
                edges.append((op.name, index))
                if op.type == "Mul":
                    if self._flow.root(tensor).op.type != "ReadVariableOp":
                        raise NotMigratable(f"its scale {tensor.op.name} is computed")
                    scales.add(handle)
        if len(scales) != 1:
            raise NotMigratable("it has no learned scale" if not scales else "it has two scales")
        return scales.pop(), tuple(edges)

    def _readers(self, norm: LayerNorm, size: int) -> tuple[tuple, tuple, frozenset[str]]:
        """Weights that take the scale, other edges, and the tensors that hold the output."""
        weights: dict[tuple[str, int], tuple[tf.Operation, int, int]] = {}
        others, pending, carriers = [], [norm.output], {norm.output.name}
        while pending:
            for op, index in self._used_consumers(pending.pop()):
                if self._flow.undropped(op) == index:
                    carriers.add(op.outputs[0].name)
                    pending.append(op.outputs[0])
                elif (taken := self._taken(op, index, size)) is not None:
                    weights.update(((weight[0].name, weight[1]), weight) for weight in taken)
                else:
                    others.append((op.name, index))
        return tuple(weights.values()), tuple(others), frozenset(carriers)

    def _used_consumers(self, tensor: tf.Tensor) -> Iterator[tuple[tf.Operation, int]]:
        for op, index in self._flow.value_consumers(tensor):
            if op.name in self._flow.used:
                yield op, index

    def _taken(
        self, op: tf.Operation, index: int, size: int
    ) -> list[tuple[tf.Operation, int, int]] | None:
        """Weights that meet the channels behind an edge; None if anything else does as well."""
        linear = self._linears.get(op.name)
        if linear is not None and index == linear.input_index:
            axis = _input_axis(linear, size)
            return None if axis is None else [(op, linear.operands[1], axis)]
        if index != 0 or not _keeps_channels(op, size):
            return None
        output = op.outputs[0]
        if not output.shape.rank or output.shape[-1] not in (size, None):
            return None
        if output.name in self._flow.output_names:
            return None
        result: list[tuple[tf.Operation, int, int]] = []
        for reader in self._used_consumers(output):
            taken = self._taken(*reader, size)
            if taken is None:
                return None
            result += taken
        return result or None


def _keeps_channels(op: tf.Operation, size: int) -> bool:
    """Return whether a view leaves channels along the last axis, if that has their number behind.

    A size that the graph does not know, such as behind the Reshape of a tensordot, is that of the
    weight in the end.
    """
    if op.type == "Transpose":
        if not op.inputs[0].shape.rank or op.inputs[0].shape[-1] != size:
            return False
        order = tf.get_static_value(op.inputs[1])
        return order is not None and order[-1] == len(order) - 1
    return op.type in _ORDERED_VIEWS


def _input_axis(linear: Contraction, size: int) -> int | None:
    """Axis of the weight that meets the last axis of the activation alone; None without."""
    terms, result = product_equation(linear.op) or (["", ""], "")
    source, weight = linear.operands
    if not terms[source] or linear.op.inputs[source].shape.rank != len(terms[source]):
        return None
    letter = terms[source][-1]
    if letter == "?" or letter in result or terms[weight].count(letter) != 1:
        return None
    axis = terms[weight].index(letter)
    return axis if linear.op.inputs[weight].shape[axis] == size else None


class _Scales:
    """Factors of the norms in the new graph, computed once for each norm."""

    def __init__(self, trace: Trace, known: dict[str, tf.Tensor]):
        self._trace, self._known = trace, known
        self._vectors: dict[str, tf.Tensor] = {}
        self._rescaled: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
        self.operations: set[str] = set()

    def vector(self, handle: str) -> tf.Tensor:
        """Factors [channels]: gamma; 1 where it is next to 0 beside the largest."""
        if handle not in self._vectors:
            dtype = self._trace.variables[handle].dtype
            with tf.name_scope("gamma_migration"):
                gamma = tf.raw_ops.ReadVariableOp(resource=self._known[handle], dtype=dtype)
                gamma = tf.reshape(gamma, [-1])
                size = tf.abs(gamma)
                kept = size <= SMALLEST_SHARE * tf.reduce_max(size)
                self._vectors[handle] = tf.where(kept, tf.ones_like(gamma), gamma)
        return self._vectors[handle]

    def divided(self, handle: str, tensor: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("gamma_migration"):
            return tensor / tf.reshape(self.vector(handle), tf.shape(tensor))

    def weight(self, handle: str, axis: int, tensor: tf.Tensor) -> tf.Tensor:
        shape = [1] * tensor.shape.rank
        shape[axis] = -1
        with tf.name_scope("gamma_migration"):
            return tensor * tf.reshape(self.vector(handle), shape)

    def rescaled(self, handle: str, tensor: tf.Tensor) -> tf.Tensor:
        """Output of a norm times its factors: one product for all its readers."""
        if id(tensor) not in self._rescaled:
            with tf.name_scope("gamma_migration"):
                result = tensor * self.vector(handle)
            self.operations.add(result.op.name)
            self._rescaled[id(tensor)] = (tensor, result)
        return self._rescaled[id(tensor)][1]


def _rewritten(original: Trace, moves: list[_Move], migration: Migration) -> Trace:
    """Replay a trace into a graph of its own, with the moves made."""
    graph = tf_func_graph.FuncGraph("tfquant_migrated")
    known: dict[str, Any] = {}
    with graph.as_default():
        for old in original.inputs:
            known[old.name] = tf.compat.v1.placeholder(old.dtype, old.shape, name=old.op.name)
        for outside, old in original.captures:
            known[old.name] = graph.capture(outside, name=old.op.name)
        scales = _Scales(original, known)
        replay(
            original.operations, known, original.outputs, edits=Edits(edges=_edges(moves, scales))
        )
        handles = {name: move.scale for move in moves for name in move.carriers}
        outputs = tuple(
            scales.rescaled(handles[old.name], known[old.name])
            if old.name in handles
            else known[old.name]
            for old in original.outputs
        )
    return dataclasses.replace(
        original,
        graph=graph,
        inputs=tuple(known[old.name] for old in original.inputs),
        outputs=outputs,
        captures=tuple((outside, known[old.name]) for outside, old in original.captures),
        variables={known[name].name: v for name, v in original.variables.items()},
        paths={known[name].name: path for name, path in original.paths.items()},
        masks=tuple(None if mask is None else known[mask.name] for mask in original.masks),
        losses=tuple(known[loss.name] for loss in original.losses),
        tensor_masks={
            known[name].name: known[mask.name] for name, mask in original.tensor_masks.items()
        },
        migration=dataclasses.replace(migration, rescaling=frozenset(scales.operations)),
    )


def _edges(moves: list[_Move], scales: _Scales) -> dict:
    """Edits of all edges that a migration changes."""
    edges = {}
    for move in moves:
        handle = move.scale
        for key in move.parameters:
            edges[key] = functools.partial(scales.divided, handle)
        for op, index, axis in move.weights:
            edges[op.name, index] = functools.partial(scales.weight, handle, axis)
        for key in move.others:
            edges[key] = functools.partial(scales.rescaled, handle)
    return edges

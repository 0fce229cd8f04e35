"""Trace: one symbolic run of a user's model as a flat graph over its own variables."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph

from tfquant.error_messages import reason_of
from tfquant.graph import replay
from tfquant.graph.analysis import Analysis
from tfquant.graph.keras_masks import AttachedMasks, attached_masks
from tfquant.graph.migration import Migration
from tfquant.graph.model_adapter import ModelAdapter, TraceError, describe
from tfquant.graph.shapes import fixed_axes
from tfquant.graph.side_outputs import output_masks, outside_of_calls


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Model as one flat graph, without function calls except loop and branch bodies.

    Attributes:
      graph: holds the operations.
      inputs: placeholders of the user's inputs, in the order of `tf.nest.flatten`.
      outputs: result tensors, likewise.
      input_structure, output_structure: nested structures whose leaves are `tf.TensorSpec`; of a
        function's inputs a mapping from its parameters.
      input_names: readable names of the inputs.
      captures: (tensor outside, placeholder inside): variables' handles and constants.
      variables: name of the placeholder of a handle -> the variable.
      paths: name of the placeholder of a handle -> unique path of the variable
        (`bert/encoder/layer_0/.../kernel`).
      masks: the Keras mask of every output, None where it has none.
      losses: scalars that layers added while they were called (`add_loss`, activity regularizers).
      tensor_masks: name of a tensor inside the model, an input or an output of a layer -> its Keras
        mask.
      migration: layer norms whose scale was migrated; None where the graph is that of the model.
    """

    graph: tf.Graph
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    input_structure: Any
    output_structure: Any
    input_names: tuple[str, ...]
    captures: tuple[tuple[tf.Tensor, tf.Tensor], ...]
    variables: dict[str, tf.Variable]
    paths: dict[str, str]
    masks: tuple[tf.Tensor | None, ...] = ()
    losses: tuple[tf.Tensor, ...] = ()
    tensor_masks: Mapping[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    migration: Migration | None = None

    @functools.cached_property
    def operations(self) -> list[tf.Operation]:
        return self.graph.get_operations()

    @functools.cached_property
    def analysis(self) -> Analysis:
        """Data flow, structure, roles and axes of the graph, each computed on first use."""
        return Analysis(self)

    @property
    def input_specs(self) -> list[tf.TensorSpec]:
        return tf.nest.flatten(self.input_structure)

    @property
    def side_outputs(self) -> list[tf.Tensor]:
        """Existing masks, followed by the losses."""
        return [*(mask for mask in self.masks if mask is not None), *self.losses]

    def pack_outputs(self, flat: Sequence[Any]) -> Any:
        """Pack values in the order of `outputs` into the structure of the user's outputs."""
        leaves = iter(flat)
        return tf.nest.map_structure(
            lambda leaf: next(leaves) if isinstance(leaf, tf.TensorSpec) else leaf,
            self.output_structure,
        )

    def emit(
        self,
        inputs: list[tf.Tensor],
        edits: replay.Edits = replay.NO_EDITS,
        targets: list[tf.Tensor] | None = None,
        taps: Sequence[tf.Tensor] = (),
        given: Mapping[str, tf.Tensor] | None = None,
        substitutes: Mapping[str, tf.Variable] | None = None,
    ) -> list[tf.Tensor]:
        """Replay the graph in the current graph, which must be that of a `tf.function`.

        Args:
          inputs: new tensors for the placeholders; empty is allowed where no target depends on
            them.
          edits: edges to change.
          targets: old tensors to compute; only what they need is emitted then. By default all
            operations, side effects (dropout seeds, moving statistics) included, and the outputs
            are returned.
          taps: more old tensors to return, behind the outputs; not with `targets`.
          given: name of an old tensor -> what stands for it, edits of it included; with `targets`,
            nothing before it is emitted.
          substitutes: name of the placeholder of a handle -> the variable that is read in place of
            its own.
        """
        graph = tf.compat.v1.get_default_graph()
        known = {old.name: new for old, new in zip(self.inputs, inputs, strict=False)}
        given, substitutes = given or {}, substitutes or {}
        known.update(given)
        operations = self.operations if targets is None else self.ancestors(targets, given)
        needed = {op.name for op in operations}
        for outside, inside in self.captures:
            if inside.op.name in needed and inside.name not in given:
                outside = substitutes[inside.name].handle if inside.name in substitutes else outside
                readers = inside.consumers()
                replaced = readers and all(op.name in edits.operations for op in readers)
                known[inside.name] = (
                    inside if replaced else graph.capture(outside)
                )  # the old one is never asked for
        for name, variable in self.variables.items():
            if variable.trainable and name in known and known[name].graph is graph:
                graph.watch_variable(substitutes.get(name, variable))
        return replay.replay(
            operations, known, [*self.outputs, *taps] if targets is None else targets, edits=edits
        )

    def ancestors(self, targets: list[tf.Tensor], given: Iterable[str] = ()) -> list[tf.Operation]:
        """Operations that `targets` need where the tensors called `given` are known, in graph
        order.
        """
        result = replay.ancestors(targets, frozenset(given))
        return [op for op in self.operations if op.name in result]


def trace(source: ModelAdapter, training: bool = False) -> Trace:
    """Trace `source` once and flatten the result.

    Shapes are those that `source` declares; where it does not trace with them, those of its
    fallbacks, with a warning that names the axes that are fixed.

    Raises:
      TraceError: the model raised while it was traced; the message carries the original error.
    """
    failure: Exception | None = None
    for structure in (source.structure, *source.fallbacks):
        try:
            concrete, attached = _traced(source, structure, training)
        except Exception as error:
            failure = failure or error
            continue
        if failure is not None:
            warnings.warn(
                "the model traces with fixed shapes alone:"
                f" {fixed_axes(source.input_names, source.structure, structure)}, as in the batch"
                f" that was given; other sizes are refused. With open shapes: {reason_of(failure)}",
                stacklevel=2,
            )
        return _flatten(concrete, source.narrowed(structure), attached)
    hint = (
        ""
        if source.fallbacks or not _has_open_axes(source.structure)
        else (
            "; if it needs the sizes of its inputs, pass inputs=one_batch, calibration batches, or"
            " a signature= with these sizes"
        )
    )
    raise TraceError(
        f"the model could not be traced with inputs {describe(source.structure)}:"
        f" {reason_of(failure)}{hint}"
    ) from failure


def _traced(source: ModelAdapter, structure: Any, training: bool) -> tuple[Any, AttachedMasks]:
    """Concrete function of the model, and the masks that Keras attached in it."""

    def flat_call(*flat):
        outputs = source.call(tf.nest.pack_sequence_as(structure, flat), training)
        return outputs, output_masks(outputs), source.take_losses()

    with outside_of_calls(), attached_masks() as attached:
        return (
            tf.function(flat_call, autograph=False).get_concrete_function(
                *tf.nest.flatten(structure)
            ),
            attached,
        )


def _has_open_axes(structure: Any) -> bool:
    return not all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(structure))


def _flatten(concrete, source: ModelAdapter, attached: AttachedMasks) -> Trace:
    """Make a trace of a concrete function, with all calls inlined."""
    body = concrete.graph
    if replay.is_flat(body):  # a copy would be equal
        _release_outputs(body)
        graph, known = body, {t.name: t for op in body.get_operations() for t in op.outputs}
    else:
        graph, known = _inlined(concrete, source)
    parameters = [known[t.name] for t in body.inputs]
    inputs = tuple(parameters[: len(parameters) - len(concrete.captured_inputs)])
    captures = tuple(zip(concrete.captured_inputs, parameters[len(inputs) :], strict=True))
    output_structure, masks, losses = concrete.structured_outputs
    outputs, masks, losses = _split_outputs([known[t.name] for t in body.outputs], masks, losses)
    variables = _variables_by_placeholder(concrete, captures, source)
    structure = tf.nest.map_structure(
        lambda t: (
            tf.TensorSpec(t.shape, t.dtype)
            if tf.is_tensor(t) or isinstance(t, tf.TensorSpec)
            else t
        ),
        output_structure,
    )
    paths = _unique_paths(graph, variables, source)
    return Trace(
        graph,
        inputs,
        outputs,
        source.structure,
        structure,
        source.input_names,
        captures,
        variables,
        paths,
        masks,
        losses,
        attached.replayed(body, known),
    )


def _release_outputs(graph: Any) -> None:
    """Let the outputs of a function's graph no longer wait for all of its side effects.

    TensorFlow appends an operation that does so behind the outputs. A replay of all operations has
    the side effects anyway, and one of an output alone shall have those that it depends on.
    """
    for op in {t.op.name: t.op for t in graph.outputs}.values():
        before = [control for control in op.control_inputs if control._id < op._id]
        if len(before) < len(op.control_inputs):
            op._remove_all_control_inputs()
            op._add_control_inputs(before)


def _inlined(concrete, source: ModelAdapter) -> tuple[tf.Graph, dict[str, tf.Tensor]]:
    """Replay a concrete function into a graph of its own, with all calls inlined.

    Returns:
      The graph; and name of a tensor of the function -> the new one.
    """
    graph: Any = tf_func_graph.FuncGraph("tfquant_flat")
    body = concrete.graph
    n_inputs = len(body.inputs) - len(concrete.captured_inputs)
    known: dict[str, tf.Tensor] = {}
    with graph.as_default():
        for spec, old in zip(
            tf.nest.flatten(source.structure), body.inputs[:n_inputs], strict=True
        ):
            known[old.name] = tf.compat.v1.placeholder(spec.dtype, spec.shape, name=old.op.name)
        for outside, old in zip(concrete.captured_inputs, body.inputs[n_inputs:], strict=True):
            known[old.name] = graph.capture(outside, name=old.op.name)
        replay.replay(body.get_operations(), known, body.outputs, inline=True)
    return graph, known


def _split_outputs(
    flat: Sequence[tf.Tensor], masks: Sequence[Any], losses: Sequence[Any]
) -> tuple[tuple, tuple, tuple]:
    """Split the flat outputs of a trace into (user outputs, mask of each or None, losses)."""
    count = len(flat) - len(losses) - sum(mask is not None for mask in masks)
    rest = iter(flat[count:])
    result = tuple(None if mask is None else next(rest) for mask in masks)
    return tuple(flat[:count]), result, tuple(rest)


def _variables_by_placeholder(concrete, captures, source: ModelAdapter) -> dict[str, tf.Variable]:
    by_handle = {id(v.handle): v for v, _ in source.named_variables}
    for variable in (*concrete.graph.variables, *concrete.variables):
        by_handle.setdefault(id(variable.handle), variable)
    return {
        inside.name: by_handle[id(outside)]
        for outside, inside in captures
        if id(outside) in by_handle
    }


def _unique_paths(
    graph: tf.Graph, variables: dict[str, tf.Variable], source: ModelAdapter
) -> dict[str, str]:
    """Assign a unique path to every variable.

    Layers that share a name become `layer`, `layer_1`, ... in the order data flows through them.
    """
    known = {id(v.handle): path for v, path in source.named_variables}
    paths: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(variables, key=lambda name: _first_use(graph, name)):
        wanted = known.get(id(variables[name].handle)) or variables[name].name.split(":")[0]
        paths[name] = path = free_path(wanted, taken)
        taken.add(path)
    return paths


def _first_use(graph: tf.Graph, name: str) -> int:
    """Position of the first operation that reads a tensor; behind all others where none does."""
    readers = graph.get_tensor_by_name(name).consumers()
    return min((op._id for op in readers), default=1 << 60)


def free_path(wanted: str, taken: Container[str]) -> str:
    """Return `wanted`, or if it is taken the first free of `layer_1/leaf`, `layer_2/leaf`, ...."""
    layer, slash, leaf = wanted.rpartition("/")
    path, count = wanted, 0
    while path in taken:
        count += 1
        path = f"{layer}_{count}/{leaf}" if slash else f"{leaf}_{count}"
    return path

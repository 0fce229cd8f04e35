"""Replay: creating the operations of a traced graph again, in the current graph, with chosen edges passed through a callable.

Replaying is the one way a graph is ever changed here. Captured resource handles are captured again, so variables stay the same
objects, and a gradient tape around the `tf.function` that replays differentiates through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph, ops
from tensorflow.python.ops import control_flow_util_v2, handle_data_util

CALL_OPS = ("PartitionedCall", "StatefulPartitionedCall")
LOOP_OPS = frozenset("While StatelessWhile If StatelessIf Case StatelessCase".split())
# Attribute that names a body -> where TensorFlow keeps the graph of that body on the operation.
_BODY_GRAPHS = {"cond": "_cond_graph", "body": "_body_graph", "then_branch": "_true_graph", "else_branch": "_false_graph"}
# Attributes that tie an operation to its old graph: colocation names ops that are renamed here.
_GRAPH_BOUND_ATTRS = ("_class", "_output_shapes")

Edit = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Edits:
    """What to change while replaying.

    Attributes:
      edges: (operation name, input index) -> callable applied to the tensor on that edge alone.
      tensors: tensor name -> callable applied to the tensor for all its consumers and the outputs.
      operations: operation name -> callable that makes its one output from its new inputs, in place of the operation.
    """

    edges: Mapping[tuple[str, int], Edit] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, Edit] = dataclasses.field(default_factory=dict)
    operations: Mapping[str, Callable[[list[tf.Tensor]], tf.Tensor]] = dataclasses.field(default_factory=dict)


NO_EDITS = Edits()


def replay(
    operations: Iterable[tf.Operation],
    known: dict[str, tf.Tensor],
    outputs: Sequence[tf.Tensor],
    *,
    edits: Edits = NO_EDITS,
    inline: bool = False,
) -> list[tf.Tensor]:
    """Creates `operations` again in the current graph.

    Args:
      operations: of one graph, in an order in which producers come before consumers.
      known: old tensor name -> new tensor, for everything that comes from outside (placeholders); extended in place.
      outputs: old tensors to return the new ones of.
      edits: what to change on the way.
      inline: replay the bodies of function calls in place of the calls. Bodies of `While` and `If` are never entered.

    Returns:
      New tensors, one for each of `outputs`.
    """
    state = _State(tf.compat.v1.get_default_graph(), known, {}, edits, inline)
    for operation in operations:
        _replay_operation(state, operation)
    return [state.tensors[t.name] for t in outputs]


@dataclasses.dataclass
class _State:
    graph: tf.Graph
    tensors: dict[str, tf.Tensor]  # old tensor name -> new tensor
    controls: dict[str, list[tf.Operation]]  # old operation name -> new operations that stand for it
    edits: Edits
    inline: bool


def _replay_operation(state: _State, op: tf.Operation) -> None:
    if op.outputs and all(t.name in state.tensors for t in op.outputs):
        return
    inputs = [_edited_input(state, op, index) for index in range(len(op.inputs))]
    controls = [new for old in op.control_inputs for new in state.controls.get(old.name, ())]
    with state.graph.control_dependencies(controls):
        if state.inline and op.type in CALL_OPS:
            outputs, effects = _inline_call(state, op, inputs)
            # What waited for a call without effects waits for what the call waited for.
            state.controls[op.name] = effects or controls
        elif op.name in state.edits.operations:
            outputs = [state.edits.operations[op.name](inputs)]
            state.controls[op.name] = controls
        else:
            new = _create(state.graph, op, inputs)
            outputs, state.controls[op.name] = new.outputs, [new]
    for old, new in zip(op.outputs, outputs, strict=True):
        edit = state.edits.tensors.get(old.name)
        state.tensors[old.name] = new if edit is None else edit(new)


def _edited_input(state: _State, op: tf.Operation, index: int) -> tf.Tensor:
    tensor = state.tensors[op.inputs[index].name]
    edit = state.edits.edges.get((op.name, index))
    return tensor if edit is None else edit(tensor)


def _create(graph: tf.Graph, op: tf.Operation, inputs: list[tf.Tensor]) -> tf.Operation:
    """The same operation on new inputs. Functions it names are registered in the new graph; loops and branches get their own."""
    attrs = {name: value for name, value in op.node_def.attr.items() if name not in _GRAPH_BOUND_ATTRS}
    for function in _functions_in(attrs):
        if not graph._is_function(function.name):
            graph._add_function_recursive(find_function(op.graph, function.name))
    # Not `create_op`: that inspects its own arguments for deprecated ones, which takes as long as the rest together.
    new = graph._create_op_internal(op.type, inputs, [t.dtype for t in op.outputs], None, op.name, attrs, op.op_def)
    if op.type in LOOP_OPS:
        _own_bodies(new, op.graph)
    return new


def find_function(graph: tf.Graph | None, name: str) -> Any:
    """The function that an operation of `graph` names; the graph of a body leaves some to the graphs around it.

    Raises:
      ValueError: none of them holds it.
    """
    while graph is not None:
        function = graph._get_function(name)
        if function is not None:
            return function
        graph = getattr(graph, "outer_graph", None)
    raise ValueError(f"the graph names function {name!r}, which it does not hold")


def _functions_in(attrs: Mapping[str, Any]) -> list[Any]:
    """The function attributes among the attributes of an operation, those in lists included."""
    return [f for value in attrs.values() for f in ([value.func] if value.HasField("func") else value.list.func)]


def _own_bodies(op: tf.Operation, source: tf.Graph) -> None:
    """Gives a loop or branch copies of its bodies, under names of their own.

    The gradient of a loop or branch rewrites its bodies and registers them under a name made from theirs: two replays of one loop
    that shared its bodies would collide there.
    """
    attrs = op.node_def.attr
    for key, name in _BODY_GRAPHS.items():
        if key in attrs:
            body, attrs[key].func.name = _copied_body(op.graph, source, attrs[key].func.name)
            op._set_attr(key, attrs[key])
            setattr(op, name, body)  # where the gradient looks first
    if "branches" in attrs:
        for index, function in enumerate(attrs["branches"].list.func):
            body, function.name = _copied_body(op.graph, source, function.name)
            setattr(op, f"_branch_graph_{index}", body)
        op._set_attr("branches", attrs["branches"])


def _copied_body(graph: tf.Graph, source: tf.Graph, name: str) -> tuple[tf.Graph, str]:
    """A copy of a function of `source` as a graph, and the name it is registered under in `graph`."""
    function = find_function(source, name)
    with graph.as_default():
        body = function_def_to_graph.function_def_to_graph(function.cached_definition)
    for old, new in zip(function.graph.inputs, body.inputs, strict=True):
        handle_data_util.copy_handle_data(old, new)  # shape and type of variables
    for op in body.get_operations():
        if op.type in LOOP_OPS:
            _own_bodies(op, function.graph)
    body.name = f"{name}_{ops.uid()}"
    with graph.as_default():
        return body, control_flow_util_v2.create_new_tf_function(body)


def _inline_call(
    state: _State, op: tf.Operation, inputs: list[tf.Tensor]
) -> tuple[list[tf.Tensor], list[tf.Operation]]:
    body = find_function(op.graph, op.get_attr("f").name).graph
    inner = _State(
        state.graph, {t.name: new for t, new in zip(body.inputs, inputs, strict=True)}, {}, NO_EDITS, inline=True
    )
    # Names stay readable and unique: the body's operations go below the call's name unless that is the generic one.
    generic = op.name.split("/")[-1].split("_")[0] in CALL_OPS
    scope = op.name.rpartition("/")[0] if generic else op.name
    with state.graph.name_scope(scope or None):
        for body_op in body.get_operations():
            _replay_operation(inner, body_op)
    stateful = [new for ops in inner.controls.values() for new in ops if new.op_def is not None and new.op_def.is_stateful]
    return [inner.tensors[t.name] for t in body.outputs], stateful

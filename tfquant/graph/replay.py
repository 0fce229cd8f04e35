"""Replay: re-creation of the operations of a traced graph in the current graph, with chosen edges
passed through a callable.

Replay is the only way a graph is changed. Captured resource handles are captured again, so
variables stay the same objects, and a gradient tape around the `tf.function` that replays
differentiates through it. Custom gradients are replayed too, when a gradient is requested.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util_v2, handle_data_util

from tfquant.graph.gradients import (
    ATTRIBUTE,
    CustomGradient,
    GradientError,
    custom_gradient_of,
    is_recomputation,
    with_tensors,
)

CALL_OPS = ("PartitionedCall", "StatefulPartitionedCall")
LOOP_OPS = frozenset("While StatelessWhile If StatelessIf Case StatelessCase".split())
# Attribute that names a body -> where TensorFlow keeps the graph of that body on the operation.
_BODY_GRAPHS = {
    "cond": "_cond_graph",
    "body": "_body_graph",
    "then_branch": "_true_graph",
    "else_branch": "_false_graph",
}
# Attributes that tie an operation to its old graph: colocation names ops that are renamed here, a
# registered gradient function refers to tensors of the old graph.
_GRAPH_BOUND_ATTRS = ("_class", "_output_shapes", ATTRIBUTE)

Edit = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Edits:
    """Edits of edges and operations in a replay.

    Attributes:
      edges: (operation name, input index) -> callable applied to the tensor on that edge alone.
      tensors: tensor name -> callable applied to the tensor for all its consumers and the outputs.
      operations: operation name -> callable that makes its one output from its new inputs, in place
        of the operation.
      in_bodies: type of an operation in the body of a loop or branch, `Placeholder` for inputs of
        the body -> callable applied to its outputs for all their consumers.
    """

    edges: Mapping[tuple[str, int], Edit] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, Edit] = dataclasses.field(default_factory=dict)
    operations: Mapping[str, Callable[[list[tf.Tensor]], tf.Tensor]] = dataclasses.field(
        default_factory=dict
    )
    in_bodies: Mapping[str, Edit] = dataclasses.field(default_factory=dict)

    def of_body(self, body: tf.Graph) -> Edits:
        """Edits inside the body of a loop or branch."""
        if not self.in_bodies:
            return NO_EDITS
        places = [(t.name, op.type) for op in body.get_operations() for t in op.outputs]
        tensors = {name: self.in_bodies[kind] for name, kind in places if kind in self.in_bodies}
        return Edits(tensors=tensors, in_bodies=self.in_bodies)


NO_EDITS = Edits()


def replay(
    operations: Iterable[tf.Operation],
    known: MutableMapping[str, tf.Tensor],
    outputs: Sequence[tf.Tensor],
    *,
    edits: Edits = NO_EDITS,
    inline: bool = False,
) -> list[tf.Tensor]:
    """Re-create `operations` in the current graph.

    Args:
      operations: of one graph, in an order in which producers come before consumers.
      known: old tensor name -> new tensor, for everything that comes from outside (placeholders);
        extended in place.
      outputs: old tensors to return the new ones of.
      edits: what to change on the way.
      inline: replay the bodies of function calls in place of the calls. Bodies of `While` and `If`
        are never entered.

    Returns:
      New tensors, one for each of `outputs`.
    """
    state = _State(tf.compat.v1.get_default_graph(), known, {}, edits, inline)
    for operation in operations:
        _replay_operation(state, operation)
    return [state.tensors[t.name] for t in outputs]


def is_flat(graph: tf.Graph) -> bool:
    """Return whether no operation of a graph calls a function, is a loop or branch, or has a
    custom gradient.
    """
    return not any(
        op.type in CALL_OPS or op.type in LOOP_OPS or ATTRIBUTE in op.node_def.attr
        for op in graph.get_operations()
    )


def ancestors(targets: Iterable[tf.Tensor], known: Container[str] = ()) -> dict[str, tf.Operation]:
    """Operations, by name, that `targets` need where the tensors called `known` are available."""
    pending, result = [t.op for t in targets if t.name not in known], {}
    while pending:
        op = pending.pop()
        if op.name in result:
            continue
        result[op.name] = op
        pending.extend(t.op for t in op.inputs if t.name not in known)
        pending.extend(op.control_inputs)
    return result


def descendants(operations: Iterable[tf.Operation], tensors: Iterable[tf.Tensor]) -> frozenset[str]:
    """Names of those of `operations`, in graph order, that depend on one of `tensors`."""
    reached, result = {t.name for t in tensors}, set()
    for op in operations:
        if any(t.name in reached for t in op.inputs):
            result.add(op.name)
            reached.update(t.name for t in op.outputs)
    return frozenset(result)


@dataclasses.dataclass(eq=False)
class _State:
    """State of a replay.

    Attributes:
      graph: the new graph.
      tensors: old tensor name -> new tensor, with the edits of `Edits.tensors`.
      controls: old operation name -> new operations that stand for it.
      edits, inline: as for `replay`.
      source: the old graph.
      outer: what knows the tensors of the graphs around `source`, for the body of a call, loop or
        branch.
      edited: (old operation name, input index) -> what an edit made of that input.
    """

    graph: tf.Graph
    tensors: MutableMapping[str, tf.Tensor]
    controls: dict[str, list[tf.Operation]]
    edits: Edits
    inline: bool
    source: Any = None
    outer: _State | ReplayedGradient | None = None
    edited: dict[tuple[str, int], tf.Tensor] = dataclasses.field(default_factory=dict)

    def lookup(self, old: tf.Tensor) -> tf.Tensor:
        """New tensor for one of `source` or of an enclosing graph; tensors outside of all graphs
        are returned unchanged.

        Raises:
          GradientError: none of them holds it.
        """
        name = self._name_of(old)
        if name is not None:
            return self.tensors[name] if name in self.tensors else self._computed(old)
        if self.outer is not None:
            return self.outer.lookup(old)
        if isinstance(old, ops.EagerTensor):
            return old
        raise GradientError(
            f"a custom gradient refers to tensor {old.name!r}, which is not part of the traced"
            " model"
        )

    def _name_of(self, old: tf.Tensor) -> str | None:
        """Name of a tensor in `source`; for an outside tensor that of the placeholder that captures
        it.
        """
        if not isinstance(old, ops.EagerTensor) and old.graph is self.source:
            return old.name
        return next(
            (inside.name for outside, inside in _captures(self.source) if outside is old), None
        )

    def _computed(self, old: tf.Tensor) -> tf.Tensor:
        """Compute a tensor in the current graph that no target of the replay needed."""
        graph: Any = tf.compat.v1.get_default_graph()
        tensors = collections.ChainMap({}, self.tensors)
        needed = ancestors([old], tensors)
        tensors.update(
            {
                t.name: graph.capture(outside)
                for outside, t in _captures(self.source)
                if t.op.name in needed
            }
        )
        operations = [op for op in self.source.get_operations() if op.name in needed]
        unknown = [
            op.name
            for op in operations
            if op.type == "Placeholder" and op.outputs[0].name not in tensors
        ]
        if unknown:
            raise GradientError(
                f"a custom gradient needs tensor {old.name!r}, which depends on {unknown[0]!r}: not"
                " computed here"
            )
        return replay(operations, tensors, [old], edits=self.edits)[0]


def _captures(graph: Any) -> Sequence[tuple[tf.Tensor, tf.Tensor]]:
    return getattr(graph, "captures", ())


def _replay_operation(state: _State, op: tf.Operation) -> None:
    if op.outputs and all(t.name in state.tensors for t in op.outputs):
        return
    state.source = op.graph
    inputs = [_edited_input(state, op, index) for index in range(len(op.inputs))]
    controls = [new for old in op.control_inputs for new in state.controls.get(old.name, ())]
    with state.graph.control_dependencies(controls) if controls else contextlib.nullcontext():
        if state.inline and op.type in CALL_OPS:
            outputs, effects = _inline_call(state, op, inputs)
            # What waited for a call without effects waits for what the call waited for.
            state.controls[op.name] = effects or controls
        elif op.name in state.edits.operations:
            outputs = [state.edits.operations[op.name](inputs)]
            state.controls[op.name] = controls
        else:
            outputs, effects = _create(state, op, inputs)
            state.controls[op.name] = effects or controls
    for old, new in zip(op.outputs, outputs, strict=True):
        edit = state.edits.tensors.get(old.name)
        state.tensors[old.name] = new if edit is None else edit(new)


def _edited_input(state: _State, op: tf.Operation, index: int) -> tf.Tensor:
    tensor = state.tensors[op.inputs[index].name]
    edit = state.edits.edges.get((op.name, index))
    if edit is not None:
        state.edited[op.name, index] = tensor = edit(tensor)
    return tensor


def _create(
    state: _State, op: tf.Operation, inputs: list[tf.Tensor]
) -> tuple[Sequence[tf.Tensor], list[tf.Operation]]:
    """Create the same operation with new inputs; return its outputs and the operation.

    Functions it names are registered in the new graph; loops and branches get copies of theirs.
    """
    graph, old_attrs = state.graph, op.node_def.attr
    if is_recomputation(old_attrs):
        return inputs, []
    attrs = {name: value for name, value in old_attrs.items() if name not in _GRAPH_BOUND_ATTRS}
    bodies = {}
    if op.type in LOOP_OPS:
        bodies = _own_bodies(state, op, attrs)
    else:
        for function in _functions_in(attrs):
            if not graph._is_function(function.name):
                graph._add_function_recursive(find_function(op.graph, function.name))
    gradient = _gradient_of(state, op, old_attrs)
    if gradient is not None:
        inputs = gradient.edited_inputs(op, inputs)
    # Not `create_op`: that inspects its own arguments for deprecated ones, which takes as long as
    # the rest together. The graph knows the definition of each type, `op.op_def` parses it again.
    new = graph._create_op_internal(op.type, inputs, name=op.name, attrs=attrs)
    for name, body in bodies.items():
        setattr(new, name, body)  # where the gradient looks first
    if gradient is not None:
        new._gradient_function = gradient
    return new.outputs, [new]


def _gradient_of(
    state: _State, op: tf.Operation, attrs: Mapping[str, Any]
) -> ReplayedGradient | None:
    earlier = op._gradient_function
    if isinstance(earlier, ReplayedGradient):
        return ReplayedGradient(earlier.definition, (*earlier.states, state))
    definition = custom_gradient_of(op, attrs)
    return None if definition is None else ReplayedGradient(definition, (state,))


def find_function(graph: tf.Graph | None, name: str) -> Any:
    """Find the function that an operation of `graph` names, also in enclosing graphs.

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
    """Function attributes of an operation, including those in lists."""
    return [
        f
        for value in attrs.values()
        for f in ([value.func] if value.HasField("func") else value.list.func)
    ]


def _own_bodies(state: _State, op: tf.Operation, attrs: Mapping[str, Any]) -> dict[str, tf.Graph]:
    """Copy the bodies of a loop or branch, set their names in `attrs` and return them by
    TensorFlow's attribute.

    The gradient of a loop or branch rewrites its bodies and registers them under a name made from
    theirs: two replays of one loop that shared its bodies would collide there.
    """
    bodies = {}
    for key, name in _BODY_GRAPHS.items():
        if key in attrs:
            bodies[name], attrs[key].func.name = _copied_body(state, op.graph, attrs[key].func.name)
    if "branches" in attrs:
        for index, function in enumerate(attrs["branches"].list.func):
            bodies[f"_branch_graph_{index}"], function.name = _copied_body(
                state, op.graph, function.name
            )
    return bodies


def _copied_body(state: _State, source: tf.Graph, name: str) -> tuple[tf.Graph, str]:
    """Copy a function of `source` as a graph; return it and its new registered name."""
    old = find_function(source, name).graph
    with state.graph.as_default():
        body: Any = tf_func_graph.FuncGraph(f"{name}_{ops.uid()}")
    with body.as_default():
        for parameter in old.inputs:
            body.inputs.append(
                tf.compat.v1.placeholder(parameter.dtype, parameter.shape, name=parameter.op.name)
            )
            handle_data_util.copy_handle_data(
                parameter, body.inputs[-1]
            )  # shape and type of variables
        edits = state.edits.of_body(old)
        known = {t.name: new for t, new in zip(old.inputs, body.inputs, strict=True)}
        known |= {name: edit(known[name]) for name, edit in edits.tensors.items() if name in known}
        inner = _State(body, known, {}, edits, state.inline, old, state)
        for operation in old.get_operations():
            _replay_operation(inner, operation)
        body.outputs = [known[t.name] for t in old.outputs]
    body.control_outputs = [
        new for effect in old.control_outputs for new in inner.controls.get(effect.name, ())
    ]
    with state.graph.as_default():
        return body, control_flow_util_v2.create_new_tf_function(body)


def _inline_call(
    state: _State, op: tf.Operation, inputs: list[tf.Tensor]
) -> tuple[list[tf.Tensor], list[tf.Operation]]:
    body = find_function(op.graph, op.get_attr("f").name).graph
    known = {t.name: new for t, new in zip(body.inputs, inputs, strict=True)}
    inner = _State(state.graph, known, {}, NO_EDITS, True, body, state)
    # Names stay readable and unique: the body's operations go below the call's name unless that is
    # the generic one.
    generic = op.name.split("/")[-1].split("_")[0] in CALL_OPS
    scope = op.name.rpartition("/")[0] if generic else op.name
    with state.graph.name_scope(scope or None):
        for body_op in body.get_operations():
            _replay_operation(inner, body_op)
    stateful = [
        new
        for ops in inner.controls.values()
        for new in ops
        if new.op_def is not None and new.op_def.is_stateful
    ]
    # TensorFlow appends intermediate values to the outputs of a graph whose gradient was taken.
    return [known[t.name] for t in body.outputs[: len(op.outputs)]], stateful


class ReplayedGradient:
    """Custom gradient of a replayed operation. TensorFlow calls it as `_gradient_function` of the
    operation.

    The backward pass sees the values of the new graph: where an edit stands on an input inside the
    differentiated function, its result takes the place of the original in the gradient function,
    and of the argument from which the gradient goes on. So it passes through the edit, a quantizer,
    as it does without a custom gradient.

    Attributes:
      definition: the gradient function in the user's graph.
      states: the replays that lead from the user's graph to the one of the operation.
    """

    def __init__(self, definition: CustomGradient, states: tuple[_State, ...]):
        self.definition, self.states = definition, states
        self._region: frozenset[str] = frozenset()

    def __call__(self, op: tf.Operation, *output_gradients: Any) -> list[Any]:
        """Gradients of the inputs of `op`, in the current graph."""
        backward, known, controls = self.definition.backward, {}, {}
        for outside, inside in _captures(backward.graph):
            if inside.op.type == "Placeholder":  # small constants are copied, not captured
                known[inside.name] = self.lookup(outside)
                known.update(self._edited_reads(outside, inside))
        for placeholder, gradient, output in zip(
            backward.output_gradients, output_gradients, op.outputs, strict=True
        ):
            if placeholder is not None:
                specified = (
                    tf.zeros_like(output) if gradient is None else tf.convert_to_tensor(gradient)
                )
                known[placeholder.name], controls[placeholder.op.name] = specified, [specified.op]
        state = _State(
            tf.compat.v1.get_default_graph(), known, controls, NO_EDITS, True, backward.graph, self
        )
        for operation in backward.graph.get_operations():
            _replay_operation(state, operation)
        return [
            with_tensors(gradient, lambda t: known[t.name]) for gradient in backward.input_gradients
        ]

    def lookup(self, tensor: tf.Tensor) -> tf.Tensor:
        """New tensor for one that the gradient function refers to."""
        old = self._before(tensor)
        edited = self._edited([old])
        return self.states[-1].lookup(old) if edited is None else edited

    def edited_inputs(self, op: tf.Operation, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        """New inputs of `op`, an operation of the old graph, with edits of the arguments inside the
        function applied.
        """
        count = self.definition.num_results if self.states[-1].edits.edges else 0
        if not count:
            return inputs
        self._region = _between(op.inputs[count:], op.inputs[:count]) | {op.name}
        edited = [self._edited(_same_reads(old)) for old in op.inputs[count:]]
        return inputs[:count] + [
            new if own is None else own for own, new in zip(edited, inputs[count:], strict=True)
        ]

    def _before(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tensor of the graph that the last replay took its operations from."""
        for state in self.states[:-1]:
            tensor = state.lookup(tensor)
        return tensor

    def _edited(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor | None:
        """Map of old tensors inside the differentiated function to edited ones; None without edits,
        or with conflicting ones.
        """
        state, result = self.states[-1], {}
        for tensor in tensors if self._region else ():
            if not isinstance(tensor, ops.EagerTensor) and tensor.graph is state.source:
                for consumer in tensor.consumers():
                    if consumer.name not in self._region:
                        continue
                    places = [
                        (consumer.name, i) for i, t in enumerate(consumer.inputs) if t is tensor
                    ]
                    result.update(
                        {id(new): new for new in map(state.edited.get, places) if new is not None}
                    )
        return next(iter(result.values())) if len(result) == 1 else None

    def _edited_reads(self, handle: tf.Tensor, inside: tf.Tensor) -> dict[str, tf.Tensor]:
        """Map names of the tensors that the gradient function reads from a variable -> edited value
        of that variable.
        """
        if handle.dtype != tf.resource:
            return {}
        edited = self._edited(_reads_of(self._before(handle)))
        return {} if edited is None else {read.name: edited for read in _reads_of(inside)}


def _between(sources: Sequence[tf.Tensor], targets: Sequence[tf.Tensor]) -> frozenset[str]:
    """Names of the operations on the paths from `sources` to `targets`."""
    needed = ancestors(targets, {t.name for t in sources}).values()
    return descendants(sorted(needed, key=lambda op: op._id), sources)


def _reads_of(handle: tf.Tensor) -> list[tf.Tensor]:
    """Tensors that operations of one graph read from a variable."""
    if isinstance(handle, ops.EagerTensor):
        return []
    return [op.outputs[0] for op in handle.consumers() if op.type == "ReadVariableOp"]


def _same_reads(tensor: tf.Tensor) -> list[tf.Tensor]:
    """The tensor or, for the value of a variable, all reads of that variable."""
    return _reads_of(tensor.op.inputs[0]) if tensor.op.type == "ReadVariableOp" else [tensor]

"""Trace: running a user's model once, symbolically, to get a flat graph over its own variables."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph

from tfquant.graph import replay


class TraceError(ValueError):
    """The model could not be traced, or what was given with it does not fit it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A model as one flat graph: no function calls left except loop and branch bodies.

    Attributes:
      graph: holds the operations.
      inputs: placeholders of the user's inputs, in the order of `tf.nest.flatten`.
      outputs: result tensors, likewise.
      input_structure, output_structure: nested structures whose leaves are `tf.TensorSpec`; the inputs are `(args, kwargs)`-free:
        one structure for a model, a tuple of arguments for a function.
      captures: (tensor outside, placeholder inside): variables' handles and constants.
      variables: name of the placeholder of a handle -> the variable.
      paths: name of the placeholder of a handle -> unique path of the variable (`bert/encoder/layer_0/.../kernel`).
    """

    graph: tf.Graph
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    input_structure: Any
    output_structure: Any
    captures: tuple[tuple[tf.Tensor, tf.Tensor], ...]
    variables: dict[str, tf.Variable]
    paths: dict[str, str]

    @functools.cached_property
    def operations(self) -> list[tf.Operation]:
        return self.graph.get_operations()

    @property
    def input_specs(self) -> list[tf.TensorSpec]:
        return tf.nest.flatten(self.input_structure)

    @property
    def input_names(self) -> list[str]:
        """Readable names of the inputs for messages and for finding the mask: `input_mask`, `args/0`, ..."""
        return [path for path, _ in _joined_paths(self.input_structure)]

    def emit(
        self, inputs: list[tf.Tensor], edits: replay.Edits = replay.NO_EDITS, targets: list[tf.Tensor] | None = None
    ) -> list[tf.Tensor]:
        """Replays the graph in the current graph, which must be that of a `tf.function`.

        Args:
          inputs: new tensors for the placeholders; empty is allowed where no target depends on them.
          edits: edges to change.
          targets: old tensors to compute; only what they need is emitted then. By default all operations, side effects
            (dropout seeds, moving statistics) included, and the outputs are returned.
        """
        graph = tf.compat.v1.get_default_graph()
        known = {old.name: new for old, new in zip(self.inputs, inputs, strict=False)}
        operations = self.operations if targets is None else self.ancestors(targets)
        needed = {op.name for op in operations}
        for outside, inside in self.captures:
            if inside.op.name in needed:
                known[inside.name] = graph.capture(outside)
        for name, variable in self.variables.items():
            if variable.trainable and name in known:
                graph.watch_variable(variable)
        return replay.replay(operations, known, self.outputs if targets is None else targets, edits=edits)

    def ancestors(self, targets: list[tf.Tensor]) -> list[tf.Operation]:
        """Operations that `targets` need, in graph order."""
        pending, found = [t.op for t in targets], set()
        while pending:
            op = pending.pop()
            if op.name in found:
                continue
            found.add(op.name)
            pending.extend(t.op for t in op.inputs)
            pending.extend(op.control_inputs)
        return [op for op in self.operations if op.name in found]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What the user gave, in one form: something to call on one structure of inputs, its signature, and its variables.

    Attributes:
      call: (inputs, training) -> outputs; `inputs` has `structure`.
      structure: nested structure of `tf.TensorSpec`.
      named_variables: (variable, path) pairs known up front; what the trace finds beyond them is named by the variable.
      is_function: `structure` is a tuple of positional arguments.
      modes: whether training and inference can differ.
    """

    call: Callable[[Any, bool], Any]
    structure: Any
    named_variables: tuple[tuple[tf.Variable, str], ...]
    is_function: bool
    modes: bool


def trace(source: Source, training: bool = False) -> Trace:
    """Traces `source` once and flattens the result.

    Raises:
      TraceError: the model raised while it was traced; the message carries the original error.
    """
    specs = tf.nest.flatten(source.structure)

    def flat_call(*flat):
        return source.call(tf.nest.pack_sequence_as(source.structure, flat), training)

    try:
        concrete = tf.function(flat_call, autograph=False).get_concrete_function(*specs)
    except Exception as error:
        raise TraceError(
            f"the model could not be traced with inputs {_describe(source.structure)}: {type(error).__name__}: {error}"
        ) from error
    return _flatten(concrete, source)


def _flatten(concrete, source: Source) -> Trace:
    """Replays a concrete function into a graph of its own, with all calls inlined."""
    graph = tf_func_graph.FuncGraph("tfquant_flat")
    body = concrete.graph
    n_captures = len(concrete.captured_inputs)
    n_inputs = len(body.inputs) - n_captures
    captures = []
    with graph.as_default():
        known: dict[str, tf.Tensor] = {}
        for spec, old in zip(tf.nest.flatten(source.structure), body.inputs[:n_inputs], strict=True):
            known[old.name] = tf.compat.v1.placeholder(spec.dtype, spec.shape, name=old.op.name)
        inputs = tuple(known.values())
        for outside, old in zip(concrete.captured_inputs, body.inputs[n_inputs:], strict=True):
            known[old.name] = graph.capture(outside, name=old.op.name)
            captures.append((outside, known[old.name]))
        outputs = tuple(replay.replay(body.get_operations(), known, body.outputs, inline=True))
    variables = _variables_by_placeholder(concrete, captures, source)
    structure = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype) if tf.is_tensor(t) or isinstance(t, tf.TensorSpec) else t,
        concrete.structured_outputs,
    )
    paths = _unique_paths(graph, variables, source)
    return Trace(graph, inputs, outputs, source.structure, structure, tuple(captures), variables, paths)


def _variables_by_placeholder(concrete, captures, source: Source) -> dict[str, tf.Variable]:
    by_handle = {id(v.handle): v for v, _ in source.named_variables}
    for variable in (*concrete.graph.variables, *concrete.variables):
        by_handle.setdefault(id(variable.handle), variable)
    return {inside.name: by_handle[id(outside)] for outside, inside in captures if id(outside) in by_handle}


def _unique_paths(graph: tf.Graph, variables: dict[str, tf.Variable], source: Source) -> dict[str, str]:
    """Names every variable; those that share a name get `_1`, `_2`, ... in the order in which data flows through them."""
    known = {id(v.handle): path for v, path in source.named_variables}
    used: dict[str, int] = {}
    paths: dict[str, str] = {}
    first_use: dict[str, int] = {}
    for index, op in enumerate(graph.get_operations()):
        for tensor in op.inputs:
            first_use.setdefault(tensor.name, index)
    for name in sorted(variables, key=lambda n: first_use.get(n, 1 << 60)):
        variable = variables[name]
        path = known.get(id(variable.handle)) or variable.name.split(":")[0]
        count = used.get(path, 0)
        used[path] = count + 1
        paths[name] = path if count == 0 else f"{path}_{count}"
    return paths


def source_of(model: Any, example: Any = None, signature: Any = None) -> Source:
    """Finds out how to call what the user gave.

    Args:
      model: a Keras 3 or tf-keras model, a loaded SavedModel, a `tf.function`, a concrete function or any callable on tensors.
      example: one batch of inputs, for what has no signature of its own (subclassed models, functions).
      signature: nested structure of `tf.TensorSpec`; overrides what the model says. A tuple of arguments for a function.

    Raises:
      TraceError: there is no way to know the inputs; the message says what to pass.
    """
    if is_keras_model(model):
        return _keras_source(model, example, signature)
    if hasattr(model, "signatures") and not callable(getattr(model, "inputs", None)):
        return _saved_model_source(model, example, signature)
    if callable(model):
        return _function_source(model, example, signature)
    raise TraceError(f"cannot quantize a {type(model).__name__}: give a Keras model, a loaded SavedModel or a function on tensors")


def is_keras_model(model: Any) -> bool:
    """True for layers and models of Keras 3 and of tf-keras."""
    return isinstance(model, keras.layers.Layer) or _is_tf_keras(model)


def _is_tf_keras(model: Any) -> bool:
    return any(base.__module__.startswith(("tf_keras.", "keras.src.engine")) for base in type(model).__mro__)


def _keras_source(model, example, signature) -> Source:
    if signature is None and getattr(model, "inputs", None):
        signature = _functional_signature(model)
    if signature is None:
        if example is None:
            raise TraceError(
                f"{type(model).__name__} {model.name!r} does not say what its inputs are: pass inputs=one_batch, "
                "signature=tf.TensorSpec(...) or calibration batches"
            )
        signature = relaxed_spec(example)
    takes_training = "training" in inspect.signature(model.call).parameters or not _is_tf_keras(model)
    if not _is_tf_keras(model) and not getattr(model, "_call_has_training_arg", True):
        takes_training = False

    def call(inputs, training):
        return model(inputs, training=training) if takes_training else model(inputs)

    if not getattr(model, "built", True):
        _build(model, signature)
    return Source(call, signature, named_variables_of(model), is_function=False, modes=takes_training)


def named_variables_of(model) -> tuple[tuple[tf.Variable, str], ...]:
    """(variable, path) of all variables of a Keras model; Keras 3 keeps full paths, tf-keras puts them into the names."""
    pairs = []
    for variable in model.variables:
        if isinstance(variable, keras.Variable):
            pairs.append((variable.value, variable.path))
        else:
            pairs.append((variable, variable.name.split(":")[0]))
    return tuple(pairs)


def _build(model, signature) -> None:
    """Creates the variables of a model that has not seen an input yet, outside of any graph."""
    dummy = tf.nest.map_structure(lambda s: tf.zeros([2 if d is None else d for d in s.shape], s.dtype), signature)
    try:
        model(dummy)
    except Exception as error:
        raise TraceError(
            f"the model could not be built with inputs {_describe(signature)}: {type(error).__name__}: {error}"
        ) from error


def _functional_signature(model):
    def spec(tensor):
        return tf.TensorSpec([d for d in tensor.shape], tf.as_dtype(keras.backend.standardize_dtype(tensor.dtype)))

    structure = getattr(model, "_inputs_struct", None)  # Keras 3 keeps dict and list inputs here
    if structure is None:
        structure = getattr(model, "_nested_inputs", None)  # tf-keras
    if structure is None:
        structure = model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)
    return tf.nest.map_structure(spec, structure)


def _saved_model_source(model, example, signature) -> Source:
    signatures = dict(model.signatures)
    if not signatures:
        if callable(model):
            return _function_source(model, example, signature)
        raise TraceError("the SavedModel has no signature: save it with one, or pass one of its functions")
    concrete = signatures.get("serving_default") or next(iter(signatures.values()))
    structure = concrete.structured_input_signature[1]
    names = [(v, v.name.split(":")[0]) for v in concrete.variables]
    return Source(lambda inputs, _: concrete(**inputs), dict(structure), tuple(names), is_function=False, modes=False)


def _function_source(function, example, signature) -> Source:
    if signature is None:
        own = getattr(function, "input_signature", None)
        if own is None and hasattr(function, "structured_input_signature"):
            own = function.structured_input_signature[0]
        if own is not None:
            signature = tuple(own)
        elif example is not None:
            signature = relaxed_spec(example if isinstance(example, tuple) else (example,))
        else:
            raise TraceError(
                f"function {getattr(function, '__name__', function)!r} has no signature: pass inputs=one_batch (a tuple of "
                "arguments), signature=(tf.TensorSpec(...), ...) or calibration batches"
            )
    signature = tuple(signature) if isinstance(signature, (tuple, list)) else (signature,)
    return Source(lambda args, _: function(*args), signature, (), is_function=True, modes=False)


def relaxed_spec(example: Any) -> Any:
    """Tensor specs for a batch: the batch size is left open, and for integer inputs (token ids, masks) the length too."""

    def spec(value):
        value = value if tf.is_tensor(value) else np.asarray(value)
        dtype = tf.as_dtype(value.dtype)
        if dtype == tf.float64:
            dtype = tf.float32  # NumPy's default for Python numbers; no one means it
        elif dtype == tf.int64 and not tf.is_tensor(value):
            dtype = tf.int32
        open_axes = 2 if dtype.is_integer or dtype.is_bool else 1
        return tf.TensorSpec([None if axis < open_axes else d for axis, d in enumerate(value.shape)], dtype)

    return tf.nest.map_structure(spec, example)


def _joined_paths(structure: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(structure, dict):
        items = [(str(k), structure[k]) for k in sorted(structure)]
    elif isinstance(structure, (tuple, list)):
        items = [(str(i), v) for i, v in enumerate(structure)]
    else:
        return [(prefix or "inputs", structure)]
    return [leaf for k, v in items for leaf in _joined_paths(v, f"{prefix}/{k}" if prefix else k)]


def _describe(structure: Any) -> str:
    leaves = [f"{name}: {spec.dtype.name}{list(spec.shape)}" for name, spec in _joined_paths(structure)]
    return "{" + ", ".join(leaves) + "}"

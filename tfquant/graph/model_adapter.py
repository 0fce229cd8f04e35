"""Adapter with one interface for every kind of user model.

A function of one structure of inputs, its signature and its variables.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfquant.error_messages import reason_of
from tfquant.graph import shapes
from tfquant.graph.arguments import ArgumentError, Arguments, arguments_of, name_of, own_arguments
from tfquant.graph.call_arguments import call_arguments
from tfquant.graph.side_outputs import take_losses


class TraceError(ValueError):
    """The model could not be traced, or the inputs given with it do not fit."""


@dataclasses.dataclass(frozen=True, eq=False)
class ModelAdapter:
    """Model with its input structure and call, see the module docstring.

    Attributes:
      call: (inputs, training) -> outputs; `inputs` has `structure`.
      structure: nested structure of `tf.TensorSpec`; of a function a mapping from parameters to
        such structures.
      named_variables: (variable, path) pairs known up front; what the trace finds beyond them is
        named by the variable.
      modes: whether training and inference can differ.
      arguments: of a function, or of a layer whose `call` takes several that carry tensors; None
        for other models.
      model: the Keras model that is called; None for functions and SavedModels.
      fallbacks: structures with fewer open axes, to trace with where `structure` does not trace: of
        a batch that was given.
      input_names: of the leaves of `structure`, in the order of `tf.nest.flatten` (`input_mask`,
        `features/0`, ...): for messages, for finding the mask, and for models that take their
        inputs by name though their structure is no mapping.
    """

    call: Callable[[Any, bool], Any]
    structure: Any
    named_variables: tuple[tuple[tf.Variable, str], ...]
    modes: bool
    arguments: Arguments | None = None
    input_names: tuple[str, ...] = ()
    model: Any = None
    fallbacks: tuple[Any, ...] = ()

    def __post_init__(self):
        if not self.input_names:
            object.__setattr__(
                self, "input_names", tuple(name for name, _ in joined_paths(self.structure))
            )

    def narrowed(self, structure: Any) -> ModelAdapter:
        """Adapter with another input structure: its own, or one of its fallbacks."""
        candidates = (self.structure, *self.fallbacks)
        index = next(i for i, candidate in enumerate(candidates) if candidate is structure)
        return dataclasses.replace(self, structure=structure, fallbacks=candidates[index + 1 :])

    def take_losses(self) -> list[tf.Tensor]:
        """Return and clear the losses that the last call added."""
        return [] if self.model is None else take_losses(self.model)


def source_of(model: Any, example: Any = None, signature: Any = None) -> ModelAdapter:
    """Create the adapter of a user model.

    Args:
      model: a Keras 3 or tf-keras model, a loaded SavedModel, a `tf.function`, a concrete function
        or any callable on tensors.
      example: one batch of inputs, for what has no signature of its own (subclassed models,
        functions).
      signature: nested structure of `tf.TensorSpec`; overrides what the model says. A tuple of
        arguments for a function.

    Raises:
      TraceError: there is no way to know the inputs; the message says what to pass.
    """
    if is_keras_model(model):
        source = _keras_source(model, example, signature)
    elif hasattr(model, "signatures") and not callable(getattr(model, "inputs", None)):
        source = _saved_model_source(model, example, signature)
    elif callable(model):
        source = _function_source(model, example, signature)
    else:
        raise TraceError(
            f"cannot quantize a {type(model).__name__}: give a Keras model, a loaded SavedModel or"
            " a function on tensors"
        )
    if example is None or signature is not None:
        return source
    fallbacks = shapes.of_batch(source.structure, example, source.arguments, source.input_names)
    return dataclasses.replace(source, fallbacks=fallbacks)


def is_keras_model(model: Any) -> bool:
    """Return whether an object is a layer or model of Keras 3 or of tf-keras."""
    return isinstance(model, keras.layers.Layer) or _is_tf_keras(model)


def _is_tf_keras(model: Any) -> bool:
    return any(
        base.__module__.startswith(("tf_keras.", "keras.src.engine"))
        for base in type(model).__mro__
    )


def _keras_source(model, example, signature) -> ModelAdapter:
    names: tuple[str, ...] = ()
    if signature is None and getattr(model, "inputs", None):
        signature = _functional_signature(model)
        if not isinstance(signature, Mapping):
            names = tuple(tensor.name for tensor in tf.nest.flatten(model.inputs))
    arguments = None
    if signature is None and example is None:
        raise TraceError(
            f"{type(model).__name__} {model.name!r} does not say what its inputs are: pass"
            " inputs=one_batch, signature=tf.TensorSpec(...) or calibration batches"
        )
    if not getattr(model, "inputs", None):
        try:
            arguments = call_arguments(model, example if signature is None else signature)
        except ArgumentError as error:
            raise TraceError(str(error)) from error
    if arguments is not None:
        signature = {name: relaxed_spec(value) for name, value in arguments.tensors.items()}
    elif signature is None:
        signature = relaxed_spec(example)
    takes_training = "training" in inspect.signature(model.call).parameters or not _is_tf_keras(
        model
    )
    if not _is_tf_keras(model) and not getattr(model, "_call_has_training_arg", True):
        takes_training = False

    def call(inputs, training):
        mode = {"training": training} if takes_training else {}
        return (
            model(inputs, **mode)
            if arguments is None
            else arguments.call(functools.partial(model, **mode), inputs)
        )

    if not getattr(model, "built", True):
        fallbacks = () if example is None else shapes.of_batch(signature, example, arguments, names)
        _build(
            functools.partial(call, training=None if takes_training else False),
            signature,
            fallbacks,
        )
    return ModelAdapter(
        call,
        signature,
        named_variables_of(model),
        modes=takes_training,
        arguments=arguments,
        input_names=names,
        model=model,
    )


def named_variables_of(model) -> tuple[tuple[tf.Variable, str], ...]:
    """(variable, path) of all variables of a Keras model; Keras 3 stores full paths, tf-keras uses
    names.
    """
    pairs = []
    for variable in model.variables:
        if isinstance(variable, keras.Variable):
            pairs.append((variable.value, variable.path))
        else:
            pairs.append((variable, variable.name.split(":")[0]))
    return tuple(pairs)


def _build(call: Callable, signature, fallbacks: tuple[Any, ...]) -> None:
    """Create the variables of an unbuilt model, outside of any graph; open axes have size 2, or
    that of a batch.
    """
    failure: Exception | None = None
    for structure in (signature, *fallbacks[-1:]):
        try:
            call(
                tf.nest.map_structure(
                    lambda s: tf.zeros([2 if d is None else d for d in s.shape], s.dtype), structure
                )
            )
            return
        except Exception as error:
            failure = failure or error
    raise TraceError(
        f"the model could not be built with inputs {describe(signature)}: {reason_of(failure)}"
    ) from failure


def _functional_signature(model):
    def spec(tensor):
        return tf.TensorSpec(
            list(tensor.shape), tf.as_dtype(keras.backend.standardize_dtype(tensor.dtype))
        )

    structure = getattr(model, "_inputs_struct", None)  # Keras 3 keeps dict and list inputs here
    if structure is None:
        structure = getattr(model, "_nested_inputs", None)  # tf-keras
    if structure is None:
        structure = model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)
    return tf.nest.map_structure(spec, structure)


def _saved_model_source(model, example, signature) -> ModelAdapter:
    signatures = dict(model.signatures)
    if not signatures:
        if callable(model):
            return _function_source(model, example, signature)
        raise TraceError(
            "the SavedModel has no signature: save it with one, or pass one of its functions"
        )
    concrete = signatures.get("serving_default") or next(iter(signatures.values()))
    structure = concrete.structured_input_signature[1]
    names = [(v, v.name.split(":")[0]) for v in concrete.variables]
    return ModelAdapter(
        lambda inputs, _: concrete(**inputs), dict(structure), tuple(names), modes=False
    )


def _function_source(function, example, signature) -> ModelAdapter:
    try:
        if signature is not None:
            # A list of specs is meant as tf.function's input_signature is: one for each argument.
            arguments = arguments_of(
                function, tuple(signature) if isinstance(signature, list) else signature
            )
        else:
            arguments = own_arguments(function) or (
                None if example is None else arguments_of(function, example)
            )
    except ArgumentError as error:
        raise TraceError(str(error)) from error
    if arguments is None:
        raise TraceError(
            f"function {name_of(function)!r} has no signature: pass inputs=one_batch (a tuple of"
            " arguments, or a mapping with their names), signature=(tf.TensorSpec(...), ...) or"
            " calibration batches"
        )
    structure = {name: relaxed_spec(value) for name, value in arguments.tensors.items()}
    return ModelAdapter(
        lambda tensors, _: arguments.call(function, tensors),
        structure,
        (),
        modes=False,
        arguments=arguments,
    )


def relaxed_spec(example: Any) -> Any:
    """Tensor specs of a batch.

    The batch size is left open, and for integer inputs (token ids, masks) the length too.
    """

    def spec(value):
        if isinstance(value, tf.TensorSpec):
            return value
        value = value if tf.is_tensor(value) else np.asarray(value)
        dtype = tf.as_dtype(value.dtype)
        if dtype == tf.float64:
            dtype = tf.float32  # NumPy's default for Python numbers; no one means it
        elif dtype == tf.int64 and not tf.is_tensor(value):
            dtype = tf.int32
        open_axes = 2 if dtype.is_integer or dtype.is_bool else 1
        return tf.TensorSpec(
            [None if axis < open_axes else d for axis, d in enumerate(value.shape)], dtype
        )

    return tf.nest.map_structure(spec, example)


def joined_paths(structure: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(readable name, leaf) of every leaf, in the order of `tf.nest.flatten`.

    `input_mask`, `features/0`, ...
    """
    if isinstance(structure, dict):
        items = [(str(k), structure[k]) for k in sorted(structure)]
    elif isinstance(structure, (tuple, list)):
        items = [(str(i), v) for i, v in enumerate(structure)]
    else:
        return [(prefix or "inputs", structure)]
    return [leaf for k, v in items for leaf in joined_paths(v, f"{prefix}/{k}" if prefix else k)]


def describe(structure: Any) -> str:
    """Text of names, types and shapes of a structure of specs, for messages."""
    leaves = [
        f"{name}: {spec.dtype.name}{list(spec.shape)}" for name, spec in joined_paths(structure)
    ]
    return "{" + ", ".join(leaves) + "}"

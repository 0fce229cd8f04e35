"""Validation and flattening of the inputs of a traced model.

Inputs are cast and reshaped as Keras does, and flattened to the tensors that the trace takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfquant.graph.model_adapter import ModelAdapter
from tfquant.graph.trace import Trace


class Inputs:
    """Inputs of one traced model.

    Args:
      source: how the model is called.
      trace: its trace for inference; that for training takes the same inputs.
    """

    def __init__(self, source: ModelAdapter, trace: Trace):
        self._arguments, self._structure = source.arguments, trace.input_structure
        self._names, self._specs = trace.input_names, trace.input_specs
        self._of_model = source.model is not None
        # Functional models cast what they are given; others compute with the type that comes.
        self._casts = isinstance(source.model, keras.Model) and bool(
            getattr(source.model, "inputs", None)
        )

    def flatten(self, inputs: Any) -> list[tf.Tensor]:
        """Flatten inputs to tensors in the types of the signature.

        Args:
          inputs: of a model; of a function a tuple of arguments or a mapping with the names of
            parameters.

        Raises:
          ValueError: `inputs` do not fit the signature; the message names the input.
        """
        if self._arguments is not None:
            inputs = self._arguments.bind_batch(
                tuple(inputs) if self._of_model and isinstance(inputs, list) else inputs
            )
        flat = self._by_name(inputs)
        if flat is None:
            inputs = self._as_structure(inputs)
            flat = tf.nest.flatten(inputs)
            if not self._same_structure(inputs) and not self._same_count(inputs, flat):
                names = ", ".join(self._names)
                raise ValueError(
                    f"inputs are {_kind(inputs)}, the model takes {_kind(self._structure)}"
                    f" ({names})"
                )
        return [
            self._fitted(value, spec, name)
            for value, spec, name in zip(flat, self._specs, self._names, strict=True)
        ]

    def flatten_batch(self, batch: Any) -> list[tf.Tensor]:
        """Flatten the inputs of a batch, see `of_batch` and `flatten`."""
        return self.flatten(self.of_batch(batch))

    def of_batch(self, batch: Any) -> Any:
        """Return the inputs of a batch that may be (inputs, targets) or (inputs, targets, weights),
        or a function's single argument.
        """
        if self._arguments is not None and not self._of_model:
            return batch if isinstance(batch, (tuple, Mapping)) else (batch,)
        if self._arguments is not None and self._binds(batch):
            return batch
        if self._fits(batch):
            return batch
        if (
            self._arguments is not None
            and isinstance(batch, (tuple, list))
            and len(batch) in (2, 3)
            and self._binds(batch[0])
        ):
            return batch[0]
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3 and self._fits(batch[0]):
            return batch[0]
        return batch

    def takes_names(self, inputs: Any) -> bool:
        """Return whether `inputs` is a mapping with names of inputs, at least one of them."""
        return isinstance(inputs, Mapping) and any(name in inputs for name in self._names)

    def _binds(self, batch: Any) -> bool:
        """Return whether a batch holds all arguments of a layer that takes several."""
        if isinstance(batch, Mapping):
            return set(self._structure) <= set(batch)
        if not isinstance(batch, (tuple, list)) or len(batch) != len(self._structure):
            return False
        return all(
            len(tf.nest.flatten(part)) == len(tf.nest.flatten(spec))
            for part, spec in zip(batch, self._structure.values(), strict=True)
        )

    def _fits(self, inputs: Any) -> bool:
        if self._arguments is not None and self._of_model:
            return False
        if isinstance(self._structure, Mapping):
            return isinstance(inputs, Mapping)
        return self.takes_names(inputs) or self._same_structure(self._as_structure(inputs))

    def _by_name(self, inputs: Any) -> list[Any] | None:
        """Select leaves by their names.

        Keys of the structure, or, as Keras takes them as well, names of inputs.
        """
        if not isinstance(inputs, Mapping):
            return None
        structure = self._structure
        wanted = list(structure) if isinstance(structure, Mapping) else list(self._names)
        if not isinstance(structure, Mapping) and not self.takes_names(inputs):
            return None
        missing = sorted(name for name in wanted if name not in inputs)
        if missing:
            raise ValueError(
                f"input {missing[0]!r} is missing; the model takes {', '.join(sorted(wanted))}"
            )
        if not isinstance(structure, Mapping):
            return [inputs[name] for name in wanted]
        inputs = {name: inputs[name] for name in structure}
        return tf.nest.flatten(inputs) if self._same_structure(inputs) else None

    def _as_structure(self, inputs: Any) -> Any:
        """Convert between one tensor and a list of one."""
        wants_list = isinstance(self._structure, (list, tuple)) and len(self._structure) == 1
        if wants_list and not isinstance(inputs, (list, tuple, Mapping)):
            return [inputs]
        if (
            isinstance(self._structure, tf.TensorSpec)
            and isinstance(inputs, (list, tuple))
            and len(inputs) == 1
        ):
            return inputs[0]
        return inputs

    def _same_structure(self, inputs: Any) -> bool:
        try:
            tf.nest.assert_same_structure(_without_lists(self._structure), _without_lists(inputs))
        except (ValueError, TypeError):
            return False
        return True

    def _same_count(self, inputs: Any, flat: list[Any]) -> bool:
        """Return whether the number of tensors is right for a functional model, which takes them in
        their order.
        """
        nested = (inputs, self._structure)
        return (
            self._casts
            and len(flat) == len(self._specs) > 1
            and not any(isinstance(n, Mapping) for n in nested)
        )

    def _fitted(self, value: Any, spec: tf.TensorSpec, name: str) -> tf.Tensor:
        if not tf.is_tensor(value):
            value = np.asarray(value)
        if self._casts:
            value = _with_rank(value, spec)
        dtype = tf.as_dtype(value.dtype)
        if not spec.shape.is_compatible_with(value.shape):
            raise ValueError(
                f"input {name!r} has shape {list(value.shape)}, the model takes {list(spec.shape)}"
            )
        if dtype == spec.dtype:
            return tf.convert_to_tensor(value)
        if not (_is_number(dtype) and _is_number(spec.dtype)):
            raise ValueError(f"input {name!r} is {dtype.name}, the model takes {spec.dtype.name}")
        if dtype.is_floating and not spec.dtype.is_floating:
            _check_whole(value, spec, name, symbolic=self._casts)
        return tf.cast(value, spec.dtype)


def _check_whole(value: Any, spec: tf.TensorSpec, name: str, symbolic: bool) -> None:
    """Raise ValueError if floats for an integer input are not whole numbers, which a cast would
    truncate.

    Args:
      value: array or tensor.
      spec: of the input.
      name: of the input.
      symbolic: whether to let tensors pass whose values are not known yet.
    """
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "numpy"):
            if symbolic:
                return
            raise ValueError(
                f"input {name!r} is {value.dtype.name}, the model was traced with"
                f" {spec.dtype.name}: cast it"
            )
        value = value.numpy()
    value = np.asarray(value, np.float64)
    if not np.isfinite(value).all() or (value != np.trunc(value)).any():
        raise ValueError(
            f"input {name!r} holds numbers that are not whole, the model takes {spec.dtype.name}:"
            " round them"
        )


def _with_rank(value: Any, spec: tf.TensorSpec) -> Any:
    """Add or remove a last axis of size one, as functional models of Keras do."""
    if spec.shape.rank is None or value.shape is None:
        return value
    specified = len(value.shape)
    if specified == spec.shape.rank + 1 and value.shape[-1] == 1:
        return value[..., 0]
    if specified == spec.shape.rank - 1 and spec.shape[-1] == 1:
        return value[..., None]
    return value


def num_examples(flat: Sequence[tf.Tensor]) -> int:
    """Return the number of examples in flat inputs; 1 where the first has no axes."""
    return len(flat[0]) if flat and flat[0].shape.rank else 1


def _is_number(dtype: tf.DType) -> bool:
    return dtype.is_floating or dtype.is_integer or dtype.is_bool


def _without_lists(structure: Any) -> Any:
    """Replace lists by tuples, as Keras converts one to the other while it passes inputs on."""
    if isinstance(structure, Mapping):
        return {key: _without_lists(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(map(_without_lists, structure))
    return structure


def _kind(structure: Any) -> str:
    if isinstance(structure, Mapping):
        return f"a mapping of {', '.join(map(str, sorted(structure)))}"
    if isinstance(structure, (tuple, list)):
        return f"a {type(structure).__name__} of {len(structure)}"
    return "one tensor"

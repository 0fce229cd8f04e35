"""Fingerprint of a model's Python state: everything that a trace reads and no variable stores.

A trace is taken once; flags, rates, sublayers and constants that Python code reads are fixed in it.
Comparing fingerprints tells whether a new trace could differ, at a small part of its cost.
"""

from __future__ import annotations

import functools
import sys
import types
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Of what every Keras layer has, these decide what a call computes; the rest is Keras' own
# bookkeeping.
_READ_BY_CALLS = frozenset(
    {
        "_dtype_policy",
        "_layers",
        "_supports_masking",
        "_trainable",
        "activity_regularizer",
        "autocast",
        "_remat_mode",
        "_self_tracked_trackables",
        "_activity_regularizer",
    }
)
# Left on a model by `compile`, `fit` and the like.
_LEFT_BY_TRAINING = frozenset(
    {
        "_compile_config",
        "_compiled_trainable_state",
        "_epoch_iterator",
        "_eval_epoch_iterator",
        "_optimizer",
        "_pss_evaluation_shards",
        "_saved_model_arg_spec",
        "history",
        "loss",
        "optimizer",
        "stop_evaluating",
        "stop_predicting",
        "stop_training",
    }
)
_LARGEST_ARRAY = 1 << 20  # bytes of an array whose values are compared; of larger ones the object
_LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "tensorflow", "numpy", "absl", "h5py", "six", "google"}
) - {"__main__"}
_INTERNALS = (
    "keras.src.ops",
    "keras.src.backend",
    "keras.src.utils.tracking",
    "tf_keras.src.engine.node",
)
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    tf.DType,
    tf.TensorShape,
    np.generic,
    np.dtype,
)


def fingerprint(model: Any) -> Hashable:
    """Fingerprint of the Python state that a trace of `model` could read; equal as long as none of
    it changes.

    Args:
      model: a Keras or tf-keras model or layer.
    """
    return tuple(_Walk(type(model)).run(model))


class _Walk:
    """Traversal of the objects reachable from a model, each visited once, in an order independent
    of memory addresses.
    """

    def __init__(self, kind: type):
        self.found: list[Hashable] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # ids must not be used again meanwhile
        self._ignored = _bookkeeping(
            "tf_keras" if kind.__module__.startswith("tf_keras") else "keras"
        )
        self._ignored |= _bookkeeping("tf_keras") if _is_tf_keras(kind) else frozenset()

    def run(self, model: Any) -> list[Hashable]:
        """Return all objects in the order of the walk; not recursive, as users nest their models
        deeply.
        """
        pending = [model]
        while pending:
            value = pending.pop()
            if isinstance(value, _PLAIN):
                # NaN equals itself, and True is not 1.
                self.found.append((type(value).__name__, repr(value)))
            elif id(value) in self._numbers:
                self.found.append(("seen", self._numbers[id(value)]))
            else:
                self._numbers[id(value)] = len(self._numbers)
                self._alive.append(value)
                pending.extend(self._visit(value))
        return self.found

    def _visit(self, value: Any) -> list[Any]:
        """Record an object that is met for the first time, and return the objects it refers to."""
        name = type(value).__qualname__
        if isinstance(value, keras.Variable | tf.Variable):
            inner = value.value if isinstance(value, keras.Variable) else value
            self.found.append(("variable", id(inner), bool(value.trainable)))
            return [getattr(value, "regularizer", None)]
        if isinstance(value, tf.Tensor | np.ndarray):
            self.found.append(_of_array(value))
            return []
        if isinstance(value, Mapping):
            self.found.append(("mapping", len(value)))
            return [part for item in value.items() for part in item]
        if isinstance(value, list | tuple | set | frozenset):
            self.found.append(("sequence", len(value)))
            return list(value)
        if isinstance(value, functools.partial):
            self.found.append(("partial",))
            return [value.func, value.args, value.keywords]
        if isinstance(value, types.MethodType):
            self.found.append(("method", id(value.__func__)))
            return [value.__self__]
        if isinstance(value, types.FunctionType) and not _of_library(value.__module__):
            self.found.append(("function", id(value.__code__)))
            return [value.__defaults__, [_content(cell) for cell in value.__closure__ or ()]]
        if _is_opaque(value):
            self.found.append((name, id(value)))
            return []
        attributes = {k: v for k, v in vars(value).items() if not self._is_ignored(value, k)}
        self.found.append((name, tuple(sorted(attributes))))
        return [attributes[k] for k in sorted(attributes)]

    def _is_ignored(self, owner: Any, name: str) -> bool:
        layer = isinstance(owner, keras.Layer) or _is_tf_keras(type(owner))
        return layer and (
            name in self._ignored or (name.startswith("_self_") and name not in _READ_BY_CALLS)
        )


def _of_array(value: Any) -> Hashable:
    """Values of an array or eager tensor; symbolic tensors, left over from a trace, are ignored."""
    if tf.is_tensor(value):
        if not hasattr(value, "numpy"):
            return "symbolic tensor"
        size = (
            int(np.prod(value.shape)) * value.dtype.size
            if value.dtype.is_numpy_compatible
            else _LARGEST_ARRAY + 1
        )
        if size > _LARGEST_ARRAY:
            return ("tensor", id(value))
        value = value.numpy()
    if value.nbytes > _LARGEST_ARRAY or value.dtype.hasobject:
        return ("array", id(value))
    return (
        "array",
        str(value.dtype),
        value.shape,
        zlib.crc32(np.ascontiguousarray(value).tobytes()),
    )


def _is_opaque(value: Any) -> bool:
    """Return whether an object is compared by identity.

    Functions, classes, and what libraries keep for themselves.
    """
    kind = type(value)
    return (
        not hasattr(value, "__dict__")
        or isinstance(
            value,
            type
            | types.ModuleType
            | types.FunctionType
            | keras.KerasTensor
            | keras.optimizers.Optimizer,
        )
        or _of_library(kind.__module__)
        or kind.__module__.startswith(_INTERNALS)
        and not isinstance(value, keras.Operation)
    )


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _content(cell: types.CellType) -> Any:
    """Content of a closure cell; None for a name that is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_tf_keras(kind: type) -> bool:
    return any(base.__module__.startswith("tf_keras.") for base in kind.__mro__)


@functools.cache
def _bookkeeping(package: str) -> frozenset[str]:
    """Attributes of an empty model, except those that calls read."""
    module = sys.modules.get(package)
    if module is None:
        return frozenset()
    names = set(vars(module.Model())) | set(vars(module.layers.Layer()))
    return frozenset(names | _LEFT_BY_TRAINING) - _READ_BY_CALLS

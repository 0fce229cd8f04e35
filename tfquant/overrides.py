"""Preserve methods of Keras' training contract that a user's model class overrides.

`compute_loss`, `train_step` and the like may call `super()`, so that they need an instance of their
own class. A quantized model of such a class is therefore an instance of a class made for it,
derived from `QuantizedModel` and from the user's: calls go to the quantized network, all else that
the user's class defines stays as it is, and attributes are those of the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tfquant.graph.model_adapter import TraceError

STEPS = ("train_step", "test_step", "predict_step")
_CONTRACT = (
    *STEPS,
    "compute_loss",
    "compute_metrics",
    "metrics",
    "reset_metrics",
    "get_metrics_result",
    "compile",
    "compile_from_config",
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
)


def overridden(model: Any) -> list[str]:
    """List the methods of the training contract that the class of a model overrides.

    Raises:
      TraceError: they cannot be kept: set on the instance, or of a tf-keras model.
    """
    if not hasattr(model, "train_step"):
        return []
    result = [name for name in _CONTRACT if not _is_of_keras(type(model), name)]
    patched = [
        name
        for name in _CONTRACT
        if callable(vars(model).get(name)) and not name.startswith("make_")
    ]
    if patched:
        raise TraceError(
            f"{patched[0]} is set on the model itself and would not be used: define it in a class"
            " derived from keras.Model"
        )
    if result and not isinstance(model, keras.Model):
        raise TraceError(
            f"{type(model).__name__} replaces {', '.join(result)} of tf-keras, which a quantized"
            " model, one of Keras 3, would not use: quantize the network alone, and train it in a"
            " loop of your own"
        )
    return result


def class_for(base: type, model: Any) -> type:
    """Return `base`, or a subclass of it with the overrides of the model's class.

    Args:
      base: class of quantized models.
      model: the user's.

    Raises:
      TraceError: see `overridden`.
    """
    result = overridden(model)
    if not result:
        return base
    kind = type(model)
    steps = {name: _calling_the_network(name) for name in STEPS if name in result}
    return type(
        f"Quantized{kind.__name__}",
        (base, kind),
        {"__module__": kind.__module__, "__doc__": base.__doc__, **steps},
    )


def _is_of_keras(kind: type, name: str) -> bool:
    owner = next((c for c in kind.__mro__ if name in vars(c)), None)
    return owner is None or owner.__module__.startswith(("keras.src.", "tf_keras.", "keras.engine"))


def _calling_the_network(name: str) -> Callable:
    """Wrap a step so that it raises ValueError if it does not call the quantized network."""

    def step(self, data):
        runs = self._engine.runs
        result = getattr(super(type(self), self), name)(data)
        if self._engine.runs == runs and self.mode == "quantized":
            raise ValueError(
                f"{name} of {type(self.original).__name__} does not call self(...), but layers of"
                " it, which stay in float: call the model itself there, or set_mode('float')"
            )
        return result

    step.__name__ = name
    return functools.wraps(getattr(keras.Model, name))(step)

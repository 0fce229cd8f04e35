"""Uniform access to variables of Keras and of TensorFlow."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfquant.graph.dataflow import distinct


def state_variable(value: Any, name: str, *, trainable: bool = False) -> tf.Variable:
    """Create a TensorFlow variable from any initial value; the stub of TensorFlow takes tensors."""
    return tf.Variable(value, trainable=trainable, name=name)


def resource(variable: Any) -> tf.Variable:
    """TensorFlow variable behind a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def path_of(variable: Any) -> str:
    """Path of a variable.

    Keras has it as `path`, TensorFlow as `name` with the output's number behind.
    """
    return getattr(variable, "path", None) or variable.name.removesuffix(":0")


def names_of(variables: Iterable[Any]) -> dict[int, str]:
    """Return unique names of variables: nested models may hold layers of one path.

    Args:
      variables: of Keras or TensorFlow; one may occur several times.

    Returns:
      `id` of the TensorFlow variable -> its path; the second variable of a path becomes `path#2`,
      and so on.
    """
    result = {id(resource(variable)): variable for variable in variables}
    return dict(zip(result, distinct(map(path_of, result.values())), strict=True))


def are_finite(variables: Mapping[str, tf.Variable]) -> bool:
    """Return whether no variable contains NaN or Inf."""
    return all(is_finite(variable.numpy()) for variable in variables.values())


def is_finite(value: Any) -> bool:
    """Return whether an array contains neither NaN nor Inf; integers and strings never do."""
    array = np.asarray(value)
    return array.dtype.kind in "iubOSU" or bool(np.isfinite(array).all())

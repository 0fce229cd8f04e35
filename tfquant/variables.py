"""One view of variables of Keras and of TensorFlow."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def resource(variable: Any) -> tf.Variable:
    """The TensorFlow variable, which a Keras variable wraps."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def path_of(variable: Any) -> str:
    """A variable's path: Keras has it as `path`, TensorFlow as `name` with the output's number behind."""
    return getattr(variable, "path", None) or variable.name.removesuffix(":0")


def is_finite(value: Any) -> bool:
    """Whether an array holds neither NaN nor Inf; integers and texts never do."""
    array = np.asarray(value)
    return array.dtype.kind in "iubOSU" or bool(np.isfinite(array).all())

"""Frozen weights: elements of variables that no optimizer moves.

Optimizers move weights without a gradient too, by momentum or by decay. Frozen elements are
therefore assigned again after each update, so that they stay bit-identical whatever the optimizer
does. Structured sparsity (frozen at zero) and incremental quantization use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfquant.variables import state_variable


class FrozenWeights:
    """Masks of variables, and the values of the elements that they freeze.

    A checkpoint holds the masks; the frozen values are in its weights.

    Args:
        variables: name -> variable.
        at_zero: whether what is frozen is zero, so that no values need to be kept.
    """

    def __init__(self, variables: Mapping[str, tf.Variable], *, at_zero: bool = False):
        self.variables = dict(variables)
        self._free = {
            name: state_variable(tf.fill(variable.shape, True), "mask")
            for name, variable in self.variables.items()
        }
        self._values = {
            name: None if at_zero else state_variable(variable, "frozen")
            for name, variable in self.variables.items()
        }

    def state(self, prefix: str) -> dict[str, tf.Variable]:
        """Map checkpoint name -> mask, bool, True where the variable is trained.

        Args:
            prefix: of the names.
        """
        return {prefix + name: mask for name, mask in self._free.items()}

    def free(self, name: str) -> np.ndarray:
        """Return the mask of a variable, True where it is trained."""
        return self._free[name].numpy()

    def set(self, name: str, free: np.ndarray | tf.Tensor) -> None:
        """Set the mask of a variable; frozen elements keep their current values, or are zero."""
        self._free[name].assign(tf.cast(free, tf.bool))
        self.follow(name)

    def follow(self, name: str) -> None:
        """Take over the current values of a variable, which were set from outside."""
        values = self._values[name]
        if values is not None:
            values.assign(tf.convert_to_tensor(self.variables[name]))

    def impose(self) -> None:
        """Assign the frozen elements again; call it after an update, in its graph or eagerly."""
        for name, variable in self.variables.items():
            values = self._values[name]
            # Chosen rather than multiplied: a product would leave minus zero, and NaN where a
            # weight is infinite.
            kept = tf.zeros_like(variable) if values is None else tf.convert_to_tensor(values)
            variable.assign(tf.where(self._free[name], tf.convert_to_tensor(variable), kept))

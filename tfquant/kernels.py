"""Element-wise kernels compiled by XLA.

Rounding to a codebook takes a dozen plain operations, each a pass over memory; compiled they are
one. Only the rounding is compiled, never the network around it. XLA compiles for each shape again,
which takes longer than many calls, so tensors whose size is open are padded to one of few sizes:
those with at most four significant binary digits, 8 for each power of two. Small tensors run as
plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# (values, scale that broadcasts to them) -> values, element by element.
Elementwise = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# Elements from which on compilation pays.
SMALLEST_COMPILED = 2**14
_SIGNIFICANT_DIGITS = 4


class CompiledKernel:
    """Element-wise function of values and a scale, compiled once for each shape.

    Args:
      plain: the function, of float32 tensors of any shape; it must map padding (zeros) to numbers.
      compiled: the same function in a form that is faster when compiled; None: `plain`.
    """

    def __init__(self, plain: Elementwise, compiled: Elementwise | None = None):
        self._plain = plain
        open_shape: Any = None
        signature = [tf.TensorSpec(open_shape, tf.float32)] * 2
        self._compiled = tf.function(
            compiled or plain, input_signature=signature, autograph=False, jit_compile=True
        )

    def __call__(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Compute the function.

        Args:
          x: float32.
          scale: float32, a scalar or of the rank of `x`, size 1 along axes that share a scale.

        Returns:
          float32 like `x`.
        """
        if x.shape.is_fully_defined():
            small = x.shape.num_elements() < SMALLEST_COMPILED
            return tf.ensure_shape((self._plain if small else self._compiled)(x, scale), x.shape)
        if scale.shape.rank == 0:
            return self._padded(x, scale)
        return self._padded(x / scale, tf.constant(1.0)) * scale

    def _padded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Compute the function on a tensor of open size and a scalar scale."""
        y = tf.cond(
            tf.size(x) < SMALLEST_COMPILED,
            lambda: self._plain(x, scale),
            lambda: tf.reshape(
                _padded(lambda flat: self._compiled(flat, scale), tf.reshape(x, [-1])), tf.shape(x)
            ),
        )
        return tf.ensure_shape(y, x.shape)


class CompiledRows:
    """Function of the rows of a matrix, each by itself, compiled once for each number of rows.

    Args:
      plain: the function, float32 [rows, n] to the same shape; rows of zeros must be allowed.
      compiled: the same function in a form that is faster when compiled.
    """

    def __init__(
        self,
        plain: Callable[[tf.Tensor], tf.Tensor],
        compiled: Callable[[tf.Tensor], tf.Tensor],
    ):
        self._plain = plain
        open_shape: Any = None
        signature = [tf.TensorSpec(open_shape, tf.float32)]
        self._compiled = tf.function(
            compiled, input_signature=signature, autograph=False, jit_compile=True
        )

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Compute the function of float32 [rows, n]."""
        if x.shape.is_fully_defined():
            small = x.shape.num_elements() < SMALLEST_COMPILED
            return tf.ensure_shape((self._plain if small else self._compiled)(x), x.shape)
        y = tf.cond(
            tf.size(x) < SMALLEST_COMPILED,
            lambda: self._plain(x),
            lambda: _padded(self._compiled, x),
        )
        return tf.ensure_shape(y, x.shape)


def _padded(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Call a compiled function on a tensor whose first axis is padded with zeros to the next size
    that is compiled, which many sizes of batches and texts are without.
    """
    size = tf.shape(x)[0]
    missing = compiled_size(size) - size

    def with_padding() -> tf.Tensor:
        paddings: Any = [[0, missing], *([[0, 0]] * (x.shape.rank - 1))]
        return function(tf.pad(x, paddings))[:size]

    return tf.cond(tf.equal(missing, 0), lambda: function(x), with_padding)


def compiled_size(size: tf.Tensor) -> tf.Tensor:
    """Smallest size of at most four significant binary digits that is not below `size`."""
    exponent = tf.cast(tf.bitcast(tf.cast(size, tf.float64), tf.int64) // 2**52, tf.int32) - 1023
    unit = tf.bitwise.left_shift(1, tf.maximum(exponent - (_SIGNIFICANT_DIGITS - 1), 0))
    return (size + unit - 1) // unit * unit

"""Which axes of a tensor are the batch and the sequence: found by emitting the graph once with sizes nothing else has."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph

from tfquant.graph.trace import Trace
from tfquant.messages import one_line

# Inputs that mark real tokens, where nothing else is said; the first that a model has counts.
MASK_NAMES = ("input_mask", "attention_mask", "padding_mask", "mask")
# Small, so that position tables are long enough; the first two that are no size in the model are taken.
_PRIMES = (7, 11, 13, 17, 19, 23, 29, 5, 3)


@dataclasses.dataclass(frozen=True)
class TokenAxes:
    """Where the tokens of a tensor lie.

    Attributes:
      batch: axis of the batch, None if there is none.
      sequence: axes that run over tokens (two for attention probabilities).
      flat: axis that runs over batch times tokens, None if there is none.
      rank: of the tensor.
    """

    batch: int | None
    sequence: tuple[int, ...]
    flat: int | None
    rank: int

    def validity(self, mask: tf.Tensor) -> tf.Tensor | None:
        """A token mask broadcast to the tensor.

        Args:
          mask: [batch, tokens], nonzero for real tokens.

        Returns:
          float32 with ones for real tokens and zeros elsewhere, size 1 along axes without tokens; a pair of tokens counts if both
          are real. None where the tensor has no token axis.
        """
        mask = tf.cast(tf.not_equal(tf.cast(mask, tf.float32), 0.0), tf.float32)
        if self.flat is not None:
            return tf.reshape(mask, [-1 if axis == self.flat else 1 for axis in range(self.rank)])
        if self.batch is None or not self.sequence:
            return None
        valid = None
        for axis in self.sequence:
            oriented = mask if self.batch < axis else tf.transpose(mask)
            shape = [1] * self.rank
            sizes = tf.shape(mask)
            shape[self.batch], shape[axis] = sizes[0], sizes[1]
            placed = tf.reshape(oriented, shape)
            placed.set_shape([None if i in (self.batch, axis) else 1 for i in range(self.rank)])
            valid = placed if valid is None else valid * placed
        return valid


def token_axes(trace: Trace, mask: tf.Tensor, tensors: Iterable[tf.Tensor]) -> dict[str, TokenAxes]:
    """Token axes of `tensors`.

    Args:
      trace: the graph.
      mask: the placeholder of the token mask, [batch, tokens].
      tensors: of the graph.

    Returns:
      Tensor name -> its axes. Axes of fixed size are told by that size, the first that fits; where batch and length are open they
      cannot be mistaken.
    """
    tensors = list(tensors)
    batch, length = _probe_sizes(trace, mask)
    shapes = _static_shapes(trace, mask, batch, length, tensors)
    return {t.name: _label(shapes[t.name], batch, length) for t in tensors}


def _probe_sizes(trace: Trace, mask: tf.Tensor) -> tuple[int, int]:
    taken = {d for op in trace.operations for t in op.outputs if t.shape.rank for d in t.shape if d}
    free = [p for p in _PRIMES if p not in taken]
    if len(free) < 2:
        free = [p for p in range(31, 2000) if p not in taken and all(p % q for q in range(2, p))]
    # Nor may their product, the size of a flat axis, be taken.
    pairs = itertools.combinations(free, 2)
    length, batch = next((pair for pair in pairs if pair[0] * pair[1] not in taken), free[:2])
    return mask.shape[0] or batch, mask.shape[1] or length


def _static_shapes(trace: Trace, mask: tf.Tensor, batch: int, length: int, tensors: list[tf.Tensor]) -> dict[str, tuple]:
    with tf_func_graph.FuncGraph("tfquant_shapes").as_default():
        inputs = []
        for old in trace.inputs:
            shape = list(old.shape)
            if shape and shape[0] is None:
                shape[0] = batch
            if len(shape) > 1 and shape[1] is None:
                shape[1] = length
            inputs.append(tf.compat.v1.placeholder(old.dtype, shape))
        return {old.name: tuple(new.shape) for old, new in zip(tensors, trace.emit(inputs, targets=tensors), strict=True)}


def _label(shape: tuple[int | None, ...], batch: int, length: int) -> TokenAxes:
    rank = len(shape)
    flat = next((i for i, d in enumerate(shape) if d == batch * length), None)
    first = next((i for i, d in enumerate(shape) if d == batch), None)
    sequence = tuple(i for i, d in enumerate(shape) if d == length and i != first)
    if rank == 3 and len(sequence) > 1:
        # [batch, tokens, features] with as many features as tokens: the last axis carries features.
        sequence = sequence[:1]
    return TokenAxes(first, sequence, flat, rank)


def padded_axes(
    trace: Trace, index: int | None, tensors: Iterable[tf.Tensor], remedy: str = "pass mask=None"
) -> dict[str, TokenAxes]:
    """Tensor name -> where its tokens lie, by the mask with that index among the inputs; nothing without one.

    Raises:
      ValueError: it cannot be told.
    """
    if index is None:
        return {}
    try:
        return token_axes(trace, trace.inputs[index], tensors)
    except Exception as error:
        raise ValueError(
            f"cannot tell where padding lies in this model's tensors ({type(error).__name__}: {one_line(error)}): {remedy}"
        ) from error


def mask_index(trace: Trace, mask: str | None) -> int | None:
    """Which input marks real tokens, see `tfquant.calibrate`; None if none does.

    Raises:
      ValueError: `mask` is no such input.
    """
    names = trace.input_names
    if mask is None:
        return None
    if mask == "auto":
        specs = trace.input_specs
        known = [n for n in MASK_NAMES if n in names and specs[names.index(n)].shape.rank == 2]
        return names.index(known[0]) if known else None
    if mask not in names:
        raise ValueError(f"mask={mask!r} is no input of the model; it has {', '.join(names)}")
    if trace.input_specs[names.index(mask)].shape.rank != 2:
        shape = list(trace.input_specs[names.index(mask)].shape)
        raise ValueError(f"mask={mask!r} must be [batch, tokens], its shape is {shape}")
    return names.index(mask)

"""TensorFlow operations that ONNX or its converter lacks, replaced while the network is emitted for
conversion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfquant.export.errors import ExportError
from tfquant.export.onnx.tensor_lists import TensorLists
from tfquant.graph.dataflow import parent
from tfquant.graph.trace import Trace

Replacement = Callable[[list[tf.Tensor]], tf.Tensor]

_SIGN_BIT = np.iinfo(np.int32).min
_STATEFUL_RANDOM = (
    "Random",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "Multinomial",
    "RngReadAndSkip",
)
_STATES = ("ReadVariableOp", "RngReadAndSkip", "StatefulUniformFullInt")


def check_random(trace: Trace) -> None:
    """Raise ExportError if an output depends on random numbers that are new in every call.

    Random numbers made from a constant seed are constants. A file with others would repeat one
    sample of them, or draw its own.
    """
    for op in trace.ancestors(list(trace.outputs)):
        stateless = (
            op.type.startswith("Stateless") and "Random" in op.type and "KeyCounter" not in op.type
        )
        drawn = stateless and any(
            before.type in _STATES for before in trace.ancestors(list(op.outputs))
        )
        if drawn or op.type.startswith(_STATEFUL_RANDOM):
            raise ExportError(
                f"operation {op.type} in layer {parent(op.name)} draws random numbers in every"
                " call, which no file can repeat: make them an input of the model, or use a"
                " constant seed"
            )


def rewrites(trace: Trace) -> dict[str, Replacement]:
    """Return replacements of operations without a counterpart.

    Args:
      trace: of the network.

    Returns:
      Name of an operation -> what makes its output from its inputs, for `Edits.operations`.
    """
    result: dict[str, Replacement] = {}
    for op in trace.operations:
        if op.type == "Bitcast" and (masks := list(_sign_masks(op))):
            result[op.name] = _first
            result |= dict.fromkeys(masks, _sign_bit)
    lists = TensorLists(trace.operations)
    result |= {name: functools.partial(lists.emit, name) for name in lists.operations}
    return result


def _sign_masks(bitcast: tf.Operation) -> Iterator[str]:
    """The operations that select the sign bit of float32 values; none if anything else reads their
    bits.
    """
    if bitcast.inputs[0].dtype != tf.float32 or bitcast.outputs[0].dtype != tf.int32:
        return
    readers = bitcast.outputs[0].consumers()
    for op in readers:
        masks = [tf.get_static_value(tensor) for tensor in op.inputs]
        if op.type != "BitwiseAnd" or not any(
            np.size(mask) == 1 and mask == _SIGN_BIT for mask in masks if mask is not None
        ):
            return
    yield from (op.name for op in readers)


def _first(inputs: list[tf.Tensor]) -> tf.Tensor:
    return inputs[0]


def _sign_bit(inputs: list[tf.Tensor]) -> tf.Tensor:
    """The sign bit of float values, which are one of the inputs.

    Zeros have one too, which their reciprocal shows.
    """
    x = next(tensor for tensor in inputs if tensor.dtype == tf.float32)
    zero = tf.zeros([], tf.float32)
    negative = tf.logical_or(tf.less(x, zero), tf.less(tf.ones([], tf.float32) / x, zero))
    return tf.where(negative, tf.constant(_SIGN_BIT, tf.int32), tf.constant(0, tf.int32))

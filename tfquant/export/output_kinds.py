"""Kinds of outputs, which decide when two answers of an output are the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfquant.choices import OUTPUT_KINDS as KINDS
from tfquant.graph.trace import Trace

# Operations that move values without changing them -> the operand that they move.
_MOVES = {
    "Identity": 0,
    "StopGradient": 0,
    "Reshape": 0,
    "Squeeze": 0,
    "ExpandDims": 0,
    "Cast": 0,
    "StridedSlice": 0,
    "Slice": 0,
    "Unpack": 0,
    "SplitV": 0,
    "Transpose": 0,
    "EnsureShape": 0,
    "Split": 1,
}
_PRODUCTS = {
    "MatMul",
    "BatchMatMul",
    "BatchMatMulV2",
    "BatchMatMulV3",
    "Einsum",
    "Conv2D",
    "BiasAdd",
}
_SUMS = {
    "Add": (0, 1),
    "AddV2": (0, 1),
    "Sub": (0,),
    "Select": (1, 2),
    "SelectV2": (1, 2),
    "RealDiv": (0,),
}
_UNLIKE = 100.0  # spreads of two columns in a ratio beyond which they are in different units
_SUM_OF_PROBABILITIES = 1e-2
_UNIT = 1e-2


def kinds_of(
    trace: Trace,
    names: tuple[str, ...],
    values: Mapping[str, np.ndarray],
    chosen: Mapping[str, str],
) -> dict[str, str]:
    """Kind of every output: the chosen one, else what the graph and the answers to one batch say.

    Args:
      trace: of the network.
      names: of its outputs, in their order.
      values: answers to one batch, by name.
      chosen: name -> kind, for outputs that the caller knows better.

    Raises:
      ValueError: an unknown kind or output, or a kind that the type of an output does not allow.
    """
    for name, kind in chosen.items():
        if name not in names:
            known = ", ".join(names)
            raise ValueError(f"check: there is no output {name!r}, the network has {known}")
        if kind not in KINDS:
            raise ValueError(f"check: {name!r} is {kind!r}, must be one of {', '.join(KINDS)}")
    result = {}
    for name, tensor in zip(names, trace.outputs, strict=True):
        result[name] = chosen.get(name) or kind_of(values[name], tensor)
        if result[name] != "exact" and not is_real(values[name]):
            kind, dtype = result[name], values[name].dtype
            raise ValueError(f"check: {name!r} is {kind!r}, but its type {dtype} is for 'exact'")
    return result


def is_real(values: np.ndarray) -> bool:
    """Whether the values are floating point, or complex, numbers."""
    dtype = tf.as_dtype(values.dtype)
    return dtype.is_floating or dtype.is_complex


def kind_of(values: np.ndarray, tensor: tf.Tensor) -> str:
    """The kind that an output most likely is of.

    Args:
      values: its answer to one batch.
      tensor: in the graph.
    """
    if not is_real(values):
        return "exact"
    if values.ndim < 2 or values.shape[-1] == 1:
        return "number"
    if np.iscomplexobj(values):
        return "feature_map"
    producer = _moved(tensor).op
    if producer.type in ("Softmax", "LogSoftmax") or _are_probabilities(values):
        return "classes"
    if producer.type == "Sigmoid":
        return "number"
    if values.ndim > 2:
        return "feature_map"
    if producer.type == "Tanh" or _have_unit_length(values) or not _is_affine(tensor, 3):
        return "vector"
    positions = tensor.shape.rank is None or tensor.shape[-1] is None  # no columns of their own
    return "classes" if positions or not _columns_are_unlike(values) else "number"


def _moved(tensor: tf.Tensor) -> tf.Tensor:
    """Return the tensor that computed the values, behind operations that only move them."""
    while tensor.op.type in _MOVES:
        tensor = tensor.op.inputs[_MOVES[tensor.op.type]]
    return tensor


def _is_affine(tensor: tf.Tensor, depth: int) -> bool:
    """Whether it is a product with a kernel, behind a bias or a mask at most: scores."""
    op = _moved(tensor).op
    if op.type in _PRODUCTS:
        return True
    return depth > 0 and any(
        _is_affine(op.inputs[index], depth - 1) for index in _SUMS.get(op.type, ())
    )


def _are_probabilities(values: np.ndarray) -> bool:
    return bool(
        (values >= 0).all()
        and np.abs(values.sum(-1, dtype=np.float64) - 1).max(initial=0.0) < _SUM_OF_PROBABILITIES
    )


def _have_unit_length(values: np.ndarray) -> bool:
    return bool(
        np.abs(np.linalg.norm(values.astype(np.float64), axis=-1) - 1).max(initial=0.0) < _UNIT
    )


def _columns_are_unlike(values: np.ndarray) -> bool:
    """Whether columns vary so differently that they are numbers in units of their own."""
    if len(values) < 2:
        return False
    spreads = values.astype(np.float64).std(0)
    return bool(spreads.min() > 0 and spreads.max() > _UNLIKE * spreads.min())

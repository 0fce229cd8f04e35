"""Input shapes for tracing a model.

Open shapes if the model traces with them, else those of a batch from the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.graph.arguments import ArgumentError, Arguments


def of_batch(
    structure: Any, batch: Any, arguments: Arguments | None = None, names: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Variants of `structure` with fewer open axes: first all but the first axis fixed to a batch's
    size, then all.

    Args:
      structure: nested structure of `tf.TensorSpec`.
      batch: inputs of a call: arrays or tensors in that structure, or a mapping with `names`.
      arguments: of a function or layer that takes several: how the batch becomes `structure`.
      names: of the leaves of `structure`.

    Returns:
      None, one or two structures; none where the batch does not fit or no axis is open.
    """
    specs, shapes = tf.nest.flatten(structure), _shapes(structure, batch, arguments, names)
    if shapes is None or not all(
        spec.shape.is_compatible_with(shape) for spec, shape in zip(specs, shapes, strict=True)
    ):
        return ()
    result: list[list[tf.TensorSpec]] = []
    for open_axes in (1, 0):
        closed = [
            _closed(spec, shape, open_axes) for spec, shape in zip(specs, shapes, strict=True)
        ]
        if closed not in (specs, *result):
            result.append(closed)
    return tuple(tf.nest.pack_sequence_as(structure, closed) for closed in result)


def fixed_axes(names: Sequence[str], wanted: Any, structure: Any) -> str:
    """Describe the axes that are fixed in `structure` and open in `wanted`, for messages.

    `axis 1 of input 'tokens' is 128`.
    """
    places = [
        f"axis {axis} of input {name!r} is {size}"
        for name, spec, closed in zip(
            names, tf.nest.flatten(wanted), tf.nest.flatten(structure), strict=True
        )
        if spec.shape.rank is not None
        for axis, size in enumerate(closed.shape)
        if spec.shape[axis] is None and size is not None
    ]
    return ", ".join(places)


def _closed(spec: tf.TensorSpec, shape: Sequence[int], open_axes: int) -> tf.TensorSpec:
    specified = spec.shape if spec.shape.rank is not None else [None] * len(shape)
    sizes = [
        size if own is None and axis >= open_axes else own
        for axis, (own, size) in enumerate(zip(specified, shape, strict=True))
    ]
    return tf.TensorSpec(sizes, spec.dtype)


def _shapes(
    structure: Any, batch: Any, arguments: Arguments | None, names: Sequence[str]
) -> list[tuple[int, ...]] | None:
    """Shapes of the leaves of a batch, in the order of those of `structure`; None if their number
    differs.
    """
    if arguments is not None:
        try:
            batch = arguments.bind_batch(tuple(batch) if isinstance(batch, list) else batch)
        except ArgumentError:
            return None
    if isinstance(batch, Mapping):
        keys = structure if isinstance(structure, Mapping) else names
        if any(key not in batch for key in keys):
            return None
        batch = (
            {key: batch[key] for key in keys}
            if isinstance(structure, Mapping)
            else [batch[key] for key in keys]
        )
    leaves = tf.nest.flatten(batch)
    if len(leaves) != len(tf.nest.flatten(structure)):
        return None
    shapes = [leaf.shape if hasattr(leaf, "shape") else np.shape(leaf) for leaf in leaves]
    return [tuple(shape) for shape in shapes]

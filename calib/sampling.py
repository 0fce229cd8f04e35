"""In-graph view of a tensor as cells: groups of elements that are valid or padding together.

The extremes of a cell are exact and cheap (one reduction, before any masking), and its elements are
found by index arithmetic, so neither the mask nor the tensor is ever copied or expanded. The
extremes of all cells also identify the few cells with the largest values of the tensor: those are
counted in full, the rest is sampled.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

# Long rows are cut to pieces of at most this length: short cells make the tail few elements to
# gather, while reductions over much shorter rows get slow.
CELL = 64


@dataclass(frozen=True)
class Cells:
    """A tensor seen as ``cells`` groups of ``width`` elements that lie ``inner`` apart.

    Attributes:
        flat: the tensor, flattened, in its own dtype.
        valid: bool [cells], or None when everything is valid.
        largest, smallest: float32 [cells], extremes of every cell; -inf and inf in padding.
        cells, width: int64 scalars.
        inner: int64 scalar, or None when 1: cells lie one after the other.
        run: how many cells, one after the other, make up about `CELL` elements.
    """

    flat: tf.Tensor
    valid: tf.Tensor | None
    largest: tf.Tensor
    smallest: tf.Tensor
    cells: tf.Tensor
    width: tf.Tensor
    inner: tf.Tensor | None
    run: int

    def whole(self, cell: tf.Tensor) -> tf.Tensor:
        """All values of the cells ``cell``, int64 [n]; float32 [n, width]."""
        if self.inner is None:
            return tf.cast(
                tf.gather(tf.reshape(self.flat, [-1, tf.maximum(self.width, 1)]), cell), tf.float32
            )
        first = cell // self.inner * self.inner * self.width + tf.math.floormod(cell, self.inner)
        return tf.cast(
            tf.gather(self.flat, first[:, tf.newaxis] + tf.range(self.width) * self.inner),
            tf.float32,
        )

    def elements(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Elements at flat ``position``, int64 [n]: (float32 values, valid or None)."""
        values = tf.cast(tf.gather(self.flat, position), tf.float32)
        if self.valid is None:
            return values, None
        if self.inner is None:
            cell = position // self.width
        else:
            cell = position // (self.inner * self.width) * self.inner + tf.math.floormod(
                position, self.inner
            )
        return values, tf.gather(self.valid, cell)


def checked(x: tf.Tensor, valid: tf.Tensor | None, name: str) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Return ``x`` as a tensor and its mask ``valid`` as bool, None where there is none.

    Raises:
        TypeError: ``x`` is not floating; the message names the site.
        ValueError: the mask does not broadcast to ``x``.
    """
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise TypeError(f"{name}: only floating tensors can be observed, got {x.dtype.name}")
    if valid is None:
        return x, None
    valid = tf.convert_to_tensor(valid)
    check_mask(x, valid, name)
    return x, (valid if valid.dtype == tf.bool else tf.not_equal(valid, tf.zeros([], valid.dtype)))


def check_mask(x: tf.Tensor, valid: tf.Tensor, name: str) -> None:
    """Raise ValueError, naming the site, if the mask ``valid`` does not broadcast to ``x`` as far
    as shapes are known.
    """
    rank = x.shape.rank
    if rank is None or valid.shape.rank is None:
        raise ValueError(
            f"{name}: a mask needs a tensor and a mask of known rank, got {x.shape} and"
            f" {valid.shape}"
        )
    sizes = zip(reversed(x.shape), reversed(valid.shape), strict=False)
    if valid.shape.rank > rank or any(
        m not in (1, None) and s is not None and m != s for s, m in sizes
    ):
        raise ValueError(f"{name}: mask {valid.shape} does not broadcast to the tensor {x.shape}")


def split(x: tf.Tensor, valid: tf.Tensor | None) -> Cells:
    """Split ``x`` into cells that lie within one axis along which the mask has static size 1.

    Args:
        x: any floating tensor.
        valid: bool, broadcastable to ``x``, true where an element counts; None: everywhere.
    """
    x, valid = _with_one_rank(x, valid)
    x, valid = _with_short_rows(x, valid)
    shape = tf.shape(x, out_type=tf.int64)
    axis = _axis_inside(x, valid)
    static = None if axis is None else x.shape[axis]
    if axis is None:
        largest = smallest = tf.cast(x, tf.float32)
        width, inner = tf.ones([], tf.int64), None
    else:
        largest = tf.cast(tf.reduce_max(x, axis, keepdims=True), tf.float32)
        smallest = tf.cast(tf.reduce_min(x, axis, keepdims=True), tf.float32)
        width = shape[axis]
        inner = None if axis == x.shape.rank - 1 else tf.reduce_prod(shape[axis + 1 :])
    if valid is not None:
        mask: Any = valid
        if mask.shape != largest.shape or not mask.shape.is_fully_defined():
            mask = tf.broadcast_to(mask, tf.shape(largest))
        largest, smallest = tf.where(mask, largest, -np.inf), tf.where(mask, smallest, np.inf)
        valid = tf.reshape(mask, [-1])
    return Cells(
        flat=tf.reshape(x, [-1]),
        valid=valid,
        largest=tf.reshape(largest, [-1]),
        smallest=tf.reshape(smallest, [-1]),
        cells=tf.size(largest, out_type=tf.int64),
        width=width,
        inner=inner,
        run=1 if axis is not None and static is None else max(CELL // (static or 1), 1),
    )


def _axis_inside(x: tf.Tensor, valid: tf.Tensor | None) -> int | None:
    """Axis that a cell runs along.

    The last if the mask allows, else the first the mask does not vary along.
    """
    if valid is None or valid.shape[-1] == 1:
        return x.shape.rank - 1
    return next((axis for axis, size in enumerate(valid.shape) if size == 1), None)


def _with_one_rank(x: tf.Tensor, valid: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Expand both to the same rank, at least 1."""
    x = x if x.shape.rank else tf.reshape(x, [-1])
    if valid is not None:
        for _ in range(x.shape.rank - valid.shape.rank):
            valid = tf.expand_dims(valid, 0)
    return x, valid


def _with_short_rows(x: tf.Tensor, valid: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Reshape a long last axis into pieces; a view, no copy."""
    last = x.shape[-1]
    if last is None or last <= CELL or (valid is not None and valid.shape[-1] != 1):
        return x, valid
    piece = max(size for size in range(1, CELL + 1) if last % size == 0)
    if piece < CELL // 8:
        return x, valid
    static = x.shape[:-1].concatenate([last // piece, piece])
    x = tf.reshape(x, tf.concat([tf.shape(x)[:-1], [last // piece, piece]], 0))
    return tf.ensure_shape(x, static), None if valid is None else tf.expand_dims(valid, -1)

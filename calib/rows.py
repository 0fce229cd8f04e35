"""Sample of a tensor by rows: unbinned rows for methods that need them whole (logits), or the
extremes of each row (token).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from calib.methods import Method
from calib.statistics import Statistics


def rows_of(x: tf.Tensor, valid: tf.Tensor | None, limit: int, name: str) -> tf.Tensor:
    """First ``limit`` rows of ``x`` without padding, float32 [rows, last axis]; usable in a
    `tf.function`.

    Args:
        x: floating tensor [..., size].
        valid: number tensor, broadcastable to ``x`` and of size 1 along its last axis, nonzero
          where rows count; None: everywhere.
        limit: most rows.
        name: of the site, for messages.

    Raises:
        ValueError: the last axis runs over tokens.
    """
    if valid is not None and valid.shape[-1] != 1:
        raise ValueError(
            f"{name}: the last axis runs over tokens, not classes; method 'cross_entropy' cannot be"
            " used there"
        )
    rows = tf.cast(tf.reshape(x, [-1, tf.shape(x)[-1]]), tf.float32)
    if valid is not None:
        shape = tf.concat([tf.shape(x)[:-1], [1]], 0)
        rows = tf.boolean_mask(
            rows, tf.reshape(tf.broadcast_to(tf.not_equal(valid, 0), shape), [-1])
        )
    return rows[:limit]


def extremes_of(x: tf.Tensor, valid: tf.Tensor | None, limit: int) -> tf.Tensor:
    """Smallest and largest value of each of the first ``limit`` tokens, float32 [tokens, 2]; usable
    in a `tf.function`.

    Args:
        x: floating tensor [..., size]; a token is a row along the last axis.
        valid: number tensor, broadcastable to ``x``, nonzero where elements count; a row without
          any is no token. None: everywhere.
        limit: most tokens.
    """
    if valid is None:
        ends = tf.reduce_min(x, -1), tf.reduce_max(x, -1)
    else:
        counted = tf.not_equal(valid, 0) if valid.dtype != tf.bool else valid
        infinity = tf.constant(np.inf, x.dtype)
        ends = (
            tf.reduce_min(tf.where(counted, x, infinity), -1),
            tf.reduce_max(tf.where(counted, x, -infinity), -1),
        )
    smallest, largest = (tf.reshape(tf.cast(end, tf.float32), [-1]) for end in ends)
    tokens = tf.stack([smallest, largest], 1)
    return tf.boolean_mask(tokens, smallest <= largest)[:limit]


class RowSample:
    """First rows over all batches, up to a limit.

    Attributes:
        values: float32 [rows, size].
        extremes: the rows are the extremes of tokens, not values.
        numbers: int64 [rows], the batch that each is of.
    """

    def __init__(self, limit: int, extremes: bool = False):
        self.limit, self.extremes = limit, extremes
        self.values = np.zeros([0, 0], np.float32)
        self.numbers = np.zeros([0], np.int64)

    @classmethod
    def for_method(cls, method: Method) -> "RowSample | None":
        """Empty sample of what a range method needs; None where it needs no rows."""
        if method.tokens:
            return cls(method.tokens, extremes=True)
        return cls(method.rows) if method.rows else None

    def of_batch(self, x: tf.Tensor, valid: tf.Tensor | None, name: str) -> tf.Tensor:
        """Rows to `add` for one batch of a tensor, see `rows_of` and `extremes_of`."""
        if self.extremes:
            return extremes_of(x, valid, self.limit)
        return rows_of(x, valid, self.limit, name)

    def placed(self, statistics: Statistics, values: np.ndarray) -> Statistics:
        """Statistics with rows of this sample."""
        return dataclasses.replace(statistics, **{"tokens" if self.extremes else "rows": values})

    def with_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return ``values`` after adding ``rows`` of one more batch."""
        kept = rows[: self.limit - len(self.values)]
        return np.concatenate([self.values, kept]) if self.values.size else kept

    def add(self, number: int, rows: np.ndarray) -> None:
        """Add the rows of batch ``number``; numbers must increase."""
        self.values = self.with_rows(rows)
        self.numbers = np.append(
            self.numbers, np.full(len(self.values) - len(self.numbers), number, np.int64)
        )

    def join(self, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Merge samples (values, numbers) of disjoint batches into the sample of all batches."""
        samples = [(values, numbers) for values, numbers in samples if values.size]
        if samples:
            values, numbers = (np.concatenate(parts) for parts in zip(*samples, strict=True))
            order = np.argsort(numbers, kind="stable")[: self.limit]
            self.values, self.numbers = values[order], numbers[order]

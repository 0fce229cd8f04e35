"""Sample of unbinned rows of a tensor, for methods that need whole rows (logits)."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


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


class RowSample:
    """First rows over all batches, up to a limit.

    Attributes:
        values: float32 [rows, size].
        numbers: int64 [rows], the batch that each is of.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.values = np.zeros([0, 0], np.float32)
        self.numbers = np.zeros([0], np.int64)

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

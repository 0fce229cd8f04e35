"""Masked attention scores: entries that softmax makes zero, told from scores by their size.

A mask adds a large negative number to scores, or replaces them by one. A range that held it would
leave no codes for the scores, and one without it would clip it to their smallest value, so that
softmax attended to what is masked. Quantizers before softmax therefore leave these entries as they
are.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Softmax makes entries that far below the largest of their row 1e-13 or less.
_FAR_BELOW = 30.0
# No score, also where a whole row is masked. Masks are -10,000 or lower.
_LOWEST_SCORE = -5000.0


def is_masked(scores: tf.Tensor) -> tf.Tensor:
    """Return which entries are masked; bool like `scores`, floating point [..., n]."""
    largest = tf.reduce_max(scores, -1, keepdims=True)
    return (scores < largest - _FAR_BELOW) | (scores < _LOWEST_SCORE)


def without_masked(scores: tf.Tensor, quantize: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Quantize scores except masked entries.

    Args:
      scores: floating point [..., n].
      quantize: its argument has the largest score of the row in place of masked entries, 0 where
        all are masked.

    Returns:
      A tensor like `scores`.
    """
    masked = is_masked(scores)
    largest = tf.stop_gradient(tf.reduce_max(scores, -1, keepdims=True))
    filler = tf.where(largest < _LOWEST_SCORE, tf.zeros_like(largest), largest)
    filled = tf.where(masked, filler, scores)
    quantized = quantize(filled)
    return scores if quantized is filled else tf.where(masked, scores, quantized)

"""Rows that are kept as they are: which, and in what order."""

import numpy as np
import pytest
import tensorflow as tf

from calib.rows import RowSample, rows_of

VALUES = np.arange(24, dtype=np.float32).reshape(2, 4, 3)


def test_rows_are_the_first_ones_that_are_no_padding():
    valid = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], np.float32)[:, :, np.newaxis]
    expected = VALUES[valid[..., 0] > 0]
    np.testing.assert_array_equal(
        rows_of(tf.constant(VALUES), tf.constant(valid), 9, "site"), expected
    )
    np.testing.assert_array_equal(
        rows_of(tf.constant(VALUES), tf.constant(valid), 3, "site"), expected[:3]
    )
    np.testing.assert_array_equal(
        rows_of(tf.constant(VALUES), None, 5, "site"), VALUES.reshape(8, 3)[:5]
    )
    assert rows_of(tf.constant(VALUES, tf.bfloat16), None, 5, "site").dtype == tf.float32


def test_a_last_axis_of_tokens_is_refused_by_name():
    with pytest.raises(ValueError, match="^head: the last axis runs over tokens, not classes"):
        rows_of(tf.zeros([2, 4]), tf.ones([2, 4]), 9, "head")


@pytest.mark.parametrize("limit", [1, 4, 7, 100])
def test_samples_of_several_ranks_join_to_that_of_one(limit):
    batches = [np.full((n, 2), n, np.float32) for n in (2, 3, 1, 4)]
    alone, ranks = RowSample(limit), [RowSample(limit) for _ in range(3)]
    for number, batch in enumerate(batches):
        alone.add(number, batch)
        ranks[number % 2].add(number, batch)  # the third has none
    ranks[1].join([(rank.values, rank.numbers) for rank in ranks])
    np.testing.assert_array_equal(alone.values, np.concatenate(batches)[:limit])
    np.testing.assert_array_equal(ranks[1].values, alone.values)
    np.testing.assert_array_equal(ranks[1].numbers, alone.numbers)

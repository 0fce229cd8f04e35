"""The checks themselves: what they accept, and that they find faults."""

import types

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.compatibility import checks


class _Network:
    """Float outputs x * w whose gradient by w is `slope` times the true one."""

    def __init__(self, slope):
        self.w, self.slope = tf.Variable([2.0, 3.0]), slope

    def __call__(self, x, training=False):
        y = x * self.w
        return tf.stop_gradient((1.0 - self.slope) * y) + self.slope * y

    def set_mode(self, mode):
        assert mode == "float"


def _subject(quantized, graph, eager):
    model = _Network(eager)
    model.trainable_variables = [types.SimpleNamespace(value=model.w)]
    other, replayed = _Network(graph), _Network(quantized)
    other.w = replayed.w = model.w
    return types.SimpleNamespace(
        batches=[np.ones((4, 2), np.float32)],
        model=model,
        expected=other,
        quantized=replayed,
        _quantized=replayed,
    )


@pytest.mark.parametrize("graph, eager", [(1.0, 1.0), (1.0, 1.01), (1.01, 1.0)])
def test_gradients_may_equal_those_of_either_way_in_which_tensorflow_runs_a_model(graph, eager):
    assert checks._gradients(_subject(1.0, graph, eager)) is True


def test_gradients_that_equal_neither_are_found():
    with pytest.raises(AssertionError, match=r"relative errors 0\.0099, 0\.02"):
        checks._gradients(_subject(1.0, 1.01, 1.02))

"""The learned rounding itself.

Golden values of the published implementation, schedules, the regulariser's gradient.
"""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfquant.ptq.adaround import rounding
from tfquant.ptq.adaround.options import Options


def test_the_hard_sigmoid_starts_where_the_published_one_does():
    alpha = rounding.initial_alpha(np.array([0, 0.25, 0.5, 0.75, 0.999]), "hard_sigmoid")
    np.testing.assert_allclose(alpha, [-2.397895, -0.887303, 0, 0.887303, 2.387035], atol=1e-6)


@pytest.mark.parametrize("kind", rounding.ROUNDINGS)
def test_the_soft_rounding_starts_as_the_fraction_and_half_goes_up(kind):
    fraction = np.array([0.01, 0.3, 0.5, 0.99])
    alpha = rounding.initial_alpha(fraction, kind, 20.0)
    np.testing.assert_allclose(
        rounding.soft_rounding(tf.constant(alpha), kind, 20.0), fraction, atol=1e-6
    )
    np.testing.assert_array_equal(rounding.hard_rounding(tf.constant(alpha)), [0, 0, 1, 1])


@pytest.mark.parametrize(
    "decay, shape, golden",
    [
        ("linear", None, (15.5, 11, 6.5)),
        ("cosine", None, (17.364, 11, 4.636)),
        ("sigmoid", 10.0, (18.738, 11, 3.262)),
        ("power", 4.0, (19.930, 18.875, 14.305)),
        ("exp", 4.0, (8.410, 4.146, 2.577)),
        ("log", 2.0, (19.425, 18.614, 17.228)),
    ],
)
def test_decays_pass_the_published_values(decay, shape, golden):
    np.testing.assert_allclose(
        rounding.decayed(decay, np.array([0.25, 0.5, 0.75]), 20.0, 2.0, shape), golden, atol=6e-4
    )
    np.testing.assert_allclose(
        rounding.decayed(decay, np.array([0.0, 1.0]), 20.0, 2.0, shape), [20.0, 2.0], atol=1e-6
    )
    np.testing.assert_allclose(
        rounding.decayed(decay, 0.25, 20.0, 2.0), golden[0], atol=6e-4
    )  # and by default


def test_the_regulariser_is_off_while_it_warms_up_and_beta_stands_still():
    beta, counts = rounding.schedule(1000, (20.0, 2.0), "linear", warmup=0.2, decay_start=0.5)
    assert not counts[:199].any() and counts[199:].all()  # iterations count from 1
    np.testing.assert_array_equal(beta[:599], 20.0)
    np.testing.assert_allclose(beta[[799, 999]], [11.0, 2.0], atol=1e-5)


def test_the_regulariser_and_its_gradient_are_those_of_the_formula():
    h, beta = np.random.default_rng(0).uniform(size=50), 3.7
    x = tf.constant(h)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = rounding.regularizer(x, tf.constant(beta, tf.float64))
    np.testing.assert_allclose(value, np.sum(1 - np.abs(2 * h - 1) ** beta))
    step = 1e-6
    numeric = (-(np.abs(2 * (h + step) - 1) ** beta) + np.abs(2 * (h - step) - 1) ** beta) / (
        2 * step
    )
    np.testing.assert_allclose(tape.gradient(value, x), numeric, rtol=1e-5, atol=1e-7)


def test_the_temperature_sharpens_the_sigmoid():
    np.testing.assert_allclose(
        rounding.soft_rounding(tf.constant([3.0]), "sigmoid_temp_decay", 2.0),
        scipy.special.expit([1.5]),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rounding="cubic"), "rounding is 'cubic'; it must be one of hard_sigmoid"),
        (dict(decay="step"), "decay is 'step'"),
        (dict(iterations=0), "iterations is 0; it must be a whole number from 1"),
        (dict(learning_rate=-1.0), "learning_rate is -1.0"),
        (dict(warmup=1.0), "warmup is 1.0"),
        (dict(annealing=(20.0,)), "annealing is"),
        (
            dict(asymmetric=False, quantize_activations=True),
            "quantize_activations needs asymmetric=True",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)

"""The optimizer and schedule against their definitions, worked out step by step in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfquant.training import BertAdamW, WarmupLinearDecay


def small_model() -> keras.Model:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="dense", bias_initializer="ones")(inputs)
    outputs = keras.layers.LayerNormalization(name="LayerNorm")(hidden)
    return keras.Model(inputs, outputs)


def reference_step(weight, m, v, gradient, rate, decay):
    """BERT's AdamW in float64: no bias correction, decay beside the gradient, not in it."""
    beta_1, beta_2 = (
        float(np.float32(0.9)),
        float(np.float32(0.999)),
    )  # 1 - beta_2 is where the rounding shows
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    return weight - rate * (m / (np.sqrt(v) + 1e-6) + decay * weight), m, v


def test_ten_steps_equal_the_definition_with_decay_on_kernels_only():
    model, rng = small_model(), np.random.default_rng(0)
    variables = model.trainable_variables
    schedule = WarmupLinearDecay(0.05, total_steps=20, warmup_steps=4)
    optimizer = BertAdamW(schedule)
    optimizer.build(variables)
    expected = [(v.numpy().astype(np.float64), 0.0, 0.0) for v in variables]
    apply = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    for step in range(10):
        gradients = [
            rng.normal(size=v.shape).astype(np.float32) * 10.0 ** rng.integers(-4, 2)
            for v in variables
        ]
        apply([tf.constant(g) for g in gradients])
        rate = 0.05 * (step / 4 if step < 4 else (20 - step) / 16)
        expected = [
            reference_step(
                *state, g.astype(np.float64), rate, 0.01 if v.path == "dense/kernel" else 0.0
            )
            for state, g, v in zip(expected, gradients, variables, strict=True)
        ]
    for variable, (m, v), reference in zip(variables, optimizer.slots(), expected, strict=True):
        for ours, theirs in zip((variable, m, v), reference, strict=True):
            np.testing.assert_allclose(
                ours.numpy(), theirs, rtol=1e-5, atol=1e-7, err_msg=variable.path
            )
    assert int(optimizer.iterations.numpy()) == 10


def test_the_first_step_moves_by_the_rate_times_the_uncorrected_ratio():
    variable = keras.Variable(np.zeros(2, np.float32), name="kernel")
    optimizer = BertAdamW(0.1, weight_decay=0.0)
    optimizer.apply([tf.constant([1.0, -100.0])], [variable])
    # m / sqrt(v) = 0.1 g / (sqrt(0.001) |g|): 3.16, where bias correction would make it 1.
    np.testing.assert_allclose(variable.numpy(), [-0.316218, 0.316228], rtol=2e-5)


def test_variables_without_a_gradient_are_neither_moved_nor_decayed():
    moved, left = (keras.Variable(np.ones(2, np.float32), name=f"kernel_{i}") for i in range(2))
    optimizer = BertAdamW(0.1)
    optimizer.build([moved, left])
    optimizer.apply([tf.ones(2)], [moved])
    assert np.all(moved.numpy() < 1) and np.array_equal(left.numpy(), [1, 1])


@pytest.mark.parametrize(("decay", "assignments"), [(0.0, 1), (0.01, 2)])
def test_no_decay_costs_no_assignment_of_the_variables(decay, assignments):
    variable = keras.Variable(np.ones(2, np.float32), name="kernel")
    optimizer = BertAdamW(0.1, weight_decay=decay)
    optimizer.build([variable])
    apply = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    operations = apply.get_concrete_function(tf.ones(2)).graph.get_operations()
    kinds = [operation.type for operation in operations]
    assert kinds.count("ResourceApplyAdam") == 1
    assert sum("Assign" in kind for kind in kinds) == assignments  # the step, and the decay


def test_optimizer_and_schedule_survive_saving_of_their_settings():
    optimizer = BertAdamW(
        WarmupLinearDecay(1e-4, 100, 10), weight_decay=0.02, not_decayed=["gamma"]
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert (
        isinstance(again, BertAdamW)
        and again.not_decayed == ("gamma",)
        and again.weight_decay == 0.02
    )
    assert float(again._learning_rate(55)) == pytest.approx(5e-5)


@pytest.mark.parametrize("warmup", [0, 1, 7, 99])
def test_schedule_rises_to_the_peak_without_a_jump_and_falls_to_zero(warmup):
    schedule = WarmupLinearDecay(3e-5, total_steps=100, warmup_steps=warmup)
    rates = np.array([float(schedule(step)) for step in range(102)])
    # Reference: the decay starts from the adjusted rate, so that it passes through the peak where
    # the warm-up ends.
    start = 3e-5 / (1 - warmup / 100)
    expected = [3e-5 * t / warmup if t < warmup else start * (1 - t / 100) for t in range(101)] + [
        0.0
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-12)
    assert rates.max() == pytest.approx(3e-5) and int(rates.argmax()) == warmup


def test_warmup_proportion_counts_whole_steps():
    assert WarmupLinearDecay.from_proportion(1e-4, 5474, 0.1).warmup_steps == 547


@pytest.mark.parametrize("proportion", [-0.1, 1.0, float("nan")])
def test_a_warmup_proportion_out_of_range_is_refused(proportion):
    with pytest.raises(ValueError, match="proportion .* out of range"):
        WarmupLinearDecay.from_proportion(1e-4, 100, proportion)


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (10, 10), (10, -1)])
def test_a_warmup_that_does_not_fit_is_refused(total, warmup):
    with pytest.raises(ValueError, match="does not fit"):
        WarmupLinearDecay(1e-4, total, warmup)

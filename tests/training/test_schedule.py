"""When quantization is switched on in training, and when and how fast ranges move.

Through Trainer and through Keras.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.few import few
from tfquant.training import (
    BertAdamW,
    QuantizationCallback,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
)
from tfquant.variables import path_of, resource

RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 64)
traced = []


class Dropping(keras.layers.Layer):
    """Counts how often it is traced; drops nothing, but has a training mode of its own."""

    def call(self, x, training=False):
        traced.append(training)
        return x * (2.0 if training else 1.0)


def network(update="frozen", fmt="int3"):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(3, name="classes")(
        Dropping()(keras.layers.Dense(5, "relu", name="hidden")(x))
    )
    model = keras.Model(x, y)
    recipe = tfquant.recipe("int8_residual_float").with_spec(
        roles=["weight", "linear_input"], format=fmt, update=update
    )
    return model, tfquant.quantize(model, recipe, calibration=[X])


def loss(model, batch):
    logits = model(batch["x"], training=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))


def batches(start):
    for number in range(start, 100):
        rows = np.arange(number * 8, number * 8 + 8) % len(X)
        yield {"x": X[rows], "y": Y[rows]}


def train(folder, quantized, steps, **schedule):
    optimizer = BertAdamW(0.01)
    hooks = [QuantizationSchedule(quantized, optimizer, **schedule)] if schedule else []
    trainer = Trainer(
        quantized, loss, optimizer, TrainOptions(folder, steps, keep_checkpoints=0), hooks=hooks
    )
    trainer.restore()
    trainer.fit(batches)


def values(model):
    return {path_of(v): v.numpy() for v in model.weights}


def ranges_of(model):
    return {
        path_of(v): v.numpy()
        for v in model.weights
        if "ranges/" in path_of(v) or path_of(v).endswith(("lower", "upper"))
    }


def test_until_its_start_step_training_is_float_and_then_quantized_without_another_trace(tmp_path):
    model, latent = network()
    reference, _ = network()
    float_trainer = Trainer(reference, loss, BertAdamW(0.01), TrainOptions(tmp_path / "float", 3))
    float_trainer.fit(batches)
    train(tmp_path / "latent", latent, 3, quant_start_step=3)
    for one, two in zip(model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
    count = len(traced)
    optimizer = BertAdamW(0.01)
    hook = QuantizationSchedule(latent, optimizer, quant_start_step=2)
    seen = {}
    for step in (0, 1, 2, 3):
        hook.before_step(step)
        seen[step] = latent(X, training=True).numpy()
    assert len(traced) == count
    np.testing.assert_allclose(seen[0], model(X, training=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[2], seen[3])
    assert np.abs(seen[2] - seen[1]).max() > 0.01


def test_after_the_switch_the_gradient_is_that_of_the_quantized_network():
    _, latent = network("lsq")
    _, plain = network("lsq")
    hook = QuantizationSchedule(latent, BertAdamW(0.01), quant_start_step=1)
    batch = {k: tf.constant(v) for k, v in next(batches(0)).items()}

    @tf.function
    def gradients(model):
        with tf.GradientTape() as tape:
            value = loss(model, batch)
        return tape.gradient(value, [resource(v) for v in model.trainable_variables])

    hook.before_step(0)
    in_float = gradients(latent)
    assert all(
        np.all(g == 0)
        for g, v in zip(in_float, latent.trainable_variables, strict=True)
        if "ranges" in path_of(v)
    )
    hook.before_step(1)
    for one, two in zip(gradients(latent), gradients(plain), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_prediction_is_quantized_before_the_start_step_too():
    model, latent = network()
    before = latent(X).numpy()
    QuantizationSchedule(latent, BertAdamW(0.01), quant_start_step=5).before_step(0)
    np.testing.assert_array_equal(latent(X), before)
    assert np.abs(before - model(X)).max() > 0.01


@pytest.mark.representatives("moving_average")
@pytest.mark.parametrize(
    "update", few(["lsq", "tqt", "pact", "moving_average"], ("tqt", "moving_average"))
)
def test_ranges_move_only_between_their_start_and_their_freeze_step(tmp_path, update):
    _, quantized = network(update)
    schedule = {"range_start_step": 2, "range_freeze_step": 4}
    history = [ranges_of(quantized)]
    for steps in (1, 2, 3, 4, 5, 6):
        train(tmp_path, quantized, steps, **schedule)
        history.append(ranges_of(quantized))
    moved = [
        any(not np.array_equal(a[n], b[n]) for n in a)
        for a, b in zip(history, history[1:], strict=False)
    ]
    assert moved == [False, False, True, True, False, False]


def test_a_schedule_resumes_exactly(tmp_path):
    schedule = {
        "quant_start_step": 2,
        "range_start_step": 3,
        "range_freeze_step": 6,
        "range_rate": 0.5,
    }
    _, whole = network("lsq")
    train(tmp_path / "whole", whole, 8, **schedule)
    for stop in (4, 8):
        _, parts = network("lsq")
        train(tmp_path / "parts", parts, stop, **schedule)
    one, two = values(whole), values(parts)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def one_step(optimizer, **schedule):
    """(ranges before, after, other weights after) two steps of a learned network; ranges all in one
    float64 vector.
    """
    _, quantized = network("lsq")
    if schedule:
        QuantizationSchedule(quantized, optimizer, **schedule).before_step(0)
    variables = quantized.trainable_variables
    names = [v for v in variables if "ranges/" in path_of(v)]
    assert names
    before = np.concatenate([v.numpy().ravel() for v in names]).astype(np.float64)
    batch = {k: tf.constant(v) for k, v in next(batches(0)).items()}
    for _ in range(2):  # the second uses the momentum of the first
        with tf.GradientTape() as tape:
            value = loss(quantized, batch)
        optimizer.apply(tape.gradient(value, [resource(v) for v in variables]), variables)
    after = np.concatenate([v.numpy().ravel() for v in names]).astype(np.float64)
    return before, after, [v.numpy() for v in variables if "ranges/" not in path_of(v)]


def test_with_adam_a_range_rate_is_a_learning_rate_of_its_own():
    _, quantized = network("lsq")
    _, reference = network("lsq")
    optimizer, faster = BertAdamW(0.001), BertAdamW(0.004)
    QuantizationSchedule(quantized, optimizer, range_rate=4.0).before_step(0)
    batch = {k: tf.constant(v) for k, v in next(batches(0)).items()}
    for model, own in ((quantized, optimizer), (reference, faster)):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            value = loss(model, batch)
        own.apply(tape.gradient(value, [resource(v) for v in variables]), variables)
    expected = ranges_of(reference)
    for name, found in ranges_of(quantized).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.representatives("<lambda>1")
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    ],
)
def test_frozen_means_frozen_under_momentum_and_decay_and_other_weights_train_as_ever(make):
    before, after, others = one_step(make(), range_start_step=5)
    np.testing.assert_array_equal(before, after)
    before, after, _ = one_step(make())
    assert not np.array_equal(before, after)
    fresh = [
        v.numpy() for v in network("lsq")[1].trainable_variables if "ranges/" not in path_of(v)
    ]
    assert all(not np.array_equal(a, b) for a, b in zip(others, fresh, strict=True))


def test_fit_of_keras_follows_the_same_schedule():
    _, quantized = network("lsq")
    history = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            history.append(ranges_of(quantized))

    quantized.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    callback = QuantizationCallback(range_start_step=1, range_freeze_step=3, quant_start_step=1)
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": [callback, Watch()]}
    before = ranges_of(quantized)
    quantized.fit(X, Y, epochs=1, **fit)
    quantized.fit(X, Y, epochs=1, **fit)
    steps = [before, *history]
    moved = [
        any(not np.array_equal(a[n], b[n]) for n in a)
        for a, b in zip(steps, steps[1:], strict=False)
    ]
    assert moved == [False, True, True, False] + [False] * 4


def test_what_has_no_effect_or_no_sense_is_refused():
    _, frozen = network()
    optimizer = BertAdamW(0.01)
    cases = [
        ({"range_rate": 2.0}, "range_rate is 2.0, but no range of this model is learned"),
        ({"range_freeze_step": 3}, "have no effect, all ranges are frozen"),
        ({"quant_start_step": -1}, "quant_start_step is -1"),
        (
            {"range_start_step": 4, "range_freeze_step": 4},
            "range_freeze_step is 4; it must be above",
        ),
        ({"range_rate": 0.0}, "range_rate is 0.0"),
        ({"range_rate": float("nan")}, "range_rate is nan"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            QuantizationSchedule(frozen, optimizer, **arguments)
    with pytest.raises(TypeError, match="got Functional"):
        QuantizationSchedule(frozen.original, optimizer)


def test_a_fast_range_stays_a_range():
    _, quantized = network("lsq")
    optimizer = keras.optimizers.Adam(1.0)
    QuantizationSchedule(quantized, optimizer, range_rate=100.0).before_step(0)
    variables = quantized.trainable_variables
    optimizer.apply([tf.ones_like(v) for v in variables], variables)
    for lower, upper in quantized.ranges().values():
        assert np.all(lower <= 0) and np.all(upper > 0)


def test_a_fit_that_ends_before_quantization_begins_says_so():
    _, quantized = network("lsq")
    quantized.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    with pytest.warns(
        UserWarning, match="quant_start_step=5 was not reached: all 4 steps were made in float"
    ):
        quantized.fit(
            X, Y, batch_size=16, verbose=0, callbacks=[QuantizationCallback(quant_start_step=5)]
        )

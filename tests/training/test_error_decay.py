"""Schedule of the error-decay gradient in Trainer and in `fit`, in checkpoints and resumed runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.core.conftest import two_dense_layers
from tfquant import checkpoint
from tfquant.error_decay import t_at
from tfquant.model import engine_of
from tfquant.training import (
    BertAdamW,
    ErrorDecayCallback,
    ErrorDecaySchedule,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
    error_decay_hooks,
)

RNG = np.random.default_rng(3)
X = RNG.normal(size=(64, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 64)


def network(seed=0):
    return tfquant.quantize(two_dense_layers(seed), "irnet")


def loss(model, batch):
    logits = model(batch["x"], training=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))


def batches(start):
    for number in range(start, 100):
        rows = np.arange(number * 8, number * 8 + 8) % len(X)
        yield {"x": X[rows], "y": Y[rows]}


def train(folder, model, steps, total=8, **options):
    hooks = [ErrorDecaySchedule(model, total, **options)]
    options = TrainOptions(folder, steps, keep_checkpoints=0)
    trainer = Trainer(model, loss, BertAdamW(0.01), options, hooks=hooks)
    trainer.restore()
    trainer.fit(batches)


def values(model):
    return [v.numpy() for v in model.weights]


def test_a_resumed_run_is_bit_for_bit_the_run_without_a_stop(tmp_path):
    whole, parts = network(), network()
    train(tmp_path / "whole", whole, 8)
    train(tmp_path / "parts", parts, 3)
    saved = checkpoint.read(tmp_path / "parts" / "model.ckpt-3")
    (name,) = [name for name in saved if name.endswith("error_decay")]
    np.testing.assert_allclose(saved[name], t_at(2, 8), rtol=1e-6)  # t of the last step
    parts = network(seed=5)
    train(tmp_path / "parts", parts, 8)
    for one, two in zip(values(whole), values(parts), strict=True):
        np.testing.assert_array_equal(one, two)
    constant = network()
    trainer = Trainer(constant, loss, BertAdamW(0.01), TrainOptions(tmp_path / "constant", 8))
    trainer.fit(batches)
    assert np.abs(values(whole)[0] - values(constant)[0]).max() > 1e-5


def test_t_may_follow_epochs_and_starts_and_ends_where_asked():
    model = network()
    hook = ErrorDecaySchedule(model, 30, every=10, t_min=0.01, t_max=1.0)
    seen = []
    for step in (0, 9, 10, 29, 30, 31):
        hook.before_step(step)
        seen.append(engine_of(model).error_decay.numpy())
    np.testing.assert_allclose(seen, [0.01, 0.01, 10**-1.3333, 10**-0.6667, 1, 1], rtol=1e-3)


def test_fit_follows_the_schedule_and_checkpoints_hold_t(tmp_path):
    model = network()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(engine_of(model).error_decay.numpy())
    )
    model.fit(X, Y, 16, epochs=2, verbose=0, callbacks=[ErrorDecayCallback(steps=8), record])
    np.testing.assert_allclose(seen, [t_at(step, 8) for step in range(8)], rtol=1e-6)
    tfquant.save(model, tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", two_dense_layers(seed=4))
    assert engine_of(loaded).error_decay.numpy() == seen[-1]
    np.testing.assert_array_equal(loaded(X), model(X))


def test_it_works_beside_a_start_in_float(tmp_path):
    model = network()
    optimizer = BertAdamW(0.01)
    hooks = [
        QuantizationSchedule(model, optimizer, quant_start_step=2),
        *error_decay_hooks(model, 4),
    ]
    trainer = Trainer(model, loss, optimizer, TrainOptions(tmp_path / "run", 4), hooks=hooks)
    before = values(model)[0]
    trainer.fit(batches)
    assert np.isfinite(values(model)[0]).all() and (values(model)[0] != before).any()


def test_invalid_schedules_are_refused():
    model = network()
    for options, message in (
        (dict(steps=0), "steps is 0; it must be an integer of at least 1"),
        (dict(steps=5, every=0), "every is 0"),
        (dict(steps=5, t_min=2.0, t_max=1.0), "0 < t_min <= t_max"),
    ):
        with pytest.raises(ValueError, match=message):
            ErrorDecaySchedule(model, **options)
    plain = tfquant.quantize(two_dense_layers(), "binary_weights_xnor")
    with pytest.raises(ValueError, match="has no effect, no site of this model has that gradient"):
        ErrorDecaySchedule(plain, 5)
    assert error_decay_hooks(plain, 5) == [] == error_decay_hooks(plain.original, 5)
    with pytest.raises(TypeError, match="a schedule is for a model from tfquant.quantize"):
        ErrorDecaySchedule(plain.original, 5)

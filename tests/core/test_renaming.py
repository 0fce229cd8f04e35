"""Checkpoints where Keras numbers layers otherwise.

Matched by order and class, names that were given as they are.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant

RNG = np.random.default_rng(0)
ROWS, SEQUENCES = (
    RNG.normal(size=(4, 8)).astype(np.float32),
    RNG.normal(size=(4, 5, 8)).astype(np.float32),
)


def called_twice():
    x, layer = keras.Input((8,)), layers.Dense(8)
    return keras.Model(x, layers.Dense(2)(layer(layer(x)))), ROWS


def time_distributed():
    x = keras.Input((5, 8))
    return keras.Model(x, layers.Dense(2)(layers.TimeDistributed(layers.Dense(8))(x))), SEQUENCES


def attention():
    x = keras.Input((5, 8))
    hidden = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    hidden = layers.LayerNormalization()(hidden + layers.MultiHeadAttention(2, 4)(hidden, hidden))
    return keras.Model(x, layers.Dense(3)(hidden)), SEQUENCES


def bare_operations():
    x = keras.Input((5, 8))
    a, b = layers.Dense(8)(x * 2.0), keras.ops.transpose(layers.Dense(8)(x), (0, 2, 1))
    hidden = keras.ops.matmul(keras.ops.softmax(keras.ops.matmul(a, b)), a) + keras.ops.relu(x)
    return keras.Model(x, layers.Dense(2)(keras.ops.gelu(hidden))), SEQUENCES


def nested():
    x, y = keras.Input((8,)), keras.Input((8,))
    inner = keras.Model(x, layers.Dense(8)(keras.ops.relu(layers.Dense(8)(x)) * 2) + x)
    return keras.Model(y, layers.Dense(2)(inner(y) + inner(inner(y)))), ROWS


def across_ten():
    x = hidden = keras.Input((8,))
    for _ in range(12):
        hidden = layers.LayerNormalization()(hidden + layers.Dense(8, activation="relu")(hidden))
    return keras.Model(x, [layers.Dense(3)(hidden), layers.Dense(3)(hidden)]), ROWS


def recurrent():
    x = keras.Input((5, 8))
    return keras.Model(x, layers.Dense(2)(layers.Bidirectional(layers.GRU(4))(x))), SEQUENCES


class Block(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.rest, self.norm = (
            layers.Dense(8),
            [layers.Dense(8) for _ in range(2)],
            layers.LayerNormalization(),
        )

    def call(self, x):
        return self.norm(x + self.rest[1](self.rest[0](self.first(self.first(x)))))


def subclassed():
    model = Block()
    model(ROWS)
    return model, ROWS


def make_others(count):
    """Layers and models that take numbers away."""
    for _ in range(count):
        x = keras.Input((3,))
        keras.Model(x, keras.ops.relu(layers.LayerNormalization()(layers.Dense(2)(x)) * 2))
        layers.MultiHeadAttention(2, 3)
        layers.Bidirectional(layers.GRU(2))
        layers.TimeDistributed(layers.Dense(1))


@pytest.mark.representatives("attention", "across_ten")
@pytest.mark.parametrize(
    "build",
    [
        called_twice,
        time_distributed,
        attention,
        bare_operations,
        nested,
        across_ten,
        recurrent,
        subclassed,
    ],
)
def test_a_checkpoint_loads_whatever_was_made_before(tmp_path, build):
    keras.backend.clear_session()
    model, batch = build()
    saved = tfquant.quantize(model, calibration=[batch], progress=False)
    tfquant.save(saved, tmp_path / "model")
    for count in (1, 9):
        keras.backend.clear_session()
        make_others(count)
        loaded = tfquant.load(tmp_path / "model", build()[0], inputs=batch)
        for own, other in zip(
            tf.nest.flatten(saved(batch)), tf.nest.flatten(loaded(batch)), strict=True
        ):
            np.testing.assert_array_equal(own, other)


def named(*names):
    return keras.Sequential(
        [keras.Input((8,)), *(layers.Dense(8, name=name) for name in names)], name="net"
    )


def test_given_names_are_not_confused(tmp_path):
    saved = tfquant.quantize(named("tower_1", "tower_2"), calibration=[ROWS], progress=False)
    tfquant.save(saved, tmp_path / "model")
    for names in (("tower_2", "tower_3"), ("tower", "tower_1"), ("left", "right")):
        with pytest.raises(ValueError, match="differ from the model's"):
            tfquant.load(tmp_path / "model", named(*names))
    tower = saved.original.get_layer("tower_1").kernel.numpy()
    loaded = tfquant.load(tmp_path / "model", named("tower_2", "tower_1"))
    np.testing.assert_array_equal(loaded.get_layer("tower_1").kernel, tower)


def test_order_and_automatic_names_that_contradict_each_other_are_refused(tmp_path):
    keras.backend.clear_session()
    first, second = layers.Dense(8), layers.Dense(8)
    saved = tfquant.quantize(
        keras.Sequential([keras.Input((8,)), first, second], name="net"),
        calibration=[ROWS],
        progress=False,
    )
    tfquant.save(saved, tmp_path / "model")
    keras.backend.clear_session()
    second, first = layers.Dense(8), layers.Dense(8)
    with pytest.raises(ValueError, match="give these layers names, or make them in the same order"):
        tfquant.load(
            tmp_path / "model", keras.Sequential([keras.Input((8,)), first, second], name="net")
        )

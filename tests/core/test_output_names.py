"""Losses and metrics by name.

A quantized model takes the names that the original takes, for every form of outputs.
"""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant

RNG = np.random.default_rng(0)
X, Y, Z = (RNG.normal(size=(16, size)).astype(np.float32) for size in (8, 1, 1))


class Pair(layers.Layer):
    """One layer with two outputs."""

    def build(self, shape):
        self.first, self.second = layers.Dense(1), layers.Dense(1)
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.first(x), self.second(x)

    def compute_output_shape(self, shape):
        return (shape[0], 1), (shape[0], 1)


class Subclassed(keras.Model):
    """Outputs in the form that `pack` gives to two tensors."""

    def __init__(self, pack):
        super().__init__()
        self.pair, self.pack = Pair(), pack

    def call(self, x):
        return self.pack(*self.pair(x))


def functional(pack, two_layers=False):
    x = keras.Input((8,))
    hidden = layers.Dense(8)(x)
    outputs = (
        (layers.Dense(1, name="p")(hidden), layers.Dense(1, name="q")(hidden))
        if two_layers
        else Pair(name="pair")(hidden)
    )
    return keras.Model(x, pack(*outputs))


def subclassed(pack):
    model = Subclassed(pack)
    model(X)
    return model


def as_mapping(a, b):
    return {"z": a, "a": b}


def as_list(a, b):
    return [a, b]


def as_tuple(a, b):
    return a, b


def nested(a, b):
    return {"outer": {"z": a, "a": b}}


def named(model):
    """Losses and metrics under the keys of `as_mapping`."""
    return {"loss": {"z": "mse", "a": "mae"}, "metrics": {"a": ["mse"], "z": ["mae"]}}


def by_layer(model):
    return {"loss": {"p": "mse", "q": "mae"}, "metrics": {"q": ["mse"]}}


def by_position(model):
    return {"loss": ["mse", "mae"], "metrics": [["mae"], ["mse"]]}


def by_path(model):
    return {"loss": {"outer": {"z": "mse", "a": "mae"}}}


@pytest.mark.representatives(
    "layer of two, mapping", "two layers, list by layer", "subclassed tuple"
)
@pytest.mark.parametrize(
    ("build", "pack", "losses"),
    [
        (functional, as_mapping, named),
        (lambda pack: functional(pack, two_layers=True), as_mapping, named),
        (lambda pack: functional(pack, two_layers=True), as_list, by_layer),
        (functional, as_list, by_position),
        (functional, nested, by_path),
        (subclassed, as_mapping, named),
        (subclassed, as_tuple, by_position),
        (subclassed, nested, by_path),
    ],
    ids=[
        "layer of two, mapping",
        "two layers, mapping",
        "two layers, list by layer",
        "layer of two, list",
        "layer of two, nested",
        "subclassed mapping",
        "subclassed tuple",
        "subclassed nested",
    ],
)
def test_losses_and_metrics_have_the_names_of_the_original(build, pack, losses):
    histories = []
    for wrap in (
        lambda model: model,
        lambda model: tfquant.quantize(model, calibration=[X], progress=False),
    ):
        keras.utils.set_random_seed(2)
        network = wrap(build(pack))
        if hasattr(network, "set_mode"):
            network.set_mode("float")
        network.compile("sgd", **losses(network))
        history = network.fit(X, pack(Y, Z), shuffle=False, verbose=0)
        histories.append(history.history)
    assert list(histories[0]) == list(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)


def test_names_that_the_original_refuses_are_refused():
    model = functional(as_list, two_layers=True)
    for network in (model, tfquant.quantize(model, calibration=[X], progress=False)):
        network.compile("sgd", loss={"p": "mse", "other": "mse"})
        with pytest.raises(ValueError, match="Expected keys"):
            network.fit(X, [Y, Z], verbose=0)

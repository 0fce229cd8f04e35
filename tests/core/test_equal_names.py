"""Models whose variables have equal names, some of them in no use.

Saved and loaded without mixing them up.
"""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


class Scaling(layers.Layer):
    """Scales by a variable, or leaves it unused."""

    def __init__(self, used):
        super().__init__(name="scaling")
        self.used = used

    def build(self, shape):
        self.factor = self.add_weight(shape=(), name="factor", initializer="random_normal")

    def call(self, x):
        return x * self.factor if self.used else x


class Stack(keras.Model):
    """Layers of one name, one after another."""

    def __init__(self, used):
        super().__init__(name="stack")
        self.scalings, self.head = [Scaling(one) for one in used], layers.Dense(3)

    def call(self, x):
        for scaling in self.scalings:
            x = scaling(x)
        return self.head(x)


def stack(used):
    model = Stack(used)
    model(X)
    return model


@pytest.mark.representatives("(True, False)", "(False, True, False)")
@pytest.mark.parametrize(
    "used",
    [(True, False), (False, True), (False, False), (False, True, False), (True, True)],
    ids=str,
)
def test_layers_of_one_name_are_stored_whether_used_or_not(tmp_path, used):
    model, other = stack(used), stack(used)
    quantized = tfquant.quantize(model, calibration=[X], progress=False)
    tfquant.save(quantized, tmp_path / "m.ckpt")
    loaded = tfquant.load(tmp_path / "m.ckpt", other, inputs=X)
    np.testing.assert_array_equal(loaded(X), quantized(X))
    for own, its in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(own, its)

"""Operations that tracing leaves over, on which no output depends, have no roles."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
RECIPE = "int8_residual_float_asymmetric"


class Block(layers.Layer):
    """Attention and a feed-forward layer; `left_over` computes more, of which nothing is
    returned.
    """

    def __init__(self, left_over):
        super().__init__(name="block")
        self.left_over = left_over
        self.attention, self.inner = (
            layers.MultiHeadAttention(2, 4, name="attention"),
            layers.Dense(8, name="inner"),
        )
        self.state, self.norm = (
            layers.Dense(8, name="state"),
            layers.LayerNormalization(name="norm"),
        )

    def build(self, shape):
        self.attention.build(shape, shape)
        for layer in (self.inner, self.state, self.norm):
            layer.build(shape)

    def call(self, x):
        x = x + self.attention(x, x)
        x = x + self.inner(x)
        if self.left_over == "residual":
            x + self.state(x)
        elif self.left_over == "residual and norm":
            self.norm(x + self.state(x))
        elif self.left_over == "attention":
            x + self.attention(x, x)
        return x


def planned(left_over):
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, layers.Dense(3, name="head")(Block(left_over)(inputs)))
    return {site.address for site in tfquant.plan(model, RECIPE, inputs=X).sites}


@pytest.mark.parametrize("left_over", ["residual", "residual and norm", "attention"])
def test_what_no_output_depends_on_changes_no_site(left_over):
    assert planned(left_over) == planned(None)

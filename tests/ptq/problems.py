"""Tiny layers whose rounding can be judged from outside."""

import keras
import numpy as np

import tfquant


def recipe(format: str = "int3", role: str | tuple[str, ...] = "weight", **spec) -> tfquant.Recipe:
    spec = {"granularity": "per_channel", **spec}
    return tfquant.Recipe((tfquant.Rule(tfquant.QuantSpec(format=format, **spec), role=role),))


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Inputs that hang together and have a mean: where rounding to nearest is far from the best."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) * np.linspace(0.1, 1, width) ** 2
    return (3 * (rng.normal(size=(rows, width)) @ mix + 0.5)).astype(np.float32)


def linear(width: int, outputs: int, seed: int = 0, activation: str | None = None) -> keras.Model:
    inputs = keras.Input((width,), name="x")
    layer = keras.layers.Dense(
        outputs,
        activation,
        name="d",
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
    )
    return keras.Model(inputs, layer(inputs))

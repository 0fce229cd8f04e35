"""Networks in which it is known what costs most when it is quantized."""

import keras
import numpy as np

import tfquant

WIDTH = 8
NAMES = tuple(f"branch_{number}" for number in range(6))


def recipe(format: str = "int8", roles: tuple[str, ...] = ("linear_input",)) -> tfquant.Recipe:
    return tfquant.Recipe((tfquant.Rule(tfquant.QuantSpec(format=format), role=roles),))


def branches(scales: dict[str, float] | None = None) -> tuple[keras.Model, list[np.ndarray]]:
    """A sum of linear branches, each of inputs of its own; and batches.

    The first input of a branch in `scales` has that value: it stretches the range, so that all
    others are rounded coarsely, and adds nothing itself. The branches are scaled a little
    differently, so that no two tensors are the same.
    """
    scales = scales or {}
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(3):
        rows = rng.normal(size=(16, len(NAMES), WIDTH)).astype(np.float32)
        for number, name in enumerate(NAMES):
            if name in scales:
                rows[:, number, 0] = scales[name]
        batches.append(rows)
    inputs = keras.Input((len(NAMES), WIDTH), name="x")
    parts = []
    for number, name in enumerate(NAMES):
        kernel = rng.normal(size=(WIDTH, 4)).astype(np.float32)
        kernel[0] = 0.0
        layer = keras.layers.Dense(4, name=name)
        parts.append(layer(inputs[:, number] * (1.0 + 0.01 * number)))
        layer.set_weights([kernel, np.zeros(4, np.float32)])
    return keras.Model(inputs, keras.layers.Add(name="sum")(parts)), batches


def address(name: str) -> str:
    return f"{name}:linear_input:input"


def chain(layers: int = 6) -> tuple[keras.Model, list[np.ndarray]]:
    """Linear layers one behind the other, and batches of two sizes."""
    rng = np.random.default_rng(3)
    x = inputs = keras.Input((WIDTH,), name="x")
    for number in range(layers):
        initializer = keras.initializers.GlorotUniform(seed=number)
        x = keras.layers.Dense(
            WIDTH, "tanh", name=f"dense_{number}", kernel_initializer=initializer
        )(x)
    classes = keras.layers.Dense(
        3, name="classes", kernel_initializer=keras.initializers.GlorotUniform(seed=layers)
    )
    return keras.Model(inputs, classes(x)), [
        rng.normal(size=(rows, WIDTH)).astype(np.float32) for rows in (16, 16, 5)
    ]

"""Small random models and recipes, drawn by Hypothesis, and how far exported files may be from the
simulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import tfquant
from tfquant.model import engine_of

layers = keras.layers
ROWS = 16
_ACTIVATIONS = [None, "relu", "gelu", "tanh", "sigmoid", "silu", "softmax"]
_ACTIVATION_ROLES = [
    "linear_input",
    "linear_output",
    "matmul_input",
    "softmax_output",
    "residual",
    "residual_other",
    "residual_sum",
    "layernorm_input",
    "layernorm_output",
    "activation_output",
    "logits",
    "model_output",
]
_PARAMETER_ROLES = ["embedding", "bias"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A random model and recipe.

    Attributes:
      blocks: what the model is made of, in order.
      entry: `tokens`, `features`, `sequence` or `image`.
      outputs: number of outputs.
      scale: factor of all biases, drawn apart as they meet the product of two scales.
      weights, activations: a spec for each role that is quantized.
      opset: of ONNX.
      seed: of weights and data.
    """

    entry: str
    blocks: tuple[tuple[Any, ...], ...]
    outputs: int
    scale: float
    weights: tfquant.QuantSpec | None
    activations: tuple[tuple[str, tfquant.QuantSpec], ...]
    opset: int
    seed: int

    def model(self) -> keras.Model:
        """A new model with the same random weights in every call."""
        keras.utils.set_random_seed(self.seed)
        inputs, x = _ENTRIES[self.entry]()
        kept: dict[tuple, layers.Layer] = {}
        for block in self.blocks:
            x = _BLOCKS[block[0]](x, block[1:], kept)
        heads = [
            _pooled(layers.Dense(3 + index, name=f"head_{index}")(x))
            for index in range(self.outputs)
        ]
        model = keras.Model(
            inputs,
            heads[0] if len(heads) == 1 else {f"out_{i}": head for i, head in enumerate(heads)},
        )
        generator = np.random.default_rng(self.seed)
        for variable in model.trainable_variables:
            spread = self.scale if variable.path.endswith("bias") else 0.5
            variable.assign(variable.numpy() + spread * generator.normal(size=variable.shape))
        return model

    def recipe(self) -> tfquant.Recipe:
        """The rules: one for kernels and one for each other role, none of which has to match."""
        rules = [tfquant.Rule(spec, role=role, optional=True) for role, spec in self.activations]
        if self.weights is not None:
            rules.insert(0, tfquant.Rule(self.weights, role="weight", optional=True))
        return tfquant.Recipe(tuple(rules))

    def batch(self) -> np.ndarray:
        """Inputs with `ROWS` samples."""
        generator = np.random.default_rng(self.seed + 1)
        if self.entry == "tokens":
            return generator.integers(0, 20, size=(ROWS, 5)).astype(np.int32)
        return generator.normal(size=(ROWS, *_SHAPES[self.entry])).astype(np.float32)


def _specs(
    symmetric: st.SearchStrategy[bool], granularities: list[str]
) -> st.SearchStrategy[tfquant.QuantSpec]:
    return st.builds(
        tfquant.QuantSpec,
        format=st.sampled_from([f"int{bits}" for bits in (8, 4, 2, 3, 5, 6, 7, 12, 16)]),
        granularity=st.sampled_from(granularities),
        symmetric=symmetric,
        narrow_range=st.booleans(),
        unsigned=st.sampled_from([False, "auto"]),
    )


@st.composite
def drawn(draw: Callable) -> Drawn:
    """Models of up to three blocks with recipes of up to 16 bits."""
    entry = draw(st.sampled_from(list(_ENTRIES)))
    kinds = (
        ["dense", "shared"]
        if entry == "features"
        else ["conv", "dense"]
        if entry == "image"
        else list(_SEQUENCE_BLOCKS)
    )
    block = st.tuples(st.sampled_from(kinds), st.sampled_from(_ACTIVATIONS))
    blocks = tuple(draw(st.lists(block, min_size=1, max_size=3)))
    roles = draw(
        st.lists(
            st.sampled_from([*_ACTIVATION_ROLES, *_PARAMETER_ROLES]),
            unique=True,
            min_size=1,
            max_size=5,
        )
    )
    weights = (
        None
        if draw(st.integers(0, 4)) == 0
        else draw(_specs(st.booleans(), ["per_channel", "per_tensor"]))
    )
    activations = tuple((role, draw(_specs(st.booleans(), ["per_tensor"]))) for role in roles)
    used = [
        spec.format
        for spec in (*[weights][: weights is not None], *(spec for _, spec in activations))
    ]
    wide = any(int(name[3:]) > 8 for name in used)
    return Drawn(
        entry,
        blocks,
        draw(st.integers(1, 2)),
        draw(st.sampled_from([0.5, 0.0, 1e4])),
        weights,
        activations,
        draw(st.sampled_from([21, 22] if wide else [17, 21, 18])),
        draw(st.integers(0, 2**16)),
    )


# What models are made of.

_SHAPES = {"features": (6,), "sequence": (5, 8), "image": (6, 6, 3)}


def _features() -> tuple[Any, Any]:
    inputs = keras.Input(_SHAPES["features"], name="features")
    return inputs, inputs


def _sequence() -> tuple[Any, Any]:
    inputs = keras.Input((None, 8), name="sequence")
    return inputs, inputs


def _image() -> tuple[Any, Any]:
    inputs = keras.Input(_SHAPES["image"], name="image")
    return inputs, inputs


def _tokens() -> tuple[Any, Any]:
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    return inputs, layers.Embedding(20, 8)(inputs)


_ENTRIES = {"features": _features, "sequence": _sequence, "tokens": _tokens, "image": _image}


def _dense(x: Any, options: tuple, _: dict) -> Any:
    return layers.Dense(8, activation=options[0])(x)


def _shared(x: Any, options: tuple, kept: dict) -> Any:
    """One layer for all blocks of this kind, on a skip connection."""
    width = x.shape[-1]
    layer = kept.setdefault(("shared", width, options), layers.Dense(width, activation=options[0]))
    return x + layer(x)


def _attention(x: Any, options: tuple, _: dict) -> Any:
    return layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))


def _layernorm(x: Any, options: tuple, _: dict) -> Any:
    return layers.LayerNormalization()(layers.Dense(8, activation=options[0])(x))


def _conv(x: Any, options: tuple, _: dict) -> Any:
    if len(x.shape) == 3:
        return layers.Conv1D(8, 3, padding="same", activation=options[0])(x)
    if options[0] in ("silu", "tanh"):
        x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    return layers.Activation(options[0])(x) if options[0] else x


_SEQUENCE_BLOCKS = {
    "dense": _dense,
    "attention": _attention,
    "conv": _conv,
    "shared": _shared,
    "layernorm": _layernorm,
}
_BLOCKS = _SEQUENCE_BLOCKS


def _pooled(x: Any) -> Any:
    return x if len(x.shape) < 4 else layers.GlobalAveragePooling2D()(x)


# How far a file may be from the simulation.


def largest_effect_of_one_step(model: Any, batch: np.ndarray, draws: int = 4) -> list[np.ndarray]:
    """Largest difference of each output when values at sites of activations move by one step of
    their scale.

    A value on the border between two codes may fall to either side in another runtime. The steps
    come from the stored ranges.

    Args:
      model: quantized and calibrated.
      batch: of inputs.
      draws: how often directions are drawn at random.

    Returns:
      One number for each output.
    """
    engine = engine_of(model)
    flat = engine.inputs.flatten_batch(batch)
    steps = _steps(model)
    clean = [out.numpy() for out in tf.nest.flatten(engine.function("quantized")(*flat))]
    quantize, generator = engine.site_quantizer(flat), np.random.default_rng(0)

    @tf.function(autograph=False)
    def moved(seed):
        def move(site, edge, tensor):
            rounded = quantize(site, edge, tensor)
            if site.address not in steps:
                return rounded
            key = tf.stack([seed, len(site.address) + sum(map(ord, site.address))])
            signs = tf.random.stateless_uniform(tf.shape(tensor), key, -1, 2, tf.int32)
            return rounded + steps[site.address] * tf.cast(signs, tensor.dtype)

        return engine.inference.emit(flat, engine.placements().edits(move))

    found = [moved(tf.constant(generator.integers(1 << 30), tf.int32)) for _ in range(draws)]
    return [
        max(np.abs(one[index].numpy() - out).max() for one in map(tf.nest.flatten, found))
        for index, out in enumerate(clean)
    ]


def share_on_borders(model: Any, batch: np.ndarray, distance: float = 1e-3) -> float:
    """Largest share of an activation's values that lie on the border between two codes.

    There last bits decide. Such values are rare, unless many are equal: with a zero point, the ends
    of tanh, -1 and 1, are 127.5 steps from 0.

    Args:
      model: quantized and calibrated.
      batch: of inputs.
      distance: from the border, in steps.
    """
    engine, shares = engine_of(model), []
    flat = engine.inputs.flatten_batch(batch)
    quantize, steps = engine.site_quantizer(flat), _steps(model)

    def measure(site, edge, tensor):
        if site.address in steps:
            place = tf.cast(tensor, tf.float64) / steps[site.address]
            near = tf.abs(place - tf.floor(place) - 0.5) < distance
            shares.append(tf.reduce_mean(tf.cast(near, tf.float64)))
        return quantize(site, edge, tensor)

    @tf.function(autograph=False)
    def largest():
        engine.inference.emit(flat, engine.placements().edits(measure))
        return tf.reduce_max(shares) if shares else tf.zeros((), tf.float64)

    return float(largest())


def _steps(model: Any) -> dict[str, float]:
    """Address of each site of an activation -> distance of two neighbouring codes."""
    ranges = model.ranges()
    return {
        site.address: step_of(site.spec, *ranges[site.address])
        for site in engine_of(model).plan.sites
        if not site.is_weight
    }


def step_of(spec: tfquant.QuantSpec, lower: np.ndarray, upper: np.ndarray) -> float:
    """Distance of two neighbouring codes of a range."""
    bits = int(spec.format.removeprefix("int"))
    if not spec.symmetric:
        return float(max(np.max(upper), 0.0) - min(np.min(lower), 0.0)) / (2**bits - 1)
    amax = float(np.maximum(np.abs(lower), np.abs(upper)).max())
    return amax / (2**bits - 1 if spec.unsigned is True else 2 ** (bits - 1) - 1)

"""Batch normalization of a network with random weights, set so that rounding does not explode.

Untrained deep networks with batch normalization are chaotic: every layer of normalization and
activation enlarges small differences (Yang et al., "A mean field theory of batch normalization",
arXiv:1902.08129), so that after a hundred layers the last bit of float32 decides over the answer.
No check of such a network says anything. Trained networks are not like that. With shifts of one
standard deviation, activations are in the nearly linear part of ReLU and its relatives for most
values, and differences keep their size.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from benchmarks.compatibility.inputs import random_batch

_SHIFT = 1.0  # in standard deviations of what is normalized
# The last layers of 96 pixels see one pixel of each image: few images, no statistics.
_ROWS = 32


def condition_batch_normalization(model: Any) -> None:
    """Set shifts to one, and the statistics of inference to those of a batch, as training would.

    With the statistics of new layers (mean 0, variance 1), activations in inference are far smaller
    than in training: outputs hardly depend on the inputs, and ranges calibrated on them clip all
    that a training step computes.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        if layer.beta is not None:
            layer.beta.assign(tf.fill(layer.beta.shape, _SHIFT))
        layer.momentum = 0.0
    model(random_batch(model, seed=2, rows=_ROWS), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum

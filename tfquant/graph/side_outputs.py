"""Side outputs of a model: Keras masks and added losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

__all__ = [
    "get_keras_mask",
    "outside_of_calls",
    "output_masks",
    "replace_losses",
    "set_keras_mask",
    "take_losses",
]

# What Keras keeps for the calls it is in: a trace made while a model is called must not inherit it.
_CALL_STATE = (
    "current_call_ctx",
    "stateless_scope",
    "symbolic_scope",
    "autocast_scope",
    "name_scope_stack",
)


@contextlib.contextmanager
def outside_of_calls() -> Iterator[None]:
    """Leave enclosing Keras calls and graphs, so that a model called inside is treated as the
    outermost call.

    Inside another call Keras passes on `training` and masks, collects losses and may redirect
    assignments to variables.
    """
    before = {name: global_state.get_global_attribute(name) for name in _CALL_STATE}
    for name in _CALL_STATE:
        global_state.set_global_attribute(name, None)
    try:
        with tf.init_scope():
            yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


def output_masks(outputs: Any) -> list[tf.Tensor | None]:
    """Mask of every tensor among nested outputs, in the order of `tf.nest.flatten`."""
    return [get_keras_mask(leaf) for leaf in tf.nest.flatten(outputs) if tf.is_tensor(leaf)]


def take_losses(model: Any) -> list[tf.Tensor]:
    """Return and clear the losses that the last call of a Keras model added by `add_loss` and
    activity regularizers.

    Regularizers of weights are not among those of a Keras 3 model: whoever tracks its variables has
    them. tf-keras keeps them with the model, so that they are among its own.
    """
    losses: list[tf.Tensor] = []
    if hasattr(model, "_get_own_losses"):
        for layer in model._flatten_layers():
            losses += layer._get_own_losses()
    else:
        losses += getattr(model, "losses", ())
    if hasattr(model, "_clear_losses"):
        model._clear_losses()  # they belong to a graph that is finished
    return losses


def replace_losses(model: keras.Layer, losses: Sequence[tf.Tensor]) -> None:
    """Replace the losses of the last call of a Keras 3 model."""
    model._clear_losses()
    keras.Layer.add_loss(model, list(losses))  # functional models refuse theirs

"""Channel maxima max|x|: of activations over data, of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

import calib
from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.graph.padding import Padding
from tfquant.ptq.equalization.pairs import Pair, Parameter


def of_activations(
    engine: Engine,
    pairs: Sequence[Pair],
    batches: Iterable[Any],
    mask: str | Sequence[str] | None,
    progress: bool,
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Map name of a pair -> max|x| of each channel over all batches without padding, for its
    activations and for its partners if any.

    Raises:
      ValueError: no batch, one that does not fit the model, or NaN or infinity, naming pair or
        input, and batch.
    """
    trace = engine.inference
    # Looked at as well: a ReLU fused with the product before it makes zeros of NaN on some
    # processors (oneDNN with AMX).
    fed = [
        (f"input {name!r}", tensor, (), 1)
        for name, tensor in zip(trace.input_names, trace.inputs, strict=True)
        if tensor.dtype.is_floating
    ]
    watched = fed + [
        (pair.name, activation.place.tensor, activation.place.axes, activation.channels.size)
        for pair in pairs
        for activation in (*pair.activations, *pair.partners)
    ]
    targets = [tensor for _, tensor, _, _ in watched]
    padding = Padding(trace, [(name, tensor) for name, tensor, _, _ in watched], mask, "tensors")
    observers = [calib.DimensionObserver(name, size) for name, _, _, size in watched]

    def observe(*flat):
        result = trace.emit(list(flat), targets=[*targets, *padding.masks])
        tensors, validity = result[: len(targets)], padding.of_masks(result[len(targets) :])
        for observer, (_, place, channels, size), tensor in zip(
            observers, watched, tensors, strict=True
        ):
            valid = validity.of(place)
            valid = None if valid is None else _channels_last(valid, channels, 1)
            observer.update(_channels_last(tensor, channels, size), valid)
        return tf.zeros([])

    function, number = None, 0
    for number, batch in enumerate(
        tqdm(batches, "ranges of channels", unit="batch", disable=not progress), start=1
    ):
        try:
            flat = engine.inputs.flatten_batch(batch)
        except (ValueError, TypeError) as error:
            raise ValueError(f"batch {number - 1}: {one_line(error)}") from error
        if function is None:
            function = tf.function(observe, autograph=False).get_concrete_function(
                *trace.input_specs
            )
        function(*flat)
        for observer in observers:
            observer.check()
    if number == 0:
        raise ValueError("no batch was given: pass at least one")
    return _by_pair(pairs, iter(observers[len(fed) :]))


def _by_pair(pairs: Iterable[Pair], observers) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    result = {}
    for pair in pairs:
        sides = []
        for activations in (pair.activations, pair.partners):
            amax = np.zeros(pair.size)
            for activation, observer in zip(activations, observers, strict=False):
                np.maximum.at(amax, activation.channels.ravel(), _amax(observer.statistics()))
            sides.append(amax if activations else None)
        result[pair.name] = tuple(sides)
    return result


def _amax(statistics: calib.Statistics) -> np.ndarray:
    return np.maximum(np.abs(statistics.minimum), np.abs(statistics.maximum))


def _channels_last(tensor: tf.Tensor, axes: Sequence[int], size: int) -> tf.Tensor:
    """Move the channel axes behind the others and flatten them to [..., size]."""
    others = [axis for axis in range(tensor.shape.rank) if axis not in axes]
    moved = tf.transpose(tensor, [*others, *axes])
    last = tf.reshape(moved, tf.concat([tf.shape(moved)[: len(others)], [size]], 0))
    last.set_shape([*([None] * len(others)), size])
    return last


def of_parameters(
    parameters: Iterable[Parameter], values: dict[str, np.ndarray], size: int
) -> np.ndarray:
    """Channel maxima max|w| over all weights, float64 [size]; biases are excluded.

    Args:
      parameters: of one side of a pair.
      values: handle -> value as the operation takes it.
      size: number of channels.
    """
    amax = np.zeros(size)
    for parameter in parameters:
        if parameter.weight:
            value = np.abs(values[parameter.handle])
            others = tuple(
                axis for axis, extent in enumerate(parameter.channels.shape) if extent == 1
            )
            np.maximum.at(
                amax, parameter.channels.ravel(), value.max(axis=others, keepdims=True).ravel()
            )
    return amax

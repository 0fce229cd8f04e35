"""Random inputs for a model, made from the shapes, types and names of its declared inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

VOCABULARY = 50
_SEQUENCE = 8
# Audio must outlast three strided convolutions, images five halvings.
_OPEN_SIZES = {"encoder_input_values": 1600, "images": 64, "encoder_features": 16}
_NOISE = 0.3  # standard deviation in images, whose patches have 1
# SAM 3 of KerasHub 0.32 adds a mask [batch, prompts] to scores [batch, heads, prompts, prompts],
# which works only where the batch is as large as the number of prompts: one box and one token.
_BATCH_SIZES = {"SAM3PromptableConceptBackbone": 2}


def random_batch(model: Any, seed: int, rows: int = 4) -> Any:
    """Return one batch in the structure of the model's inputs.

    Args:
      model: a functional Keras model.
      seed: of NumPy's generator.
      rows: examples, unless the model takes only batches of one size.
    """
    rows = _BATCH_SIZES.get(type(model).__name__, rows)
    generator = np.random.default_rng(seed)
    structure = model._inputs_struct
    names = _names(structure)
    flat = [
        _values(generator, name, tensor, rows)
        for name, tensor in zip(names, tf.nest.flatten(structure), strict=True)
    ]
    return tf.nest.pack_sequence_as(structure, flat)


def _names(structure: Any) -> list[str]:
    if isinstance(structure, Mapping):
        return [str(name) for name in sorted(structure)]
    return [tensor.name for tensor in tf.nest.flatten(structure)]


def _values(generator, name: str, tensor: keras.KerasTensor, rows: int) -> np.ndarray:
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    shape = [rows, *(_size(name, tensor, axis) for axis in range(1, len(tensor.shape)))]
    if "mask" in name and "response" not in name and name != "masks":
        lengths = generator.integers(_SEQUENCE // 2, _SEQUENCE + 1, size=rows)
        mask = np.arange(shape[1])[None, :] < lengths[:, None] if shape[1] == _SEQUENCE else True
        return np.broadcast_to(mask, shape).astype(dtype)
    if name == "masks":
        return np.zeros((rows, 0, 16, 16, 1), dtype)
    if name == "num_steps":
        return np.ones(shape, dtype)
    if "int" in dtype:
        highest = 2 if "segment" in name or "label" in name or "response" in name else VOCABULARY
        return generator.integers(1 if highest > 2 else 0, highest, size=shape).astype(dtype)
    if dtype == "bool":
        return np.ones(shape, bool)
    if name in ("boxes", "points"):
        return generator.uniform(0.1, 0.9, size=shape).astype(dtype)
    if len(shape) == 4 and shape[-1] == 3:
        return _images(generator, shape).astype(dtype)
    return generator.normal(size=shape).astype(dtype)


def _images(generator: np.random.Generator, shape: list[int]) -> np.ndarray:
    """Return images [rows, height, width, channels] of a few large patches each, and noise.

    Of noise alone all images are alike behind the first average over pixels, and so are outputs.
    """
    rows, height, width, channels = shape
    patches = generator.normal(size=(rows, 4, 4, channels)).astype(np.float32)
    smooth = tf.image.resize(patches, (height, width), method="bicubic").numpy()
    return smooth + _NOISE * generator.normal(size=shape)


def _size(name: str, tensor: keras.KerasTensor, axis: int) -> int:
    if tensor.shape[axis] is not None:
        return tensor.shape[axis]
    if len(tensor.shape) == 4 and tensor.shape[-1] == 3:
        return 64
    if name in ("boxes", "points", "labels", "box_labels"):
        return 1
    return _OPEN_SIZES.get(name, _SEQUENCE)

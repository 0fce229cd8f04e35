"""Scales of blocks that follow again from the rounded values of the block.

Blocks compute their scale from the largest magnitude that they hold (`tfquant.blocks`). A method
that writes rounded values into a variable leaves no scale beside them, so that rounding must find
the same scale in the values. It does if

- one element of each block has a code that leads to this scale (`anchor_codes`), and
- float32 arithmetic gives the scale back: dividing the rounded product `scale * quant_max` by
  `quant_max` may move the last bit. Eager TensorFlow divides, graphs and XLA multiply by the
  reciprocal; `stable_scales` takes the nearest scale that both give back.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, ScaledCodebook
from tfquant import blocks
from tfquant.spec import QuantSpec

# Far enough: of 200,000 random scales of each format from int2 to int8 none needed more than 31.
_NEIGHBOURS = 64
# Scale formats whose scales are powers of two: any of several codes leads to the same scale.
_POWERS_OF_TWO = ("power_of_two", "nearest_power_of_two", "e8m0")


def gives_back(scale: np.ndarray, codebook: Codebook) -> np.ndarray:
    """Whether `scale * quant_max` leads to the scale again, however TensorFlow divides.

    Args:
      scale: float32, above 0.
      codebook: of the format.

    Returns:
      bool like `scale`.
    """
    quant_max = np.float32(codebook.quant_max)
    amax = scale * quant_max
    same = amax * (np.float32(1.0) / quant_max) == scale
    return same & (amax / quant_max == scale) if codebook.uniform else same


def stable_scales(scale: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Move scales by a few units in the last place, to such as blocks compute again.

    Args:
      scale: float32, normal numbers above 0.
      spec: of the blocks.

    Returns:
      float32 like `scale`.
    """
    if spec.scale.rounds_scale:  # few bits: products with codes are exact
        return scale
    codebook, result = spec.codebook, scale.copy()
    left = ~gives_back(result, codebook)
    for step in range(1, _NEIGHBOURS):
        if not left.any():
            break
        for sign in (1, -1):
            moved = (scale.view(np.int32) + np.int32(sign * step)).view(np.float32)
            found = left & gives_back(moved, codebook)
            result[found] = moved[found]
            left &= ~found
    return result


def anchor_codes(spec: QuantSpec) -> tuple[float, float]:
    """Smallest and largest magnitude of a code which, as the largest of its block, leads to the
    scale of the block, in units of the scale.

    Args:
      spec: of the blocks.
    """
    codebook = spec.codebook
    if spec.scale.scale_format not in _POWERS_OF_TWO:
        return codebook.quant_max, codebook.quant_max
    if isinstance(codebook, ScaledCodebook):
        codes = np.asarray(codebook.levels, np.float32)
    else:
        codes = np.arange(1, int(codebook.quant_max) + 1, dtype=np.float32)
    codes = codes[codes > 0]
    own = codes[blocks.scales_of(tf.constant(codes), spec).numpy() == 1.0]
    return float(own.min()), float(own.max())

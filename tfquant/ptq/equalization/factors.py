"""Formulas of the scale factors of equalization."""

from __future__ import annotations

import math

import numpy as np


def smoothquant(activation: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """SmoothQuant factors s = max|X|^alpha / max|W|^(1 - alpha), float64 [channels]; activations
    are divided by s, weights multiplied.

    Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4. A channel without range on either
    side keeps its own.
    """
    activation, weight = activation.astype(np.float64), weight.astype(np.float64)
    usable = (activation > 0) & (weight > 0)
    x, w = np.where(usable, activation, 1.0), np.where(usable, weight, 1.0)
    return x**alpha / w ** (1 - alpha)


def cross_layer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cross-layer factors s = sqrt(r1 / r2), float64 [channels]; the first parameter is divided by
    s, the second multiplied, which gives both the same range.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
    arXiv:1906.04721, equation 11.
    """
    return smoothquant(first, second, 0.5)


def bounded(factors: np.ndarray, largest: float, powers_of_two: bool) -> np.ndarray:
    """Clip factors to 1 / `largest` ... `largest`, optionally rounded to powers of two, float64."""
    if powers_of_two:
        limit = math.floor(math.log2(largest))
        return np.exp2(np.clip(np.rint(np.log2(factors)), -limit, limit))
    return np.clip(factors, 1 / largest, largest)

"""Interface of a number format: its values in units of the scale, rounding, codes."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook
from tfquant.scale import Scale

# `uniform`: integers, which may have a zero point; `codebook`: fixed values.
Kind = Literal["uniform", "codebook"]


class Format(Protocol):
    """Number format. Instances are immutable and hashable; equal instances mean the same format.

    Largest values differ between two uses: `Codebook.quant_max` is what amax is mapped to,
    `Codebook.limit` the largest value that exists; they are one number for integers.
    """

    @property
    def name(self) -> str:
        """Name in recipes, such as `int8`."""
        ...

    @property
    def kind(self) -> Kind: ...

    @property
    def bits(self) -> int:
        """Number of bits of one code."""
        ...

    def codebook(self, scale: Scale) -> Codebook:
        """Values of the format for a kind of scale.

        Raises:
          ValueError: the format has no such values, for example no zero point.
        """
        ...

    def has_gradient(self, amax: tf.Tensor) -> bool:
        """Return whether the kernel for this shape of `amax` implements the inclusive clipped
        gradient itself.
        """
        ...

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: Codebook, *, compiled: bool = True
    ) -> tf.Tensor:
        """Round to the values of ranges; saturates, NaN stays NaN.

        Args:
          x: float32; of a codebook with a zero point less the lower end of the range.
          amax: float32 width of the ranges, a scalar or of the rank of `x`, size 1 along axes that
            share a range.
          codebook: of this format.
          compiled: whether to use kernels that only a TensorFlow with XLA runs, see
            `tfquant.kernels`; the result is the same.

        Returns:
          float32 like `x`.
        """
        ...

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, by operations that are fast when
        XLA compiles them together with what surrounds them; symmetric codes without the lowest one.
        """
        ...

    def encode(self, units: np.ndarray, codebook: Codebook) -> np.ndarray:
        """Encode values in units of the scale as int32 codes of the nearest values."""
        ...

    def decode(self, codes: np.ndarray, codebook: Codebook) -> np.ndarray:
        """Decode codes to float32 values in units of the scale."""
        ...

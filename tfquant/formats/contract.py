"""Interfaces of number formats: values in units of the scale, or fitted to a tensor; rounding,
codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook
from tfquant.scale import Scale

# `uniform`: integers, which may have a zero point; `codebook`: fixed values; `fitted`: values that
# depend on the tensor.
Kind = Literal["uniform", "codebook", "fitted"]


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


class Levels(NamedTuple):
    """Values of the groups of a tensor that share them, and their decision boundaries, float32.

    Leading axes are those of the tensor, of size 1 along axes that share levels.

    Attributes:
      values: [..., L], ascending; NaN where the group holds NaN or infinity.
      thresholds: [..., L - 1], ascending; a number on a threshold is rounded up.
    """

    values: tf.Tensor
    thresholds: tf.Tensor


class FittedFormat(Protocol):
    """Number format of kind `fitted`: its values are computed from the tensor at hand and are not
    stored. Rounding, codes and decoding follow from them, see `tfquant.formats.fitted`.
    """

    @property
    def name(self) -> str:
        """Name in recipes, such as `binary`."""
        ...

    @property
    def kind(self) -> Kind: ...

    @property
    def bits(self) -> int:
        """Number of bits of one code, the index of a value."""
        ...

    def codebook(self, scale: Scale) -> Codebook:
        """Number of codes and sign, without values, see `tfquant.formats.fitted.FittedCodebook`.

        Raises:
          ValueError: the format does not support a field of the scale.
        """
        ...

    def fit(
        self, x: tf.Tensor, axes: Sequence[int], scale: Scale, valid: tf.Tensor | None = None
    ) -> Levels:
        """Fit the values to a tensor, without a gradient.

        Args:
          x: float32.
          axes: axes of `x` along which elements share their values; all for one group.
          scale: sign, source (`none`: values that do not depend on the tensor) and number format of
            the scale.
          valid: broadcasts to `x`, above 0 for elements that count; None counts all.
        """
        ...

"""Quantized arrays: codes with their scale, zero point and number format.

    value = scale * (decoded code - zero)

A code is decoded by its format: integers stand for themselves, those of other formats for a value
in units of the scale. `QuantParams` is what a site says of its tensor; with codes it makes up a
`QuantizedArray`, the one form in which exporters, packing and rounding methods hold parameters.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calib.codebook import Codebook, UniformCodebook
from tfquant import formats
from tfquant.formats import fitted
from tfquant.layout import aligned
from tfquant.quantizer import Quantizer
from tfquant.scale import scale_and_zero_of
from tfquant.site import Site


@dataclasses.dataclass(frozen=True, eq=False)
class QuantParams:
    """Quantization parameters of a tensor.

    Attributes:
      scale: float32, above 0; one value, or one for each combination of indices along `axes`.
      zero: int32 zero points like `scale`; all 0 where the codebook is symmetric.
      codebook: the values in use, in units of the scale.
      axes: channel axes of the tensor, ascending; all of them where blocks share a scale.
      blocks: (axis, number of elements) of blocks that share a scale, of which `scale` then has one
        in place of each block; None without blocks.
    """

    scale: np.ndarray
    zero: np.ndarray
    codebook: Codebook
    axes: tuple[int, ...] = ()
    blocks: tuple[int, int] | None = None

    @classmethod
    def of(cls, site: Site, quantizer: Quantizer) -> QuantParams:
        """Parameters of a site with its current range."""
        codebook = site.spec.codebook
        return cls(*scale_and_zero_of(*quantizer.range(), codebook), codebook, site.channel_axes)

    @property
    def format(self) -> formats.Format:
        """Number format of the codes."""
        return formats.of(self.codebook)

    @property
    def integers(self) -> UniformCodebook:
        """Codebook of an integer format.

        Raises:
          TypeError: the codes are not integers.
        """
        if not isinstance(self.codebook, UniformCodebook):
            raise TypeError(f"codes of {self.format.name} are not integers")
        return self.codebook

    def scale_for(self, shape: tuple[int, ...]) -> np.ndarray:
        """Scale of each element of an array, broadcast along axes that share one."""
        if self.blocks is None:
            return aligned(self.scale, shape, self.axes)
        axis, size = self.blocks
        return np.repeat(self.scale, size, axis).take(range(shape[axis]), axis)

    def quantize(self, values: np.ndarray) -> QuantizedArray:
        """Round float values of any shape to the nearest codes, half to even for integers."""
        units = np.asarray(values, np.float32) / self.scale_for(values.shape)
        return QuantizedArray(self.encode(units), self)

    def encode(self, units: np.ndarray) -> np.ndarray:
        """Encode values in units of the scale, an array that may be overwritten, as int32 codes."""
        if not self.codebook.symmetric:  # zero is added to whole numbers, as runtimes do
            np.rint(units, out=units)
            units += aligned(self.zero, units.shape, self.axes).astype(np.float32)
        return self.format.encode(units, self.codebook)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedArray:
    """Codes and the values they stand for, of a format that is fitted to the array.

    Attributes:
      codes: int32, of the shape of the array: index of a value.
      levels: float32 [..., L], the values of each group; leading axes are those of the array, of
        size 1 along axes that share values.
      format: name of the number format.
      bits: of one code.
      blocks: (axis, number of elements) of blocks that share values, of which `levels` then has one
        entry in place of each block; None without blocks.
    """

    codes: np.ndarray
    levels: np.ndarray
    format: str
    bits: int
    blocks: tuple[int, int] | None = None

    def levels_along(self) -> np.ndarray:
        """Levels whose leading axes broadcast to the array, repeated within blocks."""
        if self.blocks is None:
            return self.levels
        axis, size = self.blocks
        return np.repeat(self.levels, size, axis).take(range(self.codes.shape[axis]), axis)

    def values(self) -> np.ndarray:
        """Dequantized values, float32 of the shape of `codes`."""
        return fitted.decode(self.codes, self.levels_along())


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedArray:
    """Codes and their parameters.

    Attributes:
      codes: int32 codes of the format, of the shape of the array.
      params: scale, zero point, codebook and channel axes.
    """

    codes: np.ndarray
    params: QuantParams

    def values(self) -> np.ndarray:
        """Dequantized values, float32 of the shape of `codes`."""
        params = self.params
        units = params.format.decode(self.codes, params.codebook)
        if not params.codebook.symmetric:
            units = units - aligned(params.zero, self.codes.shape, params.axes).astype(np.float32)
        return params.scale_for(self.codes.shape) * units

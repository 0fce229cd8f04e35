"""The integers of a site: scale, zero point and, for a parameter, its codes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from calib.grid import Grid
from tfquant.export.errors import ExportError
from tfquant.layout import aligned, aligned_shape
from tfquant.quantizer import Quantizer
from tfquant.scale import scale_and_zero_of
from tfquant.site import Site


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """value = scale · (code - zero), codes from `grid.qmin` to `grid.qmax`.

    Attributes:
      scale: float32, above 0; one for each index along `axes`.
      zero: int32 of that shape.
      grid: the codes in use.
      axes: axes of the tensor that have a scale of their own.
    """

    scale: np.ndarray
    zero: np.ndarray
    grid: Grid
    axes: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, quantizer: Quantizer) -> Affine:
        """Of a site with its current range."""
        grid = site.spec.grid
        return cls(*scale_and_zero_of(*quantizer.ends(), grid), grid, site.channel_axes)

    def unsigned(self) -> Affine:
        """The same values under codes from 0 on: signed integers are shifted by half of their type's range."""
        half = self.grid.qmax + 1
        grid = Grid(self.grid.qmin + half, self.grid.qmax + half, symmetric=False)
        return dataclasses.replace(self, zero=self.zero + half, grid=grid)

    def of_matrix(self, shape: tuple[int, ...], matrix: tuple[int, int]) -> Affine:
        """The same for a tensor of `shape` seen as a matrix: one scale for each column, or one for all.

        Raises:
          ExportError: scales differ within a column.
        """
        if not self.axes:
            return self
        ones = aligned_shape(shape, self.axes)
        scale, zero = (np.broadcast_to(a.reshape(ones), shape).reshape(matrix) for a in (self.scale, self.zero))
        if (scale != scale[0]).any() or (zero != zero[0]).any():
            raise ExportError(f"a parameter of shape {list(shape)} has scales along axes {self.axes}, not one for each column")
        return dataclasses.replace(self, scale=scale[0], zero=zero[0], axes=(1,))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """int32 codes of `values`, rounded half to even."""
        codes = np.asarray(values, np.float32) / aligned(self.scale, values.shape, self.axes)
        np.rint(codes, out=codes)  # in place, as tables of gigabytes come by
        codes += aligned(self.zero, values.shape, self.axes).astype(np.float32)
        return np.clip(codes, self.grid.qmin, self.grid.qmax, out=codes).astype(np.int32)


class Joined:
    """A parameter with several axes of channels as one with a single such axis, which is all that most runtimes know.

    Axes that are not neighbours, as those of `ndh` in `btd,ndh->bnth`, are moved together before.

    Args:
      axes: of the channels, in ascending order.
      shape: of the parameter.

    Attributes:
      axis: the axis of channels of the joined parameter.
      apart: shape that takes the channels apart again.
      back: order of axes that puts them where they were, behind that; None where they are there.
    """

    def __init__(self, axes: tuple[int, ...], shape: tuple[int, ...]):
        first, others = axes[0], [axis for axis in range(len(shape)) if axis not in axes]
        before = [axis for axis in others if axis < first]
        self._order = [*before, *axes, *others[len(before) :]]
        self.apart = [shape[axis] for axis in self._order]
        self.back = None if self._order == sorted(self._order) else [self._order.index(axis) for axis in range(len(shape))]
        self.axis, self._count = len(before), len(axes)

    def join(self, values: np.ndarray) -> np.ndarray:
        """`values`, of the parameter's shape, with one axis of channels."""
        end = self.axis + self._count
        shape = [*self.apart[: self.axis], math.prod(self.apart[self.axis : end]), *self.apart[end:]]
        return values.transpose(self._order).reshape(shape)

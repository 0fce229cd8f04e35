"""The integers of a site: scale, zero point and, for a parameter, its codes."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from calib.grid import Grid
from tfquant import qdq
from tfquant.export.errors import ExportError
from tfquant.quantizer import Quantizer
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
        if grid.symmetric:
            lower, upper = (np.asarray(end, np.float32) for end in quantizer.ends())
            width = np.maximum(np.maximum(np.abs(lower), np.abs(upper)), np.float32(qdq.SMALLEST_AMAX))
        else:
            lower, width = _zero_in_range(quantizer, grid)
        scale = (width / np.float32(grid.quant_max)).astype(np.float32)
        zero = np.zeros_like(scale) if grid.symmetric else np.rint(grid.qmin - lower / scale)
        return cls(scale, zero.astype(np.int32), grid, site.channel_axes)

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
        ones = [size if axis in self.axes else 1 for axis, size in enumerate(shape)]
        scale, zero = (np.broadcast_to(a.reshape(ones), shape).reshape(matrix) for a in (self.scale, self.zero))
        if (scale != scale[0]).any() or (zero != zero[0]).any():
            raise ExportError(f"a parameter of shape {list(shape)} has scales along axes {self.axes}, not one for each column")
        return dataclasses.replace(self, scale=scale[0], zero=zero[0], axes=(1,))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """int32 codes of `values`, rounded half to even."""
        shape = [size if axis in self.axes else 1 for axis, size in enumerate(values.shape)]
        codes = np.asarray(values, np.float32) / self.scale.reshape(shape)
        np.rint(codes, out=codes)  # in place, as tables of gigabytes come by
        codes += self.zero.reshape(shape).astype(np.float32)
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


def _zero_in_range(quantizer: Quantizer, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Lower end and width of the very range that the simulation uses.

    In a graph, as there a division by a constant becomes a product with its reciprocal: the step differs in its last bit, and with
    a range that mirrors itself the zero point by one.
    """
    ends = quantizer.ends()
    spec = tf.TensorSpec(ends[0].shape, tf.float32)
    move = functools.partial(qdq.zero_in_range, grid=grid)
    function = tf.function(move, autograph=False, input_signature=[spec, spec])
    lower, width = function.get_concrete_function()(*ends)
    return lower.numpy(), width.numpy()

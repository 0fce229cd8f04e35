"""Integer parameters in the forms that ONNX files store.

Unsigned, as a matrix, with one channel axis.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from calib.codebook import UniformCodebook
from tfquant.export.errors import ExportError
from tfquant.layout import aligned
from tfquant.quantized_array import QuantParams


def unsigned(params: QuantParams) -> QuantParams:
    """The same values under codes from 0 on.

    Signed ones are shifted by half of their type's range.
    """
    signed = params.integers
    half = signed.qmax + 1
    codebook = UniformCodebook(signed.qmin + half, signed.qmax + half, symmetric=False)
    return dataclasses.replace(params, zero=params.zero + half, codebook=codebook)


def of_matrix(params: QuantParams, shape: tuple[int, ...], matrix: tuple[int, int]) -> QuantParams:
    """Parameters of a tensor seen as a matrix: one scale for each column, or one for all.

    Args:
      params: of the tensor.
      shape: of the tensor.
      matrix: its shape as a matrix.

    Raises:
      ExportError: scales differ within a column.
    """
    if not params.axes:
        return params
    scale, zero = (
        np.broadcast_to(aligned(a, shape, params.axes), shape).reshape(matrix)
        for a in (params.scale, params.zero)
    )
    if (scale != scale[0]).any() or (zero != zero[0]).any():
        raise ExportError(
            f"a parameter of shape {list(shape)} has scales along axes {params.axes}, not one for"
            " each column"
        )
    return dataclasses.replace(params, scale=scale[0], zero=zero[0], axes=(1,))


class Joined:
    """A parameter with several axes of channels as one with a single such axis, which is all that
    most runtimes know.

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
        self.back = (
            None
            if self._order == sorted(self._order)
            else [self._order.index(axis) for axis in range(len(shape))]
        )
        self.axis, self._count = len(before), len(axes)

    def join(self, values: np.ndarray) -> np.ndarray:
        """`values`, of the parameter's shape, with one axis of channels."""
        end = self.axis + self._count
        shape = [
            *self.apart[: self.axis],
            math.prod(self.apart[self.axis : end]),
            *self.apart[end:],
        ]
        return values.transpose(self._order).reshape(shape)

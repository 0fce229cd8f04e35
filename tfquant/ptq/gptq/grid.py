"""Grid of a weight matrix: scale and zero point of every element, and rounding to its values.

Scales of a calibrated site are given. Those of blocks are chosen here, and must follow again from
the rounded values, as nothing else stores them (`tfquant.block_scales`): the largest weight of each
block, its *anchor*, therefore keeps a code that leads to the scale, and no code lies beyond it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook
from tfquant import blocks, formats
from tfquant.block_scales import anchor_codes, stable_scales
from tfquant.scale import SMALLEST_AMAX
from tfquant.spec import QuantSpec

# Candidates of the search: multiples of the scale with which the largest magnitude of a block is
# the largest code. Those below 1 clip it, those above 1 count where it is rounded to that code.
_CANDIDATES = np.linspace(1.06, 0.6, 24, dtype=np.float32)


@dataclasses.dataclass(eq=False)
class Grid:
    """Grid of a matrix [K, N].

    Attributes:
      codebook: values in units of the scale, before a zero point is taken off.
      scale, zero: [K, N], float64.
      blocks: chooses the scales of blocks; None where scales are given.
    """

    codebook: Codebook
    scale: np.ndarray
    zero: np.ndarray
    blocks: BlockScales | None = None

    def start(self, weight: np.ndarray, importance: np.ndarray, *, at_once: bool) -> None:
        """Prepare for rounding.

        Args:
          weight: float64 [K, N].
          importance: float64 [K], weight of squared errors in the search of scales.
          at_once: choose all scales from this weight; else those of groups of rows that are blocks
            of all columns follow in `begin`.
        """
        if self.blocks is None:
            return
        self.blocks.start(importance)
        if at_once or not self.blocks.starts:
            for rows in self.blocks.groups():
                self._choose(rows, weight)

    def begin(self, row: int, weight: np.ndarray, *, at_once: bool) -> None:
        """Choose the scales of the blocks that begin with a row from the weight as it is now."""
        if self.blocks is not None and not at_once and row in self.blocks.starts:
            self._choose(self.blocks.starts[row], weight)

    def _choose(self, rows: slice, weight: np.ndarray) -> None:
        if self.blocks is not None:
            self.scale[rows] = self.blocks.choose(rows, weight[rows])

    def rounded(self, row: int, weight: np.ndarray) -> np.ndarray:
        """Round one row, float64 [N], to values of the grid in units of the scale."""
        units = weight / self.scale[row]
        if self.blocks is not None:
            return self.blocks.rounded(row, units)
        return nearest(units, self.zero[row], self.codebook)


def nearest(units: np.ndarray, zero: np.ndarray | float, codebook: Codebook) -> np.ndarray:
    """Nearest values of a codebook in units of the scale, without zero point."""
    if codebook.uniform:
        return np.clip(np.rint(units) + zero, *codebook.extremes) - zero
    format = formats.of(codebook)
    return format.decode(format.encode(units.astype(np.float32), codebook), codebook)


class BlockScales:
    """Scales of the blocks of a matrix [K, N].

    Args:
      spec: of the blocks.
      numbers: [K, N], number of the block of each element.
      search: whether scales are searched; else the largest magnitude is the largest code.

    Attributes:
      starts: first row -> rows, where each column of these rows is one block; empty where blocks
        lie otherwise.
    """

    def __init__(self, spec: QuantSpec, numbers: np.ndarray, *, search: bool):
        self._spec, self._codebook = spec, spec.codebook
        self._lowest_anchor, self._highest_anchor = anchor_codes(spec)
        self._anchors = np.zeros(numbers.shape, np.int8)
        self._candidates = self._found_again(_CANDIDATES if search else np.ones(1, np.float32))
        self._importance = np.ones(len(numbers))
        _, places = np.unique(numbers, return_inverse=True)
        self._numbers = places.reshape(numbers.shape)
        self.starts = self._row_groups()

    def _found_again(self, candidates: np.ndarray) -> np.ndarray:
        """Candidates with which rounding to nearest gives the anchor a code that leads to them."""
        codes = nearest(self._codebook.quant_max / candidates, 0.0, self._codebook)
        return candidates[np.abs(codes) >= self._lowest_anchor]

    def _row_groups(self) -> dict[int, slice]:
        numbers = self._numbers
        changes = numbers[1:] != numbers[:-1]
        borders = [0, *(np.flatnonzero(changes.all(1)) + 1), len(numbers)]
        aligned = (changes.all(1) | ~changes.any(1)).all()
        groups = [slice(a, b) for a, b in zip(borders, borders[1:], strict=False)]
        count = int(numbers.max()) + 1
        if not aligned or len(groups) * len(numbers[0]) != count:
            return {}
        return {group.start: group for group in groups}

    def start(self, importance: np.ndarray) -> None:
        """Forget all scales.

        Args:
          importance: [K], weight of squared errors.
        """
        self._importance = importance
        self._anchors[:] = 0

    def groups(self) -> Sequence[slice]:
        """Groups of rows that hold whole blocks: one a block, or all rows."""
        return list(self.starts.values()) or [slice(0, len(self._numbers))]

    def choose(self, rows: slice, weight: np.ndarray) -> np.ndarray:
        """Choose the scales of the blocks of some rows, and their anchors.

        Args:
          rows: one of `groups`.
          weight: float64 [rows, N].

        Returns:
          float64 [rows, N], the scale of each element.
        """
        codebook = self._codebook
        blocks_of, count = self._local(rows)
        flat, importance = weight.ravel(), np.repeat(self._importance[rows], weight.shape[1])
        amax = np.zeros(count)
        np.maximum.at(amax, blocks_of, np.abs(flat))
        best, least = np.ones(count, np.float32), np.full(count, np.inf)
        for candidate in self._candidates:
            scale = self._stable(amax * candidate)
            units = flat / scale[blocks_of]
            codes = np.clip(nearest(units, 0.0, codebook), *self._limits)
            squares = importance * (scale[blocks_of] * (units - codes)) ** 2
            error = np.bincount(blocks_of, squares, count)
            better = error < least
            best[better], least[better] = scale[better], error[better]
        # The first of the largest magnitudes; a block of zeros has its scale without an anchor.
        order = np.lexsort((-np.abs(flat), blocks_of))
        first = order[np.r_[True, np.diff(blocks_of[order]) > 0]]
        anchors = np.zeros(flat.shape, np.int8)
        anchors[first] = np.where(best > SMALLEST_AMAX, np.where(flat[first] < 0, -1, 1), 0)
        self._anchors[rows] = anchors.reshape(weight.shape)
        return best[blocks_of].reshape(weight.shape).astype(np.float64)

    def _local(self, rows: slice) -> tuple[np.ndarray, int]:
        """Numbers of the blocks of some rows, counted from 0, flat; and how many there are."""
        numbers = self._numbers[rows].ravel()
        local = numbers - numbers.min()
        return local, int(local.max()) + 1

    def _stable(self, amax: np.ndarray) -> np.ndarray:
        """Scales for largest magnitudes, float32."""
        scale = blocks.scales_of(tf.constant(amax.astype(np.float32)), self._spec).numpy()
        return stable_scales(scale, self._spec)

    @property
    def _limits(self) -> tuple[float, float]:
        high = self._highest_anchor
        return max(self._codebook.extremes[0], -high), high

    def rounded(self, row: int, units: np.ndarray) -> np.ndarray:
        """Round one row, [N] in units of the scale; anchors to a code that leads to the scale."""
        codes = np.clip(nearest(units, 0.0, self._codebook), *self._limits)
        sign = self._anchors[row]
        anchored = sign * np.maximum(sign * codes, self._lowest_anchor)
        return np.where(sign == 0, codes, anchored)

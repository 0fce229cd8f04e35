"""Multi-bit codes: `mb<k>`, sums of k binary tensors with a scale each, k = 1 ... 4.

    y = a_1 b_1 + ... + a_k b_k,    b_i = -1 or 1

The scales of each group of elements minimize the squared error by turns: a greedy start on what the
earlier scales leave over, least squares for given signs, and for given scales the nearest of the
2**k sums, which a binary search over the sorted sums finds with k comparisons.

A group that holds at most 2**k values, as one that is quantized already, has these values as
levels, so that quantizing it again changes no bit of it.

Source: Xu et al. 2018, "Alternating Multi-bit Quantization for Recurrent Neural Networks",
arXiv:1802.00150, algorithms 1 and 2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.formats.contract import Kind, Levels
from tfquant.formats.fitted import FittedCodebook, check_scale
from tfquant.layout import shared_axes
from tfquant.scale import Scale

_BITS = range(1, 5)
_CYCLES = 2
KNOWN = "mb1 ... mb4, mb2_refined ... mb4_refined"


@dataclasses.dataclass(frozen=True)
class MultiBit:
    """Sums of binary tensors.

    Attributes:
      bits: k.
      refined: whether the scales are fitted by least squares after each step of the greedy start,
        rather than at its end; the paper compares both.
      cycles: alternations of least squares and codes after the greedy start.
    """

    bits: int
    refined: bool = False
    cycles: int = _CYCLES
    kind: Kind = "fitted"

    @property
    def name(self) -> str:
        return f"mb{self.bits}" + ("_refined" if self.refined else "")

    def codebook(self, scale: Scale) -> FittedCodebook:
        check_scale(self.name, scale)
        if scale.source == "none" or scale.rounds_scale:
            raise ValueError(
                f"number format {self.name!r} has float32 scales of its own: leave out source and"
                " scale_format"
            )
        return FittedCodebook(self.name, 2**self.bits)

    def fit(
        self, x: tf.Tensor, axes: Sequence[int], scale: Scale, valid: tf.Tensor | None = None
    ) -> Levels:
        x = tf.stop_gradient(x)
        rank = x.shape.rank
        own = shared_axes(rank, tuple(axis % rank for axis in axes))
        order = [*own, *(axis for axis in range(rank) if axis not in own)]
        sizes = tf.gather(tf.shape(x), tf.constant(own, tf.int32))
        rows = _rows(x, order, sizes)
        counted = tf.ones_like(rows)
        if valid is not None:
            full = tf.broadcast_to(tf.cast(valid > 0, x.dtype), tf.shape(x))
            counted = _rows(full, order, sizes)
        finite = tf.reduce_all(tf.math.is_finite(rows) | (counted == 0.0), -1, keepdims=True)
        values = self.fit_rows(tf.where(finite & (counted > 0.0), rows, 0.0), counted)
        values = tf.where(finite, values, float("nan"))
        kept = [tf.shape(x)[axis] if axis in own else 1 for axis in range(rank)]
        known = [x.shape[axis] if axis in own else 1 for axis in range(rank)]
        values = tf.reshape(values, [*kept, 2**self.bits])
        values = tf.ensure_shape(values, [*known, 2**self.bits])
        return Levels(values, midpoints(values))

    def fit_rows(self, rows: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """Fit the sums to each row.

        Args:
          rows: float32 [groups, elements], finite.
          counted: like `rows`, 1 for elements that count and 0 for others.

        Returns:
          float32 [groups, 2**bits], ascending.
        """
        distinct, few = _distinct(rows, counted, 2**self.bits)
        scales = self._greedy(rows, counted)
        best, error = scales, _error(rows, counted, scales)
        for _ in range(self.cycles):
            scales = _least_squares(rows, counted, nearest_signs(rows, sums(scales), scales))
            new = _error(rows, counted, scales)
            # Never worse, also where least squares are singular in float32.
            better = new < error
            best = tf.where(better[:, tf.newaxis], scales, best)
            error, scales = tf.where(better, new, error), best
        return tf.where(few[:, tf.newaxis], distinct, sums(best))

    def _greedy(self, rows: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """Scales [groups, bits] of the greedy start."""
        number = tf.maximum(tf.reduce_sum(counted, -1), 1.0)
        rest, scales, signs = rows, [], []
        for index in range(self.bits):
            scales.append(tf.reduce_sum(tf.abs(rest) * counted, -1) / number)
            signs.append(tf.where(rest >= 0.0, 1.0, -1.0))
            if self.refined or index == self.bits - 1:
                fitted = _least_squares(rows, counted, tf.stack(signs, -1))
                scales = tf.unstack(fitted, num=index + 1, axis=-1)
                rest = rows - sum(a[:, tf.newaxis] * b for a, b in zip(scales, signs, strict=True))
            else:
                rest = rest - scales[-1][:, tf.newaxis] * signs[-1]
        return tf.stack(scales, -1)


def parse(name: str) -> MultiBit | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there is none of so many bits.
    """
    match = re.fullmatch(r"mb([0-9]{1,2})(_refined)?", name)
    if match is None:
        return None
    bits, refined = int(match[1]), match[2] is not None
    if bits not in _BITS or (refined and bits == 1):
        raise ValueError(
            f"number format {name!r}: multi-bit codes have {_BITS[0]} to {_BITS[-1]} bits, refined"
            " ones at least 2"
        )
    return MultiBit(bits, refined)


@functools.cache
def _signs(bits: int) -> np.ndarray:
    """All sign vectors, float32 [2**bits, bits]."""
    codes = np.arange(2**bits)[:, np.newaxis] >> np.arange(bits)
    return np.where(codes & 1, 1.0, -1.0).astype(np.float32)


def sums(scales: tf.Tensor) -> tf.Tensor:
    """Sums +-a_1 +- ... +-a_k of scales [groups, k], ascending; float32 [groups, 2**k].

    Terms are added from the largest on, so that the sums depend on nothing but the magnitudes: the
    order in a product of matrices follows its shape.
    """
    return tf.sort(signed_sums(tf.sort(tf.abs(scales), -1, direction="DESCENDING")), -1)


def signed_sums(scales: Any) -> Any:
    """Sums of scales by their signs, one term after the other.

    Args:
      scales: float32 [..., k], descending and not negative; an array or a tensor.

    Returns:
      float32 [..., 2**k]; bit i of the place of a sum is set where a_(i + 1) is added.
    """
    signs = _signs(scales.shape[-1])
    total = scales[..., :1] * signs[:, 0]
    for index in range(1, scales.shape[-1]):
        total = total + scales[..., index : index + 1] * signs[:, index]
    return total


def midpoints(values: Any) -> tf.Tensor:
    """Boundaries half-way between neighbouring values along the last axis; above the lower one,
    also where no number lies between both.
    """
    low, high = values[..., :-1], values[..., 1:]
    middle = low + (high - low) / 2.0
    return tf.where(middle > low, middle, high)


def nearest(rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Index of the nearest of sorted values [groups, L] of each element, by binary search."""
    return tf.searchsorted(midpoints(values), rows, side="right")


def nearest_signs(rows: tf.Tensor, values: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Signs [groups, elements, k] of the sum that is nearest to each element.

    Args:
      rows: float32 [groups, elements].
      values: the sorted sums of `scales`.
      scales: float32 [groups, k].
    """
    table = _signs(scales.shape[-1])
    order = tf.argsort(tf.matmul(scales, table, transpose_b=True), -1, stable=True)
    return tf.gather(tf.gather(tf.constant(table), order), nearest(rows, values), batch_dims=1)


def _least_squares(rows: Any, counted: Any, signs: tf.Tensor) -> tf.Tensor:
    """Scales [groups, k] of least squared error for signs [groups, elements, k]."""
    weighted = signs * counted[..., tf.newaxis]
    number = tf.maximum(tf.reduce_sum(counted, -1), 1.0)[:, tf.newaxis, tf.newaxis]
    normal = tf.matmul(weighted, signs, transpose_a=True) / number
    right = tf.matmul(weighted, rows[..., tf.newaxis], transpose_a=True) / number
    # Signs may be equal, so that there is no inverse.
    return tf.squeeze(tf.matmul(tf.linalg.pinv(normal), right), -1)


def _error(rows: tf.Tensor, counted: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Squared error [groups] of the nearest sums."""
    values = sums(scales)
    rounded = tf.gather(values, nearest(rows, values), batch_dims=1)
    return tf.reduce_sum(counted * (rows - rounded) ** 2, -1)


def _distinct(rows: tf.Tensor, counted: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Smallest `number` distinct values [groups, number] of each row, the last of fewer repeated,
    and whether there are no more [groups].
    """
    infinity = tf.constant(np.inf, rows.dtype)
    left = tf.where(counted > 0.0, rows, infinity)
    values = [tf.reduce_min(left, -1)]
    for _ in range(number - 1):
        above = tf.reduce_min(tf.where(left > values[-1][:, tf.newaxis], left, infinity), -1)
        values.append(tf.where(above < infinity, above, values[-1]))
    more = tf.reduce_any((left > values[-1][:, tf.newaxis]) & (left < infinity), -1)
    stacked = tf.stack(values, -1)
    return tf.where(stacked < infinity, stacked, 0.0), ~more


def _rows(x: tf.Tensor, order: Sequence[int], sizes: tf.Tensor) -> tf.Tensor:
    """Reshape to [groups, elements]; `sizes` are those of the axes of groups, first in `order`."""
    if list(order) != sorted(order):
        x = tf.transpose(x, order)
    return tf.reshape(x, [tf.reduce_prod(sizes), -1])


# What files store: k scales in place of 2**k sums.

# Units in the last place that estimates of the smallest, the next and all larger scales may be off:
# those of the sums are larger than those of small scales.
_FARTHEST = (12, 4, 2, 2)


def scales_of(values: np.ndarray) -> np.ndarray | None:
    """Scales whose sums are given values, bit for bit.

    Args:
      values: float32 [..., 2**k], ascending.

    Returns:
      float32 [..., k], descending; None if values of a group are no such sums, as those of a group
      that holds fewer than 2**k values.
    """
    rows = values.reshape(-1, values.shape[-1])
    estimate = _estimated_scales(rows.astype(np.float64))
    scales, left = np.zeros(estimate.shape, np.float32), np.arange(len(rows))
    error = np.abs(np.sort(signed_sums(estimate), -1) - rows).max(-1)
    if not (error <= 1e-6 * np.abs(rows).max(-1)).all():
        return None
    for steps in _moves(estimate.shape[-1]):
        candidates = np.abs(_moved(estimate[left], steps))
        sums_of_candidates = np.sort(signed_sums(candidates), -1)
        found = (sums_of_candidates == rows[left]).all(-1) & (np.diff(candidates) <= 0.0).all(-1)
        scales[left[found]] = candidates[found]
        left = left[~found]
        if not left.size:
            return scales.reshape(*values.shape[:-1], -1)
    return None


@functools.cache
def _moves(bits: int) -> list[tuple[int, ...]]:
    """Steps of estimated scales, the largest first, that are tried in turn, near ones before."""
    ranges = [range(-far, far + 1) for far in _FARTHEST[:bits]][::-1]
    return sorted(itertools.product(*ranges), key=lambda steps: sum(map(abs, steps)))


def _moved(scales: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """float32 scales [groups, k] moved by a number of units in the last place each."""
    return (scales.view(np.int32) + np.array(steps, np.int32)).view(np.float32)


def _estimated_scales(values: np.ndarray) -> np.ndarray:
    """Scales [groups, k], descending, of sums [groups, 2**k] up to rounding; float32.

    Half the distances from the smallest sum are sums of some of the scales: the smallest one that
    is none of those known is the next scale.
    """
    groups, bits = len(values), int(values.shape[-1]).bit_length() - 1
    distances = (values - values[:, :1]) / 2.0
    tolerance = 1e-6 * distances[:, -1:]
    known, scales = np.zeros((groups, 1)), []
    for _ in range(bits):
        padded = np.full(distances.shape, np.inf)
        padded[:, : known.shape[-1]] = known
        place = (distances < padded - tolerance).argmax(-1)
        scales.append(distances[np.arange(groups), place])
        known = np.sort(np.concatenate([known, known + scales[-1][:, np.newaxis]], -1), -1)
    rough = np.stack(scales[::-1], -1)
    # Each scale is the mean of all sums by its sign, once their order is known.
    signs = _signs(bits).astype(np.float64)
    ordered = signs[np.argsort(rough @ signs.T, -1, kind="stable")]
    return (ordered * values[..., np.newaxis]).mean(-2).astype(np.float32)

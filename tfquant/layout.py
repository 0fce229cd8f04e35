"""Layouts: sets of elements of a tensor that share a scale (granularity).

`Layout` is the part of a quantization spec that names the granularity. Bound to a tensor it becomes
*channel axes*: the axes along which every index has a scale of its own, ascending; none of them
where the whole tensor shares one scale. Ranges and scales are stored as one value for each
combination of indices along these axes. Where embedding dimensions are grouped, one value for each
group is stored and `spread` repeats it for the dimensions of the group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfquant.error_messages import shown

GRANULARITIES = (
    *("per_tensor", "per_channel", "per_embedding", "per_embedding_group", "per_token"),
    "per_block",
)
PER_EMBEDDING = ("per_embedding", "per_embedding_group")
PERMUTES = ("none", "own", "shared")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Granularity of the scales of a tensor.

    Attributes:
      granularity: `per_tensor`; `per_channel` (one scale for each output channel of a weight); of
        activations `per_embedding` (one for each index of the last axis), `per_embedding_group`
        (one for each of `groups` groups of such indices) or `per_token` (one for each position of
        each sample, over the last axis). Bondarenko et al. 2021, arXiv:2109.12948, section 4.
        `per_block`: one for each `block_size` consecutive elements, see `tfquant.blocks`.
      groups: K of `per_embedding_group`, a divisor of the embedding size; None elsewhere.
      permute: order in which embedding dimensions are cut into groups: `none` as they are; `own`
        sorted by the width of their ranges, so that outliers share a group; `shared` sorted by
        those of the feed-forward output of the encoder layer.
      block_size: number of elements of a block; None elsewhere.
      block_axis: axis along which blocks lie, negative ones from the end; None: the axis that a
        product sums over where the tensor is an operand of one, else the last.
    """

    granularity: Literal[
        "per_tensor",
        "per_channel",
        "per_embedding",
        "per_embedding_group",
        "per_token",
        "per_block",
    ] = "per_tensor"
    groups: int | None = None
    permute: Literal["none", "own", "shared"] = "none"
    block_size: int | None = None
    block_axis: int | None = None

    def __post_init__(self):
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"unknown granularity {shown(self.granularity)}; known: {', '.join(GRANULARITIES)}"
            )
        if self.permute not in PERMUTES:
            raise ValueError(f"unknown permute {shown(self.permute)}; known: {', '.join(PERMUTES)}")
        grouped, groups = self.granularity == "per_embedding_group", self.groups
        if grouped and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 1):
            raise ValueError(
                f"per_embedding_group needs groups, an integer of at least 1, got {shown(groups)}"
            )
        if not grouped and (groups is not None or self.permute != "none"):
            raise ValueError(
                "groups and permute belong to granularity per_embedding_group, got "
                f"{self.granularity} with groups {groups!r}, permute {self.permute!r}"
            )

        self._check_blocks()

    def _check_blocks(self) -> None:
        for field in ("block_size", "block_axis"):
            value = getattr(self, field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field} must be an integer, got {shown(value)}")
            if value is not None and not self.per_block:
                raise ValueError(
                    f"{field} belongs to granularity per_block, got {self.granularity} with"
                    f" {field} {value}"
                )
        if self.per_block and (self.block_size is None or self.block_size < 2):
            raise ValueError(
                f"per_block needs block_size, at least 2 elements, got {shown(self.block_size)}"
            )

    @property
    def per_block(self) -> bool:
        return self.granularity == "per_block"

    @property
    def per_embedding(self) -> bool:
        """Whether scales lie along the embedding axis, one per index or per group of indices."""
        return self.granularity in PER_EMBEDDING

    @property
    def per_token(self) -> bool:
        return self.granularity == "per_token"

    @property
    def along_last_axis(self) -> bool:
        """Whether scales are tied to the last axis of the tensor, its embedding axis."""
        return self.per_embedding or self.per_token

    def channel_axes(self, rank: int, output_channels: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a tensor that have scales of their own.

        Args:
          rank: of the tensor.
          output_channels: its axes of output channels, ascending.
        """
        if self.per_embedding:
            return (rank - 1,)
        return output_channels if self.granularity == "per_channel" else ()

    def range_shape(self, shape: Sequence[Any], channel_axes: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of either end of a stored range: `[groups]`, else the sizes of the channel axes."""
        if self.groups is not None:
            return (self.groups,)
        return tuple(shape[axis] for axis in channel_axes)

    def describe(self) -> str:
        """Text for tables, such as `per_channel` or `per_embedding_group 6 (shared order)`."""
        groups = "" if self.groups is None else f" {self.groups}"
        if self.per_block:
            axis = "" if self.block_axis is None else f" along axis {self.block_axis}"
            return f"blocks of {self.block_size}{axis}"
        order = "" if self.permute == "none" else f" ({self.permute} order)"
        return f"{self.granularity}{groups}{order}"


def static_shape(shape: Iterable[int | None]) -> tuple[int, ...]:
    """Return the sizes of a shape that must be static, such as that of a parameter.

    Raises:
      ValueError: a size, or the rank, is not known.
    """
    sizes = tuple(shape)
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise ValueError(f"shape {list(sizes)} is not static: give the model inputs of fixed size")
    return known


def aligned_shape(shape: Sequence[Any], channel_axes: tuple[int, ...]) -> list[Any]:
    """Shape of values along `channel_axes` that broadcasts to a tensor, 1 along other axes.

    Args:
      shape: of the tensor; sizes may be None along the other axes.
      channel_axes: see the module.
    """
    return [size if axis in channel_axes else 1 for axis, size in enumerate(shape)]


def aligned(values: np.ndarray, shape: Sequence[int], channel_axes: tuple[int, ...]) -> np.ndarray:
    """Values along `channel_axes`, reshaped to broadcast to an array of `shape`."""
    return values.reshape(aligned_shape(shape, channel_axes))


def shared_axes(rank: int, channel_axes: tuple[int, ...]) -> list[int]:
    """Axes of a tensor along which elements share a scale."""
    return [axis for axis in range(rank) if axis not in channel_axes]


def spread(values: tf.Tensor, group_of: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Repeat values of groups for each of their dimensions.

    TensorFlow's own gradient of a gather is sparse, and made dense later with a warning.

    Args:
      values: [groups].
      group_of: int32 [dimensions], the group of each.

    Returns:
      [dimensions], differentiable in `values`.
    """
    group_of, groups = tf.convert_to_tensor(group_of), values.shape[0]

    @tf.custom_gradient
    def gathered(values) -> Any:
        return tf.gather(values, group_of), lambda dy: tf.math.unsorted_segment_sum(
            dy, group_of, groups
        )

    return gathered(values)

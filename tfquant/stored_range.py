"""Stored ranges: calibrated ones, moving averages of training batches, and that of no scale."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from tfquant.distributed.group import Group
from tfquant.layout import shared_axes
from tfquant.learned import parameter_path
from tfquant.scale import symmetric_range, with_rounded_scale
from tfquant.site import Site
from tfquant.variables import are_finite, state_variable

Range = tuple[tf.Tensor | tf.Variable, tf.Tensor | tf.Variable]


class RangeState(Protocol):
    """State of a site's range: stored or trained variables, and the range they define."""

    @property
    def range_gradient(self) -> str:
        """Kind of gradient of both ends, see `tfquant.gradients`."""
        ...

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """Variables by the last part of their names in checkpoints; NaN until a range is known."""
        ...

    @property
    def known(self) -> bool:
        """Whether the range is known."""
        ...

    def set_range(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Assign a range, float32 of the site's range shape."""
        ...

    def range(self) -> Range:
        """(lower, upper), float32 of the site's range shape; NaN until a range is known."""
        ...

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> Range:
        """Range (lower, upper) to quantize `x` with, of the site's range shape.

        Args:
          x: what is quantized.
          training: whether training may move the range by `x`.
          group_of: the group of each embedding dimension where these are grouped.
          group: the processes whose batches move a range together.
        """
        ...


class StoredRange:
    """Range that stays as calibrated: `lower` and `upper`.

    Args:
      site: whose range it is.
    """

    range_gradient = "none"

    def __init__(self, site: Site):
        self._site = site
        unset = np.full(site.range_shape, np.nan, np.float32)
        self.lower, self.upper = (
            state_variable(unset, parameter_path(site.address, end)) for end in ("lower", "upper")
        )

    @property
    def variables(self) -> dict[str, tf.Variable]:
        return {"lower": self.lower, "upper": self.upper}

    @property
    def known(self) -> bool:
        return are_finite(self.variables)

    def set_range(self, lower: np.ndarray, upper: np.ndarray) -> None:
        spec = self._site.spec
        if spec.scale.rounds_scale:
            amax = np.maximum(np.abs(lower), np.abs(upper))
            rounded = with_rounded_scale(tf.constant(amax), spec.codebook, spec.scale.scale_format)
            lower, upper = (np.asarray(end) for end in symmetric_range(rounded, spec.codebook))
        self.lower.assign(lower)
        self.upper.assign(upper)

    def range(self) -> Range:
        return self.lower, self.upper

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> Range:
        return self.range()


class UnscaledRange:
    """Range of a format that is used without a scale: as wide as its `quant_max`, so that the scale
    is 1.

    Args:
      site: whose range it is.
    """

    range_gradient = "none"
    known = True

    def __init__(self, site: Site):
        self._amax = np.full(site.range_shape, site.spec.codebook.quant_max, np.float32)
        self._codebook = site.spec.codebook

    @property
    def variables(self) -> dict[str, tf.Variable]:
        return {}

    def set_range(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Do nothing: a file holds the ends as well, which do not differ."""

    def range(self) -> Range:
        return symmetric_range(tf.constant(self._amax), self._codebook)

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> Range:
        return self.range()


class MovingRange(StoredRange):
    """Range that follows the extremes of each training batch.

    Args:
      site: whose range it is.
      rate: the range stands still while it is 0; None for never.
    """

    def __init__(self, site: Site, rate: tf.Variable | None):
        super().__init__(site)
        self._rate = rate

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> Range:
        if not training:
            return self.range()
        spec, x = self._site.spec, tf.cast(tf.stop_gradient(x), tf.float32)
        axes = shared_axes(x.shape.rank, self._site.channel_axes)
        lowest, highest = tf.reduce_min(x, axes), tf.reduce_max(x, axes)
        if group_of is not None:
            lowest = tf.math.unsorted_segment_min(lowest, group_of, spec.layout.groups)
            highest = tf.math.unsorted_segment_max(highest, group_of, spec.layout.groups)
        if not self._site.is_weight:  # these are the same on all ranks
            lowest, highest = group.extremes(lowest, highest)
        if spec.codebook.symmetric:
            lowest, highest = symmetric_range(tf.maximum(-lowest, highest), spec.codebook)
        return self._moved(self.lower, lowest), self._moved(self.upper, highest)

    def _moved(self, end: tf.Variable, seen: tf.Tensor) -> tf.Tensor:
        """Move an end by one step of the moving average towards an observed value."""
        decay = self._site.spec.decay
        moved = decay * end + (1.0 - decay) * seen
        if self._rate is not None:
            moved = tf.where(self._rate > 0.0, moved, end)
        return end.assign(moved, read_value=True)

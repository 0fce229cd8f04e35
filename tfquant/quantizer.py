"""Quantizer: the state of one site. Range variables and the statistics collected for them; nothing else holds state."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfquant import qdq
from tfquant.distributed import Group, Single
from tfquant.gradients import Gradient
from tfquant.layout import shared_axes, spread
from tfquant.learned import PARAMETRIZATIONS, LearnedRange
from tfquant.scale import LARGEST_AMAX, symmetric_range
from tfquant.site import Site

GROUP_OF = "group_of"


class UncalibratedError(RuntimeError):
    """A site was asked to quantize before it had a range."""


class Quantizer:
    """Range of one site.

    Attributes:
      site: what is quantized and how.
      group_of: int32 [embedding size], the group whose range each dimension has; -1 until known. None where none are grouped.
      learned: the trainable variables of a range that is learned, else None.
      group: the processes whose batches a moving average follows together.

    Args:
      site: see there.
      rate: a moving average stands still while it is 0; None for never.
    """

    def __init__(self, site: Site, rate: tf.Variable | None = None):
        self.site = site
        self.group: Group = Single()
        self._rate = rate
        spec = site.spec
        self.learned: LearnedRange | None = None
        self._ends: dict[str, tf.Variable] = {}
        if spec.update in PARAMETRIZATIONS:
            if site.group:
                raise ValueError(
                    f"site {site.address}: its range is fused with others ({site.group}) and cannot be learned: set update to "
                    "frozen for it, or leave `fuse` out of the recipe"
                )
            self.learned = LearnedRange(spec.update, spec.grid, site.range_shape, site.address)
        else:
            unset = np.full(site.range_shape, np.nan, np.float32)
            self._ends = {end: tf.Variable(unset, trainable=False, name=f"{site.address}/{end}") for end in ("lower", "upper")}
        self.group_of: tf.Variable | None = None
        if spec.groups is not None:
            ungrouped = np.full(site.shape[-1], -1, np.int32)
            self.group_of = tf.Variable(ungrouped, trainable=False, name=f"{site.address}/{GROUP_OF}")
        self._calibrated = False

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """All state by name: `lower` and `upper`, or what is learned in their place, NaN until known; and `group_of`."""
        ends = self._ends if self.learned is None else self.learned.variables
        return ends if self.group_of is None else ends | {GROUP_OF: self.group_of}

    @property
    def lower(self) -> tf.Variable | tf.Tensor:
        """Lower end, float32 of `site.range_shape`; NaN until a range is known."""
        return self._ends["lower"] if self.learned is None else self.learned.ends()[0]

    @property
    def upper(self) -> tf.Variable | tf.Tensor:
        """Upper end, like `lower`."""
        return self._ends["upper"] if self.learned is None else self.learned.ends()[1]

    def ends(self) -> tuple[tf.Tensor, tf.Tensor]:
        """(lower, upper), one value for each index along `site.channel_axes`: dimensions of a group repeat its range."""
        return self._spread(self.lower), self._spread(self.upper)

    def _spread(self, value: tf.Variable | tf.Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        return value if self.group_of is None else spread(value, self.group_of)

    @property
    def calibrated(self) -> bool:
        """Whether the range is known. Asked before every call, so that a yes is remembered."""
        if not self._calibrated:
            with tf.init_scope():  # also while a function is traced
                known = all(np.isfinite(v.numpy()).all() for v in self.variables.values())
                self._calibrated = known and (self.group_of is None or bool((self.group_of.numpy() >= 0).all()))
        return self._calibrated

    def set_range(self, lower, upper, group_of=None) -> None:
        """Assigns the range.

        Args:
          lower, upper: finite, `lower <= upper`, of `site.range_shape`, magnitudes at most `LARGEST_AMAX`.
          group_of: where dimensions are grouped, int32 [embedding size], the group of each: equally many in every one.

        Raises:
          ValueError: they are not.
        """
        lower = np.asarray(lower, np.float32)
        upper = np.asarray(upper, np.float32)
        if lower.shape != self.site.range_shape or upper.shape != self.site.range_shape:
            raise ValueError(
                f"site {self.site.address}: range has shape {list(lower.shape)}, the site needs {list(self.site.range_shape)}"
            )
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            raise ValueError(f"site {self.site.address}: range is not finite ({lower.min()} ... {upper.max()})")
        if (lower > upper).any():
            raise ValueError(f"site {self.site.address}: lower end of the range lies above the upper end")
        if max(abs(lower).max(), abs(upper).max()) > LARGEST_AMAX:
            raise ValueError(
                f"site {self.site.address}: range {lower.min():.6g} ... {upper.max():.6g} is too wide for float32: a mask "
                "or an overflow is in the data; leave the site in float with a rule whose spec is null"
            )
        self._set_groups(group_of)
        if self.learned is not None:
            self.learned.set_range(lower, upper)
        else:
            self._ends["lower"].assign(lower)
            self._ends["upper"].assign(upper)

    def _set_groups(self, group_of) -> None:
        if (group_of is None) != (self.group_of is None):
            has, needs = ("no groups", "them") if group_of is None else ("groups of dimensions", "none")
            raise ValueError(f"site {self.site.address}: range has {has}, the site needs {needs}")
        if group_of is None:
            return
        group_of, groups = np.asarray(group_of, np.int32), self.site.spec.groups
        size = self.site.shape[-1]
        if group_of.shape != (size,) or not np.array_equal(np.sort(group_of), np.arange(size) * groups // size):
            raise ValueError(f"site {self.site.address}: group_of must deal {size} dimensions out to {groups} groups of equal size")
        self.group_of.assign(group_of)

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """QDQ of `x` with the current range, in the current graph. In training a moving range takes note of `x` before."""
        spec, axes = self.site.spec, self.site.channel_axes
        gradient = Gradient(spec.ste)
        if self.learned is None:
            lower, upper = self._moved(x) if training and spec.update == "moving_average" else self.ends()
            return qdq.quantize_dequantize(x, lower, upper, spec.grid, axes, gradient=gradient)
        elements = tf.size(x) // int(np.prod(self.site.range_shape, dtype=int))
        if not self.site.is_weight and x.shape.rank:  # the source counts an activation's elements in one example
            elements //= tf.maximum(tf.shape(x)[0], 1)
        lower, upper = self.learned.ends(elements)
        lower, upper = self._spread(lower), self._spread(upper)
        of_range = self.learned.parametrization.gradient
        return qdq.quantize_dequantize(x, lower, upper, spec.grid, axes, gradient=gradient, range_gradient=of_range)

    def _moved(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The ends after a step of the moving average towards the extremes of `x`."""
        x = tf.cast(tf.stop_gradient(x), tf.float32)
        axes = shared_axes(x.shape.rank, self.site.channel_axes)
        lowest, highest = tf.reduce_min(x, axes), tf.reduce_max(x, axes)
        if self.group_of is not None:
            lowest = tf.math.unsorted_segment_min(lowest, self.group_of, self.site.spec.groups)
            highest = tf.math.unsorted_segment_max(highest, self.group_of, self.site.spec.groups)
        if not self.site.is_weight:  # these are the same on all ranks
            lowest, highest = self.group.extremes(lowest, highest)
        ends = {"lower": lowest, "upper": highest}
        if self.site.spec.grid.symmetric:
            amax = tf.maximum(-ends["lower"], ends["upper"])
            ends = dict(zip(("lower", "upper"), symmetric_range(amax, self.site.spec.grid), strict=True))
        decay = self.site.spec.decay
        for name, seen in ends.items():
            variable = self._ends[name]
            moved = decay * variable + (1.0 - decay) * seen
            if self._rate is not None:
                moved = tf.where(self._rate > 0.0, moved, variable)
            ends[name] = variable.assign(moved, read_value=True)
        return self._spread(ends["lower"]), self._spread(ends["upper"])

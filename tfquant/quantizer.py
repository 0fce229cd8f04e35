"""Quantizer: range state of one site, and QDQ with it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfquant import qdq
from tfquant.delayed import DelayedRange
from tfquant.distributed.group import Group, Single
from tfquant.layout import spread, static_shape
from tfquant.learned import PARAMETRIZATIONS, LearnedRange, parameter_path
from tfquant.scale import LARGEST_AMAX
from tfquant.site import Site
from tfquant.stored_range import MovingRange, RangeState, StoredRange, UnscaledRange
from tfquant.variables import state_variable

GROUP_OF = "group_of"


class UncalibratedError(RuntimeError):
    """A site was asked to quantize before it had a range."""


def range_state(site: Site, rate: tf.Variable | None = None) -> RangeState:
    """Create the range state of a site, by its update method in training.

    Args:
      site: whose range is not dynamic.
      rate: a moving average stands still while it is 0; None for never.

    Raises:
      ValueError: a range that other sites share is to be learned.
    """
    if site.spec.scale.source == "delayed":
        return DelayedRange(site)
    if site.spec.scale.source == "none":
        return UnscaledRange(site)
    if site.spec.update not in PARAMETRIZATIONS:
        return (
            MovingRange(site, rate) if site.spec.update == "moving_average" else StoredRange(site)
        )
    if site.group:
        raise ValueError(
            f"site {site.address}: its range is fused with others ({site.group}) and cannot be "
            "learned: set update to frozen for it, or leave `fuse` out of the recipe"
        )
    spec, shape = site.spec, site.range_shape
    return LearnedRange(spec.update, spec.codebook, shape, site.address, is_weight=site.is_weight)


class Quantizer:
    """Range of one site, and QDQ with it.

    Attributes:
      site: what is quantized and how.
      state: what is stored or learned.
      group_of: int32 [embedding size], the group whose range each dimension has; -1 until known.
        None where none are grouped.
      group: the processes whose batches a moving average follows together.

    Args:
      site: what is quantized and how.
      rate: a moving average stands still while it is 0; None for never.
    """

    def __init__(self, site: Site, rate: tf.Variable | None = None):
        self.site = site
        self.group: Group = Single()
        self.state = range_state(site, rate)
        self.group_of: tf.Variable | None = None
        if site.spec.layout.groups is not None:
            ungrouped = np.full(static_shape(site.shape[-1:]), -1, np.int32)
            self.group_of = state_variable(ungrouped, parameter_path(site.address, GROUP_OF))
        self._calibrated = False

    def fits(self, site: Site) -> bool:
        """Whether a site of a new plan can take over the state."""
        own = self.site
        return (own.spec, own.range_shape) == (site.spec, site.range_shape)

    @property
    def learned(self) -> LearnedRange | None:
        """Range state if training learns it, else None."""
        return self.state if isinstance(self.state, LearnedRange) else None

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """State variables by name: those of the range, NaN until known, and `group_of`."""
        groups = {} if self.group_of is None else {GROUP_OF: self.group_of}
        return self.state.variables | groups

    @property
    def lower(self) -> tf.Variable | tf.Tensor:
        """Lower end of the range, float32 of `site.range_shape`; NaN until known."""
        return self.state.range()[0]

    @property
    def upper(self) -> tf.Variable | tf.Tensor:
        """Upper end of the range, like `lower`."""
        return self.state.range()[1]

    def range(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Range (lower, upper), one value for each index along `site.channel_axes`."""
        return self._spread(self.lower), self._spread(self.upper)

    def _spread(self, value: tf.Variable | tf.Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        return value if self.group_of is None else spread(value, self.group_of)

    @property
    def calibrated(self) -> bool:
        """Whether the range is known. A positive result is cached, as it is asked before every
        call.
        """
        if not self._calibrated:
            with tf.init_scope():  # also while a function is traced
                groups = self.group_of
                grouped = groups is None or bool((groups.numpy() >= 0).all())
                self._calibrated = grouped and self.state.known
        return self._calibrated

    def set_range(self, lower, upper, group_of=None) -> None:
        """Assign the range.

        Args:
          lower, upper: finite, `lower <= upper`, of `site.range_shape`, magnitudes at most
            `scale.LARGEST_AMAX`.
          group_of: where dimensions are grouped, int32 [embedding size], the group of each: equally
            many in every one.

        Raises:
          ValueError: they are not.
        """
        lower, upper = np.asarray(lower, np.float32), np.asarray(upper, np.float32)
        where, wanted = f"site {self.site.address}", self.site.range_shape
        if lower.shape != wanted or upper.shape != wanted:
            raise ValueError(
                f"{where}: range has shape {list(lower.shape)}, the site needs {list(wanted)}"
            )
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            raise ValueError(f"{where}: range is not finite ({lower.min()} ... {upper.max()})")
        if (lower > upper).any():
            raise ValueError(f"{where}: lower end of the range lies above the upper end")
        if max(abs(lower).max(), abs(upper).max()) > LARGEST_AMAX:
            raise ValueError(
                f"{where}: range {lower.min():.6g} ... {upper.max():.6g} is too wide for float32: a"
                " mask or an overflow is in the data; leave the site in float with a rule whose"
                " spec is null"
            )
        self._set_groups(group_of)
        self.state.set_range(lower, upper)

    def _set_groups(self, group_of) -> None:
        where = f"site {self.site.address}"
        if (group_of is None) != (self.group_of is None):
            result, wanted = (
                ("no groups", "them") if group_of is None else ("groups of dimensions", "none")
            )
            raise ValueError(f"{where}: range has {result}, the site needs {wanted}")
        groups = self.site.spec.layout.groups
        if group_of is None or self.group_of is None or groups is None:
            return
        group_of = np.asarray(group_of, np.int32)
        (size,) = static_shape(self.site.shape[-1:])
        equal = np.arange(size) * groups // size
        if group_of.shape != (size,) or not np.array_equal(np.sort(group_of), equal):
            raise ValueError(
                f"{where}: group_of must assign {size} dimensions to {groups} groups of equal size"
            )
        self.group_of.assign(group_of)

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Quantize and dequantize `x` with the current range; in training a moving range is first
        updated from `x`.
        """
        if self.learned is not None and self.learned.shift is not None:
            return self.learned.binarized(x)
        lower, upper = self.state.range_for(x, training, self.group_of, self.group)
        return qdq.quantize_dequantize(
            x,
            self._spread(lower),
            self._spread(upper),
            self.site.spec.codebook,
            self.site.channel_axes,
            gradient=self.site.spec.gradient,
            range_gradient=self.state.range_gradient,
        )

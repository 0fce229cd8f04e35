"""Quantizer: the state of one site. Range variables and the statistics collected for them; nothing else holds state."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfquant import qdq
from tfquant.spec import Site


class UncalibratedError(RuntimeError):
    """A site was asked to quantize before it had a range."""


class Quantizer:
    """Range of one site.

    Attributes:
      site: what is quantized and how.
      lower, upper: float32 variables of `site.range_shape`; NaN until a range is known.
    """

    def __init__(self, site: Site):
        self.site = site
        unset = np.full(site.range_shape, np.nan, np.float32)
        self.lower = tf.Variable(unset, trainable=False, name=f"{site.address}/lower")
        self.upper = tf.Variable(unset, trainable=False, name=f"{site.address}/upper")
        self._calibrated = False

    @property
    def calibrated(self) -> bool:
        """Whether the range is known. Asked before every call, so that a yes is remembered."""
        if not self._calibrated:
            with tf.init_scope():  # also while a function is traced
                self._calibrated = all(np.isfinite(end.numpy()).all() for end in (self.lower, self.upper))
        return self._calibrated

    def set_range(self, lower, upper) -> None:
        """Assigns the range.

        Args:
          lower, upper: finite, `lower <= upper`, of `site.range_shape`, magnitudes at most `qdq.LARGEST_AMAX`.

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
        if max(abs(lower).max(), abs(upper).max()) > qdq.LARGEST_AMAX:
            raise ValueError(
                f"site {self.site.address}: range {lower.min():.6g} ... {upper.max():.6g} is too wide for float32: a mask "
                "or an overflow is in the data; leave the site in float with a rule whose spec is null"
            )
        self.lower.assign(lower)
        self.upper.assign(upper)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """QDQ of `x` with the current range, in the current graph."""
        return qdq.quantize_dequantize(x, self.lower, self.upper, self.site.spec.grid, self.site.channel_axes)

"""Ternary values: `ternary`, -a, 0 and a, or 0 and a of tensors that cannot be negative.

    y = a * sign(x) where |x| > d, else 0,    d = 0.7 mean|x|,  a = mean of |x| above d

Where no magnitude lies above d, a is 0.

Source: Li et al. 2016, "Ternary Weight Networks", arXiv:1605.04711, equations 5 and 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfquant.formats.contract import Kind, Levels
from tfquant.formats.fitted import FittedCodebook, check_scale, mean_magnitude, scaled_levels
from tfquant.scale import Scale

KNOWN = "ternary"
_SHARE = 0.7  # of the mean magnitude, the threshold


@dataclasses.dataclass(frozen=True)
class Ternary:
    """Zero and two values, the scale of which is fitted to the tensor."""

    name = "ternary"
    kind: Kind = "fitted"
    bits = 2

    def codebook(self, scale: Scale) -> FittedCodebook:
        check_scale(self.name, scale)
        if scale.source == "none":
            raise ValueError("ternary values have a scale: set source: dynamic, or format: binary")
        unsigned = scale.unsigned is True
        return FittedCodebook(self.name, 2 if unsigned else 3, unsigned)

    def fit(
        self, x: tf.Tensor, axes: Sequence[int], scale: Scale, valid: tf.Tensor | None = None
    ) -> Levels:
        x = tf.stop_gradient(x)
        counted = None if valid is None else valid > 0
        boundary = _SHARE * mean_magnitude(x, axes, counted)
        kept = tf.abs(x) > boundary
        amax = mean_magnitude(x, axes, kept if counted is None else kept & counted)
        # A number on the boundary becomes 0 on both sides.
        above = tf.math.nextafter(boundary, tf.fill(tf.shape(boundary), float("inf")))
        if scale.unsigned is True:
            return scaled_levels(amax, (0.0, 1.0), [above], scale)
        return scaled_levels(amax, (-1.0, 0.0, 1.0), [-boundary, above], scale)


def parse(name: str) -> Ternary | None:
    """Return the format called `name`; None if it is of another family."""
    return Ternary() if name == "ternary" else None

"""Binary values: `binary`, -a and a, or 0 and a of tensors that cannot be negative.

    signed:    y = a where x >= 0, else -a,        a = mean|x|
    unsigned:  y = a where x >= mean x, else 0,    a = mean of the former

The signed scale is the least-squares solution. `source: none` has the values -1 and 1, as
BinaryConnect (0 and 1, from 0.5 on).

Sources: Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.1; Courbariaux et al. 2015,
"BinaryConnect", arXiv:1511.00363; Liu et al. 2022, "BiT", arXiv:2205.13016, for the two sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from calib.codebook import Codebook, ScaledCodebook
from tfquant.formats.contract import Kind, Levels
from tfquant.formats.fitted import FittedCodebook, check_scale, mean_magnitude, scaled_levels
from tfquant.formats.fixed_levels import searched
from tfquant.scale import SMALLEST_AMAX, Scale, scale_of

KNOWN = "binary"


@dataclasses.dataclass(frozen=True)
class Binary:
    """Two values, the scale of which is fitted to the tensor."""

    name = "binary"
    kind: Kind = "fitted"
    bits = 1

    def codebook(self, scale: Scale) -> Codebook:
        check_scale(self.name, scale)
        unsigned = scale.unsigned is True
        if scale.source != "stored":
            return FittedCodebook(self.name, 2, unsigned)
        # Learned scales start from the best one for calibration data, see `tfquant.elastic`.
        levels, threshold = ((0.0, 1.0), 0.5) if unsigned else ((-1.0, 1.0), 0.0)
        return ScaledCodebook(levels, (threshold,), 1.0, self.name)

    def has_gradient(self, amax: tf.Tensor) -> bool:
        return False

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: ScaledCodebook, *, compiled: bool = True
    ) -> tf.Tensor:
        """Round to the values of stored ranges, which calibration in sequential order asks for."""
        return searched(x, scale_of(tf.maximum(amax, SMALLEST_AMAX), codebook), codebook)

    def fit(
        self, x: tf.Tensor, axes: Sequence[int], scale: Scale, valid: tf.Tensor | None = None
    ) -> Levels:
        x = tf.stop_gradient(x)
        unsigned = scale.unsigned is True
        counted = None if valid is None else valid > 0
        amax = mean_magnitude(x, axes, counted)
        threshold = amax if unsigned else tf.zeros_like(amax)
        if scale.source == "none":
            amax = tf.ones_like(amax)
            threshold = amax / 2.0 if unsigned else threshold
        elif unsigned:
            kept = x >= threshold
            amax = mean_magnitude(x, axes, kept if counted is None else kept & counted)
        return scaled_levels(amax, (0.0, 1.0) if unsigned else (-1.0, 1.0), [threshold], scale)


def parse(name: str) -> Binary | None:
    """Return the format called `name`; None if it is of another family."""
    return Binary() if name == "binary" else None

"""Learned ranges: trained parameters and the computation of range ends from them.

Each parametrization trains one number per range that determines its width (amax of a symmetric
grid, upper - lower of another), and for asymmetric grids an offset, the lower end or its share of
the width. Gradients of the width are those of `tfquant.qdq`.

- `lsq`: the step between two codes, its gradient scaled by 1 / sqrt(elements * largest code). Esser
  et al. 2020, arXiv:1902.08153; with the offset Bhalgat et al. 2020, arXiv:2004.09576.
- `tqt`: log2 of the width. Jain et al. 2020, arXiv:1903.08066, without its restriction of scales to
  powers of two; and the offset as a share of the width (ours, as the paper's grids are symmetric),
  so that one learning rate suits ranges of any magnitude.
- `pact`: the width itself, with a gradient from clipped values alone. Choi et al. 2018,
  arXiv:1805.06085.
- `elastic`: scale and shift of two values, with gradients of their own, see `tfquant.elastic`, and
  LSQ's scale of these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook
from tfquant import elastic
from tfquant.distributed.group import Group
from tfquant.gradients import scaled
from tfquant.scale import SMALLEST_AMAX, symmetric_range, width_of
from tfquant.variables import are_finite, state_variable

OFFSET, RELATIVE_OFFSET, SHIFT = "offset", "relative_offset", "shift"


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Trained parameter that represents the width of a range.

    Attributes:
      name: of the trained variable; part of its name in checkpoints.
      gradient: `rounding` or `clipping`, see `tfquant.gradients.clipped_straight_through`; `none`
        where the values have gradients of their own.
      of_width, to_width: (value, number of steps in the width) -> value; the second on tensors.
      positive: whether the variable has to be, for the width to be.
      scaled: whether the gradient gets LSQ's scale.
      offset: name of the variable for the lower end: `offset` for itself, `relative_offset` for its
        share of the width.
      shifted: whether a shift of the values is trained as well.
    """

    name: str
    gradient: str
    of_width: Callable[[Any, float], Any]
    to_width: Callable[[tf.Tensor, float], tf.Tensor]
    positive: bool = True
    scaled: bool = False
    offset: str = OFFSET
    shifted: bool = False


PARAMETRIZATIONS = {
    "lsq": Parametrization(
        "step",
        "rounding",
        lambda w, num_steps: w / num_steps,
        lambda v, num_steps: v * float(num_steps),
        scaled=True,
    ),
    "tqt": Parametrization(
        "log2_threshold",
        "rounding",
        lambda w, _: np.log2(w),
        lambda v, _: tf.exp(v * math.log(2.0)),
        positive=False,
        offset=RELATIVE_OFFSET,
    ),
    "pact": Parametrization("clip", "clipping", lambda w, _: w, lambda v, _: v),
    "elastic": Parametrization(
        "elastic_scale", "none", lambda w, _: w, lambda v, _: v, scaled=True, shifted=True
    ),
}
# Paths of the variables that hold them; such are no weights, and are not decayed.
_PARAMETERS = [*(p.name for p in PARAMETRIZATIONS.values()), OFFSET, RELATIVE_OFFSET, SHIFT]
PARAMETER_PATH = rf"^ranges/.*/({'|'.join(_PARAMETERS)})$"


def parameter_path(address: str, name: str) -> str:
    """Name of a range variable, without colons, which exporters and Keras reject."""
    return f"ranges/{address.replace(':', '/')}/{name}"


class LearnedRange:
    """Trainable variables of one range.

    Attributes:
      parametrization: representation of the width.
      value: float32 variable of the range's shape, NaN until set.
      offset: the lower end where the codebook is asymmetric, or its share of the width, from -1 to
        0; else None.
      shift: of elastic values, 0 after calibration; else None.

    Args:
      update: name of the parametrization.
      codebook: of the site's format.
      shape: of either end.
      address: of the site.
      is_weight: whether the site quantizes a parameter, all of whose elements count for LSQ's scale
        of the gradient.
    """

    def __init__(
        self,
        update: str,
        codebook: Codebook,
        shape: tuple[int, ...],
        address: str,
        *,
        is_weight: bool = False,
    ):
        self.parametrization, self._is_weight = PARAMETRIZATIONS[update], is_weight
        self._codebook, self._num_steps = codebook, codebook.quant_max
        unset = np.full(shape, np.nan, np.float32)
        self.value = state_variable(
            unset, parameter_path(address, self.parametrization.name), trainable=True
        )
        self.offset = self.shift = None
        if self.parametrization.shifted:
            self.shift = state_variable(unset, parameter_path(address, SHIFT), trainable=True)
        if not codebook.symmetric:
            self.offset = state_variable(
                unset, parameter_path(address, self.parametrization.offset), trainable=True
            )

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """Variables by the last part of their names."""
        further = {self.parametrization.offset: self.offset, SHIFT: self.shift}
        return {self.parametrization.name: self.value} | {
            name: variable for name, variable in further.items() if variable is not None
        }

    @property
    def known(self) -> bool:
        return are_finite(self.variables)

    def set_range(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Initialize the variables from a calibrated range."""
        width = width_of(lower, upper, self._codebook)
        self.value.assign(
            np.asarray(self.parametrization.of_width(width, self._num_steps), np.float32)
        )
        if self.shift is not None:
            self.shift.assign(tf.zeros_like(self.shift))
        if self.offset is not None:
            lower = np.minimum(lower, np.float32(0))
            self.offset.assign(
                lower / width if self.parametrization.offset == RELATIVE_OFFSET else lower
            )

    def range(self, elements: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute (lower, upper), differentiable in the variables.

        Args:
          elements: how many values share one range, for LSQ's scale of the gradient; None leaves
            the gradient unscaled.
        """
        value = self._scaled(self.value, elements)
        width = self.parametrization.to_width(value, self._num_steps)
        if self.offset is not None:
            lower = tf.convert_to_tensor(self.offset)
            if self.parametrization.offset == RELATIVE_OFFSET:
                lower = lower * width
            return lower, lower + width
        return symmetric_range(width, self._codebook)

    def _scaled(self, variable: tf.Variable, elements: tf.Tensor | None) -> tf.Tensor:
        """Value of a variable, with LSQ's scale of the gradient where it applies."""
        value = tf.convert_to_tensor(variable)
        if not self.parametrization.scaled or elements is None:
            return value
        return scaled(value, tf.math.rsqrt(tf.cast(elements, tf.float32) * self._num_steps))

    def binarized(self, x: tf.Tensor) -> tf.Tensor:
        """Binarize a tensor with the learned scale and shift of elastic values."""
        if self.shift is None:
            raise TypeError("only elastic values have a shift")
        elements = self._elements(x)
        return elastic.binarized(
            x,
            self._scaled(self.value, elements),
            self._scaled(self.shift, elements),
            unsigned=self._codebook.unsigned,
        )

    @property
    def range_gradient(self) -> str:
        """Kind of gradient of both ends, see `tfquant.gradients`."""
        return self.parametrization.gradient

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the range for a tensor, see `tfquant.stored_range.RangeState`."""
        return self.range(self._elements(x))

    def _elements(self, x: tf.Tensor) -> tf.Tensor:
        """Number of values of a tensor that share a range."""
        elements = tf.size(x) // self.value.shape.num_elements()
        if (
            not self._is_weight and x.shape.rank
        ):  # the source counts an activation's elements in one example
            elements //= tf.maximum(tf.shape(x)[0], 1)
        return elements

    def constraints(self) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
        """Keras constraint of each variable, by name, that keeps the range valid.

        A width is positive, zero lies inside the range.
        """
        result: dict[str, Callable] = {}
        if self.parametrization.positive:
            narrowest = self.parametrization.of_width(np.float32(SMALLEST_AMAX), self._num_steps)
            result[self.parametrization.name] = lambda v: tf.maximum(v, narrowest)
        if self.offset is not None:
            lowest = -1.0 if self.parametrization.offset == RELATIVE_OFFSET else -np.inf
            result[self.parametrization.offset] = lambda v: tf.clip_by_value(v, lowest, 0.0)
        return result

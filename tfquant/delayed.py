"""Delayed scales: the largest magnitude of the last training steps.

A site with `source: delayed` quantizes every step with a scale that is known before the step, so
that neither values nor gradients are read twice, and the backward pass needs no range of its own:

    amax_t = max(magnitudes of the steps t - history ... t - 1),  scale_t = amax_t / quant_max

Within a step every use of a site raises its `seen`, the largest magnitude so far. After the update
of the weights `update` takes the maximum over all processes, of all sites in one exchange, and
moves the histories by one step. A site that the step did not use keeps its history, and so does one
that saw NaN or Inf, as gradients do that overflow under loss scaling. The scale is 1 until the
first step has been seen.

Sources: Micikevicius et al. 2022, arXiv:2209.05433, section 3.3; Yu et al. 2024, "8-bit Transformer
Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfquant.distributed.group import Group
from tfquant.layout import shared_axes
from tfquant.learned import parameter_path
from tfquant.scale import symmetric_range, with_rounded_scale
from tfquant.site import Site
from tfquant.stored_range import Range
from tfquant.variables import state_variable

_UNUSED = -1.0  # value of `seen` before the first use in a step


class DelayedRange:
    """State of a delayed scale.

    Attributes:
      history: float32 [steps, *range shape], largest magnitudes, the last step first; 0 where there
        was none.
      amax: float32 of the range shape, what the next step is quantized with.
      seen: likewise, the largest magnitude in the current step; below 0 before the first.

    Args:
      site: whose state it is.
    """

    range_gradient = "none"

    def __init__(self, site: Site):
        self._site, shape = site, site.range_shape
        codebook = site.spec.codebook
        history = np.zeros((site.spec.scale.history or 1, *shape), np.float32)
        amax = np.full(shape, codebook.quant_max, np.float32)
        seen = np.full(shape, _UNUSED, np.float32)
        self.history, self.amax, self.seen = (
            state_variable(value, parameter_path(site.address, name))
            for name, value in (("history", history), ("amax", amax), ("seen", seen))
        )

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """What a checkpoint holds: between two steps nothing is seen."""
        return {"history": self.history, "amax": self.amax}

    @property
    def known(self) -> bool:
        return bool((self.history.numpy() > 0).any())

    def set_range(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Start the history with a calibrated range."""
        amax = np.maximum(np.abs(lower), np.abs(upper)).astype(np.float32)
        history = np.zeros_like(self.history.numpy())
        history[0] = amax
        self.history.assign(history)
        self.amax.assign(self._rounded(tf.where(amax > 0, amax, self.amax)))

    def range(self) -> Range:
        return symmetric_range(tf.convert_to_tensor(self.amax), self._site.spec.codebook)

    def range_for(
        self, x: tf.Tensor, training: bool, group_of: tf.Variable | None, group: Group
    ) -> Range:
        if not training:
            return self.range()
        return self.noting(x, self.seen.handle, self.range())

    def noting(self, x: tf.Tensor, handle: tf.Tensor, ends: Range) -> Range:
        """Raise `seen` to the largest magnitude of a tensor.

        Args:
          x: what is quantized.
          handle: of the variable `seen`; in a backward pass captured in the forward one, as the
            gradient of a branch cannot capture anything else.
          ends: of the range.

        Returns:
          `ends`, which depend on the note: in a backward pass only what its result depends on is
          executed.
        """
        axes = shared_axes(x.shape.rank, self._site.channel_axes)
        magnitude = tf.reduce_max(tf.abs(tf.cast(tf.stop_gradient(x), tf.float32)), axes)
        seen = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        seen = tf.ensure_shape(seen, self._site.range_shape)
        noted = tf.raw_ops.AssignVariableOp(resource=handle, value=tf.maximum(seen, magnitude))
        with tf.control_dependencies([] if noted is None else [noted]):
            return tf.identity(ends[0]), tf.identity(ends[1])

    def move(self, magnitude: tf.Tensor) -> None:
        """Move the history by one step.

        Args:
          magnitude: float32 of the range shape, the largest of the step in all processes.
        """
        used = tf.math.is_finite(magnitude) & (magnitude >= 0.0)
        moved = tf.concat([magnitude[tf.newaxis], self.history[:-1]], 0)
        largest = tf.reduce_max(moved, 0)
        self.history.assign(tf.where(used, moved, self.history), read_value=False)
        self.amax.assign(
            tf.where(used & (largest > 0.0), self._rounded(largest), self.amax), read_value=False
        )
        self.seen.assign(tf.fill(self._site.range_shape, _UNUSED), read_value=False)

    def _rounded(self, amax: tf.Tensor) -> tf.Tensor:
        spec = self._site.spec
        return with_rounded_scale(amax, spec.codebook, spec.scale.scale_format)


def update(states: Sequence[DelayedRange], group: Group) -> None:
    """Move the histories of all sites by one step, with one exchange between the processes.

    Args:
      states: of all sites, in the same order in every process.
      group: the processes that train together.
    """
    if not states:
        return
    seen = tf.concat([tf.reshape(state.seen, [-1]) for state in states], 0)
    _, seen = group.extremes(-seen, seen)
    sizes = [state.seen.shape.num_elements() for state in states]
    for state, part in zip(states, tf.split(seen, sizes), strict=True):
        state.move(tf.reshape(part, state.seen.shape))

"""Quantizers of gradients: identities whose gradient is rounded on its way back.

On the result of a product such an identity makes both products of the backward pass, of the
gradients of the operands, read rounded numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfquant import dynamic_range, qdq
from tfquant.delayed import DelayedRange
from tfquant.quantizer import Quantizer
from tfquant.site import Site
from tfquant.stored_range import Range


class GradientQuantizers(Mapping[str, Quantizer]):
    """Map address -> quantizer of the gradients there; those with a dynamic range have none."""

    def __init__(self) -> None:
        self._current: dict[str, Quantizer] = {}

    def __getitem__(self, address: str) -> Quantizer:
        return self._current[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def follow(self, sites: Iterable[Site]) -> None:
        """Hold the quantizers of `sites` from now on; known ones of the same spec keep their
        state.
        """
        earlier, self._current = self._current, {}
        for site in sites:
            if site.spec.stateless:
                continue
            known = earlier.get(site.address)
            if known is None or not known.fits(site):
                known = Quantizer(site)
            self._current[site.address] = known

    def quantized(self, site: Site, x: tf.Tensor) -> tf.Tensor:
        """Return `x` with a gradient that is quantized as the site says."""
        round_gradient = self._rounding(site)

        @tf.custom_gradient
        def passed(x: tf.Tensor) -> Any:
            return tf.identity(x), round_gradient

        return passed(x)

    def _rounding(self, site: Site) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the rounding of gradients; what it reads is captured here, in the forward pass."""
        if site.spec.stateless:
            return lambda dy: dynamic_range.quantized(dy, site)
        state, spec = self[site.address].state, site.spec
        lower, upper = map(tf.convert_to_tensor, state.range())
        graph: Any = tf.compat.v1.get_default_graph()
        handle: Any = graph.capture(state.seen.handle) if isinstance(state, DelayedRange) else None

        def rounded(dy: tf.Tensor) -> tf.Tensor:
            ends: Range = (lower, upper)
            if isinstance(state, DelayedRange):
                ends = state.noting(dy, handle, ends)
            return qdq.quantize_dequantize(dy, *ends, spec.codebook, site.channel_axes)

        return rounded

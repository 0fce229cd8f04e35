"""Dynamic ranges: extremes of the current tensor, computed in the graph in every call and never
stored.

`per_tensor`: one range for the whole batch. Padding is left out of it where the model has a mask
(see `tfquant.graph.padding`), so that answers do not depend on how far a batch is padded; values of
padding beyond the range are clipped. Other rows of the batch do count.

`per_token`: one range for each position of each sample, over the last axis, so that no row's answer
depends on the others. The code of Bondarenko et al. (EMNLP 2021) has ranges of that name for each
position, shared by all rows of a batch: the same for one row.

`per_embedding`: one for each index of the last axis, over the batch, without padding.

Gradients pass through unchanged, and none reaches the range: what the move of an asymmetric range
to a code for zero leaves outside is less than half a step. With `ste="strict"` the ends of the
range and what is clipped get none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from tfquant import blocks, fitted, qdq
from tfquant.gradients import identity
from tfquant.graph.edge import Edge
from tfquant.graph.padding import Padding
from tfquant.graph.trace import Trace
from tfquant.layout import shared_axes
from tfquant.scale import amax_of, symmetric_range, with_rounded_scale
from tfquant.site import Site


class DynamicRanges:
    """Dynamic sites of one trace, and where padding lies in their tensors.

    Args:
      trace: of inference or training.
      placements: (site, edge) of all sites in it.
      decay: t of `tfquant.error_decay`.
    """

    def __init__(self, trace: Trace, placements: Iterable[tuple[Site, Edge]], decay: tf.Variable):
        over_tokens = [
            (site.address, edge.tensor)
            for site, edge in placements
            if site.spec.scale.dynamic
            and not (edge.parameter or site.spec.layout.per_token or site.spec.layout.per_block)
        ]
        self._decay = decay
        self._padding = Padding(trace, over_tokens, what="dynamic sites") if over_tokens else None

    def quantizing(self, flat: Sequence[tf.Tensor]) -> Callable[[Site, Edge, tf.Tensor], tf.Tensor]:
        """QDQ of tensors with their own extremes, in a graph with the inputs `flat`."""
        validity = None if self._padding is None else self._padding.values(flat)

        def quantize(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            spec, valid = site.spec, None if validity is None else validity.of(edge.tensor)
            if spec.fitted:
                decay = tf.convert_to_tensor(self._decay) if spec.gradient.error_decay else None
                return fitted.quantize_dequantize(tensor, site, valid, decay)
            if site.block_axis is not None:
                return _in_blocks(tensor, site)
            ends = _with_rounded_scale(extremes(tensor, site, valid), site)
            if spec.gradient.strict:
                return qdq.quantize_dequantize(
                    tensor, *ends, spec.codebook, site.channel_axes, gradient=spec.gradient
                )
            return identity(
                lambda x: qdq.quantize_dequantize(x, *ends, spec.codebook, site.channel_axes),
                tensor,
            )

        return quantize


def _in_blocks(x: tf.Tensor, site: Site) -> tf.Tensor:
    """Quantize blocks with the gradient of the identity."""
    spec, axis = site.spec, site.block_axis or 0
    return identity(lambda x: blocks.quantize_dequantize(x, spec, axis), x)


def _with_rounded_scale(
    ends: tuple[tf.Tensor, tf.Tensor], site: Site
) -> tuple[tf.Tensor, tf.Tensor]:
    """Range of a site with a scale of its number format."""
    spec = site.spec
    if not spec.scale.rounds_scale:
        return ends
    amax = with_rounded_scale(amax_of(*ends), spec.codebook, spec.scale.scale_format)
    return symmetric_range(amax, spec.codebook)


def quantized(x: tf.Tensor, site: Site) -> tf.Tensor:
    """Quantize and dequantize a tensor with its own extremes or levels."""
    if site.spec.fitted:
        return fitted.quantize_dequantize(x, site)
    if site.block_axis is not None:
        return blocks.quantize_dequantize(x, site.spec, site.block_axis)
    ends = _with_rounded_scale(extremes(x, site), site)
    return qdq.quantize_dequantize(x, *ends, site.spec.codebook, site.channel_axes)


def refuse(sites: Iterable[Site], what: str) -> None:
    """Raise ValueError if one of the sites has a dynamic range, for operations (`what`) that need
    stored ranges.
    """
    chosen = [site for site in sites if site.spec.stateless and site.enabled]
    result = [site.address for site in chosen]
    if chosen and chosen[0].spec.fitted:
        raise ValueError(
            f"site {result[0]} is fitted to the tensor at hand ({chosen[0].spec.format}; such and"
            f" dynamic ranges have {len(result)} sites): {what} needs ranges that stay: set format:"
            " int8 there, or leave it in float"
        )
    if result:
        raise ValueError(
            f"site {result[0]} has a dynamic range ({len(result)} sites have): {what} needs ranges"
            " that stay: leave dynamic out of the recipe and calibrate"
        )


def extremes(
    x: tf.Tensor, site: Site, valid: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Range of a site for a tensor: its extremes, extended to contain zero.

    Args:
      x: what the site quantizes.
      valid: broadcasts to `x`, nonzero for what is no padding; None counts all. Without effect on
        `per_token`.

    Returns:
      (lower, upper), float32, without gradient: scalars, [embedding size], or shaped like `x` with
      1 in place of its last axis.
    """
    x = tf.stop_gradient(tf.cast(x, tf.float32))
    per_token = site.spec.layout.per_token
    axes = [-1] if per_token else shared_axes(x.shape.rank, site.channel_axes)
    if valid is not None and not per_token:
        x = tf.where(valid > 0.0, x, 0.0)  # zero lies in every range
    lower, upper = (
        tf.minimum(tf.reduce_min(x, axes, per_token), 0.0),
        tf.maximum(tf.reduce_max(x, axes, per_token), 0.0),
    )
    # The kernel refuses ends that are NaN; infinite ones make everything NaN, as values that are
    # NaN should.
    return tf.where(tf.math.is_nan(lower), -np.inf, lower), tf.where(
        tf.math.is_nan(upper), np.inf, upper
    )

"""The weight of a layer on its integer grid, in the layout of its variable."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook
from tfquant.engine import Engine
from tfquant.layout import aligned_shape
from tfquant.ptq.layers import Layer
from tfquant.ptq.layout import Layout, called
from tfquant.quantized_array import QuantParams


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """value = scale · (code - zero), codes of `codebook`.

    Attributes:
      value: float32, the weight before it is rounded.
      nearest: what the site's quantizer makes of it.
      scale, zero: float32, broadcast to `value`.
      codebook: the values in use.
    """

    value: np.ndarray
    nearest: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    codebook: Codebook
    _quantize: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, engine: Engine, layer: Layer) -> Weight:
        """Of a layer, with the current range of its site."""
        site, quantizer = layer.site, engine.quantizers[layer.address]
        variable = engine.inference.variables[layer.handle]
        edge = layer.edges[0]
        direct = edge.table is not None or edge.tensor.name in {read.name for read in layer.reads}
        layout = Layout(engine.inference, layer.reads, None if direct else edge.tensor)
        params = QuantParams.of(site, quantizer)
        shape = aligned_shape(edge.tensor.shape, site.channel_axes)
        if site.channel_axes:
            full = [np.broadcast_to(a.reshape(shape).astype(np.float32), edge.tensor.shape) for a in (params.scale, params.zero)]
            scale, zero = (_compressed(layout.to_variable(a)) for a in full)
        else:
            scale, zero = (a.astype(np.float32).reshape([1] * variable.shape.rank) for a in (params.scale, params.zero))
        value = tf.cast(variable, tf.float32).numpy()
        quantize = functools.partial(_quantized, layout, quantizer)
        return cls(value, quantize(value), scale, zero, params.codebook, quantize)

    @functools.cached_property
    def floor(self) -> np.ndarray:
        """floor(w / s), float32; the code below without the zero point."""
        return np.floor(self.value / self.scale)

    @property
    def fraction(self) -> np.ndarray:
        """w / s - floor(w / s), in [0, 1)."""
        return self.value / self.scale - self.floor

    def rounded(self, up: np.ndarray) -> np.ndarray:
        """The weight on its grid: `floor` where `up` is 0, one code more where it is 1.

        Passed through the quantizer, so that the quantizer changes it no more.

        Raises:
          ValueError: the quantizer would round these values to other codes.
        """
        codes = np.clip(self.floor + up + self.zero, self.codebook.qmin, self.codebook.qmax) - self.zero
        value = self._quantize((codes * self.scale).astype(np.float32))
        off = np.abs(value / self.scale - codes).max(initial=0.0)
        again = np.abs((self._quantize(value) - value) / self.scale).max(initial=0.0)
        if off > 0.01 or again > 0.01:
            raise ValueError(f"rounded weights do not stay on their grid ({max(off, again):.3g} steps off): too small steps")
        return value

    def changed(self, value: np.ndarray) -> float:
        """Share of the weights that are not where rounding to nearest puts them."""
        return float(np.mean(np.abs(value - self.nearest) > 0.5 * self.scale))


def _quantized(layout: Layout, quantizer, value: np.ndarray) -> np.ndarray:
    def apply(v):
        return layout.back(tf.cast(quantizer(layout.forward(v)), tf.float32), v)

    return called(apply, value)


def _compressed(value: np.ndarray) -> np.ndarray:
    """Size 1 along the axes along which nothing changes."""
    for axis in range(value.ndim):
        first = value.take([0], axis)
        if (value == first).all():
            value = first
    return value

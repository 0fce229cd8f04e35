"""Weight of a layer between neighbouring values of its codebook, in the layout of its variable."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, ScaledCodebook
from tfquant.engine import Engine
from tfquant.layout import aligned_shape, static_shape
from tfquant.ptq.layers import Layer
from tfquant.ptq.operand_view import OperandView, called
from tfquant.quantized_array import QuantParams


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """Weight whose rounding is learned, with the codebook values below and above it.

    Attributes:
      value: float32, the weight before it is rounded.
      nearest: what the site's quantizer makes of it.
      scale, zero: float32, broadcast to `value`.
      codebook: the values in use.
      quantize: values of the variable -> what the site's quantizer makes of them.
    """

    value: np.ndarray
    nearest: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    codebook: Codebook
    quantize: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, engine: Engine, layer: Layer) -> Weight:
        """Weight of a layer, with the current range of its site."""
        site, quantizer = layer.site, engine.quantizers[layer.address]
        variable = engine.inference.variables[layer.handle]
        edge, layout = layer.edges[0], site_view(engine, layer)
        params = QuantParams.of(site, quantizer)
        sizes = edge.tensor.shape.as_list()
        shape = aligned_shape(sizes, site.channel_axes)
        if site.channel_axes:
            full = [
                np.broadcast_to(a.reshape(shape).astype(np.float32), static_shape(sizes))
                for a in (params.scale, params.zero)
            ]
            scale, zero = (_compressed(layout.to_variable(a)) for a in full)
        else:
            scale, zero = (
                a.astype(np.float32).reshape([1] * variable.shape.rank)
                for a in (params.scale, params.zero)
            )
        value = tf.cast(variable, tf.float32).numpy()
        quantize = simulation(layout, quantizer)
        return cls(value, quantize(value), scale, zero, params.codebook, quantize)

    @functools.cached_property
    def below(self) -> np.ndarray:
        """Codebook value below each weight, in units of the scale, without zero point; float32."""
        units = self.value / self.scale
        if self.codebook.uniform:
            return np.floor(units)
        return self._levels[self._index(units)]

    @functools.cached_property
    def gap(self) -> np.ndarray:
        """Distance from `below` to the next value of the codebook, which broadcasts to `value`;
        float32.
        """
        if self.codebook.uniform:
            return np.ones([1] * self.value.ndim, np.float32)
        return self._levels[self._index(self.value / self.scale) + 1] - self.below

    @property
    def fraction(self) -> np.ndarray:
        """Position of a weight between `below`, 0, and the next value, 1."""
        fraction = (self.value / self.scale - self.below) / self.gap
        return (
            fraction if self.codebook.uniform else np.clip(fraction, 0, 1)
        )  # saturated ones lie beyond

    @property
    def _levels(self) -> np.ndarray:
        if not isinstance(self.codebook, ScaledCodebook):
            raise TypeError(f"codebook {self.codebook} has no fixed levels")
        return np.asarray(self.codebook.levels, np.float32)

    def _index(self, units: np.ndarray) -> np.ndarray:
        """Index of the last level not above the weight, at most the second to last level."""
        return np.clip(
            np.searchsorted(self._levels, units, side="right") - 1, 0, len(self._levels) - 2
        )

    def rounded(self, up: np.ndarray) -> np.ndarray:
        """Rounded weight: `below` where `up` is 0, the next value where it is 1.

        Passed through the quantizer, so that the quantizer changes it no more.

        Raises:
          ValueError: the quantizer would round these values to other codes.
        """
        codes = np.clip(self.below + up * self.gap + self.zero, *self.codebook.extremes) - self.zero
        value = self.quantize((codes * self.scale).astype(np.float32))
        off = np.abs((value / self.scale - codes) / self.gap).max(initial=0.0)
        again = np.abs((self.quantize(value) - value) / self.scale / self.gap).max(initial=0.0)
        if off > 0.01 or again > 0.01:
            raise ValueError(
                f"rounded weights do not stay on their grid ({max(off, again):.3g} steps off): too"
                " small steps"
            )
        return value

    def changed(self, value: np.ndarray) -> float:
        """Share of the weights whose rounding differs from nearest."""
        return float(np.mean(np.abs(value - self.nearest) > 0.5 * self.scale * self.gap))


def site_view(engine: Engine, layer: Layer) -> OperandView:
    """Layouts of the variable of a layer and of the tensor that its site quantizes."""
    edge = layer.edges[0]
    direct = edge.table is not None or edge.tensor.name in {read.name for read in layer.reads}
    return OperandView(engine.inference, layer.reads, None if direct else edge.tensor)


def simulation(
    view: OperandView, quantize: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[np.ndarray], np.ndarray]:
    """Values of a variable -> what its site makes of them, float32 in the layout of the variable.

    Args:
      view: from `site_view`.
      quantize: quantizer of the site.
    """

    def apply(value: tf.Tensor) -> tf.Tensor:
        return view.back(tf.cast(quantize(view.forward(value)), tf.float32), value)

    return functools.partial(called, apply)


def _compressed(value: np.ndarray) -> np.ndarray:
    """Reduce axes along which nothing changes to size 1."""
    for axis in range(value.ndim):
        first = value.take([0], axis)
        if (value == first).all():
            value = first
    return value

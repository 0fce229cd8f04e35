"""Codes of quantized parameters, proven to be those of the simulation.

What files hold of a parameter is decided here once: codes with a stored scale, with a scale for
each block, or of values that are fitted to the parameter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant import blocks, fitted, formats
from tfquant.engine import Engine
from tfquant.formats.contract import Levels
from tfquant.quantized_array import FittedArray, QuantizedArray, QuantParams
from tfquant.quantizer import Quantizer
from tfquant.scale import placed, scale_and_zero
from tfquant.site import Site
from tfquant.transforms import transformed

_CLOSE = 1e-3  # in units of the scale: the last bits of float32


def quantized_parameter(
    engine: Engine, value: np.ndarray, addresses: list[str], *, loads_again: bool = True
) -> QuantizedArray | FittedArray | None:
    """Quantize a parameter to the codes that a file stores.

    Args:
      engine: of the quantized model, calibrated.
      value: of the parameter, as it reaches its sites.
      addresses: of the sites that quantize it.
      loads_again: whether the values of the codes are to be quantized again, by the same sites, to
        what they are bit for bit. Else they are what the sites make of the parameter, up to the
        last bit where that follows from the order of operations.

    Returns:
      The codes; None if one of the sites would make something else of them, or of NaN.
    """
    if not np.isfinite(value).all():
        return None
    if any(address not in engine.quantizers for address in addresses):
        sites = [engine.plan.site(address) for address in addresses]
        by = _fitted if sites[0].spec.fitted else _in_blocks
        return by(value, sites, loads_again)
    quantizers = [engine.quantizers[address] for address in addresses]
    site, simulations = (
        quantizers[0].site,
        [_simulation(quantizer, value) for quantizer in quantizers],
    )
    before = [simulation(value) for simulation in simulations]
    rounded, lower, width = before[0]
    params = QuantParams(
        *scale_and_zero(lower, width, site.spec.codebook), site.spec.codebook, site.channel_axes
    )
    array = params.quantize(rounded)
    if not loads_again:
        same = all(_is_close(array, one[0]) for one in before)
        return array if same else None
    after = [simulation(array.values().astype(value.dtype)) for simulation in simulations]
    return (
        array
        if all(np.array_equal(old[0], new[0]) for old, new in zip(before, after, strict=True))
        else None
    )


def _is_close(array: QuantizedArray, rounded: np.ndarray) -> bool:
    """Whether codes stand for rounded values, up to the last bits."""
    scale = array.params.scale_for(rounded.shape)
    return bool((np.abs(array.values() - rounded) <= _CLOSE * scale).all())


def _fitted(value: np.ndarray, sites: list[Site], loads_again: bool) -> FittedArray | None:
    """`value` as codes of fitted levels; None if one of the sites would make something else of
    them.
    """
    site, format = sites[0], formats.fitted_format(sites[0].spec.format)
    layout = (site.spec, site.channel_axes, site.block_axis)
    if format is None:
        return None
    if any((other.spec, other.channel_axes, other.block_axis) != layout for other in sites):
        return None
    axes, plain = fitted.axes_of(site, value.ndim), dataclasses.replace(site.spec, transform="none")
    along = None
    if site.block_axis is not None:
        along = site.block_axis % value.ndim, site.spec.layout.block_size or 0

    def levels_of(x: tf.Tensor) -> Levels:
        x, valid = tf.cast(x, tf.float32), None
        if along is not None:
            valid = blocks.cut(tf.ones_like(x), along[1], along[0])
            x = blocks.cut(x, along[1], along[0])
        return fitted.levels_of(transformed(x, site.spec.transform, axes), site, axes, valid)

    def run(function: Callable[[tf.Tensor], Any], x: np.ndarray) -> Any:
        return _in_graph(function, x.astype(value.dtype))

    rounded = run(lambda x: fitted.quantize_dequantize(x, site), value)
    levels = run(levels_of, value).values.astype(value.dtype).astype(np.float32)
    if along is not None:
        levels = np.squeeze(levels, along[0] + 1)
    array = FittedArray(np.zeros(value.shape, np.int32), levels, format.name, format.bits, along)
    codes = (array.levels_along()[..., :-1] < rounded[..., np.newaxis]).sum(-1, dtype=np.int32)
    array = dataclasses.replace(array, codes=codes)
    loaded = dataclasses.replace(site, spec=plain)
    again = run(lambda x: fitted.quantize_dequantize(x, loaded), array.values())
    same = np.array_equal(array.values(), rounded)
    return array if same and (not loads_again or np.array_equal(again, rounded)) else None


def _in_blocks(value: np.ndarray, sites: list[Site], loads_again: bool) -> QuantizedArray | None:
    """`value` as codes of blocks; None if one of the sites would make something else of them."""
    spec, axis = sites[0].spec, sites[0].block_axis
    if axis is None or any((site.spec, site.block_axis) != (spec, axis) for site in sites):
        return None
    axis %= value.ndim

    def simulated(x: np.ndarray) -> np.ndarray:
        return _in_graph(lambda t: blocks.quantize_dequantize(t, spec, axis), x.astype(value.dtype))

    size = spec.layout.block_size or 0
    scale = _in_graph(lambda t: blocks.scaled_blocks(t, spec, axis)[1], value.astype(np.float32))
    scale = np.squeeze(scale, axis + 1)
    params = QuantParams(
        scale,
        np.zeros(scale.shape, np.int32),
        spec.codebook,
        tuple(range(value.ndim)),
        (axis, size),
    )
    rounded = simulated(value)
    array = params.quantize(rounded)
    if not loads_again:
        return array if _is_close(array, rounded) else None
    return array if np.array_equal(rounded, simulated(array.values())) else None


def _in_graph(function: Callable[[tf.Tensor], Any], x: np.ndarray) -> Any:
    """Results of a function as float32 arrays, computed as the network does it: a graph may take
    another way to the last bit than single operations.
    """
    spec = tf.TensorSpec(x.shape, tf.as_dtype(x.dtype))
    graph = tf.function(function, autograph=False, input_signature=[spec])
    return tf.nest.map_structure(
        lambda t: tf.cast(t, tf.float32).numpy(), graph.get_concrete_function()(tf.constant(x))
    )


def _simulation(
    quantizer: Quantizer, value: np.ndarray
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Values -> what the network makes of them, lower end and width of the range; float32.

    In a graph: there TensorFlow divides by constants through a product with their reciprocal, which
    moves a step by its last bit, and the zero point that follows from it by one where it lies
    between two codes.
    """
    grid = quantizer.site.spec.codebook

    def simulate(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tf.cast(quantizer(x), tf.float32), *placed(quantizer.lower, quantizer.upper, grid)

    spec = tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
    function = tf.function(
        simulate, autograph=False, input_signature=[spec]
    ).get_concrete_function()
    return lambda x: [result.numpy() for result in function(tf.constant(x))]

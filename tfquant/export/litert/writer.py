"""`.tflite` files for LiteRT: integer kernels wherever all operands and the result of an operation
have a range.

Quantizers go into the graph as TensorFlow's own FakeQuant operations with our ranges, which
TensorFlow's converter takes as they are: it estimates none. What it would make of some parts of a
network is prevented before (`rewriting`) and put right after (`postprocess`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.captures import as_constants
from tfquant.export.errors import ExportError
from tfquant.export.litert.postprocess import repaired
from tfquant.export.litert.rewriting import Rewriting, hiding_one
from tfquant.export.request import ExportRequest
from tfquant.graph.dataflow import VIEW_OPS
from tfquant.graph.replay import NO_EDITS
from tfquant.layout import static_shape
from tfquant.quantized_array import QuantParams
from tfquant.site import Site

_STEPS = 255  # between the codes of eight bits
# Scales of channels are raised to this share of the largest one: the converter cuts off biases that
# overflow 32 bits.
_SMALLEST_SCALE = 2.0**-12


def check(request: ExportRequest) -> None:
    """Raise ExportError for types, granularities and formats that have no kernels in LiteRT."""
    request.check_types("LiteRT does not")
    request.check_captures("LiteRT")
    request.check_ranges("LiteRT")
    for site in request.sites():
        _params(site, request.engine)


def write(request: ExportRequest, path: str) -> None:
    """Write a `.tflite` file with one signature: named inputs to named outputs, both as the model
    has them, open sizes open.

    Raises:
      ExportError: a site has a format or granularity without kernels, or an operation no
        counterpart in LiteRT.
    """
    engine, interface = request.engine, request.interface
    check(request)
    sites = request.sites()
    quantizers, rewriting = _Quantizers(engine, sites), Rewriting(engine, request.mode)
    module: Any = tf.Module()
    module.weights = list(engine.inference.variables.values())  # a function holds them weakly

    @tf.function(autograph=False, input_signature=[interface.named_inputs(interface.inputs)])
    def network(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        flat = [inputs[name] for name in interface.input_names]
        quantizers.one = one = hiding_one(flat)
        edits = rewriting(engine.edits(quantizers) if sites else NO_EDITS, one, quantizers.matrices)
        return interface.named_outputs(
            engine.inference.emit(flat, edits, given=as_constants(engine.inference))
        )

    content = repaired(_converted(network.get_concrete_function(), module, quantized=bool(sites)))
    with open(path, "wb") as file:
        file.write(content)


def _converted(function: Any, module: tf.Module, quantized: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # Integer kernels between ranges of ours and nowhere else. By itself the converter goes on
        # with ranges of its own, and fails on kernels with a range for each channel (TensorFlow
        # 2.21).
        converter._experimental_qdq_conversion_mode = "STATIC"
    try:
        return converter.convert()
    except Exception as error:  # the converter's own, and those of what it is made of
        raise ExportError(f"LiteRT cannot take the model: {_reason(str(error))}") from error


def _reason(text: str) -> str:
    """The line that says what is missing; the others are the stack of calls around it."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    named = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith(("TF Select ops:", "Custom ops:"))
    ]
    if named:
        return f"operations without a counterpart: {', '.join(named)}"
    return next((line for line in lines if "error:" in line), " ".join(lines))[:300]


class _Quantizers:
    """Quantizer of a site in the graph: a FakeQuant operation of eight bits.

    Attributes:
      matrices: id of a kernel with several axes of channels -> the matrix it was made of.
      one: see `rewriting.hiding_one`.
    """

    def __init__(self, engine: Engine, sites: list[Site]):
        self._params = {site.address: _params(site, engine) for site in sites}
        self._constants = {
            site.address
            for site, edge in engine.placements()
            if edge.parameter and edge.table is None
        }
        self.matrices: dict[int, tf.Tensor] = {}
        self.one: tf.Tensor | None = None
        self._kept: list[tf.Tensor] = []  # ids must not be used again while the graph is built

    def __call__(self, site: Site, tensor: tf.Tensor) -> tf.Tensor:
        params = self._params.get(site.address)
        if params is None:
            return tensor
        if tensor.dtype != tf.float32:
            raise ExportError(
                f"site {site.address}: is {tensor.dtype.name}, LiteRT quantizes float32"
            )
        if params.axes and params.axes != (tensor.shape.rank - 1,):
            return self._by_channels(params, tensor)
        if _is_rounded(tensor) and self.one is not None:
            tensor = tensor * self.one  # of two FakeQuants in a row the converter drops one
        return _rounded(params, tensor, constant=site.address in self._constants)

    def _by_channels(self, params: QuantParams, kernel: tf.Tensor) -> tf.Tensor:
        """FakeQuant knows ranges along the last axis alone.

        All axes of channels are made that one.
        """
        others = tuple(axis for axis in range(kernel.shape.rank) if axis not in params.axes)
        order, shape = (*others, *params.axes), static_shape(kernel.shape)
        matrix = tf.reshape(
            tf.transpose(kernel, order), [-1, math.prod(shape[axis] for axis in params.axes)]
        )
        matrix = _rounded(params, matrix, constant=True)
        result = tf.transpose(
            tf.reshape(matrix, [shape[axis] for axis in order]), np.argsort(order).tolist()
        )
        if order == tuple(range(kernel.shape.rank)):
            self.matrices[id(result)] = matrix
        self._kept.append(result)
        return result


def _params(site: Site, engine: Engine) -> QuantParams:
    """The quantization parameters of a site.

    Raises:
      ExportError: LiteRT has no kernels for them.
    """
    params = QuantParams.of(site, engine.quantizers[site.address])
    codebook = params.codebook
    if codebook.num_codes > _STEPS + 1:
        raise ExportError(
            f"site {site.address}: codes {codebook} have no kernels in LiteRT: use at most 8 bits"
        )
    if site.is_weight and (not codebook.symmetric or params.integers.qmin >= 0):
        raise ExportError(
            f"site {site.address}: LiteRT's parameters are signed and have no zero point: make the"
            " spec symmetric"
        )
    return params


def _is_rounded(tensor: tf.Tensor) -> bool:
    """Whether what comes out of a FakeQuant is `tensor`, seen in another shape at most."""
    while tensor.op.type in VIEW_OPS:
        tensor = tensor.op.inputs[0]
    return tensor.op.type.startswith("FakeQuant")


def _rounded(params: QuantParams, tensor: tf.Tensor, constant: bool) -> tf.Tensor:
    """`tensor` behind a FakeQuant with the scale and zero point of a site; codes that its grid
    lacks are cut off before.

    One code more than a narrow grid has is let pass, as in ONNX files.
    """
    codebook, scale, zero = params.integers, params.scale.reshape(-1), params.zero.reshape(-1)
    few = codebook.num_codes < _STEPS
    if few:
        ends = [scale * (code - zero).astype(np.float32) for code in codebook.extremes]
        lowest, highest = ends if params.axes else [end[0] for end in ends]
        tensor = tf.clip_by_value(tensor, lowest, highest)
    if not constant:
        first = 0 if codebook.qmin >= 0 else -128
        low, high = (scale[0] * np.float32(code - zero[0]) for code in (first, first + _STEPS))
        return tf.quantization.fake_quant_with_min_max_vars(tensor, low, high, num_bits=8)
    if few:
        # The same values as every k-th code: biases are stored in units of this scale, of which
        # coarse ones would round them much.
        tensor = tf.round(tensor / scale) * scale
        scale = scale / np.float32(127 // codebook.qmax)
    high = 127 * _raised(scale)
    if params.axes:
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            tensor, -high, high, num_bits=8, narrow_range=True
        )
    return tf.quantization.fake_quant_with_min_max_vars(
        tensor, -high[0], high[0], num_bits=8, narrow_range=True
    )


def _raised(scale: np.ndarray) -> np.ndarray:
    """Scales of a parameter, those raised of channels that hold next to nothing."""
    largest = scale.max()
    return (
        np.maximum(scale, largest * np.float32(_SMALLEST_SCALE))
        if largest > 2.0**-90
        else np.ones_like(scale)
    )

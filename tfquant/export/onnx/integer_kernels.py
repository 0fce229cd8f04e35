"""Weights that ONNX Runtime must not multiply as integers, since its integer kernels would compute
other numbers.

Seen with ONNX Runtime 1.32, all of it without a word:

* A product of a dequantized weight and an activation in float, or in 16 bits, becomes
  `MatMulNBits`, which rounds the activation to 8 bits with ranges of its own.
* A bias is rounded to int32 in units of the product of both scales: it overflows where that is
  tiny, and is coarse where both operands have few codes.
* A weight in float beside a dequantized activation is rounded to 8 bits where the result is
  quantized.

And with an error: a product of matrices whose weight has more than two axes and a scale for each
channel.

An operation without effect keeps the pattern from being recognised.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfquant.export.onnx.conversion import address_of, is_site
from tfquant.export.onnx.substitution import WANTED_SHAPE
from tfquant.quantized_array import QuantParams

VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
_MATRICES, _CONVOLUTIONS = ("MatMul", "Gemm"), ("Conv", "ConvTranspose")
_LARGEST_BIAS = 2.0**30  # in units of the product of both scales, with room for the sum
# Fewest steps that the products of both operands have in their range, for a bias to be rounded to
# one of them.
_FEWEST_STEPS = 512

Values = Callable[[str], np.ndarray | None]


class Kernels:
    """Tensors that need an operation without effect.

    Args:
      model: with nodes `Site`.
      params: site address -> its quantization parameters; empty to leave all products as they are.
      parameters: address of each site whose values are stored -> number of its axes.
      value: name of a tensor -> its values if it is constant.

    Attributes:
      kept: outputs of markers on weights that stay in float behind their DequantizeLinear.
      apart: (index of a node, index of its input) where an activation arrives beside a weight in
        float.
    """

    def __init__(
        self,
        model: Any,
        params: Mapping[str, QuantParams],
        parameters: Mapping[str, int],
        value: Values,
    ):
        self._nodes, self._params, self._parameters, self._value = (
            list(model.graph.node),
            params,
            parameters,
            value,
        )
        self._makers = {output: node for node in self._nodes for output in node.output}
        self._readers: dict[str, list[Any]] = collections.defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)
        self.kept: set[str] = set()
        self.apart: set[tuple[int, int]] = set()
        for index, node in enumerate(self._nodes if params else []):
            if node.op_type in _MATRICES + _CONVOLUTIONS and node.domain == "":
                self._look_at(index, node)

    def _look_at(self, index: int, node: Any) -> None:
        for position in (1, 0) if node.op_type in _MATRICES else (1,):
            weight, source = (self._site(node.input[i]) for i in (position, 1 - position))
            in_bytes = source is not None and self._is_in_bytes(source)
            if weight is not None and address_of(weight) in self._parameters:
                fits = node.op_type not in _MATRICES or (
                    in_bytes and not self._has_scales_of_a_stack(weight)
                )
                if not fits or (in_bytes and not self._bias_fits(node, weight, source)):
                    self.kept.add(weight.output[0])
            elif weight is None and in_bytes and self._is_constant(node.input[position]):
                self.apart.add((index, 1 - position))

    def _site(self, name: str) -> Any:
        """The marker that a tensor comes from, seen in another shape at most."""
        while (maker := self._makers.get(name)) is not None and maker.op_type in VIEWS:
            name = maker.input[0]
        return maker if maker is not None and is_site(maker) else None

    def _is_constant(self, name: str) -> bool:
        while (maker := self._makers.get(name)) is not None and maker.op_type in VIEWS:
            name = maker.input[0]
        return self._value(name) is not None

    def _is_in_bytes(self, marker: Any) -> bool:
        """Whether it rounds an activation with one scale to at most 8 bits."""
        params = self._params[address_of(marker)]
        in_bytes = params.codebook.uniform and params.codebook.num_codes <= 256
        return address_of(marker) not in self._parameters and not params.axes and in_bytes

    def _has_scales_of_a_stack(self, weight: Any) -> bool:
        """Whether a weight is a stack of matrices with several scales, which reaches its product as
        it is.
        """
        address = address_of(weight)
        as_matrix = any(attribute.name == WANTED_SHAPE for attribute in weight.attribute)
        return (
            len(self._params[address].axes) == 1 and self._parameters[address] > 2 and not as_matrix
        )

    def _bias_fits(self, product: Any, weight: Any, source: Any) -> bool:
        """Whether every bias that is added to a product can be rounded to int32 in units of the
        product of the scales.
        """
        weight, source = (self._params[address_of(marker)] for marker in (weight, source))
        biases = [
            value
            for name in self._biases(product)
            if (value := self._value(name)) is not None and value.size
        ]
        if not biases:
            return True
        unit = float(source.scale) * weight.scale.astype(np.float64)
        coarse = source.codebook.quant_max * weight.codebook.quant_max < _FEWEST_STEPS
        return not any(
            bias.any() and (coarse or np.abs(bias).max() > _LARGEST_BIAS * unit.min())
            for bias in biases
        )

    def _biases(self, product: Any) -> Iterator[str]:
        """Names of what a product adds itself, or what is added to it next."""
        yield from list(product.input)[2:3]
        pending = list(product.output)
        while pending:
            name = pending.pop()
            for reader in self._readers[name]:
                if reader.op_type in VIEWS:
                    pending.append(reader.output[0])
                elif reader.op_type == "Add":
                    yield from (other for other in reader.input if other != name)

"""ONNX files by TensorRT's rules for explicit quantization, each of them proven on the graph before
a file is written.

The rules are NVIDIA's: TensorRT's guide to explicit quantization, its TensorFlow toolkit,
NVIDIA/TensorRT #3243. They decide which products are computed in INT8 and what is fused with them.
TensorRT reads most files that break one as well, and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfquant.export.errors import ExportError
from tfquant.export.onnx import external_data, writer
from tfquant.export.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    attribute,
    carried_to,
    lies_along,
    output_axes,
    said,
    type_of_codes,
)
from tfquant.export.request import ExportRequest
from tfquant.runtimes.session import Contractions
from tfquant.site import ROLES

_LISTED = 10  # violations in a message
_KEEPING = ("int8_residual", "int8_residual_both", "trt")
# Sites that layers in float may read: NVIDIA rounds what leaves the encoder and keeps the kernel of
# the head in float.
_HIDDEN_STATES = ("model_output", "layernorm_output", "residual_sum")


class PlacementError(ExportError):
    """Quantizers stand where TensorRT cannot use them.

    Attributes:
      violations: every place with the rule it breaks and how to mend it; the message lists the
        first ones.
    """

    def __init__(self, violations: tuple[str, ...]):
        count = len(violations)
        lines = [
            f"{count} place{' breaks' if count == 1 else 's break'} TensorRT's rules, first"
            f" {violations[0]}"
        ]
        lines += violations[1:_LISTED]
        if count > _LISTED:
            lines.append(f"and {count - _LISTED} more, see `violations`")
        lines.append(
            f"recipes that keep all rules: {', '.join(_KEEPING)}; after a change calibrate again"
        )
        super().__init__("\n  ".join(lines))
        self.violations = violations


def write(request: ExportRequest, path: str) -> None:
    """Write an ONNX file with signed bytes.

    Raises:
      PlacementError: it would break a rule of TensorRT.
    """
    model = writer.build(request, signed=True)
    if request.mode == "quantized":
        validate(model)
    external_data.save(model, path)


def validate(model: Any) -> tuple[str, ...]:
    """Prove TensorRT's rules on an `onnx.ModelProto` with quantizers.

    Returns:
      Names of the products that stay in float, those in loops and branches included.

    Raises:
      PlacementError: it breaks some.
    """
    graph = Graph(model)
    rules = (
        _opset,
        _numbers,
        _scales,
        _weighted_operations,
        _products_rounded,
        _products_of_activations,
        _residuals,
    )
    violations = tuple(violation for rule in rules for violation in rule(graph))
    if violations:
        raise PlacementError(violations)
    return tuple(
        node.name or node.output[0]
        for node in graph.products + graph.inner
        if not graph.is_quantized(node)
    )


def contractions(path: str) -> Contractions:
    """Products of a file as TensorRT would compute them.

    In integers where both operands are dequantized.
    """
    import onnx

    graph = Graph(onnx.load(path))
    result: tuple[list[str], list[str]] = ([], [])
    for node in graph.products:
        result[not graph.is_quantized(node)].append(node.name or node.output[0])
    return Contractions(tuple(result[0]), tuple(result[1]))


# Rules: each yields what breaks it.


def _opset(graph: Graph) -> Iterator[str]:
    if graph.opset < 13:
        yield f"opset {graph.opset}: scales per channel exist from 13 on: export with opset=17"


def _numbers(graph: Graph) -> Iterator[str]:
    """Yield problems unless zero points are 0, scales are constants above 0, and codes are signed
    bytes.
    """
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        source = graph.makers.get(node.input[0])
        if source is not None and source.op_type == QUANTIZE and source.input[1:] == node.input[1:]:
            continue  # a pair is named once
        scale, kind, role = graph.value(node.input[1]), type_of_codes(graph, node), _said_role(node)
        zero = graph.value(node.input[2]) if len(node.input) > 2 else np.zeros(1)
        if scale is None or zero is None:
            yield f"{said(node)}: its scale and zero point are computed: write them as initializers"
            continue
        wrong, shift = scale[~((scale > 0) & np.isfinite(scale))], zero[zero != 0].astype(np.int32)
        if wrong.size:
            yield (
                f"{said(node)}: has the scale {wrong[0]}, which must be above 0 and finite:"
                " calibrate again"
            )
        elif shift.size:
            yield (
                f"{said(node)}: has the zero point {shift[0]}, TensorRT knows 0 only: set"
                f" symmetric: true for {role}"
            )
        elif kind in ("int4", "uint4"):
            yield (
                f"{said(node)}: holds {kind}, which TensorRT takes in blocks and beside float"
                " activations only: export with an opset below 21, which stores 4 bits in bytes"
            )
        elif kind != "int8":
            hint = "symmetric: true and unsigned: false" if kind == "uint8" else "format: int8"
            yield f"{said(node)}: holds {kind}, TensorRT takes int8: set {hint} for {role}"


def _scales(graph: Graph) -> Iterator[str]:
    """Yield problems unless an activation has one scale, and a parameter one or one for each output
    channel and only products as readers.
    """
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        scale, source = (
            graph.value(node.input[1]),
            graph.behind(node.input[0], frozenset({QUANTIZE}))[0],
        )
        if scale is None:
            continue  # said above
        if source not in graph.constants:
            if scale.size > 1:
                yield (
                    f"{said(node)}: an activation with {scale.size} scales: set granularity:"
                    f" per_tensor for {_said_role(node)}"
                )
        elif node.op_type == DEQUANTIZE and (value := graph.value(source)) is not None:
            yield from _channels(graph, node, value.shape, scale)


def _channels(graph: Graph, node: Any, shape: tuple[int, ...], scale: np.ndarray) -> Iterator[str]:
    """Yield problems unless the channels of the scales are the output channels of the products that
    read them.
    """
    axis = attribute(node, "axis", 1) % max(len(shape), 1)
    if scale.size > 1 and scale.shape != (shape[axis],):
        yield (
            f"{said(node)}: has scales of shape {list(scale.shape)}: set granularity: per_channel"
            f" for {_said_role(node)}"
        )
        return
    ones = [-1 if index == axis else 1 for index in range(len(shape))]
    numbers = np.arange(scale.size, dtype=np.int32).reshape(ones if scale.size > 1 else [])
    for reader, index, carried in carried_to(
        graph, node.output[0], np.broadcast_to(numbers, shape)
    ):
        if not graph.is_product(reader) or index > 1:
            if reader.op_type != "Gather" or scale.size > 1:
                yield (
                    f"{said(node)}: is read by {said(reader)}, not as factor of a product: leave"
                    f" {_said_role(node)} in float"
                )
        elif scale.size > 1 and not lies_along(carried, output_axes(reader, index, carried.ndim)):
            yield (
                f"{said(node)}: its scales do not lie along the output channels of {said(reader)}:"
                f" set granularity: per_tensor for {_said_role(node)}"
            )


def _weighted_operations(graph: Graph) -> Iterator[str]:
    """Yield problems of operations with one dequantized data operand, or with none in the whole
    graph.
    """
    for node in graph.products:
        index = graph.weight_index(node)
        if index is None:
            continue
        weight, source = (graph.dequantizer(node.input[i]) for i in (index, 1 - index))
        if weight is not None and source is None:
            yield (
                f"{said(node)}: its weight is quantized, its input is not: add role linear_input"
                " there or remove role weight"
            )
        elif weight is None and source is not None and _role(source) not in _HIDDEN_STATES:
            yield (
                f"{said(node)}: its input is quantized, its weight is not: add role weight there or"
                f" remove {_said_role(source)}"
            )
    if not any(map(graph.is_quantized, graph.products)):
        yield (
            "the graph: of no product are both operands quantized: use a recipe with roles weight"
            " and linear_input"
        )


def _products_rounded(graph: Graph) -> Iterator[str]:
    """Yield problems of quantizers between a product and its bias, activation or softmax; operands
    of products and sums may have one.
    """
    for node in graph.of(QUANTIZE):
        name, clip = graph.behind(node.input[0], frozenset())
        if (
            clip is not None and name == node.output[0].removesuffix("codes") + "clipped"
        ):  # to the codes of a narrow grid
            name = clip.input[0]
        source = graph.behind(name)[1]
        if not graph.is_product(source) or len(source.input) > 2:
            continue
        pairs = [pair for pair in graph.readers[node.output[0]] if pair.op_type == DEQUANTIZE]
        readers = [reader for pair in pairs for reader in graph.ahead(pair.output[0])]
        other = [
            reader
            for reader in readers
            if not graph.is_product(reader) and not graph.is_sum(reader)
        ]
        if other:
            after = said(other[0]) if other[0] is not None else "the output of the graph"
            yield (
                f"{said(node)}: rounds {said(source)} before {after}: remove"
                f" {_said_role(node, 'role linear_output')} there"
            )


def _products_of_activations(graph: Graph) -> Iterator[str]:
    """Yield problems of products whose attention would not be fused in INT8, for want of a
    dequantized operand.
    """
    for node in graph.products:
        missing = [
            f"operand {index + 1}"
            for index in (0, 1)
            if graph.dequantizer(node.input[index]) is None
        ]
        if missing and graph.weight_index(node) is None:
            yield (
                f"{said(node)}: multiplies two activations, {' and '.join(missing)} not quantized:"
                " add role matmul_input there"
            )


def _residuals(graph: Graph) -> Iterator[str]:
    """Yield problems of skip operands that are not dequantized, where the addition would not be
    fused with the product.

    A skip operand is one that the product was computed from: other sums, such as embeddings and
    masks, are no residual additions.
    """
    for node in filter(graph.is_sum, graph.nodes):
        for name, skip in (list(node.input), list(node.input)[::-1]):
            product = graph.added(name)
            if (
                product is None
                or not graph.is_quantized(product)
                or graph.dequantizer(skip) is not None
            ):
                continue
            origin, maker = graph.behind(skip)
            if graph.depends(product, origin):
                what = f"input {origin}" if maker is None else said(maker)
                yield (
                    f"{said(node)}: its skip operand (from {what}) is not quantized: add role"
                    " residual, as int8_residual has it"
                )


def _role(node: Any) -> str:
    """Return the role of the site that a quantizer was written for, whose name is
    `path:role:port/codes`; empty if it has another name.
    """
    parts = node.name.rsplit(":", 2)
    return parts[1] if len(parts) == 3 and parts[1] in ROLES else ""


def _said_role(node: Any, otherwise: str = "its role") -> str:
    return f"role {_role(node)}" if _role(node) else otherwise

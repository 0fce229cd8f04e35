"""An ONNX graph as the rules of a target look at it.

Who makes and who reads what, and where scales of parameters arrive.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
# Values are carried on as they are: TensorRT moves Q and DQ past these.
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
# What may lie between a weighted operation and the addition that is fused with it, beside biases
# and scales.
_BEFORE_ADDITION = _MOVES | {"Dropout", "BatchNormalization", QUANTIZE, DEQUANTIZE}


class Graph:
    """Producers and consumers of the tensors of a graph.

    Attributes:
      opset: of the default domain.
      nodes: operations, without those in bodies of loops and branches.
      outputs: tensors that leave the graph.
      makers: tensor -> operation.
      readers: tensor -> operations, those that read it in a body included.
      constants: tensors that depend on no input of the graph.
      products: operations with two data operands, of which at most one is constant.
      inner: products in bodies.
    """

    def __init__(self, model: Any):
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
        )
        self.nodes, self.outputs = list(model.graph.node), {out.name for out in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[Any]] = collections.defaultdict(list)
        self.constants = set(self._initializers)
        for node in self.nodes:
            inputs = list(dict.fromkeys(read_by(node)))
            for name in (
                inputs if node.op_type not in ("Shape", "Size") else ()
            ):  # which need no values
                self.readers[name].append(node)
            if node.op_type == "Constant" or (inputs and self.constants.issuperset(inputs)):
                self.constants.update(node.output)
        self.products = [
            node
            for node in self.of(*_PRODUCTS)
            if len(node.input) > 1 and not self.constants.issuperset(node.input[:2])
        ]
        self._results = {node.output[0] for node in self.products}
        self.inner = [
            node
            for outer in self.nodes
            for node in nodes_inside(outer)
            if node.op_type in _PRODUCTS
        ]

    def of(self, *kinds: str) -> Iterator[Any]:
        return (node for node in self.nodes if node.op_type in kinds)

    def value(self, name: str) -> np.ndarray | None:
        """Return the value of an initializer or a Constant."""
        import onnx

        if name in self._initializers:
            return onnx.numpy_helper.to_array(self._initializers[name])
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Constant":
            return None
        value = onnx.helper.get_attribute_value(maker.attribute[0])
        return (
            onnx.numpy_helper.to_array(value)
            if isinstance(value, onnx.TensorProto)
            else np.asarray(value)
        )

    def behind(self, name: str, kinds: frozenset[str] = _MOVES) -> tuple[str, Any]:
        """The first tensor that is not made by an operation of `kinds`, and the operation that
        makes it, if any.
        """
        while (node := self.makers.get(name)) is not None and node.op_type in kinds:
            name = node.input[0]
        return name, node

    def ahead(self, name: str) -> Iterator[Any]:
        """Operations that read a tensor, through moves; None for an output of the graph."""
        if name in self.outputs:
            yield None
        for node in self.readers[name]:
            yield from self.ahead(node.output[0]) if node.op_type in _MOVES else [node]

    def dequantizer(self, name: str) -> Any:
        """The DequantizeLinear that a tensor comes from, through moves."""
        node = self.behind(name)[1]
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def is_product(self, node: Any) -> bool:
        return node is not None and not self._results.isdisjoint(node.output)

    def is_sum(self, node: Any) -> bool:
        """Whether it adds two activations."""
        return (
            node is not None
            and node.op_type == "Add"
            and not self.constants.intersection(node.input)
        )

    def weight_index(self, product: Any) -> int | None:
        """Return the index of the constant operand; None in a product of two activations."""
        return next((index for index in (1, 0) if product.input[index] in self.constants), None)

    def is_quantized(self, product: Any) -> bool:
        return all(self.dequantizer(name) is not None for name in product.input[:2])

    def added(self, name: str) -> Any:
        """The weighted operation whose result arrives as `name`, read by nothing else on its
        way.
        """
        while (
            name not in self.outputs
            and len(self.readers[name]) == 1
            and (node := self.makers.get(name)) is not None
        ):
            if self.is_product(node):
                return None if self.weight_index(node) is None else node
            active = [source for source in node.input if source not in self.constants]
            if node.op_type not in _BEFORE_ADDITION and (
                node.op_type not in ("Add", "Sub", "Mul", "Div") or len(active) != 1
            ):
                return None
            name = active[0]
        return None

    def depends(self, node: Any, name: str) -> bool:
        """Whether an operation computes from a tensor."""
        seen, left = set(), [node]
        while left:
            new = set(read_by(left.pop())) - seen
            seen |= new
            left += [self.makers[tensor] for tensor in new if tensor in self.makers]
        return name in seen


def said(node: Any) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next(
        (onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name),
        default,
    )


def bodies(node: Any) -> Iterator[Any]:
    """Graphs of a loop or branch."""
    for attribute in node.attribute:
        yield from (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))


def read_by(node: Any) -> Iterator[str]:
    """Tensors that a node reads, those that its bodies read or return included."""
    yield from filter(None, node.input)
    for body in bodies(node):
        yield from (out.name for out in body.output)
        for inner in body.node:
            yield from read_by(inner)


def nodes_inside(node: Any) -> Iterator[Any]:
    """Operations in the bodies of a loop or branch."""
    for body in bodies(node):
        for inner in body.node:
            yield from (inner, *nodes_inside(inner))


def type_of_codes(graph: Graph, node: Any) -> str:
    """Return the type of the codes, as NumPy and ml_dtypes call it."""
    import onnx

    maker = graph.makers.get(node.input[0])
    if node.op_type == DEQUANTIZE and maker is not None and maker.op_type == QUANTIZE:
        return type_of_codes(graph, maker)
    zero, codes = (
        (node.input[2] if len(node.input) > 2 else ""),
        (node.input[0] if node.op_type == DEQUANTIZE else ""),
    )
    value = graph.value(zero or codes)
    if value is not None:
        return str(value.dtype)
    return str(
        onnx.helper.tensor_dtype_to_np_dtype(
            attribute(node, "output_dtype", onnx.TensorProto.UINT8)
        )
    )


# Channels of parameters.


def carried_to(
    graph: Graph, name: str, numbers: np.ndarray
) -> Iterator[tuple[Any, int, np.ndarray]]:
    """(reader, index of its input, numbers as they arrive there) of a parameter, through moves."""
    from onnx.reference import ReferenceEvaluator

    for node in graph.readers[name]:
        if node.op_type in _MOVES:
            feed = {name: numbers, **{other: graph.value(other) for other in node.input[1:]}}
            moved: Any = ReferenceEvaluator(node).run(None, feed)
            yield from carried_to(graph, node.output[0], moved[0])
        else:
            yield from (
                (node, index, numbers) for index, taken in enumerate(node.input) if taken == name
            )


def output_axes(product: Any, index: int, rank: int) -> set[int]:
    """Axes of an operand along which the output channels of a product lie."""
    if product.op_type == "Einsum":
        terms, _, result = (
            attribute(product, "equation", b"").decode().replace(" ", "").partition("->")
        )
        own, other = (terms.split(",")[i] for i in (index, 1 - index))
        return {axis for axis, label in enumerate(own) if label in result and label not in other}
    if product.op_type in ("Conv", "ConvTranspose"):
        return {0 if product.op_type == "Conv" else 1} if index == 1 else set()
    if rank < 2:
        return set()
    turned = product.op_type == "Gemm" and attribute(product, "transB" if index else "transA", 0)
    return {rank - 1 if bool(index) != bool(turned) else rank - 2}


def lies_along(numbers: np.ndarray, axes: set[int]) -> bool:
    """Whether there is one number for every place along `axes`, the same along all others."""
    first = numbers[
        tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(numbers.ndim))
    ]
    return bool((numbers == first).all()) and np.unique(first).size == first.size

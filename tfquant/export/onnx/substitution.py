"""Regions in an ONNX graph: one operation in place of the many that lie between two markers."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfquant.export.onnx.conversion import address_of, is_site
from tfquant.export.site_markers import MarkedRegion
from tfquant.layout import static_shape

GELU_OPSET = 20  # the first that has the operation
# Attribute of a marker on a parameter: the shape in which it is wanted.
WANTED_SHAPE = "wanted_shape"
# Of ONNX Runtime's own operations.
RUNTIMES_DOMAIN = "com.microsoft"


def substitute(model: Any, regions: Iterable[MarkedRegion]) -> None:
    """Replaces, in place, every marker on the output of a region by its operation, and drops the
    markers on its inputs.

    What lay between is left behind without a consumer, for `onnx_qdq.prune` to remove. Shapes that
    the converter saw are dropped, as tensors may have others now; of operations that are not ONNX'
    own they are put down, as nobody could infer them.
    """
    substitution = _Substitution(model)
    for entry in regions:
        substitution.replace(entry)
    substitution.finish()


def declare_runtimes_domain(model: Any) -> None:
    """Let a model use the operations of ONNX Runtime."""
    import onnx

    if all(entry.domain != RUNTIMES_DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIMES_DOMAIN, 1))


class _Substitution:
    """New nodes are collected first; the graph is changed once, at the end."""

    def __init__(self, model: Any):
        import onnx

        self._onnx, self._model, self._graph = onnx, model, model.graph
        self._opset = next(
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        )
        self._markers = {address_of(node): node for node in model.graph.node if is_site(node)}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._uses = collections.Counter(name for node in model.graph.node for name in node.input)
        self._initializers = {tensor.name for tensor in model.graph.initializer}
        self._made: dict[str, list[Any]] = {}  # name of a marker -> what replaces it
        self._alias: dict[str, str] = {}  # output of a dropped marker -> what it marked
        del self._graph.value_info[:]

    def replace(self, entry: MarkedRegion) -> None:
        present = [
            self._markers[text] for text in (*entry.inputs, entry.target) if text in self._markers
        ]
        for marker in present:
            self._alias[marker.output[0]] = marker.input[0]
            self._made[marker.name] = []
        if len(present) < len(entry.inputs) + 1:
            return  # no output depends on it
        *sources, target = present
        inputs, output = [marker.output[0] for marker in sources], target.output[0]
        del self._alias[output]
        build = {
            "LayerNormalization": self._layernorm,
            "Gelu": self._gelu,
            "MatMul": self._matmul,
            "Reshape": self._reshape,
            "MultiHeadAttention": self._attention,
        }
        self._made[target.name] = build[entry.region.kind](entry, inputs, output)

    def finish(self) -> None:
        nodes = [new for node in self._graph.node for new in self._made.get(node.name, [node])]
        for node in nodes:
            for index, name in enumerate(node.input):
                while name in self._alias:
                    name = self._alias[name]
                node.input[index] = name
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _layernorm(self, entry: MarkedRegion, inputs: list[str], output: str) -> list[Any]:
        names = ("scale", "bias")
        parameters = [
            self._initializer(f"{entry.target}/{name}", entry.region.parameters[name])
            for name in names
        ]
        return [
            self._node(
                "LayerNormalization",
                [*inputs, *parameters],
                output,
                entry,
                **entry.region.attributes,
            )
        ]

    def _gelu(self, entry: MarkedRegion, inputs: list[str], output: str) -> list[Any]:
        if self._opset >= GELU_OPSET:
            return [self._node("Gelu", inputs, output, entry, **entry.region.attributes)]
        # The form that runtimes recognise: x / sqrt(2), Erf, + 1, * x, * 0.5.
        values = {"sqrt_2": math.sqrt(2.0), "one": 1.0, "half": 0.5}
        root, one, half = (
            self._initializer(f"gelu/{name}", np.float32(value)) for name, value in values.items()
        )
        return [
            self._node("Div", [inputs[0], root], f"{output}/Div"),
            self._node("Erf", [f"{output}/Div"], f"{output}/Erf"),
            self._node("Add", [f"{output}/Erf", one], f"{output}/Add"),
            self._node("Mul", [inputs[0], f"{output}/Add"], f"{output}/Mul"),
            self._node("Mul", [f"{output}/Mul", half], output, entry),
        ]

    def _matmul(self, entry: MarkedRegion, inputs: list[str], output: str) -> list[Any]:
        """Write a product of matrices, between reshapes where more than one axis is summed or
        made.
        """
        (source, kernel), shapes, nodes = inputs, entry.region.parameters, []
        if "source" in shapes:
            nodes.append(self._reshaped(source, shapes["source"], f"{output}/source"))
            source = f"{output}/source"
        if "kernel" in shapes and not self._ask_for_shape(kernel, shapes["kernel"]):
            nodes.append(self._reshaped(kernel, shapes["kernel"], f"{output}/kernel"))
            kernel = f"{output}/kernel"
        if "target" not in shapes:
            return [*nodes, self._node("MatMul", [source, kernel], output, entry)]
        nodes.append(self._node("MatMul", [source, kernel], f"{output}/product", entry))
        return [*nodes, self._reshaped(f"{output}/product", shapes["target"], output)]

    def _ask_for_shape(self, kernel: str, shape: np.ndarray) -> bool:
        """Tell the marker of a parameter that nobody else reads in which shape it is wanted; False
        where there is none.
        """
        marked = self._alias.get(kernel, kernel)
        marker = self._makers.get(marked)
        if (
            marker is None
            or not is_site(marker)
            or self._uses[marked] != 1
            or marker.name in self._made
        ):
            return False
        marker.attribute.append(
            self._onnx.helper.make_attribute(WANTED_SHAPE, [int(size) for size in shape])
        )
        return True

    def _reshape(self, entry: MarkedRegion, inputs: list[str], output: str) -> list[Any]:
        return [self._reshaped(inputs[0], entry.region.parameters["shape"], output)]

    def _attention(self, entry: MarkedRegion, inputs: list[str], output: str) -> list[Any]:
        """Operands are [B, S, N * D]; what is added to the scores needs their last two axes, [S,
        T], in full.
        """
        (*operands, bias), nodes, shapes = (
            inputs if len(inputs) == 4 else [*inputs, ""],
            [],
            entry.region.parameters,
        )
        for index, name in enumerate(("query", "key", "value")):
            if name in shapes:
                nodes.append(self._reshaped(operands[index], shapes[name], f"{output}/{name}"))
                operands[index] = f"{output}/{name}"
        if bias:
            nodes += self._spread(bias, operands[:2], f"{output}/bias")
            bias = f"{output}/bias"
        result = f"{output}/heads" if "target" in shapes else output
        # Without biases of projections and without a mask of keys.
        operands += ["", "", bias] if bias else []
        node = self._node(
            "MultiHeadAttention",
            operands,
            result,
            entry,
            domain=RUNTIMES_DOMAIN,
            **entry.region.attributes,
        )
        self._declare(result, [None, None, math.prod(static_shape(entry.region.target.shape[2:]))])
        return [
            *nodes,
            node,
            *([self._reshaped(result, shapes["target"], output)] if "target" in shapes else []),
        ]

    def _spread(self, bias: str, operands: list[str], output: str) -> list[Any]:
        """The bias broadcast to the lengths of query and key."""
        lengths = [f"{output}/{name}" for name in ("query_length", "key_length")]
        nodes = [
            self._node("Shape", [source], length, start=1, end=2)
            for source, length in zip(operands, lengths, strict=True)
        ]
        ones = self._initializer("ones", np.ones(2, np.int64))
        nodes.append(self._node("Concat", [ones, *lengths], f"{output}/shape", axis=0))
        return [*nodes, self._node("Expand", [bias, f"{output}/shape"], output)]

    def _declare(self, name: str, shape: Sequence[int | None]) -> None:
        """Write down type and shape of what an operation of ONNX Runtime's makes."""
        self._graph.value_info.append(
            self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)
        )
        declare_runtimes_domain(self._model)

    def _reshaped(self, source: str, shape: np.ndarray, output: str) -> Any:
        name = self._initializer("shape/" + "_".join(map(str, shape)), np.asarray(shape, np.int64))
        return self._node("Reshape", [source, name], output)

    def _node(
        self,
        kind: str,
        inputs: list[str],
        output: str,
        entry: MarkedRegion | None = None,
        **attributes: Any,
    ) -> Any:
        """Named like the operation that it stands for, else like its output."""
        name = entry.region.target.op.name if entry else output
        return self._onnx.helper.make_node(kind, inputs, [output], name=name, **attributes)

    def _initializer(self, name: str, values: np.ndarray | np.float32) -> str:
        if name not in self._initializers:
            self._initializers.add(name)
            self._graph.initializer.append(
                self._onnx.numpy_helper.from_array(np.asarray(values), name)
            )
        return name

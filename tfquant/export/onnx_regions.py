"""Regions in an ONNX graph: one operation in place of the many that lie between two markers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfquant.export.marked import MarkedRegion
from tfquant.export.onnx_float import address_of, is_site

# First opset that has the operation.
GELU_OPSET = 20


def substitute(model: Any, regions: Iterable[MarkedRegion]) -> None:
    """Replaces, in place, every marker on the output of a region by its operation, and drops the markers on its inputs.

    What lay between is left behind without a consumer, for `onnx_qdq.prune` to remove.
    """
    import onnx

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    markers = {text: node for node in model.graph.node if is_site(node) for text in [address_of(node)]}
    makers = {"LayerNormalization": _layernorm, "Gelu": _gelu, "MatMul": _matmul, "Reshape": _reshape}
    made: dict[str, list[Any]] = {}  # name of a marker -> what replaces it
    alias: dict[str, str] = {}  # output of a dropped marker -> what it marked
    for entry in regions:
        ends = [text for text in (entry.entry, entry.kernel) if text]
        present = [markers[text] for text in (*ends, entry.target) if text in markers]
        for marker in present:
            alias[marker.output[0]] = marker.input[0]
            made[marker.name] = []
        if len(present) == len(ends) + 1:  # else no output depends on it
            *inputs, target = present
            del alias[target.output[0]]
            made[target.name] = makers[entry.region.kind](
                onnx, model.graph, entry, [marker.output[0] for marker in inputs], target.output[0], opset
            )
    nodes = [new for node in model.graph.node for new in made.get(node.name, [node])]
    for node in nodes:
        for index, name in enumerate(node.input):
            while name in alias:
                name = alias[name]
            node.input[index] = name
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _layernorm(onnx: Any, graph: Any, entry: MarkedRegion, inputs: list[str], output: str, _: int) -> list[Any]:
    parameters = [_initializer(onnx, graph, f"{entry.target}/{name}", entry.region.parameters[name]) for name in ("scale", "bias")]
    name, attributes = entry.region.target.op.name, entry.region.attributes
    return [onnx.helper.make_node("LayerNormalization", [*inputs, *parameters], [output], name=name, **attributes)]


def _gelu(onnx: Any, graph: Any, entry: MarkedRegion, inputs: list[str], output: str, opset: int) -> list[Any]:
    if opset >= GELU_OPSET:
        return [onnx.helper.make_node("Gelu", inputs, [output], name=entry.region.target.op.name, **entry.region.attributes)]
    # The form that runtimes recognise: x / sqrt(2), Erf, + 1, * x, * 0.5.
    root, one, half = (
        _initializer(onnx, graph, f"gelu/{name}", np.float32(value))
        for name, value in (("sqrt_2", math.sqrt(2.0)), ("one", 1.0), ("half", 0.5))
    )
    steps = [
        ("Div", [inputs[0], root]),
        ("Erf", [f"{output}/Div"]),
        ("Add", [f"{output}/Erf", one]),
        ("Mul", [inputs[0], f"{output}/Add"]),
    ]
    nodes = [onnx.helper.make_node(kind, names, [f"{output}/{kind}"], name=f"{output}/{kind}") for kind, names in steps]
    return [*nodes, onnx.helper.make_node("Mul", [f"{output}/Mul", half], [output], name=entry.region.target.op.name)]


def _matmul(onnx: Any, graph: Any, entry: MarkedRegion, inputs: list[str], output: str, _: int) -> list[Any]:
    return [onnx.helper.make_node("MatMul", inputs, [output], name=entry.region.target.op.name)]


def _reshape(onnx: Any, graph: Any, entry: MarkedRegion, inputs: list[str], output: str, _: int) -> list[Any]:
    sizes = entry.region.parameters["shape"]
    shape = _initializer(onnx, graph, "reshape/" + "_".join(map(str, sizes)), sizes)
    return [onnx.helper.make_node("Reshape", [*inputs, shape], [output], name=entry.region.target.op.name)]


def _initializer(onnx: Any, graph: Any, name: str, values: np.ndarray) -> str:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return name

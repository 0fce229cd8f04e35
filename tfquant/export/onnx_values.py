"""Parameters of ONNX models beyond 2 GB, which can be neither serialized with their values nor kept in one file."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

# Bytes of parameters that one file may hold: what ONNX allows less what the graph itself takes.
LIMIT = 2**31 - 2**27
_SMALL = 1024  # bytes; what operations want to see the values of, such as axes, is smaller


def size(model: Any) -> int:
    """Bytes of the initializers."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def put_back(model: Any, data: MutableMapping[str, bytes]) -> None:
    """Gives initializers that point into `data` their values, in place; `data` is empty then."""
    for tensor in model.graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data.pop(location)


def without_values(model: Any) -> tuple[Any, list[Any]]:
    """A copy of a model in which inputs stand for large initializers and those that point elsewhere, and these."""
    import onnx

    apart = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > _SMALL or tensor.external_data]
    left = {id(tensor) for tensor in apart}
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=model.graph.node,
        input=model.graph.input,
        output=model.graph.output,
        value_info=model.graph.value_info,
        initializer=[tensor for tensor in model.graph.initializer if id(tensor) not in left],
    )
    graph.input.extend(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in apart)
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph, functions=model.functions)
    return copy, apart


def with_values(model: Any, apart: list[Any]) -> Any:
    """The model with what `without_values` has taken out, in place."""
    names = {tensor.name for tensor in apart}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(apart)
    return model


def save(model: Any, path: str) -> None:
    """Writes a model; of more than `LIMIT` large parameters go to a file beside it, whose name has `.data` behind."""
    import onnx

    if size(model) > LIMIT:
        location = f"{os.path.basename(path)}.data"
        with open(os.path.join(os.path.dirname(path), location), "wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > _SMALL:
                    offset, length = file.tell(), file.write(tensor.raw_data)
                    onnx.external_data_helper.set_external_data(tensor, location, offset, length)
                    tensor.ClearField("raw_data")
    onnx.save(model, path)

"""Large parameters of ONNX models.

Beyond 2 GB they can be neither serialized with the graph nor kept in one file with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.export.onnx.graph import Graph, read_by

# Bytes of parameters that one file may hold: what ONNX allows less what the graph itself takes.
LIMIT = 2**31 - 2**27
_SMALL = 1024  # bytes; what operations want to see the values of, such as axes, is smaller


def fill(model: Any, parameters: Mapping[str, tf.Variable | tf.Tensor]) -> None:
    """Make initializers, in place, of the inputs that stand for `parameters`; of those that no node
    reads nothing.
    """
    import onnx

    read = {name for node in model.graph.node for name in read_by(node)}
    read |= {output.name for output in model.graph.output}
    inputs = [value for value in model.graph.input if value.name not in parameters]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, variable in parameters.items():
        if name in read:
            tensor = model.graph.initializer.add(name=name, dims=variable.shape)
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(
                np.dtype(variable.dtype.as_numpy_dtype)
            )
            tensor.raw_data = variable.numpy().tobytes()


def constants(
    model: Any, parameters: Mapping[str, tf.Variable | tf.Tensor]
) -> Callable[[str], np.ndarray | None]:
    """Return what looks up the values of a tensor.

    Of initializers, of Constant nodes and of `parameters`; None for others.
    """
    graph = Graph(model)

    def value(name: str) -> np.ndarray | None:
        return parameters[name].numpy() if name in parameters else graph.value(name)

    return value


def without_values(model: Any) -> Any:
    """A copy of a model in which inputs stand for large initializers, for what cannot take them
    all.
    """
    import onnx

    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > _SMALL]
    names = {tensor.name for tensor in large}
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=model.graph.node,
        input=model.graph.input,
        output=model.graph.output,
        initializer=[tensor for tensor in model.graph.initializer if tensor.name not in names],
        value_info=model.graph.value_info,
    )
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large
    )
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )


def save(model: Any, path: str) -> None:
    """Write a model; of more than `LIMIT` large parameters go to a file beside it, whose name has
    `.data` behind.
    """
    import onnx.external_data_helper

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT:
        location = f"{os.path.basename(path)}.data"
        with open(os.path.join(os.path.dirname(path), location), "wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > _SMALL:
                    offset, length = file.tell(), file.write(tensor.raw_data)
                    onnx.external_data_helper.set_external_data(tensor, location, offset, length)
                    tensor.ClearField("raw_data")
    onnx.save(model, path)

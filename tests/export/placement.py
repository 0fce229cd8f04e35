"""What breaks TensorRT's rules in a graph."""

import re

import onnx

from tfquant.export.onnx.tensorrt import PlacementError, validate


def broken(model: onnx.ModelProto) -> tuple[str, ...]:
    try:
        validate(model)
    except PlacementError as error:
        return error.violations
    return ()


def says(text: str, pattern: str) -> bool:
    """Whether the parts of a pattern, which " ... " separates, stand in a text in this order."""
    return re.search(".*".join(map(re.escape, pattern.split(" ... "))), text) is not None

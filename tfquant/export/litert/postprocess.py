"""Corrections of `.tflite` files by TensorFlow's converter: operations that have to compute in
float.

Some integer kernels give their result one scale, whatever range there is. And a selection against a
constant takes over the range of the values it selects from, in which the large negative number that
stands for a mask is cut off.
"""

from __future__ import annotations

import copy
from typing import Any

_FIXED = ("SOFTMAX", "LOGISTIC", "TANH", "LOG_SOFTMAX", "L2_NORMALIZATION")
_SELECTION = ("SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM")


def repaired(content: bytes) -> bytes:
    """The same file with such operations between DEQUANTIZE and QUANTIZE."""
    from tensorflow.lite.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    if not any([_Graph(model, graph).repair() for graph in model.subgraphs]):
        return content
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


class _Graph:
    """A graph of a model, whose operations are replaced in place."""

    def __init__(self, model: Any, graph: Any):
        from tensorflow.lite.python import schema_py_generated as schema

        self._schema, self._model, self._graph = schema, model, graph
        self._names = {
            code: name
            for name, code in vars(schema.BuiltinOperator).items()
            if isinstance(code, int)
        }
        self._makers = {
            int(index): operator for operator in graph.operators for index in operator.outputs
        }
        self._floats: dict[
            int, int
        ] = {}  # tensor of bytes -> the same in float, before it is rounded

    def repair(self) -> bool:
        """Whether there was anything to repair."""
        operators: list[Any] = []
        for operator in self._graph.operators:
            operators += self._in_float(operator) if self._wrong(operator) else [operator]
        used = {int(index) for operator in operators for index in operator.inputs} | set(
            map(int, self._graph.outputs)
        )
        kept = [o for o in operators if self._name(o) != "QUANTIZE" or int(o.outputs[0]) in used]
        changed, self._graph.operators = bool(self._floats), kept
        return changed

    def _wrong(self, operator: Any) -> bool:
        name = self._name(operator)
        if name not in _FIXED + _SELECTION or not self._is_bytes(operator.outputs[0]):
            return False
        return name in _FIXED or any(
            self._hidden_constant(index) is not None for index in operator.inputs
        )

    def _in_float(self, operator: Any) -> list[Any]:
        before, inputs = [], []
        for index in map(int, operator.inputs):
            source = index
            if self._is_bytes(index):
                source = self._floats.get(index, self._hidden_constant(index))
                if source is None:
                    source = self._float_copy(index)
                    before.append(self._operator("DEQUANTIZE", index, source))
            inputs.append(source)
        target = int(operator.outputs[0])
        self._floats[target] = self._float_copy(target)
        operator.inputs, operator.outputs = inputs, [self._floats[target]]
        return [*before, operator, self._operator("QUANTIZE", self._floats[target], target)]

    def _hidden_constant(self, index: int) -> int | None:
        """The float tensor behind bytes that are a constant times a one (see `litert`), else
        None.
        """
        quantize = self._makers.get(int(index))
        if quantize is None or self._name(quantize) != "QUANTIZE":
            return None
        source = int(quantize.inputs[0])
        product = self._makers.get(source)
        if product is None or self._name(product) != "MUL":
            return None
        factors = [self._makers.get(int(factor)) for factor in product.inputs]
        made = [self._name(maker) for maker in factors if maker is not None]
        return source if made == ["CAST"] else None

    def _is_bytes(self, index: int) -> bool:
        return self._graph.tensors[index].type == self._schema.TensorType.INT8

    def _name(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        return self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def _float_copy(self, index: int) -> int:
        """A new float tensor of the same shape."""
        tensor = copy.copy(self._graph.tensors[index])
        tensor.type, tensor.quantization, tensor.buffer = self._schema.TensorType.FLOAT32, None, 0
        tensor.name = (tensor.name or b"") + b"/float"
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _operator(self, name: str, source: int, target: int) -> Any:
        codes, kind = self._model.operatorCodes, getattr(self._schema.BuiltinOperator, name)
        result = [
            i
            for i, code in enumerate(codes)
            if max(code.builtinCode, code.deprecatedBuiltinCode) == kind
        ]
        if not result:
            code = self._schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = kind
            code.version = 2  # the first one with signed bytes
            codes.append(code)
            result = [len(codes) - 1]
        operator = self._schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = result[0], [source], [target]
        return operator

"""Detection of activation functions by structure: a nonlinearity, and all operations that compute
one function of the same tensor with it.

GELU in both forms, SiLU and its relatives are the product of a tensor and a function of it; their
input is that tensor. Softmax counts too, as one operation or written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf

from tfquant.graph.attention import Attention, is_written_out_softmax
from tfquant.graph.dataflow import ELEMENTWISE_OPS, VIEW_OPS, Dataflow, distinct, parent

NONLINEAR_OPS = frozenset(
    "Relu Relu6 LeakyRelu Elu Selu Erf Erfc Tanh Sigmoid Softplus Softsign".split()
)
_DIVISION_OPS = ("RealDiv", "Div")
# Operations between a nonlinearity and the product that ends the function, at most.
_LONGEST = 6
# Arguments of a tensor that are kept, the nearest ones: a network without linears, or a loop that
# is unrolled, may have any number.
_NEAREST = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
    """Activation function or softmax.

    Attributes:
      role: `activation_input` or `softmax_input`.
      layer: path of the last contraction before it; the scope of its operations where there is
        none.
      path: the same, with a number where several functions follow one contraction.
      input: the tensor that it is a function of.
      op: the operation that reads `input`, None where it is composed of several that do.
    """

    role: str
    layer: str
    path: str
    input: tf.Tensor
    op: tf.Operation | None


def find_activations(
    flow: Dataflow, attention: list[Attention], paths: Mapping[str, str]
) -> list[Activation]:
    """Find all activation functions and softmaxes in graph order.

    Args:
      flow: the graph.
      attention: its attentions; their softmax has the path of the attention.
      paths: operation name of a contraction -> layer path.
    """
    finder = _Finder(flow)
    in_attention = {a.softmax.op.name: a.path for a in attention}
    result: dict[tuple[str, str], Activation] = {}
    for op in flow.operations:
        match = finder.match(op)
        if match is None or op.name not in flow.used:
            continue
        role, tensor, reader = match
        if (role, tensor.name) not in result:  # functions of several nonlinearities, as Mish
            path = in_attention.get(op.name) or _path(flow, tensor, op, paths)
            result[role, tensor.name] = Activation(role, path, path, tensor, reader)
    found = list(result.values())
    numbered = distinct(f"{a.role}:{a.path}" for a in found)
    return [
        dataclasses.replace(a, path=path.partition(":")[2])
        for a, path in zip(found, numbered, strict=True)
    ]


def _path(flow: Dataflow, tensor: tf.Tensor, op: tf.Operation, paths: Mapping[str, str]) -> str:
    """Layer path of the last contraction, in graph order, that a tensor depends on."""
    for behind in flow.walk_back(tensor, lambda o: True):
        if behind.name in paths:
            return paths[behind.name]
    return parent(op.name)


class _Finder:
    """Matcher of the operations of one graph."""

    def __init__(self, flow: Dataflow):
        self._flow = flow
        self._arguments: dict[str, tuple[tf.Tensor, ...]] = {}

    def match(self, op: tf.Operation) -> tuple[str, tf.Tensor, tf.Operation | None] | None:
        """Role, input and only reader of the function that an operation belongs to."""
        if op.type in NONLINEAR_OPS:
            return self._activation(op) if self._is_dynamic_float(op) else None
        if op.type == "Softmax":
            known = self._is_dynamic_float(op)
            return ("softmax_input", op.inputs[0], op) if known else None
        if op.type in _DIVISION_OPS and self._is_dynamic_float(op):
            return self._softmax(op) if is_written_out_softmax(self._flow, op) else None
        return None

    def _is_dynamic_float(self, op: tf.Operation) -> bool:
        return op.outputs[0].dtype.is_floating and self._flow.is_dynamic(op.outputs[0])

    def _softmax(self, division: tf.Operation) -> tuple[str, tf.Tensor, tf.Operation | None]:
        """Match the input of a written-out softmax, before its maximum is subtracted."""
        exponential = self._flow.root(division.inputs[0]).op
        shifted = self._flow.root(exponential.inputs[0]).op
        if shifted.type == "Sub" and self._flow.root(shifted.inputs[1]).op.type == "Max":
            return "softmax_input", shifted.inputs[0], None
        return "softmax_input", exponential.inputs[0], exponential

    def _activation(self, op: tf.Operation) -> tuple[str, tf.Tensor, tf.Operation | None]:
        """Match the nonlinearity alone, or its product with the tensor it is a function of."""
        factor = self._factor(op.outputs[0])
        if factor is not None:
            others = {t.name for t in self._arguments_of(factor)}
            for tensor in self._arguments_of(op.inputs[0]):
                if tensor.name in others:
                    return "activation_input", tensor, None
        return "activation_input", op.inputs[0], op

    def _factor(self, tensor: tf.Tensor) -> tf.Tensor | None:
        """Other operand of the product that takes a tensor, alone and behind element-wise
        operations with scalars.
        """
        for _ in range(_LONGEST):
            consumers = {op.name: op for op, _ in self._flow.value_consumers(tensor)}
            if len(consumers) != 1 or tensor.name in self._flow.output_names:
                return None
            (op,) = consumers.values()
            operands = self._operands(op)
            others = [t for t in operands if t.name != tensor.name]
            if others or not operands:
                return others[0] if others and op.type == "Mul" else None
            tensor = op.outputs[0]
        return None

    def _arguments_of(self, tensor: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Tensors of which alone `tensor` is an element-wise function, nearest first, itself
        included.
        """
        known, pending = self._arguments, [tensor]
        while pending:
            last = pending[-1]
            sources = [] if last.name in known else self._operands(last.op)
            missing = [t for t in sources if t.name not in known]
            pending += missing
            if not missing:
                pending.pop()
                if last.name not in known:
                    common = _common([known[t.name] for t in sources])
                    known[last.name] = (last, *common)[:_NEAREST]
        return known[tensor.name]

    def _operands(self, op: tf.Operation) -> list[tf.Tensor]:
        """Activations that an element-wise operation takes besides scalars; none of others."""
        elementwise = op.type in ELEMENTWISE_OPS
        if not elementwise and op.type not in VIEW_OPS:
            return []
        dynamic = [t for t in op.inputs if self._flow.is_dynamic(t)]
        others = len(op.inputs) - len(dynamic)
        if elementwise and others and not all(map(self._is_scalar_or_dynamic, op.inputs)):
            return []
        return dynamic

    def _is_scalar_or_dynamic(self, tensor: tf.Tensor) -> bool:
        return tensor.shape.num_elements() == 1 or self._flow.is_dynamic(tensor)


def _common(lists: list[tuple[tf.Tensor, ...]]) -> tuple[tf.Tensor, ...]:
    """Tensors that are in all lists, in the order of the first one."""
    if len(lists) < 2:
        return lists[0] if lists else ()
    names = [{t.name for t in tensors} for tensors in lists[1:]]
    return tuple(t for t in lists[0] if all(t.name in other for other in names))

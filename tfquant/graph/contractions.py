"""Contractions: matrix products, convolutions and Einsums.

Finds their operands and the axes of their output channels.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfquant.graph.dataflow import Dataflow, parent
from tfquant.graph.replay import CALL_OPS, LOOP_OPS, find_function

MATMUL_OPS = frozenset("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3".split())
CONVOLUTION_OPS = frozenset("Conv2D Conv3D DepthwiseConv2dNative".split())
CONTRACTION_OPS = MATMUL_OPS | CONVOLUTION_OPS | {"Einsum"}
# Products too, but not of two dense operands side by side.
OTHER_PRODUCT_OPS = frozenset(
    """Conv2DBackpropInput Conv3DBackpropInputV2 SparseMatMul SparseTensorDenseMatMul Dilation2D
    CudnnRNN CudnnRNNV2 CudnnRNNV3
    LSTMBlockCell BlockLSTM BlockLSTMV2 GRUBlockCell Conv""".split()
)

# Reason to skip a product that tracing left over.
UNUSED = "nothing uses its values"


@dataclasses.dataclass(frozen=True, eq=False)
class Contraction:
    """One contraction.

    Attributes:
      op: the operation.
      kind: `linear` (an activation with a parameter) or `matmul` (two activations).
      path: layer path. Of a linear: that of its variable; of a matmul it is filled in by the
        attention finder.
      weight_index: which input is the parameter (linear only).
      handle: handle placeholder of the variable behind the parameter, None for a constant.
      channel_axes: axes of the parameter that are output channels.
    """

    op: tf.Operation
    kind: str
    path: str
    weight_index: int | None = None
    handle: str | None = None
    channel_axes: tuple[int, ...] = ()

    @property
    def operands(self) -> tuple[int, int]:
        """Index of the activation and of the parameter of a linear.

        Raises:
          ValueError: it is a matmul.
        """
        if self.weight_index is None:
            raise ValueError(f"{self.op.name} multiplies two activations")
        return 1 - self.weight_index, self.weight_index

    @property
    def input_index(self) -> int:
        return self.operands[0]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Contraction without a site, and the reason."""

    op: str
    path: str
    reason: str


def find_contractions(flow: Dataflow) -> tuple[list[Contraction], list[Skipped]]:
    """Find all contractions in graph order, and with the reason those never quantized."""
    hits: list[Contraction] = []
    skipped: list[Skipped] = []
    uses: dict[str, int] = {}
    for op in flow.operations:
        if op.type in LOOP_OPS:
            skipped += _inside_loop(op)
        elif op.type in OTHER_PRODUCT_OPS and op.outputs[0].dtype.is_floating:
            reason = f"{op.type} is not quantized: no role is known for its operands"
            skipped.append(Skipped(op.name, _path_or_name(flow, op), reason))
        elif op.type in CONTRACTION_OPS:
            result = _classify(flow, op)
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            if result.kind == "linear":
                # A layer called more than once has inputs of its own in each call: #2, #3 in the
                # order data flows.
                count = uses[result.path] = uses.get(result.path, 0) + 1
                if count > 1:
                    result = dataclasses.replace(result, path=f"{result.path}#{count}")
            hits.append(result)
    return hits, skipped


def _classify(flow: Dataflow, op: tf.Operation) -> Contraction | Skipped:
    if len(op.inputs) != 2:
        return Skipped(
            op.name,
            op.name,
            f"{op.type} with {len(op.inputs)} operands, only products of two are quantized",
        )
    if op.name not in flow.used:
        return Skipped(op.name, op.name, UNUSED)
    if not op.outputs[0].dtype.is_floating:
        return Skipped(
            op.name, op.name, f"computes in {op.outputs[0].dtype.name}, not in floating point"
        )
    if all(map(flow.is_parameter, op.inputs)):
        return Skipped(op.name, op.name, "both operands are constant")
    # Such as positions x frequencies in rotary embeddings, which must stay exact.
    if op.type == "Einsum" and _is_outer(op):
        return Skipped(op.name, op.name, "outer product, which sums over no axis")
    fixed = [i for i in (0, 1) if flow.is_fixed(op.inputs[i])]
    if not fixed:
        return Contraction(op, "matmul", op.name)
    index = fixed[0]
    handle = flow.variable_behind(op.inputs[index])
    path = _layer_path(flow.trace.paths[handle]) if handle else op.name
    shape = op.inputs[index].shape
    channels = () if shape.rank is None else output_channels(op, index)
    # Channels whose number is not known cannot have ranges of their own.
    known = all(shape[axis] is not None for axis in channels)
    return Contraction(op, "linear", path, index, handle, channels if known else ())


def _is_outer(op: tf.Operation) -> bool:
    """Return whether the operands of an Einsum share no axis, and all axes are in the result."""
    terms, result = equation(op)
    return not set(terms[0]) & set(terms[1]) and set("".join(terms)) <= set(result)


def _path_or_name(flow: Dataflow, op: tf.Operation) -> str:
    handles = [
        h for t in op.inputs if flow.is_parameter(t) and (h := flow.variable_behind(t)) is not None
    ]
    return _layer_path(flow.trace.paths[handles[0]]) if handles else op.name


def _layer_path(variable_path: str) -> str:
    """Layer path of a variable: `a/query/kernel` -> `a/query`.

    Other variables keep their own name, since a layer may hold several of them.
    """
    return parent(variable_path) if variable_path.rpartition("/")[2] == "kernel" else variable_path


def _inside_loop(op: tf.Operation) -> list[Skipped]:
    """Contractions in the bodies of a loop or branch, which are copied whole."""
    reason = (
        f"inside a {op.type} (loop and branch bodies are not entered; a recurrent layer has none"
        " with unroll=True)"
    )
    return [Skipped(name, name, reason) for name in _products_below(op)]


def _products_below(op: tf.Operation) -> list[str]:
    """Names of the products in the functions that `op` calls, directly or indirectly."""
    functions = [v.func.name for v in op.node_def.attr.values() if v.HasField("func")]
    functions += [f.name for v in op.node_def.attr.values() for f in v.list.func]
    result = []
    for name in functions:
        for inner in find_function(op.graph, name).graph.get_operations():
            if inner.type in CONTRACTION_OPS or inner.type in OTHER_PRODUCT_OPS:
                result.append(f"{op.name}/{inner.name}")
            elif inner.type in LOOP_OPS or inner.type in CALL_OPS:
                result += [f"{op.name}/{below}" for below in _products_below(inner)]
    return result


def output_channels(op: tf.Operation, weight_index: int) -> tuple[int, ...]:
    """Axes of the parameter that survive into the output.

    Each index along them is one output channel.
    """
    if op.type in MATMUL_OPS:
        rank = op.inputs[weight_index].shape.rank
        names = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        transposed = op.get_attr(names[weight_index])
        # Left operand [.., M, K], right operand [.., K, N]; transposed ones have the last two axes
        # exchanged.
        last_is_channel = (weight_index == 1) != transposed
        return (rank - 1 if last_is_channel else rank - 2,)
    if op.type == "DepthwiseConv2dNative":
        return (2, 3)
    if op.type in CONVOLUTION_OPS:
        return (op.inputs[weight_index].shape.rank - 1,)
    terms, result = equation(op)
    return tuple(axis for axis, label in enumerate(terms[weight_index]) if label in result)


def equation(op: tf.Operation) -> tuple[list[str], str]:
    """Axis labels of the operands and of the result of an Einsum; an ellipsis is written as axes
    without a label of the other operand.
    """
    text = op.get_attr("equation").decode().replace(" ", "")
    left, _, result = text.partition("->")
    terms = []
    for term, tensor in zip(left.split(","), op.inputs, strict=True):
        if "..." in term:
            # Each axis under the ellipsis becomes its own upper-case-free label, counted from the
            # right as broadcasting does.
            n = (tensor.shape.rank or 0) - len(term.replace("...", ""))
            term = term.replace("...", "".join(chr(0x100 + n - i) for i in range(n)))
        terms.append(term)
    if "..." in result:
        longest = max(terms, key=lambda t: sum(ord(c) >= 0x100 for c in t))
        result = result.replace("...", "".join(c for c in longest if ord(c) >= 0x100))
    return terms, result


def matmul_equation(op: tf.Operation) -> tuple[list[str], str]:
    """Axis labels of a product's operands and result as those of an Einsum; batch axes of size 1 of
    the second one are not shared.
    """
    names = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    terms = []
    for tensor, name, matrix in zip(op.inputs, names, ("mk", "kn"), strict=True):
        batch = tensor.shape.rank - 2
        labels = [
            chr(ord("A") + batch - 1 - i) if tensor.shape[i] != 1 else "?" for i in range(batch)
        ]
        terms.append("".join(labels) + (matrix[::-1] if op.get_attr(name) else matrix))
    return terms, "".join(dict.fromkeys([*terms[0][:-2], *terms[1][:-2]])) + "mn"


def product_equation(op: tf.Operation) -> tuple[list[str], str] | None:
    """Axis labels of both operands and of the result of any product, `?` for axes without a
    counterpart in the other operand.

    None of a product whose channels do not follow from axes alone: depthwise or with channels
    first.
    """
    if op.type in MATMUL_OPS:
        return matmul_equation(op)
    if op.type == "Einsum":
        return equation(op)
    if op.type in ("Conv2D", "Conv3D") and op.get_attr("data_format") in (b"NHWC", b"NDHWC"):
        places = "?" * (op.inputs[0].shape.rank - 2)
        return [f"b{places}i", f"{places}io"], f"b{places}o"
    return None

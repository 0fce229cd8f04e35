"""Producers of tensors: outputs of linear layers, attention and embeddings, and parameters other
than kernels.

A placement that quantizes each tensor once, at its source (Bondarenko et al. 2021), needs these;
one that quantizes operands of products, as integer kernels do, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import tensorflow as tf

from tfquant.graph.attention import Attention
from tfquant.graph.dataflow import VIEW_OPS, Dataflow, parent
from tfquant.graph.layernorm import LayerNorm

_SLICING_OPS = frozenset("Slice StridedSlice GatherV2 Gather".split())
_SPREADING_OPS = VIEW_OPS | {"BroadcastTo", "Tile"}
_ADD_OPS = ("Add", "AddV2")


def merged_context(flow: Dataflow, attention: Attention) -> tf.Tensor:
    """Output of an attention with its heads concatenated, [..., heads * size], as the next layer
    consumes it.
    """
    tensor = result = attention.context.op.outputs[0]
    while True:
        consumers = flow.value_consumers(tensor)
        if (
            len(consumers) != 1
            or consumers[0][0].type not in VIEW_OPS
            or tensor.name in flow.output_names
        ):
            return result
        tensor = consumers[0][0].outputs[0]
        if tensor.shape.rank and tensor.shape[-1] is not None:
            result = tensor


def layernorm_scale(flow: Dataflow, norm: LayerNorm) -> tuple[tf.Operation, int] | None:
    """Product with the learned scale of a layer norm, and the index of that operand."""
    start = flow.index[norm.input.op.name]
    for op in flow.walk_back(norm.output, lambda o: o.name != norm.input.op.name, not_before=start):
        if op.type != "Mul":
            continue
        for index, tensor in enumerate(op.inputs):
            if flow.is_fixed(tensor) and flow.variable_behind(tensor) is not None:
                return op, index
    return None


def embedding_sums(
    flow: Dataflow, rows: Iterable[tf.Tensor], biased: Iterable[tf.Operation]
) -> list[tf.Operation]:
    """Additions of embeddings, in graph order.

    Args:
      rows: what is looked up in tables.
      biased: additions of biases, which are none of these.
    """
    values = {flow.root(tensor).name for tensor in rows}
    other = {op.name for op in biased}
    result = []
    for op in flow.operations:
        if op.type not in _ADD_OPS or op.name in other or not flow.is_dynamic(op.outputs[0]):
            continue
        sliced = [sliced_table(flow, tensor) is not None for tensor in op.inputs]
        known = [
            from_table or flow.root(tensor).name in values
            for from_table, tensor in zip(sliced, op.inputs, strict=True)
        ]
        if all(known) or (any(sliced) and op.outputs[0].shape.rank == 3):
            values.add(op.outputs[0].name)
            result.append(op)
    return result


def sliced_table(flow: Dataflow, tensor: tf.Tensor) -> tuple[tf.Operation, str] | None:
    """(slicing operation, handle) where `tensor` is a slice of a variable, as learned positions
    are.
    """
    while tensor.op.type in _SPREADING_OPS:
        tensor = tensor.op.inputs[0]
    op = tensor.op
    if op.type not in _SLICING_OPS or not flow.is_parameter(tensor):
        return None
    handle = flow.variable_behind(op.inputs[0])
    if handle is None or flow.trace.variables[handle].shape.rank != 2:
        return None
    return op, handle


def tables_of(
    flow: Dataflow, sums: Iterable[tf.Operation]
) -> Iterator[tuple[str, str, tf.Operation, int]]:
    """(layer path, name, operation, operand) of each slice of a table in an embedding sum, without
    repetition.
    """
    seen = set()
    for op in sums:
        for tensor in op.inputs:
            result = sliced_table(flow, tensor)
            if result is None:
                continue
            slicing, handle = result
            if slicing.name not in seen:
                seen.add(slicing.name)
                path = flow.trace.paths[handle]
                yield parent(path), path.rpartition("/")[2], slicing, 0

"""Detection of layer normalization by structure: a reciprocal standard deviation of a tensor
multiplied with that tensor.

Also MobileBERT's NoNorm, which has the scale and shift of each channel without the statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import tensorflow as tf

from tfquant.graph.dataflow import Dataflow, distinct, parent

_TO_VARIANCE_OPS = frozenset("Add AddV2 Maximum Cast Identity Reshape Squeeze".split())
_NORMALISING_OPS = frozenset(
    """Mean Sub Mul Add AddV2 Neg Square SquaredDifference Rsqrt Sqrt Reciprocal RealDiv
    Maximum Cast Identity StopGradient Reshape
    Squeeze ExpandDims""".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerNorm:
    """Layer normalization: `output` is `input` normalized, scaled and shifted; `layer` is the path
    of the layer of its parameters.

    `path` is that path too, with a number where the layer is called again.
    """

    path: str
    input: tf.Tensor
    output: tf.Tensor
    layer: str


def find_layernorms(flow: Dataflow) -> list[LayerNorm]:
    """Find all layer normalizations in graph order."""
    result: list[LayerNorm] = []
    for op in flow.operations:
        source = (
            _normalised_by_root(flow, op)
            if op.type in ("Rsqrt", "Sqrt")
            else _normalised_by_fused_op(flow, op)
        )
        if source is None:
            continue
        output = _close(flow, source, op)
        if output is not None:
            layer = _path(flow, source, output, op)
            result.append(LayerNorm(layer, source, output, layer))
    closed = {norm.output.name for norm in result}
    result += [norm for norm in _without_statistics(flow) if norm.output.name not in closed]
    result.sort(key=lambda norm: flow.index[norm.output.op.name])
    paths = distinct(norm.path for norm in result)
    return [dataclasses.replace(norm, path=path) for norm, path in zip(result, paths, strict=True)]


def _without_statistics(flow: Dataflow) -> Iterator[LayerNorm]:
    """Match scale and shift of the last axis by two variables of one layer, as a layer norm without
    computed statistics has.
    """
    for op in flow.operations:
        scale = _channel_variable(flow, op) if op.type == "Mul" else None
        if scale is None or len(flow.value_consumers(op.outputs[0])) != 1:
            continue
        add = flow.value_consumers(op.outputs[0])[0][0]
        shift = _channel_variable(flow, add) if add.type in ("Add", "AddV2") else None
        if (
            shift is not None
            and parent(scale[1]) == parent(shift[1])
            and op.outputs[0].name not in flow.output_names
        ):
            yield LayerNorm(parent(scale[1]), op.inputs[scale[0]], add.outputs[0], parent(scale[1]))


def _channel_variable(flow: Dataflow, op: tf.Operation) -> tuple[int, str] | None:
    """Match an operation of an activation and one number per channel: (index of the activation,
    path of the variable).
    """
    for index, tensor in enumerate(op.inputs):
        other = op.inputs[1 - index]
        read = flow.root(other).op
        if read.type != "ReadVariableOp" or other.shape.rank != 1 or not flow.is_dynamic(tensor):
            continue
        several = tensor.shape.rank is not None and tensor.shape.rank > 1
        if (
            read.inputs[0].name in flow.trace.paths
            and several
            and tensor.shape[-1] == other.shape[0]
        ):
            return index, flow.trace.paths[read.inputs[0].name]
    return None


def _normalised_by_root(flow: Dataflow, root: tf.Operation) -> tf.Tensor | None:
    """Tensor whose mean square (deviation) the root, or reciprocal root, is taken of."""
    tensor = root.inputs[0]
    while tensor.op.type in _TO_VARIANCE_OPS:
        dynamic = [t for t in tensor.op.inputs if flow.is_dynamic(t)]
        if len(dynamic) != 1:
            return None
        tensor = dynamic[0]
    if tensor.op.type == "Sub":  # mean of squares - square of mean
        tensor = tensor.op.inputs[0]
    if tensor.op.type != "Mean" or _reduces_batch(tensor.op):
        return None
    square = flow.root(tensor.op.inputs[0]).op
    if square.type == "SquaredDifference":
        return _not_a_mean(flow, square.inputs)
    if square.type in ("Square", "Mul", "Pow"):
        inner = flow.root(square.inputs[0])
        return (
            _not_a_mean(flow, inner.op.inputs)
            if inner.op.type == "Sub" and _has_mean(flow, inner.op)
            else square.inputs[0]
        )
    return None


def _reduces_batch(mean: tf.Operation) -> bool:
    """Return whether statistics are those of a batch normalization in training."""
    axes = tf.get_static_value(mean.inputs[1])
    rank = mean.inputs[0].shape.rank
    return (
        axes is not None
        and rank is not None
        and rank > 1
        and 0 in {int(axis) % rank for axis in axes.ravel()}
    )


def _not_a_mean(flow: Dataflow, tensors) -> tf.Tensor | None:
    for tensor in tensors:
        if flow.root(tensor).op.type != "Mean":
            return tensor
    return None


def _has_mean(flow: Dataflow, op: tf.Operation) -> bool:
    return any(flow.root(t).op.type == "Mean" for t in op.inputs)


def _normalised_by_fused_op(flow: Dataflow, op: tf.Operation) -> tf.Tensor | None:
    """Match Keras 2 layer normalization, a fused batch norm in training mode on a reshaped tensor
    with constant scale and offset.
    """
    if (
        not op.type.startswith("FusedBatchNorm")
        or "Grad" in op.type
        or not op.get_attr("is_training")
    ):
        return None
    if op.inputs[0].op.type != "Reshape" or flow.variable_behind(op.inputs[1]) is not None:
        return None
    return flow.root(op.inputs[0])


def _close(flow: Dataflow, source: tf.Tensor, core: tf.Operation) -> tf.Tensor | None:
    """Tensor in which all that follows from `core` joins, including scale and shift."""
    tainted = {core.outputs[0].name}
    # Scaled values of the source, as opposed to statistics that are still to be applied to it.
    values = {source.name} | (
        {core.outputs[0].name} if core.type.startswith("FusedBatchNorm") else set()
    )
    output = None
    index, last = flow.index[source.op.name], _last_consumer(flow, core.outputs[0])
    while index < last:
        index += 1
        op = flow.operations[index]
        if op.type not in _NORMALISING_OPS:
            continue
        inputs = {t.name for t in op.inputs}
        if inputs.isdisjoint(tainted) and inputs.isdisjoint(values):
            continue
        result = op.outputs[0]
        whole = (
            bool(source.shape.rank)
            and result.shape.rank == source.shape.rank
            and result.shape[-1] == source.shape[-1]
        )
        applied = inputs & values and inputs & tainted and not inputs & values & tainted
        if (
            inputs & values
            and (whole or op.type == "Reshape")
            and (not applied or op.type in ("Mul", "RealDiv"))
        ):
            values.add(result.name)
        if not inputs & tainted or (output is not None and not _is_affine(flow, op, output)):
            continue
        tainted.add(result.name)
        last = max(last, _last_consumer(flow, result))
        open_ends = [name for name in tainted if _has_consumer_after(flow, name, op)]
        if whole and result.name in values and all(name == result.name for name in open_ends):
            output = result
    return output


def _last_consumer(flow: Dataflow, tensor: tf.Tensor) -> int:
    """Index of the last operation that reads a tensor, -1 where none does."""
    return max((flow.index[op.name] for op, _ in flow.consumers.get(tensor.name, ())), default=-1)


def _is_affine(flow: Dataflow, op: tf.Operation, output: tf.Tensor) -> bool:
    """Return whether an operation is the scale or shift behind a normalization.

    Its only consumer, with a parameter.
    """
    consumers = flow.value_consumers(output)
    if len(consumers) != 1 or consumers[0][0].name != op.name or output.name in flow.output_names:
        return False
    if op.type in ("Cast", "Identity", "Reshape"):
        return True
    return op.type in ("Mul", "Add", "AddV2") and any(
        flow.variable_behind(t) for t in op.inputs if flow.is_parameter(t)
    )


def _has_consumer_after(flow: Dataflow, name: str, op: tf.Operation) -> bool:
    position = flow.index[op.name]
    return name in flow.output_names or any(
        flow.index[consumer.name] > position and consumer.type in _NORMALISING_OPS
        for consumer, _ in flow.consumers.get(name, ())
    )


def _path(flow: Dataflow, source: tf.Tensor, output: tf.Tensor, core: tf.Operation) -> str:
    """Layer path of the scale or shift; the operation's scope where there is none."""
    between = flow.walk_back(
        output, lambda o: o.outputs[0].name != source.name, not_before=flow.index[source.op.name]
    )
    for op in between:
        for tensor in op.inputs:
            if flow.is_parameter(tensor) and (handle := flow.variable_behind(tensor)) is not None:
                return parent(flow.trace.paths[handle])
    return parent(core.name)

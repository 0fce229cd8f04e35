"""Detection of attention blocks by graph structure.

Product -> (scale, mask) -> Softmax -> (dropout) -> product, however the model is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import tensorflow as tf

from tfquant.graph.contractions import MATMUL_OPS, Contraction, equation
from tfquant.graph.dataflow import ELEMENTWISE_OPS, VIEW_OPS, Dataflow, common_parent

# Between a projection and the product: head splitting, rotary embeddings, fused QKV kernels.
_REARRANGING_OPS = frozenset(
    "Split SplitV StridedSlice Slice Concat ConcatV2 Pack Unpack GatherV2 Tile BroadcastTo".split()
)
_LOCAL_OPS = ELEMENTWISE_OPS | VIEW_OPS
_FROM_PROJECTION_OPS = _LOCAL_OPS | _REARRANGING_OPS


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """One attention block.

    Attributes:
      path: layer path: what the projections' paths have in common.
      scores: the product of query and key; `query_index` says which operand is the query.
      softmax: the normalised scores.
      context: the product of probabilities and value; `probabilities_index` says which operand is
        the former.
      projections: `q`, `k`, `v` -> path of the linear that makes it, where there is one.
      between: names of the operations from the scores to the softmax: scale, mask, position bias.
      scalings: (operation, index of the activation) of the product of the scores, or else of one or
        both of their operands, with a scalar, or of the division.
    """

    path: str
    scores: Contraction
    query_index: int
    softmax: tf.Tensor
    context: Contraction
    probabilities_index: int
    projections: dict[str, str]
    between: frozenset[str]
    scalings: tuple[tuple[tf.Operation, int], ...]


def find_attention(flow: Dataflow, contractions: list[Contraction]) -> list[Attention]:
    by_name = {c.op.name: c for c in contractions}
    result: list[Attention] = []
    used: dict[str, int] = {}
    for scores in contractions:
        if scores.kind != "matmul":
            continue
        softmax = _softmax_after(flow, scores.op.outputs[0])
        match = None if softmax is None else _context_after(flow, softmax, by_name)
        if softmax is None or match is None:
            continue
        context, probabilities_index = match
        query_index = _query_index(scores.op)
        sources = {
            "q": scores.op.inputs[query_index],
            "k": scores.op.inputs[1 - query_index],
            "v": context.op.inputs[1 - probabilities_index],
        }
        projections = {
            port: p
            for port, t in sources.items()
            if (p := projection(flow, t, by_name)) is not None
        }
        path = common_parent(p.partition("#")[0] for p in projections.values()) or scores.op.name
        count = used[path] = used.get(path, 0) + 1
        if count > 1:
            path = f"{path}#{count}"
        between = _between(flow, scores.op, softmax)
        # What comes before operands that no linear makes may be anything.
        operands = [t for port, t in sources.items() if port != "v" and port in projections]
        result.append(
            Attention(
                path,
                scores,
                query_index,
                softmax,
                context,
                probabilities_index,
                projections,
                between,
                _scalings(flow, between, operands, by_name),
            )
        )
    return result


def fused_softmax(attention: Iterable[Attention]) -> list[tf.Operation]:
    """Softmax operation of each attention.

    Raises:
      ValueError: there is no attention, or a softmax is written out in primitive operations.
    """
    result = []
    for one in attention:
        if one.softmax.op.type != "Softmax":
            raise ValueError(
                f"softmax of attention {one.path!r} is written out as exponential, sum and"
                " division, which cannot be replaced: call tf.nn.softmax there, or set softmax:"
                " exact"
            )
        result.append(one.softmax.op)
    if not result:
        raise ValueError("softmax applies to attention, of which this model has none: remove it")
    return result


def _softmax_after(flow: Dataflow, scores: tf.Tensor) -> tf.Tensor | None:
    for op in flow.walk_forward([scores], lambda o: o.type in _LOCAL_OPS):
        if op.type == "Softmax":
            return op.outputs[0]
        if op.type in ("RealDiv", "Div") and is_written_out_softmax(flow, op):
            return op.outputs[0]
    return None


def _between(flow: Dataflow, scores: tf.Operation, softmax: tf.Tensor) -> frozenset[str]:
    after = flow.walk_forward(scores.outputs, lambda o: o.type in _LOCAL_OPS)
    before = flow.walk_back(
        softmax, lambda o: o.name != scores.name, not_before=flow.index[scores.name]
    )
    return frozenset(o.name for o in after) & frozenset(o.name for o in before)


def _scalings(
    flow: Dataflow,
    between: frozenset[str],
    operands: list[tf.Tensor],
    by_name: dict[str, Contraction],
) -> tuple[tuple[tf.Operation, int], ...]:
    """(operation, index of the activation) of the scaling of scores, or else of their operands.

    Args:
      flow: the graph.
      between: names of the operations from the scores to the softmax.
      operands: of the scores, those that a linear makes.
      by_name: contractions by the name of their operation.
    """
    for op in (flow.operations[i] for i in sorted(flow.index[name] for name in between)):
        index = _scaled_operand(flow, op)
        if index is not None and not _is_cap(flow, op):
            return ((op, index),)
    result = []
    for tensor in operands:
        behind = flow.walk_back(
            tensor, lambda o: o.type in _FROM_PROJECTION_OPS and o.name not in by_name
        )
        matches = ((op, _scaled_operand(flow, op)) for op in behind)
        result += [(op, index) for op, index in matches if index is not None][:1]
    return tuple(result)


def _scaled_operand(flow: Dataflow, op: tf.Operation) -> int | None:
    """Index of the activation that an operation multiplies with, or divides by, a scalar; None of
    other operations, and of a change of sign.
    """
    if op.type not in ("Mul", "RealDiv", "Div"):
        return None
    for index, scalar in enumerate(op.inputs):
        if scalar.shape.num_elements() != 1 or flow.is_dynamic(scalar):
            continue
        value = tf.get_static_value(scalar)
        if flow.is_dynamic(op.inputs[1 - index]) and (value is None or abs(value.item()) != 1.0):
            # The activation is never the divisor.
            return 1 - index if op.type == "Mul" or index == 1 else None
    return None


def _is_cap(flow: Dataflow, op: tf.Operation) -> bool:
    """Return whether an operation is one of the two scalings of a cap, c * tanh(scores / c)."""
    after = (consumer.type for consumer, _ in flow.value_consumers(op.outputs[0]))
    return "Tanh" in after or any(t.op.type == "Tanh" for t in op.inputs)


def is_written_out_softmax(flow: Dataflow, division: tf.Operation) -> bool:
    """Return whether an operation is a softmax of primitive operations, exp(x) / sum(exp(x))."""
    numerator, denominator = (flow.root(t) for t in division.inputs)
    return (
        numerator.op.type == "Exp"
        and denominator.op.type == "Sum"
        and flow.root(denominator.op.inputs[0]).name == numerator.name
    )


def _context_after(
    flow: Dataflow, softmax: tf.Tensor, by_name: dict[str, Contraction]
) -> tuple[Contraction, int] | None:
    """Product that consumes the probabilities, and the operand index."""
    reached = {softmax.name}
    for op in flow.walk_forward([softmax], lambda o: o.type in _LOCAL_OPS):
        contraction = by_name.get(op.name)
        if contraction is None:
            if op.type in _LOCAL_OPS:
                reached.update(t.name for t in op.outputs)
        elif contraction.kind == "matmul":
            for index, tensor in enumerate(op.inputs):
                if tensor.name in reached:
                    return contraction, index
    return None


def _query_index(scores: tf.Operation) -> int:
    """Softmax runs over the last axis, the keys.

    The key operand is the one that brings this axis into the product.
    """
    if scores.type in MATMUL_OPS:
        return 0
    terms, result = equation(scores)
    return 1 if result[-1] in terms[0] else 0


def projection(flow: Dataflow, tensor: tf.Tensor, by_name: dict[str, Contraction]) -> str | None:
    """Path of the last linear before `tensor`, across head splitting and the like; None where there
    is none.
    """
    for op in flow.walk_back(tensor, lambda o: o.type in _FROM_PROJECTION_OPS):
        contraction = by_name.get(op.name)
        if contraction is not None and contraction.kind == "linear":
            return contraction.path
    return None

"""Attentions that ONNX Runtime's operation `com.microsoft.MultiHeadAttention` can stand for, from
projections to merged heads.

The operation splits heads, multiplies, scales, adds a bias, normalises, multiplies and merges
heads. A part of the network is taken if it answers random numbers as the formula does, and if the
rest of the network has no hold on it: no site inside, no other reader.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.special
import tensorflow as tf

from tfquant.export.onnx.fused_region import EdgeKey, Region, Sites, answers_of_two_sizes, same
from tfquant.graph.attention import Attention
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.replay import Edits
from tfquant.layout import static_shape

_MOVES = ("Reshape", "Transpose", "Identity")


@dataclasses.dataclass(frozen=True, eq=False)
class FusedAttention:
    """A region and the names of the operations within it."""

    region: Region
    inside: frozenset[str]


def find_fused_attention(flow: Dataflow, sites: Sites) -> list[FusedAttention]:
    candidates = [
        candidate
        for result in flow.trace.analysis.structure.attention
        if (candidate := _candidate(flow, sites, result)) is not None
    ]
    if not candidates:
        return []
    answers = answers_of_two_sizes(
        flow.trace, lambda flat: _answers_to_noise(flow, candidates, flat)
    )
    if answers is None:
        return []
    result, start = [], 0
    for candidate in candidates:
        end = start + len(candidate.edges) + 1
        region = _region(flow, candidate, [one[start:end] for one in answers])
        start = end
        if region is not None:
            result.append(FusedAttention(region, candidate.inside))
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A candidate for a fused attention.

    Attributes:
      edges: of both operands of the scores, before heads are split; of the value; and of what is
        added to the scores, if anything.
      target: the context, heads merged if they are.
      heads: how many.
      inside: names of the operations from `edges` to `target`.
      scales: what the scores may be multiplied by.
      moved: edge of a site between the context and `target`.
    """

    edges: tuple[EdgeKey, ...]
    target: tf.Tensor
    heads: int
    inside: frozenset[str]
    scales: tuple[float, ...]
    moved: EdgeKey | None


def _candidate(flow: Dataflow, sites: Sites, attention: Attention) -> _Candidate | None:
    scores, context = attention.scores.op, attention.context.op
    if any(
        t.dtype != tf.float32 or t.shape.rank != 4
        for op in (scores, context)
        for t in (*op.inputs, *op.outputs)
    ):
        return None
    heads, added = scores.outputs[0].shape[1], list(_added_to_scores(flow, attention))
    if heads is None or len(added) > 1:
        return None
    operands = [
        _before_split(flow, op, i)
        for op, i in ((scores, 0), (scores, 1), (context, 1 - attention.probabilities_index))
    ]
    target, merging = _merged(flow, context.outputs[0])
    if not all(_has_heads(t, heads) for t in (*(_tensor(flow, edge) for edge in operands), target)):
        return None
    edges = (*operands, *added)
    operations = _between(flow, edges, target)
    if operations is None or not all(
        _fits(_tensor(flow, edge), scores.outputs[0]) for edge in added
    ):
        return None
    moved = [edge for edge in merging if edge in sites.edges]
    names = {name for name, _ in merging}
    unmoved = [op for op in operations if op.name not in names]
    rounded = any(
        t.name in sites.tensors and t.name != target.name for op in operations for t in op.outputs
    )
    rounded = rounded or any(_tensor(flow, edge).name in sites.tensors for edge in operands)
    if (
        rounded
        or sites.inside(unmoved, target)
        or len(moved) > 1
        or sites.bound.intersection(moved)
    ):
        return None
    size = math.prod(static_shape(_tensor(flow, operands[0]).shape[2:])) // heads
    inside = frozenset(op.name for op in operations)
    return _Candidate(
        edges, target, heads, inside, _scales(operations, size), moved[0] if moved else None
    )


def _tensor(flow: Dataflow, edge: EdgeKey) -> tf.Tensor:
    name, index = edge
    return flow.operations[flow.index[name]].inputs[index]


def _width(tensor: tf.Tensor) -> int | None:
    """Return the width of all heads together."""
    return tensor.shape[2:].num_elements()


def _has_heads(tensor: tf.Tensor, heads: int) -> bool:
    """Whether it may be [B, S, N * D] or [B, S, N, D]."""
    width = _width(tensor) if tensor.shape.rank in (3, 4) and tensor.dtype == tf.float32 else None
    return (
        width is not None
        and width % heads == 0
        and (tensor.shape.rank == 3 or tensor.shape[2] == heads)
    )


def _before_split(flow: Dataflow, op: tf.Operation, index: int) -> EdgeKey:
    """The edge on which an operand of a product comes in before its heads are split, as far as
    nothing is done but to scale it.
    """
    while op.inputs[index].shape.rank == 4:
        maker = op.inputs[index].op
        following = 0
        if maker.type == "Mul" and _is_scalar(flow, maker.inputs[0]):
            following = 1
        elif maker.type not in _MOVES and not (
            maker.type in ("Mul", "RealDiv") and _is_scalar(flow, maker.inputs[1])
        ):
            break
        if maker.inputs[following].shape.rank not in (3, 4):
            break
        op, index = maker, following
    return op.name, index


def _is_scalar(flow: Dataflow, tensor: tf.Tensor) -> bool:
    return tensor.shape.rank == 0 and flow.is_fixed(tensor)


def _merged(flow: Dataflow, context: tf.Tensor) -> tuple[tf.Tensor, list[EdgeKey]]:
    """The context with its heads merged, as far as nothing else is done to it, and the edges on the
    way.
    """
    edges: list[EdgeKey] = []
    while context.shape.rank == 4 and context.name not in flow.output_names:
        readers = [
            (op, index) for op, index in flow.value_consumers(context) if op.name in flow.used
        ]
        op, index = readers[0] if len(readers) == 1 else (None, 0)
        if (
            op is None
            or op.type not in _MOVES
            or index != 0
            or op.outputs[0].shape.rank not in (3, 4)
        ):
            break
        edges.append((op.name, index))
        context = op.outputs[0]
    return context, edges


def _added_to_scores(flow: Dataflow, attention: Attention) -> Iterator[EdgeKey]:
    """Edges with masks and biases."""
    derived = attention.between | {attention.scores.op.name}
    for name in attention.between:
        op = flow.operations[flow.index[name]]
        if op.type in ("Add", "AddV2"):
            yield from (
                (name, index)
                for index, tensor in enumerate(op.inputs)
                if tensor.op.name not in derived
            )


def _fits(added: tf.Tensor, scores: tf.Tensor) -> bool:
    """Whether what is added to the scores leaves them their shape, [B, N, S, T], for every
    batch.
    """
    if added.dtype != tf.float32 or added.shape.rank is None or added.shape.rank > 4:
        return False
    return added.shape.rank < 4 or all(
        size in (1, whole) for size, whole in zip(added.shape[:2], scores.shape[:2], strict=True)
    )


def _between(
    flow: Dataflow, edges: Sequence[EdgeKey], target: tf.Tensor
) -> list[tf.Operation] | None:
    """Operations that `target` takes values from behind `edges`; None if it takes others too, or
    others take some of theirs.
    """
    inputs, met = {t.op.name for t in flow.trace.inputs}, set()
    result: dict[str, tf.Operation] = {}
    pending = [target.op]
    while pending:
        op = pending.pop()
        if op.name in result:
            continue
        if op.name in inputs:
            return None
        result[op.name] = op
        for index, tensor in enumerate(op.inputs):
            if (op.name, index) in edges:
                met.add((op.name, index))
            elif flow.is_dynamic(tensor):
                pending.append(tensor.op)
    inner = [t for op in result.values() for t in op.outputs if t.name != target.name]
    readers = {op.name for t in inner for op, _ in flow.value_consumers(t)} & flow.used
    if (
        met != set(edges)
        or readers - result.keys()
        or any(t.name in flow.output_names for t in inner)
    ):
        return None
    return sorted(result.values(), key=lambda op: flow.index[op.name])


def _scales(operations: Sequence[tf.Operation], size: int) -> tuple[float, ...]:
    """Return the factors that scores may be multiplied by.

    One over the root of the size of a head, or a constant that is there.
    """
    values = [
        tf.get_static_value(tensor)
        for op in operations
        for tensor in op.inputs
        if tensor.dtype == tf.float32
    ]
    constants = [
        float(value) for value in values if value is not None and np.size(value) == 1 and value != 0
    ]
    return tuple(
        dict.fromkeys(
            [1.0 / math.sqrt(size), 1.0, *constants, *(1.0 / value for value in constants)]
        )
    )


# The proof.


def _answers_to_noise(
    flow: Dataflow, candidates: Sequence[_Candidate], flat: list[tf.Tensor]
) -> list[tf.Tensor]:
    """Return random inputs of every candidate, and its outputs for them."""
    noise: dict[EdgeKey, tf.Tensor] = {}

    def replaced(edge: EdgeKey, tensor: tf.Tensor) -> tf.Tensor:
        noise[edge] = tf.random.stateless_normal(tf.shape(tensor), seed=(0, len(noise)))
        return tf.ensure_shape(noise[edge], tensor.shape)

    edges = {
        edge: lambda tensor, edge=edge: replaced(edge, tensor)
        for candidate in candidates
        for edge in candidate.edges
    }
    targets = iter(
        flow.trace.emit(flat, Edits(edges), targets=[candidate.target for candidate in candidates])
    )
    return [
        tensor
        for candidate in candidates
        for tensor in (*(noise[edge] for edge in candidate.edges), next(targets))
    ]


def _region(
    flow: Dataflow, candidate: _Candidate, samples: Sequence[Sequence[np.ndarray]]
) -> Region | None:
    """The region if the samples, each what comes in and the answer, are those of an attention."""
    first, second, *others = candidate.edges
    for exchanged in (False, True):
        edges = (second, first, *others) if exchanged else candidate.edges
        for scale in candidate.scales:
            if not all(
                _is_attention(sample, candidate.heads, scale, exchanged) for sample in samples
            ):
                continue
            ends = dict(
                zip(
                    ("query", "key", "value"), (_tensor(flow, edge) for edge in edges), strict=False
                )
            )
            shapes = {
                name: [0, 0, _width(tensor)]
                for name, tensor in ends.items()
                if tensor.shape.rank == 4
            }
            if candidate.target.shape.rank == 4:
                shapes["target"] = [0, 0, *candidate.target.shape[2:]]
            parameters = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
            attributes = {"num_heads": candidate.heads, "scale": scale}
            return Region(
                "MultiHeadAttention",
                edges,
                candidate.target,
                parameters,
                attributes,
                candidate.moved,
            )
    return None


def _is_attention(sample: Sequence[np.ndarray], heads: int, scale: float, exchanged: bool) -> bool:
    query, key, value, *added, answer = sample
    query, key = (key, query) if exchanged else (query, key)
    query, key, value = (
        x.reshape(*x.shape[:2], heads, -1).astype(np.float64) for x in (query, key, value)
    )
    if query.shape[::3] != key.shape[::3] or key.shape[:2] != value.shape[:2]:
        return False
    scores = scale * np.einsum("bsnd,btnd->bnst", query, key)
    for bias in added:
        if any(
            size not in (1, whole)
            for size, whole in zip(bias.shape[::-1], scores.shape[::-1], strict=False)
        ):
            return False
        scores = scores + bias
    context = np.einsum("bnst,btnd->bsnd", scipy.special.softmax(scores, axis=-1), value)
    return answer.size == context.size and same(answer, context.reshape(answer.shape))

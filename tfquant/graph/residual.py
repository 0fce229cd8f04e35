"""Detection of residual additions by structure: one operand (the skip) is an ancestor of the other,
through a contraction.

Or the skip is a projection of that ancestor: a branch with one linear beside a branch with more, as
around MobileBERT's attention.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container

import tensorflow as tf

from tfquant.graph.attention import Attention
from tfquant.graph.contractions import Contraction
from tfquant.graph.dataflow import SHAPES_ALONE, Dataflow, distinct

_ADD_OPS = ("Add", "AddV2")


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """`op` adds input `skip_index` to the output of the layer at `layer`, its last contraction.

    `source` is the tensor that both ways start from: the skip operand, or what it is a projection
    of. `path` is that of the layer, with a number where several additions follow one contraction.
    """

    op: tf.Operation
    skip_index: int
    path: str
    source: tf.Tensor
    layer: str

    @property
    def other_index(self) -> int:
        return 1 - self.skip_index


def find_residuals(
    flow: Dataflow,
    contractions: list[Contraction],
    attention: list[Attention],
    paths: dict[str, str],
) -> list[Residual]:
    """Find all residual additions in graph order.

    Args:
      paths: operation name of a contraction -> layer path.
    """
    by_name = {c.op.name: c for c in contractions}
    # The mask added to scores comes before them too, through the attention of earlier layers.
    in_attention = {name for a in attention for name in a.between}
    result = []
    for op in flow.operations:
        if (
            op.type not in _ADD_OPS
            or op.name in in_attention
            or not op.outputs[0].dtype.is_floating
        ):
            continue
        if not all(map(flow.is_dynamic, op.inputs)) or not _same_shape(*op.inputs):
            continue
        if op.name not in flow.used:  # such as the last state of a loop
            continue
        residual = _identity(flow, op, by_name, paths) or _projection(flow, op, by_name, paths)
        if residual is not None:
            result.append(residual)
    numbered = distinct(residual.path for residual in result)
    return [
        dataclasses.replace(residual, path=path)
        for residual, path in zip(result, numbered, strict=True)
    ]


def _identity(
    flow: Dataflow, op: tf.Operation, by_name: dict[str, Contraction], paths: dict[str, str]
) -> Residual | None:
    """Match the addition of a tensor to a result computed from it."""
    for skip_index, skip in enumerate(op.inputs):
        source = _source(flow, skip)
        between = _contractions_since(flow, source, op.inputs[1 - skip_index], by_name)
        if between:
            return Residual(op, skip_index, paths[between[0]], source, paths[between[0]])
    return None


def _source(flow: Dataflow, skip: tf.Tensor) -> tf.Tensor:
    """Skip operand before a multiplication by the scale of its layer norm, if it has one."""
    scaled = flow.through_dropout(skip)
    return flow.unscaled(scaled) if flow.is_rescaling(scaled.op) else skip


def _projection(
    flow: Dataflow, op: tf.Operation, by_name: dict[str, Contraction], paths: dict[str, str]
) -> Residual | None:
    """Match the addition of a linear of a tensor to a result computed from that tensor through more
    than one contraction.
    """
    for skip_index, skip in enumerate(op.inputs):
        walk = flow.walk_back(skip, lambda o: o.name not in by_name)
        behind = list(itertools.islice((by_name[o.name] for o in walk if o.name in by_name), 2))
        if len(behind) != 1 or behind[0].kind != "linear":
            continue
        source = behind[0].op.inputs[behind[0].input_index]
        between = _contractions_since(flow, source, op.inputs[1 - skip_index], by_name)
        if len(between) > 1:
            return Residual(op, skip_index, paths[between[0]], source, paths[between[0]])
    return None


def _same_shape(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Return whether no operand is broadcast, as masks and biases are."""
    return a.shape.rank == b.shape.rank and a.shape.is_compatible_with(b.shape)


def _contractions_since(
    flow: Dataflow, source: tf.Tensor, other: tf.Tensor, contractions: Container[str]
) -> list[str]:
    """Names of the contractions between `source` and `other`, last one first; empty if `other` does
    not depend on `source`.
    """
    start = flow.through_dropout(source).op
    walk = flow.walk_back(
        other, lambda op: op.name != start.name, not_before=flow.index[start.name]
    )
    behind = [op.name for op in walk]
    if start.name not in behind:
        return []
    return [name for name in behind if name in contractions and name != start.name]


def before_residual(flow: Dataflow, residuals: list[Residual]) -> frozenset[str]:
    """Names of operations with a later residual addition among their descendants.

    The body of a network, without its heads.
    """
    goals = {r.op.name for r in residuals}
    reaching: set[str] = set()
    for op in reversed(flow.operations):
        if (op.name in goals or op.name in reaching) and op.type not in SHAPES_ALONE:
            reaching.update(tensor.op.name for tensor in op.inputs)
    return frozenset(reaching)

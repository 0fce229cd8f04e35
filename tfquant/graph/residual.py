"""Residual additions by structure: one operand (the skip) is what the other was computed from, through a contraction."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfquant.graph.attention import Attention
from tfquant.graph.contractions import Contraction
from tfquant.graph.dataflow import Dataflow

_ADD_OPS = ("Add", "AddV2")


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """`op` adds input `skip_index` to the output of the layer at `path`, its last contraction."""

    op: tf.Operation
    skip_index: int
    path: str

    @property
    def other_index(self) -> int:
        return 1 - self.skip_index


def find_residuals(
    flow: Dataflow, contractions: list[Contraction], attention: list[Attention], paths: dict[str, str]
) -> list[Residual]:
    """All residual additions in graph order.

    Args:
      paths: operation name of a contraction -> layer path.
    """
    names = {c.op.name for c in contractions}
    # The mask added to scores comes before them too, through the attention of earlier layers.
    in_attention = {name for a in attention for name in a.between}
    found = []
    for op in flow.operations:
        if op.type not in _ADD_OPS or op.name in in_attention or not op.outputs[0].dtype.is_floating:
            continue
        if not all(map(flow.is_dynamic, op.inputs)) or not _same_shape(*op.inputs):
            continue
        for skip_index in (0, 1):
            last = _last_contraction_since(flow, op.inputs[skip_index], op.inputs[1 - skip_index], names)
            if last is not None:
                found.append(Residual(op, skip_index, paths[last]))
                break
    return found


def _same_shape(a: tf.Tensor, b: tf.Tensor) -> bool:
    """False where one is broadcast, as masks and biases are."""
    return a.shape.rank == b.shape.rank and a.shape.is_compatible_with(b.shape)


def _last_contraction_since(flow: Dataflow, skip: tf.Tensor, other: tf.Tensor, contractions: set[str]) -> str | None:
    """Name of the last contraction between `skip` and `other`; None where `other` does not come from `skip` through one."""
    start = flow.through_dropout(skip).op
    behind = flow.walk_back(other, lambda op: op.name != start.name, not_before=flow.index[start.name])
    if not any(op.name == start.name for op in behind):
        return None
    return next((op.name for op in behind if op.name in contractions and op.name != start.name), None)


def before_residual(flow: Dataflow, residuals: list[Residual]) -> frozenset[str]:
    """Names of operations from which a later residual addition can be reached: the body of a network, without its heads."""
    goals = {r.op.name for r in residuals}
    reaching: set[str] = set()
    for op in reversed(flow.operations):
        for tensor in op.outputs:
            if any(c.name in goals or c.name in reaching for c, _ in flow.value_consumers(tensor)):
                reaching.add(op.name)
                break
    return frozenset(reaching)


def downstream(flow: Dataflow, tensors: list[tf.Tensor]) -> frozenset[str]:
    """Names of operations that depend on one of `tensors`."""
    tainted = {t.name for t in tensors}
    found = set()
    for op in flow.operations:
        if any(t.name in tainted for t in op.inputs):
            found.add(op.name)
            tainted.update(t.name for t in op.outputs)
    return frozenset(found)

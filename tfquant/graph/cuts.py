"""Cuts of a graph: sets of tensors that separate the inputs from later operations.

A cut is what has to be stored to continue a computation later; narrow cuts hold few elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph.dataflow import Dataflow

# A frontier may be so much wider than the narrowest of the next few.
_WIDER, _AHEAD = 1.5, 5


def frontier_at(flow: Dataflow, start: int, targets: Iterable[tf.Tensor]) -> list[tf.Tensor]:
    """Tensors computed before an operation that determine `targets`, excluding model inputs and
    parameters.

    Args:
      flow: of the graph.
      start: index of the operation in the graph.
      targets: tensors of the graph.
    """
    targets, index = list(targets), flow.index
    crossing = {t.name: t for t in targets}
    for op in flow.trace.ancestors(targets):
        if index[op.name] >= start:
            crossing.update((t.name, t) for t in op.inputs)
    return [t for t in crossing.values() if index[t.op.name] < start and _can_be_kept(flow, t)]


def narrow(frontiers: Sequence[Sequence[tf.Tensor]]) -> list[bool]:
    """Select those of consecutive frontiers that hold few elements.

    Those between the blocks of a transformer, not inside of them.
    """
    widths = [sum(map(_width, tensors)) for tensors in frontiers]
    return [width <= _WIDER * min(widths[i : i + _AHEAD]) for i, width in enumerate(widths)]


def _can_be_kept(flow: Dataflow, tensor: tf.Tensor) -> bool:
    return (
        not flow.is_static(tensor)
        and tensor.op.type != "Placeholder"
        and tensor.dtype != tf.resource
    )


def _width(tensor: tf.Tensor) -> int:
    """Elements of a tensor per sample: axes of open size count once."""
    return (
        int(np.prod([size or 1 for size in tensor.shape])) if tensor.shape.rank is not None else 0
    )

"""A part of a network that one operation can stand for, and what every kind of it is held
against.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.graph.trace import Trace
from tfquant.site import Site

EdgeKey = tuple[str, int]  # operation name, input index

_CLOSE = 1e-5  # relative to the largest value: float32 in another order of operations
_SIZES = ((2, 3), (3, 5))  # batch and length of two inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A part of the graph that one operation can replace.

    Attributes:
      kind: of the operation, as ONNX calls it.
      inputs: edges on which its inputs come in, in its order: of a MatMul the source and the
        kernel, of a MultiHeadAttention query, key, value and, if there is one, what is added to the
        scores. Every other edge carries the same values.
      target: the output.
      parameters: further operands by their name in ONNX; of a MatMul the shapes to give `source`,
        `kernel` and `target`, of a MultiHeadAttention those of `query`, `key`, `value` and
        `target`, if any.
      attributes: of the operation.
      moved: edge inside whose site rounds `target` instead: the values there are those of `target`,
        rearranged.
    """

    kind: str
    inputs: tuple[EdgeKey, ...]
    target: tf.Tensor
    parameters: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    moved: EdgeKey | None = None


class Sites:
    """Positions of enabled sites.

    Attributes:
      edges: with a site for one consumer.
      tensors: names of those with a site for all consumers.
      bound: edges whose site has scales that do not follow when axes are merged.
    """

    def __init__(self, engine: Engine | None):
        pairs = (
            [(site, edge) for site, edge in engine.placements() if site.enabled] if engine else []
        )
        self.edges = {edge.consumer for _, edge in pairs if edge.consumer is not None}
        self.tensors = {edge.tensor.name for _, edge in pairs if edge.consumer is None}
        self.bound = {edge.consumer for site, edge in pairs if not _follows_merged_axes(site)}

    def inside(self, operations: Sequence[tf.Operation], target: tf.Tensor) -> bool:
        """Whether a site changes what `operations` read, or what they make other than `target`."""
        reads = any(
            (op.name, index) in self.edges for op in operations for index in range(len(op.inputs))
        )
        return reads or any(
            t.name in self.tensors for op in operations for t in op.outputs if t.name != target.name
        )


def _follows_merged_axes(site: Site) -> bool:
    """Whether a site rounds a tensor to the same values where its last axis is merged with others:
    with one scale, or with blocks that divide that axis.
    """
    layout = site.spec.layout
    if not layout.per_block:
        return layout.granularity == "per_tensor"
    size, last = layout.block_size or 0, site.shape[-1]
    return site.block_axis == -1 and last is not None and last % size == 0


def same(answer: np.ndarray, expected: np.ndarray) -> bool:
    return answer.shape == expected.shape and bool(
        np.abs(answer - expected).max() <= _CLOSE * max(1.0, np.abs(expected).max())
    )


def answers_of_two_sizes(
    trace: Trace, emit: Callable[[list[tf.Tensor]], list[tf.Tensor]]
) -> list[list[np.ndarray]] | None:
    """Return the outputs of `emit` for inputs of zeros, for two batches and lengths; None where the
    network takes no such inputs.
    """
    if any(spec.shape.rank is None for spec in trace.input_specs):
        return None
    function = tf.function(
        lambda *flat: emit(list(flat)), autograph=False, input_signature=trace.input_specs
    ).get_concrete_function()
    result = []
    for batch, length in _SIZES:
        flat = []
        for spec in trace.input_specs:
            sizes = [
                size if size is not None else (length if axis else batch)
                for axis, size in enumerate(spec.shape)
            ]
            flat.append(tf.zeros(sizes, spec.dtype))
        try:
            result.append([answer.numpy() for answer in function(*flat)])
        except tf.errors.OpError:
            return None
    return result

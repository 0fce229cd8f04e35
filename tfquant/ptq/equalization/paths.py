"""Scale paths: the operations between a tensor and the next weights, as long as a factor per
channel commutes with them.

Such are views, selections, means, products with what does not depend on the tensor, ReLU for
positive factors, and the product of an attention with its probabilities. Biases may be added, as
they can be scaled along.
"""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from tfquant.graph.attention import Attention
from tfquant.graph.contractions import Contraction
from tfquant.graph.dataflow import VIEW_OPS
from tfquant.graph.replay import descendants
from tfquant.graph.structure import Structure

# Of their first input.
_HOMOGENEOUS_OPS = VIEW_OPS | frozenset(
    "Relu LeakyRelu Mean Sum Slice StridedSlice Gather GatherV2".split()
)
_PRODUCT_OPS = frozenset("Mul RealDiv".split())
_ADD_OPS = frozenset("BiasAdd Add AddV2".split())


@dataclasses.dataclass(frozen=True, eq=False)
class ScalePath:
    """Scale path of one tensor, see the module docstring.

    Attributes:
      source: the tensor.
      shifts: (operation, input index) of the parameters that are added on the way.
      linears: the products with weights at its end.
      scores: (attention, `q` or `k`) of those at whose scores it ends.
      contexts: attentions whose value it is.
      obstacles: why factors cannot go along; empty where they can.
    """

    source: tf.Tensor
    shifts: tuple[tuple[tf.Operation, int], ...]
    linears: tuple[Contraction, ...]
    scores: tuple[tuple[Attention, str], ...]
    contexts: tuple[Attention, ...]
    obstacles: tuple[str, ...]


class ScalePathFinder:
    """Finder of scale paths in a graph."""

    def __init__(self, structure: Structure):
        self._structure, self._flow = structure, structure.flow
        self._linears = {c.op.name: c for c in structure.contractions if c.kind == "linear"}
        self._scores = {a.scores.op.name: a for a in structure.attention}
        self._contexts = {a.context.op.name: a for a in structure.attention}
        self._norms = {n.output.name: n.path for n in structure.layernorms}
        self._skips = {(r.op.name, r.skip_index): r.path for r in structure.residuals}
        self._sums = {(r.op.name, r.other_index): r.path for r in structure.residuals}

    def way(self, source: tf.Tensor) -> ScalePath:
        """Scale path of a tensor."""
        result: dict[str, dict] = {
            name: {} for name in ("shifts", "linears", "scores", "contexts", "obstacles")
        }
        pending, seen = [source], {source.name}
        depends = functools.cache(lambda: descendants(self._flow.operations, [source]))
        while pending:
            tensor = pending.pop()
            if tensor.name in self._flow.output_names:
                result["obstacles"]["it is an output of the model"] = None
            if tensor.dtype not in (tf.float32, tf.float64):
                result["obstacles"][
                    f"it is computed in {tensor.dtype.name}, where other factors round otherwise"
                ] = None
            for op, index in self._flow.value_consumers(tensor):
                if op.name not in self._flow.used:
                    continue
                kind, what = self._step(op, index, depends)
                if kind != "on":
                    result[kind][what] = None
                if kind in ("on", "shifts", "contexts") and op.outputs[0].name not in seen:
                    seen.add(op.outputs[0].name)
                    pending.append(op.outputs[0])
        return ScalePath(source, **{name: tuple(of_kind) for name, of_kind in result.items()})

    def _step(self, op: tf.Operation, index: int, depends) -> tuple[str, object]:
        """Classify a consumer on a path.

        (name of an attribute of `ScalePath`, entry there), or (`on`, None).
        """
        linear = self._linears.get(op.name)
        if linear is not None and index == linear.input_index:
            return "linears", linear
        if op.name in self._scores:
            attention = self._scores[op.name]
            return "scores", (attention, "q" if index == attention.query_index else "k")
        if op.name in self._contexts and index == 1 - self._contexts[op.name].probabilities_index:
            return "contexts", self._contexts[op.name]
        if (op.name, index) in self._skips:
            path = self._skips[op.name, index]
            return (
                "obstacles",
                (
                    f"a residual connection takes it past {path}: factors would need an operation"
                    " on the way there"
                ),
            )
        if (op.name, index) in self._sums:
            return "obstacles", "it is added to a residual connection"
        if op.outputs and op.outputs[0].name in self._norms:
            return "obstacles", f"layer norm {self._norms[op.outputs[0].name]} takes it"
        if index == 0 and op.type in _HOMOGENEOUS_OPS:
            return "on", None
        others = [t for i, t in enumerate(op.inputs) if i != index]
        if (
            op.type in _PRODUCT_OPS
            and (index == 0 or op.type == "Mul")
            and others[0].op.name not in depends()
        ):
            return "on", None
        if op.type in _ADD_OPS and self._flow.is_fixed(others[0]) and not _channels_first(op):
            return "shifts", (op, 1 - index)
        return "obstacles", f"{op.type} ({op.name}) takes it"


def _channels_first(op: tf.Operation) -> bool:
    return op.type == "BiasAdd" and op.get_attr("data_format") != b"NHWC"

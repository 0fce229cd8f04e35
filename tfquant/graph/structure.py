"""Structure of a graph: attention, residual additions, layer norms, heads and blocks.

Found from the operations, never from names.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import tensorflow as tf

from tfquant.graph.activations import NONLINEAR_OPS, Activation, find_activations
from tfquant.graph.attention import Attention, find_attention, projection
from tfquant.graph.contractions import Contraction, Skipped, product_equation
from tfquant.graph.dataflow import ELEMENTWISE_OPS, VIEW_OPS, Dataflow, common_parent
from tfquant.graph.expression import Expressions
from tfquant.graph.layernorm import LayerNorm, find_layernorms
from tfquant.graph.replay import descendants
from tfquant.graph.residual import Residual, before_residual, find_residuals
from tfquant.site import address

_SELECTING_OPS = frozenset("StridedSlice Slice Gather GatherV2 GatherNd".split())


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of an encoder or decoder: an attention with a residual addition, and all operations
    up to the next one.

    Attributes:
      path: layer path of the attention.
      probabilities: address of its probabilities, before dropout.
      output: address of the hidden state that leaves the block; None where no edge carries it.
    """

    path: str
    probabilities: str
    output: str | None


@dataclasses.dataclass(frozen=True)
class Layer:
    """Operations of one block.

    Attributes:
      operations: names of those that make the state that leaves it, without those that make the
        state that enters it.
      branch: address of what its last addition adds to the skip operand: the output of the
        feed-forward part.
    """

    operations: frozenset[str]
    branch: str


class Structure:
    """Structural patterns of one graph."""

    def __init__(
        self,
        flow: Dataflow,
        expressions: Expressions,
        contractions: list[Contraction],
        skipped: list[Skipped],
    ):
        self.flow, self.expressions, self.skipped = flow, expressions, skipped
        self.lookups = [c for c in contractions if self._is_one_hot_lookup(c)]
        self.contractions: list[Contraction] = [c for c in contractions if c not in self.lookups]
        self.attention: list[Attention] = find_attention(flow, self.contractions)
        self.paths = self._contraction_paths()
        self.residuals: list[Residual] = find_residuals(
            flow, self.contractions, self.attention, self.paths
        )
        self.layernorms: list[LayerNorm] = find_layernorms(flow)
        self.activations: list[Activation] = find_activations(flow, self.attention, self.paths)
        self.zones = self._zones()
        self.head_paths = {self.paths[name]: zone for name, zone in self.zones.items()}
        self.projections = {
            p: (a.path, port) for a in self.attention for port, p in a.projections.items()
        }

    def blocks(self) -> list[Block]:
        """Blocks in graph order; each ends with the tensor that the next attention is added to.

        A normed state or the bare sum, as the model has it.
        """
        entries = self.entries
        states = {
            self.flow.root(r.op.outputs[0]).name: address("residual_sum", r.path, "output")
            for r in self.residuals
        }
        states.update(
            (self.flow.root(n.output).name, address("layernorm_output", n.path, "output"))
            for n in self.layernorms
        )
        leaving = [self.flow.through_dropout(skip).name for _, skip in entries[1:]]
        leaving += [self.flow.root(tensor).name for tensor, _ in self.block_ends[-1:]]
        return [
            Block(a.path, address("softmax_output", a.path, "output"), states.get(state))
            for (a, _), state in zip(entries, leaving, strict=True)
        ]

    @functools.cached_property
    def entries(self) -> list[tuple[Attention, tf.Tensor]]:
        """Attentions that begin a block, and the tensor their result is added to."""
        return [(a, residual.source) for a, residual in self.entry_residuals]

    @functools.cached_property
    def entry_residuals(self) -> list[tuple[Attention, Residual]]:
        """Attentions that begin a block, and the addition of their result."""
        return [(a, result) for a in self.attention if (result := self._entry(a)) is not None]

    def layers(self) -> Iterator[Layer]:
        """Operations of each block, between the states at which blocks begin; the last one ends
        with the body of the network.
        """
        states = [
            *(entry for _, entry in self.entries),
            *(tensor for tensor, _ in self.block_ends[-1:]),
        ]
        behind = [self._makers(state) for state in states]
        for before, after in itertools.pairwise(behind):
            own = after - before
            added = [residual for residual in self.residuals if residual.op.name in own]
            if added:
                yield Layer(own, address("residual_other", added[-1].path, "other"))

    def _makers(self, tensor: tf.Tensor) -> frozenset[str]:
        """Names of all operations that a tensor depends on."""
        return frozenset(
            op.name
            for op in self.flow.walk_back(self.flow.through_dropout(tensor), lambda op: True)
        )

    def _entry(self, attention: Attention) -> Residual | None:
        """Residual addition of the result of an attention; None where there is none."""
        context, by_name = attention.context.op, {r.op.name: r for r in self.residuals}
        after = {context.name}
        for op in self.flow.operations[self.flow.index[context.name] + 1 :]:
            depends = [tensor.op.name in after for tensor in op.inputs]
            residual = by_name.get(op.name)
            if residual and depends[residual.other_index] and not depends[residual.skip_index]:
                return residual
            if any(depends):
                after.add(op.name)
        return None

    @functools.cached_property
    def _body(self) -> frozenset[str]:
        return before_residual(self.flow, self.residuals)

    @functools.cached_property
    def block_ends(self) -> list[tuple[tf.Tensor, str]]:
        """(hidden state, layer path) behind additions that no later addition depends on."""
        if not self.attention or not self.residuals:
            return []
        ends = []
        for residual in self.residuals:
            if residual.op.name in self._body:
                continue
            total = residual.op.outputs[0]
            norm = next(
                (n for n in self.layernorms if self.flow.root(n.input).name == total.name), None
            )
            ends.append((norm.output, norm.layer) if norm else (total, residual.layer))
        return ends

    def _zones(self) -> dict[str, str]:
        """Map operation name -> `pooler` or `logits` for the linears after the last block."""
        ends = [tensor for tensor, _ in self.block_ends]
        if not ends:
            return {}
        after = descendants(self.flow.operations, ends)
        heads = [
            c
            for c in self.contractions
            if c.kind == "linear" and c.op.name in after and c.op.name not in self._body
        ]
        return {c.op.name: "pooler" if self._is_pooler(c) else "logits" for c in heads}

    def _is_pooler(self, contraction: Contraction) -> bool:
        """Return whether a linear is a pooler: one token is selected before, and Tanh follows, or
        another nonlinearity and a linear.
        """
        before = self.flow.walk_back(
            contraction.op.inputs[contraction.input_index],
            lambda o: o.type in VIEW_OPS or o.type in ELEMENTWISE_OPS,
        )
        after = self.flow.walk_forward(
            contraction.op.outputs, lambda o: o.type in VIEW_OPS or o.type in ("BiasAdd", "AddV2")
        )
        if not any(o.type in _SELECTING_OPS for o in before):
            return False
        return any(
            o.type == "Tanh" or (o.type in NONLINEAR_OPS and self._feeds_linear(o)) for o in after
        )

    def _feeds_linear(self, op: tf.Operation) -> bool:
        after = descendants(self.flow.operations, list(op.outputs))
        return any(c.kind == "linear" and c.op.name in after for c in self.contractions)

    def bias_after(self, product: tf.Tensor) -> tuple[tf.Operation, int] | None:
        """(operation, index of the operand) of the bias added to a product; None where none is."""
        for op in self.flow.walk_forward([product], lambda o: o.type in VIEW_OPS):
            if op.type == "BiasAdd":
                return op, 1
            if op.type in ("Add", "AddV2"):
                return next(
                    ((op, i) for i, t in enumerate(op.inputs) if self._is_small_parameter(t)), None
                )
        return None

    def _is_small_parameter(self, tensor: tf.Tensor) -> bool:
        return self.flow.is_parameter(tensor) and self.flow.variable_behind(tensor) is not None

    @functools.cached_property
    def activated_inputs(self) -> dict[str, tuple[str, tf.Tensor]]:
        """Map operation name of a linear -> (path of the linear before, activated tensor) where a
        nonlinearity lies between the two.
        """
        linears = [c for c in self.contractions if c.kind == "linear"]
        found = ((c.op.name, self._activation_before(c)) for c in linears)
        return {name: activation for name, activation in found if activation is not None}

    def _activation_before(self, contraction: Contraction) -> tuple[str, tf.Tensor] | None:
        tensor = self.flow.through_dropout(contraction.op.inputs[contraction.input_index])
        sources, nonlinear = [], False
        for op in self.flow.walk_back(
            tensor, lambda o: o.type in ELEMENTWISE_OPS or o.type in VIEW_OPS
        ):
            nonlinear = nonlinear or op.type in NONLINEAR_OPS
            sources += [op.name] if op.name in self.paths else []
            if len(sources) > 1:
                return None
        return (self.paths[sources[0]], tensor) if sources and nonlinear else None

    @functools.cached_property
    def layer_outputs(self) -> dict[str, tf.Tensor]:
        """Map layer path of each linear -> its output.

        Behind bias and activation function, where it has them.
        """
        result: dict[str, tf.Tensor] = {}
        for contraction in self.contractions:
            if contraction.kind == "linear":
                bias = self.bias_after(contraction.op.outputs[0])
                result[self.paths[contraction.op.name]] = (
                    bias[0] if bias else contraction.op
                ).outputs[0]
        return result | dict(self.activated_inputs.values())

    def _is_one_hot_lookup(self, contraction: Contraction) -> bool:
        """Return whether a product with one-hot rows only selects rows of the parameter."""
        if contraction.kind != "linear" or contraction.handle is None:
            return False
        op, index = contraction.op, contraction.input_index
        tensor = op.inputs[index]
        while (
            tensor.op.type in ("Identity", "Cast", "Reshape")
            and tensor.shape.rank
            and tensor.op.inputs[0].shape.rank
        ):
            if tensor.shape[-1] != tensor.op.inputs[0].shape[-1]:
                return False
            tensor = tensor.op.inputs[0]
        return _is_one_hot(tensor) and _summed_axes(op, index) == (op.inputs[index].shape.rank - 1,)

    def _contraction_paths(self) -> dict[str, str]:
        """Map operation name -> layer path; the products of an attention use that of the attention.

        Other products of two activations are called after the layers that make their operands, in
        the order data flows, since names of operations change from trace to trace.
        """
        paths = {c.op.name: c.path for c in self.contractions}
        for attention in self.attention:
            paths[attention.scores.op.name] = attention.path
            paths[attention.context.op.name] = attention.path
        in_attention = {op.name for a in self.attention for op in (a.scores.op, a.context.op)}
        by_name = {c.op.name: c for c in self.contractions}
        uses: dict[str, int] = {}
        for contraction in self.contractions:
            if contraction.kind != "matmul" or contraction.op.name in in_attention:
                continue
            result = (projection(self.flow, t, by_name) for t in contraction.op.inputs)
            makers = {p.partition("#")[0] for p in result if p is not None}
            if makers:
                path = "/".join(
                    filter(
                        None, (common_parent(makers) if len(makers) > 1 else min(makers), "matmul")
                    )
                )
                count = uses[path] = uses.get(path, 0) + 1
                paths[contraction.op.name] = path if count == 1 else f"{path}#{count}"
        return paths

    def lifted(self, op: tf.Operation, index: int) -> tuple[tf.Operation, int]:
        """Edge into the first of the views and dropouts before `op` that have no other consumer.

        Before views, so that consumers of one tensor share one QDQ. Before a multiplication by the
        migrated scale of a layer norm, whose purpose is that quantizers do not see it. Before
        dropout, as it scales what it keeps up: behind it, a range of the values that prediction
        sees would clip the largest of them.
        """
        while True:
            source = op.inputs[index]
            before = source.op
            alone = (
                len(self.flow.value_consumers(source)) == 1
                and source.name not in self.flow.output_names
            )
            passed_on = before.type in VIEW_OPS or self.flow.is_rescaling(before)
            kept = 0 if passed_on else self.flow.undropped(before)
            if kept is None or not alone or not before.inputs[kept].dtype.is_floating:
                return op, index
            op, index = before, kept


def _is_one_hot(tensor: tf.Tensor) -> bool:
    """Return whether the last axis of a tensor holds a single one, or only zeros."""
    op = tensor.op
    if (
        op.type != "OneHot"
        or tensor.shape.rank is None
        or op.get_attr("axis") not in (-1, tensor.shape.rank - 1)
    ):
        return False
    return [tf.get_static_value(value) for value in op.inputs[2:4]] == [1, 0]


def _summed_axes(op: tf.Operation, index: int) -> tuple[int, ...]:
    """Axes of operand `index` along which a product sums."""
    terms, result = product_equation(op) or (["", ""], "")
    return tuple(
        axis
        for axis, label in enumerate(terms[index])
        if label in terms[1 - index] and label not in result
    )

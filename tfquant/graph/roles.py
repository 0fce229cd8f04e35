"""Roles of graph edges, found by structure.

A role is the meaning of an edge in the vocabulary of recipes. It is found from the operations that
produce and consume the edge, never from names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import tensorflow as tf

from tfquant.graph import producers
from tfquant.graph.contractions import Contraction, Skipped
from tfquant.graph.dataflow import VIEW_OPS
from tfquant.graph.edge import Edge
from tfquant.graph.layernorm import LayerNorm
from tfquant.graph.parts import with_parts
from tfquant.graph.residual import Residual
from tfquant.graph.structure import Structure

_NONNEGATIVE_OPS = frozenset("Softmax Relu Relu6 Sigmoid Softplus Exp Square Abs".split())
_GATHER_OPS = ("ResourceGather", "GatherV2", "Gather")


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
    """All edges of a graph in graph order, their contractions, and the contractions that cannot
    have any.

    `contraction_edges` maps the operation name of a contraction to (path, addresses of its input
    edges): two, or the table alone of a product with one-hot rows.
    """

    edges: tuple[Edge, ...]
    skipped: tuple[Skipped, ...]
    contraction_edges: dict[str, tuple[str, tuple[str, ...]]]


def find_roles(structure: Structure) -> Roles:
    """Find every edge of a graph that a recipe can name."""
    result = _Edges(structure)
    edges = _numbered(with_parts(structure, result.edges()))
    position = structure.flow.index
    ordered = sorted(
        edges, key=lambda e: position[e.consumer[0] if e.consumer else e.tensor.op.name]
    )
    by_contraction = {
        c.op.name: (structure.paths[c.op.name], tuple(e.address for e in result.inputs_of(c)))
        for c in structure.contractions
    }
    by_contraction.update((op, (edge.path, (edge.address,))) for op, edge in result.lookup_edges())
    return Roles(tuple(ordered), tuple(structure.skipped), by_contraction)


def _numbered(edges: Iterable[Edge]) -> list[Edge]:
    """Remove repeated edges; of different edges with one address, such as two look-ups in one
    table, the later ones become #2, #3.
    """
    result: dict[str, Edge] = {}
    further = []
    for edge in edges:
        if result.setdefault(edge.address, edge).place != edge.place:
            further.append(edge)
    known = {edge.place for edge in result.values()}
    for edge in further:  # behind all others, whose addresses do not depend on what is repeated
        if edge.place not in known:
            known.add(edge.place)
            paths = (f"{edge.path}#{count}" for count in itertools.count(2))
            numbered = (dataclasses.replace(edge, path=path, repeated=True) for path in paths)
            edge = next(candidate for candidate in numbered if candidate.address not in result)
            result[edge.address] = edge
    return list(result.values())


class _Edges:
    """Edges that follow from the structural patterns of one graph."""

    def __init__(self, structure: Structure):
        self._structure, self._flow = structure, structure.flow

    def edges(self) -> Iterator[Edge]:
        yield from self._model_outputs()
        for contraction in self._structure.contractions:
            yield from self.inputs_of(contraction)
            yield from self._around(contraction)
            yield from self._product_of_activations(contraction)
        for attention in self._structure.attention:
            yield self._on_tensor(
                "attention_scores", attention.path, "output", attention.scores.op.outputs[0]
            )
            yield self._on_tensor(
                "softmax_output", attention.path, "output", attention.softmax, nonnegative=True
            )
            for number, (op, index) in enumerate(attention.scalings, start=1):
                port = "input" if number == 1 else f"input#{number}"
                yield self._on_edge("scaling_input", attention.path, port, op, index)
        yield from self._of_activations()
        for result in (*self._structure.residuals, *self._structure.layernorms):
            for edge in (
                self._of_residual(result)
                if isinstance(result, Residual)
                else self._of_layernorm(result)
            ):
                yield (
                    edge
                    if result.path == result.layer
                    else dataclasses.replace(edge, repeated=True)
                )
        yield from self._produced()
        yield from self.edges_of_embeddings()

    def _of_activations(self) -> Iterator[Edge]:
        """Edges into activation functions and softmaxes."""
        for result in self._structure.activations:
            if result.op is not None:
                edge = self._on_edge(result.role, result.path, "input", result.op, 0)
            else:
                edge = self._on_tensor(result.role, result.path, "input", result.input)
            yield dataclasses.replace(edge, repeated=result.path != result.layer)

    def _of_residual(self, residual: Residual) -> Iterator[Edge]:
        yield self._on_edge("residual", residual.path, "skip", residual.op, residual.skip_index)
        yield self._on_edge(
            "residual_other", residual.path, "other", residual.op, residual.other_index
        )
        yield self._on_tensor("residual_sum", residual.path, "output", residual.op.outputs[0])

    def _of_layernorm(self, norm: LayerNorm) -> Iterator[Edge]:
        yield self._on_tensor("layernorm_input", norm.path, "input", norm.input)
        yield self._on_tensor("layernorm_output", norm.path, "output", norm.output)
        scale = producers.layernorm_scale(self._flow, norm)
        if scale is not None:
            yield self._on_parameter(
                "layernorm_weight", norm.path, "scale", *scale, channel_axes=()
            )

    def inputs_of(self, contraction: Contraction) -> list[Edge]:
        """Edges of the two operands of a contraction."""
        op, path = contraction.op, self._structure.paths[contraction.op.name]
        if contraction.kind == "linear":
            zone = self._structure.zones.get(op.name)
            fusable = self._fusable(contraction.path, "weight")
            source, index = contraction.operands
            weight = self._on_parameter(
                zone or "weight", path, "kernel", op, index, contraction.channel_axes, fusable
            )
            return [self._on_edge(zone or "linear_input", path, "input", op, source), weight]
        ports = self._matmul_ports(op)
        return [
            self._on_edge(
                "matmul_input",
                path,
                port,
                op,
                index,
                fusable=f"{path}:matmul_input" if port in ("q", "k", "v") else "",
            )
            for index, port in enumerate(ports)
        ]

    def _matmul_ports(self, op: tf.Operation) -> tuple[str, str]:
        for a in self._structure.attention:
            if a.scores.op is op:
                return ("q", "k") if a.query_index == 0 else ("k", "q")
            if a.context.op is op:
                return (
                    ("probabilities", "v") if a.probabilities_index == 0 else ("v", "probabilities")
                )
        return ("a", "b")

    def _around(self, contraction: Contraction) -> Iterator[Edge]:
        """Edges of product, bias and activation of a linear."""
        if contraction.kind != "linear":
            return
        path = self._structure.paths[contraction.op.name]
        product = contraction.op.outputs[0]
        role, fusable = (
            self._structure.zones.get(contraction.op.name, "linear_output"),
            self._fusable(contraction.path, "linear_output"),
        )
        yield self._on_tensor(role, path, "output", product, fusable=fusable)
        bias = self._structure.bias_after(product)
        if bias is not None and self._flow.is_fixed(bias[0].inputs[bias[1]]):
            yield self._on_parameter("bias", path, "bias", *bias, channel_axes=())
        activation = self._structure.activated_inputs.get(contraction.op.name)
        if activation is not None:
            source, tensor = activation
            yield self._on_tensor("activation_output", source, "output", tensor)

    def _product_of_activations(self, contraction: Contraction) -> Iterator[Edge]:
        """Edge of the result of a product of two activations, without attention scores, which have
        a role of their own.
        """
        scores = (attention.scores.op for attention in self._structure.attention)
        if contraction.kind != "linear" and contraction.op not in scores:
            path = self._structure.paths[contraction.op.name]
            context = any(a.context.op is contraction.op for a in self._structure.attention)
            yield self._on_tensor(
                "matmul_output",
                path,
                "context" if context else "output",
                contraction.op.outputs[0],
            )

    def _model_outputs(self) -> Iterator[Edge]:
        """Hidden state after the last block, behind its layer norm where there is one."""
        for tensor, path in self._structure.block_ends:
            yield self._on_tensor("model_output", path, "output", tensor)

    def edges_of_embeddings(self) -> Iterator[Edge]:
        """Edges of embeddings: looked-up rows and their sums."""
        rows = list(self._looked_up())
        yield from rows
        biases = [
            bias[0]
            for c in self._structure.contractions
            if c.kind == "linear" and (bias := self._structure.bias_after(c.op.outputs[0]))
        ]
        sums = producers.embedding_sums(self._flow, [edge.tensor for edge in rows], biases)
        tables = list(producers.tables_of(self._flow, sums))
        for layer, name, op, index in tables:
            yield self._on_parameter("position_embedding", layer, name, op, index, channel_axes=())
        # A table may be added to what is no row of a table, such as patches of an image.
        path = next(iter([*(edge.path for edge in rows), *(layer for layer, *_ in tables)]), "")
        for number, op in enumerate(sums, start=1):
            yield self._on_tensor(
                "embedding_sum",
                path,
                "output" if number == 1 else f"output#{number}",
                op.outputs[0],
            )

    def _looked_up(self) -> Iterator[Edge]:
        """Edges of rows gathered from a table, which are quantized with the range of the table."""
        for op in self._flow.operations:
            if (
                op.type in _GATHER_OPS
                and op.outputs[0].dtype.is_floating
                and self._flow.is_dynamic(op.outputs[0])
            ):
                handle = self._table_handle(op)
                if handle is not None:
                    yield self._table_edge(handle, op, 0)
        yield from (edge for _, edge in self.lookup_edges())

    def lookup_edges(self) -> list[tuple[str, Edge]]:
        """(operation name, edge of the table) of every product with one-hot rows."""
        return [
            (c.op.name, self._table_edge(c.handle, c.op, c.operands[1]))
            for c in self._structure.lookups
            if c.handle is not None
        ]

    def _table_handle(self, op: tf.Operation) -> str | None:
        table = op.inputs[0]
        if op.type == "ResourceGather":
            return table.name if table.name in self._flow.trace.variables else None
        known = self._flow.is_fixed(table) or self._is_cut_from_variable(table)
        return (
            self._flow.variable_behind(table) if known and self._flow.is_parameter(table) else None
        )

    def _table_edge(self, handle: str, op: tf.Operation, index: int) -> Edge:
        """Edge of the rows that `op` takes from operand `index`; of the operand itself if that is
        not a plain variable or not cut into rows.
        """
        path, _, leaf = self._flow.trace.paths[handle].rpartition("/")
        path = path or leaf
        if not self._takes_rows(op, index):
            return self._on_parameter("embedding", path, leaf, op, index, channel_axes=())
        shape = _shape(self._flow.trace.variables[handle])
        return Edge(
            "embedding", path, leaf, op.outputs[0], None, shape, table=handle, parameter=True
        )

    def _takes_rows(self, op: tf.Operation, index: int) -> bool:
        """Return whether an operation selects rows of an unmodified variable, so that quantizing
        the rows is equivalent to quantizing it.
        """
        if op.type == "ResourceGather":
            return op.get_attr("batch_dims") == 0
        if op.type == "GatherV2" and (
            op.get_attr("batch_dims") or tf.get_static_value(op.inputs[2]) != 0
        ):
            return False
        table = op.inputs[index]
        return self._structure.expressions.is_plain(table) or not self._flow.is_fixed(table)

    def _is_cut_from_variable(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor is a slice of a variable, perhaps of a size that depends on an
        input.
        """
        while tensor.op.type in VIEW_OPS or tensor.op.type in ("StridedSlice", "Slice"):
            tensor = tensor.op.inputs[0]
        return tensor.op.type == "ReadVariableOp"

    def _produced(self) -> Iterator[Edge]:
        """Edges at the producers of tensors, see `tfquant.graph.producers`."""
        for path, tensor in self._structure.layer_outputs.items():
            yield self._on_tensor("layer_output", path, "output", tensor)
        for attention in self._structure.attention:
            yield self._on_tensor(
                "attention_output",
                attention.path,
                "output",
                producers.merged_context(self._flow, attention),
            )

    def _fusable(self, path: str, role: str) -> str:
        result = self._structure.projections.get(path)
        return f"{result[0]}:{role}" if result else ""

    def _on_edge(
        self, role: str, path: str, port: str, op: tf.Operation, index: int, fusable: str = ""
    ) -> Edge:
        op, index = self._structure.lifted(op, index)
        tensor = op.inputs[index]
        source = self._flow.through_dropout(tensor)
        nonnegative = source.op.type in _NONNEGATIVE_OPS or any(
            source.name == a.softmax.name for a in self._structure.attention
        )
        return Edge(
            role,
            path,
            port,
            tensor,
            (op.name, index),
            _shape(tensor),
            nonnegative=nonnegative,
            fusable=fusable,
        )

    def _on_parameter(
        self,
        role: str,
        path: str,
        port: str,
        op: tf.Operation,
        index: int,
        channel_axes: tuple[int, ...],
        fusable: str = "",
    ) -> Edge:
        # Above a cast the values are still those of the variable; reshapes are kept below since
        # they move the channels.
        while (
            op.inputs[index].op.type in ("Cast", "Identity")
            and op.inputs[index].op.inputs[0].dtype.is_floating
        ):
            source = op.inputs[index]
            if len(self._flow.value_consumers(source)) > 1:
                break
            op, index = source.op, 0
        return Edge(
            role,
            path,
            port,
            op.inputs[index],
            (op.name, index),
            _shape(op.inputs[index]),
            channel_axes=channel_axes,
            parameter=True,
            fusable=fusable,
        )

    def _on_tensor(
        self,
        role: str,
        path: str,
        port: str,
        tensor: tf.Tensor,
        nonnegative: bool = False,
        fusable: str = "",
    ) -> Edge:
        known = nonnegative or tensor.op.type in _NONNEGATIVE_OPS
        return Edge(
            role, path, port, tensor, None, _shape(tensor), nonnegative=known, fusable=fusable
        )


def _shape(value: tf.Tensor | tf.Variable) -> tuple[int | None, ...]:
    return tuple(value.shape) if value.shape.rank is not None else ()

"""Roles of graph edges, found by structure.

A role is the meaning of an edge in the vocabulary of recipes. It is found from the operations that
produce and consume the edge, never from names.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import tensorflow as tf

from tfquant.graph import producers
from tfquant.graph.attention import Attention, find_attention, projection
from tfquant.graph.contractions import Contraction, Skipped, product_equation
from tfquant.graph.dataflow import ELEMENTWISE_OPS, VIEW_OPS, Dataflow, common_parent
from tfquant.graph.expression import Expressions
from tfquant.graph.layernorm import LayerNorm, find_layernorms
from tfquant.graph.parts import with_parts
from tfquant.graph.replay import descendants
from tfquant.graph.residual import Residual, before_residual, find_residuals
from tfquant.site import Address, address

_NONNEGATIVE_OPS = frozenset("Softmax Relu Relu6 Sigmoid Softplus Exp Square Abs".split())
_NONLINEAR_OPS = frozenset(
    "Relu Relu6 LeakyRelu Elu Selu Erf Erfc Tanh Sigmoid Softplus Softsign".split()
)
_GATHER_OPS = ("ResourceGather", "GatherV2", "Gather")
_SELECTING_OPS = frozenset("StridedSlice Slice Gather GatherV2 GatherNd".split())


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """Edge of the graph whose value can be quantized.

    Attributes:
      role, path, port: its address; equal in training and inference traces.
      tensor: the tensor whose values are quantized.
      consumer: (operation name, input index) that alone sees the quantized value; None where all
        consumers do.
      shape: static shape of the values whose range counts: of `tensor`, or of the table behind
        gathered rows.
      table: handle placeholder of that table; None for all but embeddings.
      channel_axes: axes of `tensor` that may have their own range; empty where only one range makes
        sense.
      parameter: the value comes from variables and constants alone.
      nonnegative: the structure guarantees values >= 0.
      repeated: its address has a number because another edge came first, such as the first call of
        a layer norm.
      fusable: `<attention path>:<role>` where the edge is one of query, key and value; empty
        elsewhere.
      part: where in an encoder the edge lies, one of `tfquant.site.PARTS`; None elsewhere.
      block: number of the encoder block that the edge lies in, from 0; None outside of blocks.
      direction: `forward`.
    """

    role: str
    path: str
    port: str
    tensor: tf.Tensor
    consumer: tuple[str, int] | None
    shape: tuple[int | None, ...]
    table: str | None = None
    channel_axes: tuple[int, ...] = ()
    parameter: bool = False
    nonnegative: bool = False
    fusable: str = ""
    repeated: bool = False
    part: str | None = None
    block: int | None = None
    direction: str = "forward"

    @property
    def address(self) -> str:
        return str(self.location)

    @property
    def location(self) -> Address:
        """Address as a named tuple."""
        return Address(self.path, self.role, self.port, self.direction)

    @property
    def place(self) -> tuple[str, str, str, tuple[str, int] | None]:
        """Role, port and position in the graph: equal for an edge that is found twice."""
        return self.role, self.port, self.tensor.name, self.consumer


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


def find_roles(structure: Structure) -> Roles:
    """Find every edge of a graph that a recipe can name."""
    edges = _numbered(with_parts(structure, structure.edges()))
    position = structure.flow.index
    ordered = sorted(
        edges, key=lambda e: position[e.consumer[0] if e.consumer else e.tensor.op.name]
    )
    by_contraction = {
        c.op.name: (structure.paths[c.op.name], tuple(e.address for e in structure.inputs_of(c)))
        for c in structure.contractions
    }
    by_contraction.update(
        (op, (edge.path, (edge.address,))) for op, edge in structure.lookup_edges()
    )
    return Roles(tuple(ordered), tuple(structure.skipped), by_contraction)


def _numbered(edges: Iterable[Edge]) -> list[Edge]:
    """Remove repeated edges; of different edges with one address, such as two look-ups in one
    table, the later ones become #2, #3.
    """
    found: dict[str, Edge] = {}
    further = []
    for edge in edges:
        if found.setdefault(edge.address, edge).place != edge.place:
            further.append(edge)
    known = {edge.place for edge in found.values()}
    for edge in further:  # behind all others, whose addresses do not depend on what is repeated
        if edge.place not in known:
            known.add(edge.place)
            paths = (f"{edge.path}#{count}" for count in itertools.count(2))
            numbered = (dataclasses.replace(edge, path=path, repeated=True) for path in paths)
            edge = next(candidate for candidate in numbered if candidate.address not in found)
            found[edge.address] = edge
    return list(found.values())


class Structure:
    """Structural patterns of one graph and the edges that follow from them."""

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
        self.zones = self._zones()
        self.head_paths = {self.paths[name]: zone for name, zone in self.zones.items()}
        self.projections = {
            p: (a.path, port) for a in self.attention for port, p in a.projections.items()
        }

    def edges(self) -> Iterator[Edge]:
        yield from self._model_outputs()
        for contraction in self.contractions:
            yield from self.inputs_of(contraction)
            yield from self._around(contraction)
        for attention in self.attention:
            yield self._on_tensor(
                "attention_scores", attention.path, "output", attention.scores.op.outputs[0]
            )
            yield self._on_tensor(
                "softmax_output", attention.path, "output", attention.softmax, nonnegative=True
            )
        for found in (*self.residuals, *self.layernorms):
            for edge in (
                self._of_residual(found)
                if isinstance(found, Residual)
                else self._of_layernorm(found)
            ):
                yield (
                    edge if found.path == found.layer else dataclasses.replace(edge, repeated=True)
                )
        yield from self._produced()
        yield from self.edges_of_embeddings()

    def _of_residual(self, residual: Residual) -> Iterator[Edge]:
        yield self._on_edge("residual", residual.path, "skip", residual.op, residual.skip_index)
        yield self._on_edge(
            "residual_other", residual.path, "other", residual.op, residual.other_index
        )
        yield self._on_tensor("residual_sum", residual.path, "output", residual.op.outputs[0])

    def _of_layernorm(self, norm: LayerNorm) -> Iterator[Edge]:
        yield self._on_tensor("layernorm_input", norm.path, "input", norm.input)
        yield self._on_tensor("layernorm_output", norm.path, "output", norm.output)
        scale = producers.layernorm_scale(self.flow, norm)
        if scale is not None:
            yield self._on_parameter(
                "layernorm_weight", norm.path, "scale", *scale, channel_axes=()
            )

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
        leaving += [self.flow.root(tensor).name for tensor, _ in self._block_ends()[-1:]]
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
        return [(a, found) for a in self.attention if (found := self._entry(a)) is not None]

    def layers(self) -> Iterator[Layer]:
        """Operations of each block, between the states at which blocks begin; the last one ends
        with the body of the network.
        """
        states = [
            *(entry for _, entry in self.entries),
            *(tensor for tensor, _ in self._block_ends()[-1:]),
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
        context = attention.context.op
        after = descendants(self.flow.operations, [context.outputs[0]]) | {context.name}
        for residual in self.residuals:
            skip, other = (
                residual.op.inputs[i] for i in (residual.skip_index, residual.other_index)
            )
            if other.op.name in after and skip.op.name not in after:
                return residual
        return None

    def inputs_of(self, contraction: Contraction) -> list[Edge]:
        """Edges of the two operands of a contraction."""
        op, path = contraction.op, self.paths[contraction.op.name]
        if contraction.kind == "linear":
            zone = self.zones.get(op.name)
            fusable = self._fusable(contraction.path, "weight")
            weight = self._on_parameter(
                zone or "weight",
                path,
                "kernel",
                op,
                contraction.weight_index,
                contraction.channel_axes,
                fusable,
            )
            return [
                self._on_edge(zone or "linear_input", path, "input", op, contraction.input_index),
                weight,
            ]
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
        for a in self.attention:
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
        path = self.paths[contraction.op.name]
        product = contraction.op.outputs[0]
        role, fusable = (
            self.zones.get(contraction.op.name, "linear_output"),
            self._fusable(contraction.path, "linear_output"),
        )
        yield self._on_tensor(role, path, "output", product, fusable=fusable)
        bias = self._bias_after(product)
        if bias is not None and self.flow.is_fixed(bias[0].inputs[bias[1]]):
            yield self._on_parameter("bias", path, "bias", *bias, channel_axes=())
        activation = self._activation_before(contraction)
        if activation is not None:
            source, tensor = activation
            yield self._on_tensor("activation_output", source, "output", tensor)

    def _bias_after(self, product: tf.Tensor) -> tuple[tf.Operation, int] | None:
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

    def _activation_before(self, contraction: Contraction) -> tuple[str, tf.Tensor] | None:
        """(path of the linear before, activated tensor) where a nonlinearity lies between two
        linears.
        """
        tensor = self.flow.through_dropout(contraction.op.inputs[contraction.input_index])
        behind = self.flow.walk_back(
            tensor, lambda o: o.type in ELEMENTWISE_OPS or o.type in VIEW_OPS
        )
        sources = [op for op in behind if op.name in self.paths]
        if len(sources) != 1 or not any(op.type in _NONLINEAR_OPS for op in behind):
            return None
        return self.paths[sources[0].name], tensor

    def _model_outputs(self) -> Iterator[Edge]:
        """Hidden state after the last block, behind its layer norm where there is one."""
        for tensor, path in self._block_ends():
            yield self._on_tensor("model_output", path, "output", tensor)

    def _block_ends(self) -> list[tuple[tf.Tensor, str]]:
        if not self.attention or not self.residuals:
            return []
        body = before_residual(self.flow, self.residuals)
        ends = []
        for residual in self.residuals:
            if residual.op.name in body:
                continue
            total = residual.op.outputs[0]
            norm = next(
                (n for n in self.layernorms if self.flow.root(n.input).name == total.name), None
            )
            ends.append((norm.output, norm.layer) if norm else (total, residual.layer))
        return ends

    def _zones(self) -> dict[str, str]:
        """Map operation name -> `pooler` or `logits` for the linears after the last block."""
        ends = [tensor for tensor, _ in self._block_ends()]
        if not ends:
            return {}
        body = before_residual(self.flow, self.residuals)
        after = descendants(self.flow.operations, ends)
        heads = [
            c
            for c in self.contractions
            if c.kind == "linear" and c.op.name in after and c.op.name not in body
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
            o.type == "Tanh" or (o.type in _NONLINEAR_OPS and self._feeds_linear(o)) for o in after
        )

    def _feeds_linear(self, op: tf.Operation) -> bool:
        after = descendants(self.flow.operations, list(op.outputs))
        return any(c.kind == "linear" and c.op.name in after for c in self.contractions)

    def edges_of_embeddings(self) -> Iterator[Edge]:
        """Edges of embeddings: looked-up rows and their sums."""
        rows = list(self._looked_up())
        yield from rows
        biases = [
            bias[0]
            for c in self.contractions
            if c.kind == "linear" and (bias := self._bias_after(c.op.outputs[0]))
        ]
        sums = producers.embedding_sums(self.flow, [edge.tensor for edge in rows], biases)
        tables = list(producers.tables_of(self.flow, sums))
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
        for op in self.flow.operations:
            if (
                op.type in _GATHER_OPS
                and op.outputs[0].dtype.is_floating
                and self.flow.is_dynamic(op.outputs[0])
            ):
                handle = self._table_handle(op)
                if handle is not None:
                    yield self._table_edge(handle, op, 0)
        yield from (edge for _, edge in self.lookup_edges())

    def lookup_edges(self) -> list[tuple[str, Edge]]:
        """(operation name, edge of the table) of every product with one-hot rows."""
        return [(c.op.name, self._table_edge(c.handle, c.op, c.weight_index)) for c in self.lookups]

    def _table_handle(self, op: tf.Operation) -> str | None:
        table = op.inputs[0]
        if op.type == "ResourceGather":
            return table.name if table.name in self.flow.trace.variables else None
        known = self.flow.is_fixed(table) or self._is_cut_from_variable(table)
        return self.flow.variable_behind(table) if known and self.flow.is_parameter(table) else None

    def _table_edge(self, handle: str, op: tf.Operation, index: int) -> Edge:
        """Edge of the rows that `op` takes from operand `index`; of the operand itself if that is
        not a plain variable or not cut into rows.
        """
        path, _, leaf = self.flow.trace.paths[handle].rpartition("/")
        path = path or leaf
        if not self._takes_rows(op, index):
            return self._on_parameter("embedding", path, leaf, op, index, channel_axes=())
        shape = _shape(self.flow.trace.variables[handle])
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
        return self.expressions.is_plain(table) or not self.flow.is_fixed(table)

    def _is_cut_from_variable(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor is a slice of a variable, perhaps of a size that depends on an
        input.
        """
        while tensor.op.type in VIEW_OPS or tensor.op.type in ("StridedSlice", "Slice"):
            tensor = tensor.op.inputs[0]
        return tensor.op.type == "ReadVariableOp"

    def _produced(self) -> Iterator[Edge]:
        """Edges at the producers of tensors, see `tfquant.graph.producers`."""
        for path, tensor in self.layer_outputs.items():
            yield self._on_tensor("layer_output", path, "output", tensor)
        for attention in self.attention:
            yield self._on_tensor(
                "attention_output",
                attention.path,
                "output",
                producers.merged_context(self.flow, attention),
            )

    @functools.cached_property
    def layer_outputs(self) -> dict[str, tf.Tensor]:
        """Map layer path of each linear -> its output.

        Behind bias and activation function, where it has them.
        """
        found: dict[str, tf.Tensor] = {}
        for contraction in self.contractions:
            if contraction.kind == "linear":
                bias = self._bias_after(contraction.op.outputs[0])
                found[self.paths[contraction.op.name]] = (
                    bias[0] if bias else contraction.op
                ).outputs[0]
        for contraction in self.contractions:
            activation = (
                self._activation_before(contraction) if contraction.kind == "linear" else None
            )
            if activation is not None:
                found[activation[0]] = activation[1]
        return found

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
            found = (projection(self.flow, t, by_name) for t in contraction.op.inputs)
            makers = {p.partition("#")[0] for p in found if p is not None}
            if makers:
                path = "/".join(
                    filter(
                        None, (common_parent(makers) if len(makers) > 1 else min(makers), "matmul")
                    )
                )
                count = uses[path] = uses.get(path, 0) + 1
                paths[contraction.op.name] = path if count == 1 else f"{path}#{count}"
        return paths

    def _fusable(self, path: str, role: str) -> str:
        found = self.projections.get(path)
        return f"{found[0]}:{role}" if found else ""

    def _on_edge(
        self, role: str, path: str, port: str, op: tf.Operation, index: int, fusable: str = ""
    ) -> Edge:
        op, index = self.lifted(op, index)
        tensor = op.inputs[index]
        nonnegative = self.flow.through_dropout(tensor).op.type in _NONNEGATIVE_OPS or any(
            self.flow.through_dropout(tensor).name == a.softmax.name for a in self.attention
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
            if len(self.flow.value_consumers(source)) > 1:
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

    def lifted(self, op: tf.Operation, index: int) -> tuple[tf.Operation, int]:
        """Edge into the first of the views and dropouts before `op` that have no other consumer.

        Before views, so that consumers of one tensor share one QDQ. Before dropout, as it scales
        what it keeps up: behind it, a range of the values that prediction sees would clip the
        largest of them.
        """
        while True:
            source = op.inputs[index]
            before = source.op
            alone = (
                len(self.flow.value_consumers(source)) == 1
                and source.name not in self.flow.output_names
            )
            kept = 0 if before.type in VIEW_OPS else self.flow.undropped(before)
            if kept is None or not alone or not before.inputs[kept].dtype.is_floating:
                return op, index
            op, index = before, kept

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


def _shape(value: tf.Tensor | tf.Variable) -> tuple[int | None, ...]:
    return tuple(value.shape) if value.shape.rank is not None else ()

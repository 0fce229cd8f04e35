"""Layers for AdaRound and GPTQ: weights, with the contractions and look-ups that use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.error_messages import some_of
from tfquant.graph.contractions import CONVOLUTION_OPS, MATMUL_OPS, equation, matmul_equation
from tfquant.graph.dataflow import VIEW_OPS, Dataflow
from tfquant.graph.edge import Edge
from tfquant.site import ROLES, Site
from tfquant.site_selection import matches

_WORDS = {
    "kernels": lambda s: s.port == "kernel",
    "embeddings": lambda s: s.role == "embedding",
    "all": lambda s: True,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One use of the weight of a layer.

    Attributes:
      op: the contraction or look-up.
      input: what comes in: the activation, or the numbers of rows of a table.
      input_index: which input of `op` that is.
      row_axes: axes of `input` along which samples lie (tokens, images); the others belong to one
        sample.
      features: sizes of these others.
      lookup: rows of a table are picked.
      activation: the tensor behind the activation function, None if none follows.
    """

    op: tf.Operation
    input: tf.Tensor
    input_index: int
    row_axes: tuple[int, ...]
    features: tuple[int, ...] = ()
    lookup: bool = False
    activation: tf.Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One quantized variable with its uses.

    Attributes:
      site: that quantizes it.
      edges: the places where it does.
      handle: name of the placeholder of the variable's handle.
      reads: the tensors of the variable's value.
      uses: in graph order.
    """

    site: Site
    edges: tuple[Edge, ...]
    handle: str
    reads: tuple[tf.Tensor, ...]
    uses: tuple[Use, ...]

    @property
    def address(self) -> str:
        return self.site.address


class Unsuitable(Exception):
    """The weight of a site cannot be rounded with a method, and the reason."""


class ChoiceError(ValueError):
    """The requested weights do not exist or cannot be rounded with the method."""


def choose(
    engine: Engine,
    sites: str | Sequence[str],
    method: str = "AdaRound",
    suits: Callable[[Layer], None] | None = None,
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """Select the layers of the chosen sites in graph order, and the omitted sites with the reason.

    Args:
      sites: `kernels`, `embeddings`, `all`, a role, or a glob (after `re:` a regular expression) of
        addresses or layer paths; or several of these.
      method: its name, for errors.
      suits: raises `Unsuitable` for layers that the method cannot round; None takes all.

    Raises:
      ChoiceError: an entry matches no weight, or names one that cannot be rounded so.
    """
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    there = [
        site
        for site in engine.plan.sites
        if site.is_weight and site.role != "bias" and site.enabled
    ]
    named: dict[str, bool] = {}  # address -> whether it was meant, not only met by a word for many
    for pattern in patterns:
        result = [site for site in there if _matches(pattern, site)]
        if not result and not (pattern in _WORDS and len(patterns) > 1):
            near = some_of(site.address for site in there) or "none: the recipe quantizes no weight"
            raise ChoiceError(f"{pattern!r} matches no quantized weight; there are {near}")
        for site in result:
            named[site.address] = named.get(site.address, False) or (
                pattern not in _WORDS and pattern not in ROLES
            )
    finder = LayerFinder(engine)
    layers, skipped = [], []
    for site in there:
        if site.address not in named:
            continue
        try:
            if site.spec.fitted:
                raise Unsuitable(f"its {site.spec.format} values are fitted to it in every call")
            layer = finder.layer(site)
            if suits is not None:
                suits(layer)
            layers.append(layer)
        except Unsuitable as error:
            if named[site.address]:
                raise ChoiceError(
                    f"site {site.address} cannot be rounded with {method}: {error}"
                ) from error
            skipped.append((site.address, str(error)))
    if not layers:
        raise ChoiceError(
            f"no chosen weight can be rounded with {method}; the first,"
            f" {skipped[0][0]}: {skipped[0][1]}"
        )
    return sorted(layers, key=lambda layer: finder.position(layer)), skipped


def _matches(pattern: str, site: Site) -> bool:
    return _WORDS[pattern](site) if pattern in _WORDS else matches(pattern, site)


class LayerFinder:
    """Finder of all uses of the variable of a site."""

    def __init__(self, engine: Engine):
        self._engine = engine
        analysis = engine.inference.analysis
        self.flow, roles = analysis.flow, analysis.roles
        self._operations = {op.name: op for op in self.flow.operations}
        self._contraction = {
            a: self._operations[op]
            for op, (_, addresses) in roles.contraction_edges.items()
            for a in addresses
        }
        self._activations = {e.path: e.tensor for e in roles.edges if e.role == "activation_output"}
        self._edges: dict[str, list[Edge]] = {}
        for site, edge in engine.placements():
            self._edges.setdefault(site.address, []).append(edge)

    def position(self, layer: Layer) -> int:
        """Index of the first operation that uses a layer's weight."""
        return min(self.flow.index[use.op.name] for use in layer.uses)

    def layer(self, site: Site) -> Layer:
        """Layer of a site.

        Raises:
          Unsuitable: its value is no variable, or something else uses that as well.
        """
        edges = self._edges[site.address]
        handles = {self._handle(edge) for edge in edges}
        if len(handles) > 1:
            raise Unsuitable("its range is shared by several variables")
        moved = {edge.tensor.name for edge in edges if edge.tensor.op.type != "ReadVariableOp"}
        if site.channel_axes and moved and len({edge.tensor.name for edge in edges}) > 1:
            raise Unsuitable(
                "a variable with per-channel ranges is read in several places, in different layouts"
            )
        handle = handles.pop()
        uses = [self._lookup(edge) if edge.table is not None else self._use(edge) for edge in edges]
        reads = self._reads(handle, edges, uses)
        order = sorted(uses, key=lambda use: self.flow.index[use.op.name])
        return Layer(site, tuple(edges), handle, reads, tuple(order))

    def _handle(self, edge: Edge) -> str:
        """Handle of the variable whose values, possibly reshaped or transposed, are quantized at an
        edge.
        """
        if edge.table is not None:
            return edge.table
        return variable_read(self.flow, edge.tensor)

    def _use(self, edge: Edge) -> Use:
        op = self._contraction.get(edge.address)
        if op is None:
            raise Unsuitable("no product reads it, so that nearest is the best rounding")
        weight_index = 1 if self.flow.is_fixed(op.inputs[1]) else 0
        x = op.inputs[1 - weight_index]
        axes, features = sample_axes(op, weight_index)
        return Use(
            op, x, 1 - weight_index, axes, features, activation=self._activations.get(edge.path)
        )

    def _lookup(self, edge: Edge) -> Use:
        op = edge.tensor.op
        if op.type in ("ResourceGather", "GatherV2", "Gather"):
            ids = op.inputs[1]
        else:  # a product with one-hot rows
            one_hot = next(t for t in op.inputs if self.flow.is_dynamic(t))
            ids = self.flow.root(one_hot).op.inputs[0]
        if ids.shape.rank is None:
            raise Unsuitable(f"the rank of what {op.name} looks up is not known")
        return Use(op, ids, 1, tuple(range(ids.shape.rank)), lookup=True)

    def _reads(
        self, handle: str, edges: Iterable[Edge], uses: Iterable[Use]
    ) -> tuple[tf.Tensor, ...]:
        """Reads of the variable, all consumers of which are these edges and uses."""
        own = {e.consumer for e in edges if e.consumer is not None}
        lookups = {use.op.name for use in uses if use.lookup}
        reads, pending = [], []
        for op, index in self.flow.consumers[handle]:
            if op.name not in self.flow.used or op.name in lookups:
                continue
            if op.type != "ReadVariableOp":
                raise Unsuitable(_foreign(op, index))
            reads.append(op.outputs[0])
            pending.append(op.outputs[0])
        while pending:
            for op, index in self.flow.value_consumers(pending.pop()):
                if op.name not in self.flow.used or (op.name, index) in own or op.name in lookups:
                    continue
                if op.type not in VIEW_OPS:
                    raise Unsuitable(_foreign(op, index))
                pending.extend(op.outputs)
        return tuple(reads)


def variable_read(flow: Dataflow, tensor: tf.Tensor) -> str:
    """Name of the handle of the variable that `tensor` holds.

    Raises:
      Unsuitable: it is computed otherwise.
    """
    read = flow.root(tensor).op
    if read.type != "ReadVariableOp" or read.inputs[0].name not in flow.trace.variables:
        raise Unsuitable(
            f"its values come from {read.type} ({read.name}), not straight from a variable"
        )
    return read.inputs[0].name


def _foreign(op: tf.Operation, index: int) -> str:
    return (
        f"its variable is used by {op.type} ({op.name}, input {index}) too, which this site does"
        " not quantize: give all uses of the variable one rule, or leave the site out"
    )


def sample_axes(op: tf.Operation, weight_index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sample axes and feature axes of the activation of a contraction.

    Returns:
      Axes along which samples lie, which reach the output and do not meet the weight; and the sizes
      of the other axes.

    Raises:
      Unsuitable: no axis runs over samples, or the size of another one is not known.
    """
    x, weight = op.inputs[1 - weight_index], op.inputs[weight_index]
    if x.shape.rank is None:
        raise Unsuitable(f"the rank of the input of {op.name} is not known")
    if op.type in CONVOLUTION_OPS:
        terms, result = ["b" + "?" * (x.shape.rank - 1), ""], "b"
    elif op.type in MATMUL_OPS:
        terms, result = matmul_equation(op)
    else:
        terms, result = equation(op)
    own, others = (
        (terms[0], "")
        if op.type in CONVOLUTION_OPS
        else (terms[1 - weight_index], terms[weight_index])
    )
    axes = tuple(axis for axis, label in enumerate(own) if label in result and label not in others)
    # Sizes that the graph leaves open follow from the weight that they meet.
    met = dict(zip(others, weight.shape, strict=False))
    features: tuple[Any, ...] = tuple(
        size or met.get(own[axis]) for axis, size in enumerate(x.shape) if axis not in axes
    )
    if not axes or None in features:
        what = (
            "an axis of its samples has no fixed size"
            if axes
            else "no axis of its input runs over samples"
        )
        raise Unsuitable(
            f"{what} ({op.type} {op.name}, input {list(x.shape)}, weight {list(weight.shape)})"
        )
    return axes, features


def grouped(finder: LayerFinder, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Group layers with one use of one common tensor (query, key and value); in graph order."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        alone = len(layer.uses) > 1
        groups.setdefault(
            layer.address if alone else finder.flow.root(layer.uses[0].input).name, []
        ).append(layer)
    return sorted(groups.values(), key=lambda group: min(map(finder.position, group)))

"""Plan: a recipe applied to the edges of a graph. It selects sites and edits nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from calib import tables
from tfquant import formats
from tfquant.error_messages import some_of
from tfquant.graph.analysis import Analysis
from tfquant.graph.attention import fused_softmax
from tfquant.graph.contractions import UNUSED, Skipped
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.edge import Edge
from tfquant.graph.embedding import Embedding
from tfquant.graph.roles import Roles
from tfquant.graph.summed_axis import summed_axis
from tfquant.graph.trace import Trace
from tfquant.rules import Recipe, Rule
from tfquant.site import ROLES, Address, Site
from tfquant.spec import QuantSpec


class RecipeError(ValueError):
    """A recipe does not fit a graph."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sites and skipped contractions of a recipe on a graph.

    Attributes:
      recipe: as given.
      sites: every place whose values are quantized, in graph order.
      gradients: every place whose gradients are, by rules of `direction: backward`.
      skipped: every contraction that stays in float, with the reason.
      matches: name of a rule -> number of edges it matches, also those that a later rule decides.
    """

    recipe: Recipe
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    matches: dict[str, int]
    gradients: tuple[Site, ...] = ()

    def site(self, address: str) -> Site:
        """Site that quantizes the edge with this address.

        Raises:
          KeyError: no site does; the message lists a few that exist.
        """
        for site in (*self.sites, *self.gradients):
            if site.address == address or address in site.members:
                return site
        raise KeyError(
            f"no site quantizes {address!r}; there are {len(self.sites)}, such as"
            f" {[s.address for s in self.sites[:3]]}"
        )

    def count(self, *roles: str) -> int:
        """Number of sites with one of the roles."""
        return sum(site.role in roles for site in self.sites)

    def table(self) -> Table:
        """Rich table of sites, followed by the skipped contractions."""
        softmax = self.recipe.softmax
        table = Table(
            title=(
                f"recipe {self.recipe.name}: {len(self.sites)} sites,"
                + (f" {len(self.gradients)} sites of gradients," if self.gradients else "")
                + f" {len(self.skipped)} contractions skipped"
                + ("" if softmax.exact else f", softmax: {softmax}")
            )
        )
        for column in ("role", "layer path", "port", "shape", "spec", "rule"):
            table.add_column(column, overflow="fold")
        for site in (*self.sites, *self.gradients):
            shape = "x".join("?" if d is None else str(d) for d in site.shape)
            shared = _shared(site) + (", gradient" if site.direction == "backward" else "")
            spec = site.spec.describe() if site.enabled else f"disabled ({site.spec.describe()})"
            spec += ", one range for q, k, v" if site.group else ""
            table.add_row(site.role, site.path, site.port + shared, shape, spec, site.rule)
        for entry in self.skipped:
            table.add_row(
                "[dim]skipped[/dim]", entry.path, "", "", f"[dim]{entry.reason}[/dim]", ""
            )
        return table

    def __str__(self) -> str:
        lines = [f"  {name}: {count}" for name, count in self.matches.items()]
        heading = "edges that each rule matches (the last match decides):"
        return "\n".join([tables.render(self.table(), width=160), heading, *lines])

    def _repr_html_(self) -> str:
        return tables.as_html(str(self))


def _shared(site: Site) -> str:
    """Note on the sites that a site shares its range with.

    ` (+2, +1 residual)` is two more of the same role and a residual.
    """
    roles = Counter(Address.parse(member).role for member in site.members if member != site.address)
    words = [
        f"+{count}" + ("" if role == site.role else f" {role}") for role, count in roles.items()
    ]
    return f" ({', '.join(words)})" if words else ""


def make_plan(trace: Trace, recipe: Recipe) -> Plan:
    """Match the rules of a recipe with the edges of a trace and define the sites.

    Args:
      trace: its analysis is read; the graph is not changed.
      recipe: rules, of which the last match decides.

    Raises:
      RecipeError: a rule that is not optional matches nothing, sites that shall have one range
        differ, or a softmax cannot be approximated.
    """
    analysis = trace.analysis
    if not recipe.softmax.exact:
        try:
            fused_softmax(analysis.structure.attention)
        except ValueError as error:
            raise RecipeError(f"recipe {recipe.name!r}: {error}") from error
    roles = analysis.roles
    decided = _decided(recipe, roles.edges)
    twins = gradient_edges(recipe, roles.edges)
    matches = _count_matches(recipe, [*roles.edges, *twins], roles.skipped)
    chosen = [(edge, rule, rule.spec) for edge, rule in decided if rule.spec is not None]
    values = _Values(analysis)
    sites = _sites(values, recipe, chosen, analysis)
    _check_groups(recipe, sites)
    skipped = (*roles.skipped, *_unquantized(values, roles, decided, sites))
    gradients = _gradient_sites(recipe, _decided(recipe, twins), analysis.flow)
    return Plan(recipe, tuple(sites), skipped, matches, gradients)


def _decided(recipe: Recipe, edges: Iterable[Edge]) -> list[tuple[Edge, Rule]]:
    return [(edge, rule) for edge in edges if (rule := deciding_rule(recipe, edge)) is not None]


def gradient_edges(recipe: Recipe, edges: Iterable[Edge]) -> list[Edge]:
    """Edges of the gradients of activations; none where no rule of the recipe asks for any."""
    if all(rule.direction == "forward" for rule in recipe.rules):
        return []
    return [edge.twin for edge in edges if not edge.parameter and edge.table is None]


def deciding_rule(recipe: Recipe, edge: Edge) -> Rule | None:
    """Return the last rule that matches an edge."""
    for rule in reversed(recipe.rules):
        if _matches(rule, edge):
            return rule
    return None


def deciding_spec(recipe: Recipe, edge: Edge) -> QuantSpec | None:
    """Return the spec of the last rule that matches an edge; None leaves the edge in float."""
    rule = deciding_rule(recipe, edge)
    return None if rule is None else rule.spec


def _matches(rule: Rule, edge: Edge) -> bool:
    return rule.matches(edge.role, edge.path, edge.port, edge.shape, edge.part, edge.direction)


def _count_matches(
    recipe: Recipe, edges: Iterable[Edge], skipped: Iterable[Skipped]
) -> dict[str, int]:
    edges = list(edges)
    counts: dict[str, int] = {}
    for rule in recipe.rules:
        count = sum(_matches(rule, e) for e in edges)
        if count == 0 and not rule.optional:
            there = Counter(e.role for e in edges if e.direction == rule.direction)
            if not there:
                raise RecipeError(f"there is nothing to quantize: {_why_nothing(skipped)}")
            listing = ", ".join(f"{role} ({there[role]})" for role in ROLES if there[role])
            raise RecipeError(
                f"recipe {recipe.name!r}: rule {rule.name!r} matches nothing; correct it or mark it"
                f" optional. Roles in this model: {listing}{_paths_of(rule, edges)}"
            )
        counts[rule.name] = count
    return counts


def _why_nothing(skipped: Iterable[Skipped]) -> str:
    for product in skipped:
        if product.reason != UNUSED:
            return f"{product.path} is {product.reason}, and there is no other product"
    return "the model multiplies no activation with a parameter or another"


def _paths_of(rule: Rule, edges: Iterable[Edge]) -> str:
    """List the layer paths that a rule with a path could have meant."""
    if rule.path == "*":
        return ""
    paths = sorted({e.path for e in edges if "*" in rule.roles or e.role in rule.roles})
    return f". Paths: {some_of(paths, 6)}" if paths else ""


class _Values:
    """Comparison of edges by the values they carry."""

    def __init__(self, analysis: Analysis):
        self._flow, self._expressions = analysis.flow, analysis.expressions

    def key(self, edge: Edge, per_channel: bool = False) -> str:
        """Key that is equal for edges that carry the same values and, with ranges per channel, in
        the same layout.
        """
        if edge.table is not None:
            return self._expressions.of_variable(edge.table)
        # One range for all values does not depend on how they are laid out.
        tensor = edge.tensor if edge.parameter and per_channel else self._flow.root(edge.tensor)
        return self._expressions.key(tensor) if edge.parameter else tensor.name


def _sites(
    values: _Values,
    recipe: Recipe,
    chosen: list[tuple[Edge, Rule, QuantSpec]],
    analysis: Analysis,
) -> list[Site]:
    embedding = analysis.embedding
    groups: dict[tuple, list[tuple[Edge, Rule, QuantSpec]]] = {}
    for edge, rule, unresolved in chosen:
        spec = _resolved(rule, unresolved, edge, embedding)
        # Views of one tensor share an embedding axis only where they have it at the same place.
        axes = (_channels(spec, edge), edge.shape if spec.layout.along_last_axis else ())
        if spec.layout.per_block:
            axes = (_block_axis(rule, spec, edge, analysis.flow), edge.shape)
        in_layout = axes != ((), ())
        key = (values.key(edge, in_layout), spec, axes) if recipe.share else (edge.address,)
        groups.setdefault(key, []).append((edge, rule, spec))
    sites = []
    for members in groups.values():
        edge, rule, spec = min(members, key=_rank)
        sites.append(
            _site(
                *(edge, rule, spec, analysis.flow),
                members=tuple(sorted(e.address for e, *_ in members)),
                enabled=not _is_disabled(recipe, [e for e, *_ in members]),
                group=_group(recipe, edge),
                order=_order(spec, edge, embedding),
            )
        )
    return sites


def _site(edge: Edge, rule: Rule, spec: QuantSpec, flow: Dataflow, **fields: Any) -> Site:
    """Site at an edge, with further fields."""
    return Site(
        role=edge.role,
        path=edge.path,
        port=edge.port,
        spec=spec,
        rule=rule.name,
        shape=edge.shape,
        channel_axes=_channels(spec, edge),
        block_axis=_block_axis(rule, spec, edge, flow),
        **fields,
    )


def _block_axis(rule: Rule, spec: QuantSpec, edge: Edge, flow: Dataflow) -> int | None:
    """Axis along which blocks lie, counted from the end; None without blocks.

    Rows of a table have the last axis of the table, at another place.

    Raises:
      RecipeError: the tensor has no such axis.
    """
    if not spec.layout.per_block:
        return None
    axis, rank = spec.layout.block_axis, len(edge.shape)
    if not rank:
        raise RecipeError(
            f"rule {rule.name!r} asks for blocks at {edge.address}, which has no axis: use"
            " per_tensor there"
        )
    if axis is None:
        return summed_axis(flow, edge) - rank
    if not -rank <= axis < rank:
        raise RecipeError(
            f"rule {rule.name!r} asks for blocks along axis {axis} at {edge.address}, which has"
            f" shape {list(edge.shape)}: set block_axis to {-rank} ... {rank - 1}, or leave it out"
        )
    if edge.table is not None and axis % rank != rank - 1:
        raise RecipeError(
            f"rule {rule.name!r} asks for blocks along axis {axis} at {edge.address}, of which rows"
            " are looked up: leave block_axis out there"
        )
    return axis % rank - rank


def _gradient_sites(
    recipe: Recipe, decided: Iterable[tuple[Edge, Rule]], flow: Dataflow
) -> tuple[Site, ...]:
    """Sites of gradients: one for each tensor, or for each consumer of it."""
    groups: dict[tuple, list[tuple[Edge, Rule, QuantSpec]]] = {}
    for edge, rule in decided:
        if rule.spec is not None:
            key = (edge.tensor.name, edge.consumer, rule.spec)
            groups.setdefault(key, []).append((edge, rule, rule.spec))
    sites = []
    for members in groups.values():
        edge, rule, spec = min(members, key=_rank)
        _check_gradient(rule, spec, edge)
        sites.append(
            _site(
                *(edge, rule, spec, flow),
                members=(edge.address,),
                enabled=not recipe.disables(edge.address),
                direction="backward",
            )
        )
    return tuple(sites)


def _check_gradient(rule: Rule, spec: QuantSpec, edge: Edge) -> None:
    """Raise RecipeError for a spec that gradients cannot have."""
    where = f"rule {rule.name!r} quantizes the gradients at {edge.address}"
    if spec.scale.source == "stored":
        raise RecipeError(
            f"{where} with source: stored, but calibration sees no gradients: use delayed, dynamic"
            " or none"
        )
    if spec.layout.granularity == "per_channel" or spec.layout.groups is not None:
        raise RecipeError(
            f"{where} {spec.layout.granularity}: use per_tensor, per_embedding for a scale for each"
            " index of the last axis, or per_token"
        )
    if spec.layout.per_embedding and (not edge.shape or edge.shape[-1] is None):
        raise RecipeError(f"{where} per_embedding, whose last axis has no fixed size there")
    if spec.scale.unsigned is True or not spec.scale.symmetric:
        raise RecipeError(f"{where}, which have both signs around zero: use a symmetric scale")


def _rank(member: tuple[Edge, Rule, QuantSpec]) -> tuple:
    """Sort key of edges that share a site, of which the first determines its address.

    That must not depend on the order of operations, which differs between traces. Numbered edges
    come last, as files of versions that did not tell them from the first one know that one alone.
    """
    edge, *_ = member
    return edge.repeated, ROLES.index(edge.role), edge.path, edge.port


def _resolved(rule: Rule, spec: QuantSpec, edge: Edge, embedding: Embedding) -> QuantSpec:
    if spec.scale.unsigned == "auto":
        can_be = spec.scale.symmetric and formats.get(spec.format).kind != "codebook"
        spec = dataclasses.replace(spec, unsigned=edge.nonnegative and can_be)
    if spec.layout.granularity == "per_channel" and not edge.channel_axes:
        reason = "which has no output channels"
        if edge.parameter and not edge.tensor.shape.is_fully_defined():
            reason = f"whose shape {edge.tensor.shape} is not known"
        raise RecipeError(
            f"rule {rule.name!r} asks for per_channel at {edge.address}, {reason}: use per_tensor"
            " there"
        )
    if spec.update == "elastic" and (edge.parameter or edge.table is not None):
        raise RecipeError(
            f"rule {rule.name!r} asks for elastic values at {edge.address}, which is a parameter:"
            " leave out update: elastic there"
        )
    if spec.fitted:
        _check_fitted(rule, spec, edge)
    elif spec.scale.dynamic and edge.parameter and not spec.layout.per_block:
        raise RecipeError(
            f"rule {rule.name!r} asks for a dynamic range at {edge.address}, which is a parameter:"
            " its range stays"
        )
    if spec.layout.along_last_axis and not (spec.fitted and edge.table is not None):
        _check_embedding(rule, spec, edge, embedding)
    if spec.layout.permute == "shared" and embedding.layer_order(edge) is None:
        spec = dataclasses.replace(spec, permute="own")
    return spec


def _check_fitted(rule: Rule, spec: QuantSpec, edge: Edge) -> None:
    """Raise RecipeError if values cannot be fitted to the tensor of an edge."""
    where = f"rule {rule.name!r} fits {spec.format} values at {edge.address}"
    if edge.table is not None and not spec.layout.per_token and spec.scale.source != "none":
        raise RecipeError(
            f"{where}, of which rows are looked up: set granularity: per_token, one fit for each"
            " row"
        )
    if spec.transform != "none" and not (edge.parameter or edge.table is not None):
        raise RecipeError(
            f"{where} with transform: {spec.transform}, which is for parameters: leave it out"
        )


def _check_embedding(rule: Rule, spec: QuantSpec, edge: Edge, embedding: Embedding) -> None:
    """Raise RecipeError if the edge has no embedding axis, or one that the rule cannot group."""
    reason = embedding.refusal(edge)
    if reason:
        raise RecipeError(
            f"rule {rule.name!r} asks for {spec.layout.granularity} at {edge.address}, {reason}"
        )
    size: Any = edge.shape[-1]
    if spec.layout.groups is not None and size % spec.layout.groups:
        raise RecipeError(
            f"rule {rule.name!r} asks for {spec.layout.groups} groups at {edge.address}, whose"
            f" embedding size {size} they do not divide: set groups to a divisor"
        )
    source = embedding.layer_order(edge) if spec.layout.permute == "shared" else None
    if source is not None and source.shape[-1:] != (size,):
        raise RecipeError(
            f"rule {rule.name!r} asks for the shared order of its layer at {edge.address}, which"
            f" has {size} dimensions where {source.address} has {source.shape[-1]}: use permute:"
            " own there"
        )


def _order(spec: QuantSpec, edge: Edge, embedding: Embedding) -> str:
    """Address of the edge whose ranges a site's dimensions are sorted by."""
    if spec.layout.permute == "none":
        return ""
    source = embedding.layer_order(edge) if spec.layout.permute == "shared" else None
    return edge.address if source is None else source.address


def _channels(spec: QuantSpec, edge: Edge) -> tuple[int, ...]:
    rank = 0 if edge.shape is None else len(edge.shape)
    return spec.layout.channel_axes(rank, edge.channel_axes)


def _is_disabled(recipe: Recipe, edges: Iterable[Edge]) -> bool:
    return bool(recipe.disable) and all(recipe.disables(edge.address) for edge in edges)


def _group(recipe: Recipe, edge: Edge) -> str:
    return (
        edge.fusable if edge.fusable and any(edge.role == fuse.role for fuse in recipe.fuse) else ""
    )


def _check_groups(recipe: Recipe, sites: list[Site]) -> None:
    """Raise RecipeError if sites with a common range are quantized differently."""
    first: dict[str, Site] = {}
    for site in sites:
        if not site.group:
            continue
        if site.spec.scale.dynamic:
            raise RecipeError(
                f"recipe {recipe.name!r}: fused site {site.address} has a dynamic range, which it"
                " cannot share with others: remove the fusion, or dynamic"
            )
        if site.spec.layout.permute == "own":
            raise RecipeError(
                f"recipe {recipe.name!r}: fused site {site.address} sorts dimensions in an order of"
                " its own, so that others cannot have its ranges: use permute: none or shared, or"
                " remove the fusion"
            )
        other = first.setdefault(site.group, site)
        if (other.spec, other.range_shape) != (site.spec, site.range_shape):
            raise RecipeError(
                f"recipe {recipe.name!r}: fused sites {other.address} and {site.address} have"
                f" different specs ({other.spec.describe()} and {site.spec.describe()}); give them"
                " one rule or remove the fusion"
            )


def _unquantized(
    values: _Values, roles: Roles, decided: list[tuple[Edge, Rule]], sites: list[Site]
) -> list[Skipped]:
    """Contractions without any quantized operand, and the reason."""
    by_address = {edge.address: (edge, rule) for edge, rule in decided}
    quantized = {member for site in sites if site.enabled for member in site.members}
    disabled = {member for site in sites if not site.enabled for member in site.members}
    edges = {edge.address: edge for edge in roles.edges}
    at_source = {values.key(edges[a]) for a in quantized if edges[a].consumer is None}
    result = []
    for op, (path, addresses) in roles.contraction_edges.items():
        if any(
            a in quantized
            or (edges[a].role == "matmul_input" and values.key(edges[a]) in at_source)
            for a in addresses
        ):
            continue
        names = " and ".join(sorted({Address.parse(a).role for a in addresses}))
        excepted = [
            by_address[a][1].name
            for a in addresses
            if a in by_address and by_address[a][1].spec is None
        ]
        if excepted:
            reason = f"left in float by rule {excepted[0]!r}"
        elif any(a in disabled for a in addresses):
            reason = "disabled by the recipe"
        else:
            reason = f"no rule for role {names}"
        result.append(Skipped(op, path, reason))
    return result

"""Placements: the edges of one trace that the sites of a plan quantize."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

import tensorflow as tf

from tfquant.graph.alignment import aligned_edges
from tfquant.graph.edge import Edge
from tfquant.graph.plan import Plan
from tfquant.graph.replay import Edits
from tfquant.graph.trace import Trace
from tfquant.masked_scores import without_masked
from tfquant.rewrites.posit_softmax import replacements
from tfquant.site import Address, Site

EdgeEdit = Callable[[Site, Edge, tf.Tensor], tf.Tensor]


class Placements:
    """Iterable of (site, edge) for every edge of a trace that a site quantizes.

    Attributes:
      edges: address -> edge, of all edges of the trace. Edges of a training trace are listed under
        their address in the inference trace.
    """

    def __init__(self, plan: Plan, edges: dict[str, list[Edge]], trace: Trace):
        self._plan, self._aligned, self._trace = plan, edges, trace
        self.edges = {address: places[0] for address, places in edges.items()}

    @classmethod
    def of_inference(cls, plan: Plan, trace: Trace) -> Placements:
        """Placements in the trace that the plan was made on."""
        return cls(plan, {edge.address: [edge] for edge in trace.analysis.roles.edges}, trace)

    @classmethod
    def of_training(cls, plan: Plan, inference: Trace, training: Trace) -> Placements:
        """Placements in another trace of the same model; warns of planned edges that it lacks."""
        edges = aligned_edges(inference, training)
        missing = [m for site in plan.sites for m in site.members if m not in edges]
        if missing:
            warnings.warn(
                f"training computes {len(missing)} of the quantized edges in no place:"
                f" {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; they are"
                " quantized in inference alone",
                stacklevel=4,
            )
        return cls(plan, edges, training)

    def __iter__(self) -> Iterator[tuple[Site, Edge]]:
        for site in self._plan.sites:
            for member in site.members:
                for edge in self._aligned.get(member, ()):
                    yield site, edge

    def gradients(self) -> Iterator[tuple[Site, Edge]]:
        """Yield (site, edge) for every edge whose gradients a site quantizes."""
        for site in self._plan.gradients:
            for member in site.members:
                forward = str(Address.parse(member)._replace(direction="forward"))
                for edge in self._aligned.get(forward, ()):
                    yield site, edge.twin

    def edits(self, edit: EdgeEdit, gradients: bool = False, masked: bool = False) -> Edits:
        """Return edits that pass the tensor of every site through `edit`, once per tensor, however
        many consumers share it, and replace operations as the recipe says; `edit` also takes the
        first edge where replay meets the tensor.

        Args:
          edit: of one site.
          gradients: whether the sites of gradients are among them.
          masked: whether `edit` gets inputs of softmax with their masked entries.
        """
        edited = edit if masked else functools.partial(_edited, edit)
        done: dict[tuple[str, int], tf.Tensor] = {}
        kept: list[tf.Tensor] = []  # ids must not be used again while the graph is built

        def apply(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            key = (site.address, id(tensor))
            if key not in done:
                done[key] = result = edited(site, edge, tensor)
                done[(site.address, id(result))] = result
                kept.extend((tensor, result))
            return done[key]

        edges: dict[tuple[str, int], list[tuple[Site, Edge]]] = {}
        tensors: dict[str, list[tuple[Site, Edge]]] = {}
        for site, edge in (*self, *(self.gradients() if gradients else ())):
            if edge.consumer is None:
                tensors.setdefault(edge.tensor.name, []).append((site, edge))
            else:
                edges.setdefault(edge.consumer, []).append((site, edge))
        return Edits(
            {key: functools.partial(_apply_all, places, apply) for key, places in edges.items()},
            {key: functools.partial(_apply_all, places, apply) for key, places in tensors.items()},
            replacements(self._trace.analysis.structure.attention, self._plan.recipe.softmax),
        )


def _edited(edit: EdgeEdit, site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
    if edge.role == "softmax_input" and edge.direction == "forward":
        return without_masked(tensor, lambda scores: edit(site, edge, scores))
    return edit(site, edge, tensor)


def _apply_all(places: list[tuple[Site, Edge]], apply: EdgeEdit, tensor: tf.Tensor) -> tf.Tensor:
    for site, edge in places:
        tensor = apply(site, edge, tensor)
    return tensor

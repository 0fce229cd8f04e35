"""Analysis of a trace: data flow, structure, roles and axes, each computed once."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tfquant.graph.contractions import Contraction, Skipped, find_contractions
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.embedding import Embedding
from tfquant.graph.expression import Expressions
from tfquant.graph.roles import Roles, find_roles
from tfquant.graph.structure import Block, Layer, Structure

if TYPE_CHECKING:
    from tfquant.graph.trace import Trace


class Analysis:
    """Results of the pattern finders for one trace, computed when first used.

    Every caller reads them from `Trace.analysis`, so that a pattern is searched once, and planning,
    calibration and export work on the same objects.
    """

    def __init__(self, trace: Trace):
        self._trace = trace

    @functools.cached_property
    def flow(self) -> Dataflow:
        """Consumers, constants and walks through the graph."""
        return Dataflow(self._trace)

    @functools.cached_property
    def expressions(self) -> Expressions:
        """Keys that are equal for parameters computed alike."""
        return Expressions(self.flow)

    @functools.cached_property
    def _contractions(self) -> tuple[list[Contraction], list[Skipped]]:
        return find_contractions(self.flow)

    @property
    def contractions(self) -> list[Contraction]:
        """All products, including those with one-hot rows, in graph order."""
        return self._contractions[0]

    @functools.cached_property
    def structure(self) -> Structure:
        """Attention, residual additions, layer norms and heads."""
        return Structure(self.flow, self.expressions, *self._contractions)

    @functools.cached_property
    def roles(self) -> Roles:
        """Every edge that a recipe can name."""
        return find_roles(self.structure)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of the encoder or decoder in graph order."""
        return tuple(self.structure.blocks())

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Operations of each block, in the order of `blocks`."""
        return tuple(self.structure.layers())

    @functools.cached_property
    def embedding(self) -> Embedding:
        """Embedding axes of the activations."""
        return Embedding(self._trace, self.flow, self.roles.edges, lambda: self.layers)

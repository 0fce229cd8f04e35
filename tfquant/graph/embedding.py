"""Embedding axes of tensors.

Determines which activations have one, and the tensor that an encoder layer's dimensions are sorted
by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tfquant.error_messages import one_line
from tfquant.graph.axes import Axes, Labels
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.edge import Edge
from tfquant.graph.structure import Layer

if TYPE_CHECKING:
    from tfquant.graph.trace import Trace

# The last axis of these runs over tokens, whatever its size.
_PAIRS_OF_TOKENS = ("attention_scores", "softmax_output")


class Embedding:
    """Embedding axes of the activations of a trace.

    Args:
      trace: the trace.
      flow: its data flow.
      edges: all of its edges.
      layers: returns its layers; called when they are first needed.
    """

    def __init__(
        self,
        trace: Trace,
        flow: Dataflow,
        edges: Iterable[Edge],
        layers: Callable[[], tuple[Layer, ...]],
    ):
        self._trace, self._flow, self._layers = trace, flow, layers
        self._edges = {edge.address: edge for edge in edges}

    def refusal(self, edge: Edge) -> str:
        """Reason why an edge has no embedding axis, a clause that follows a comma; empty if its
        last axis is one.

        Of fixed size, not of tokens.
        """
        if edge.parameter:
            return "which is a parameter: use per_channel or per_tensor there"
        if len(edge.shape) < 2:
            return f"whose shape {_text(edge.shape)} has no embedding axis: use per_tensor there"
        if (
            edge.role in _PAIRS_OF_TOKENS
            or edge.port == "probabilities"
            or self._ends_in_tokens(edge)
        ):
            return (
                f"whose last axis runs over tokens (shape {_text(edge.shape)}), no embedding axis:"
                " use per_tensor there"
            )
        if edge.shape[-1] is None:
            return (
                f"whose last axis has no fixed size (shape {_text(edge.shape)}), no embedding axis:"
                " use per_tensor there"
            )
        return ""

    def layer_order(self, edge: Edge) -> Edge | None:
        """Output of the feed-forward network of the encoder layer that makes the edge's tensor;
        None outside of all layers.
        """
        name = self._flow.root(edge.tensor).op.name
        return next(
            (self._edges[layer.branch] for layer in self._layers() if name in layer.operations),
            None,
        )

    def _ends_in_tokens(self, edge: Edge) -> bool:
        labels = self._labels.get(edge.tensor.name)
        return bool(labels and labels[-1])

    @functools.cached_property
    def _labels(self) -> dict[str, Labels]:
        try:
            return Axes(
                self._trace, [e.tensor for e in self._edges.values() if not e.parameter and e.shape]
            ).labels
        except Exception as error:
            raise ValueError(
                "cannot tell which axes of this model's tensors run over tokens"
                f" ({type(error).__name__}: {one_line(error)}): use per_tensor in place of"
                " per_embedding and per_embedding_group"
            ) from error


def _text(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "()"

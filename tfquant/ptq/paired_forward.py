"""Paired forward pass of the float and the quantized network, layer by layer: each part runs once
or twice in total.

Between two stops (cuts of the graph) the tensors that later layers need are stored for every batch.
Stops are placed where these are few: between the blocks of a transformer, not inside of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.graph.cuts import frontier_at, narrow
from tfquant.graph.edge import Edge
from tfquant.graph.padding import Padding
from tfquant.graph.replay import Edits
from tfquant.ptq.buffers import Space
from tfquant.ptq.layers import Use
from tfquant.site import Site


@dataclasses.dataclass(frozen=True)
class Seen:
    """Inputs of one use in one batch.

    Attributes:
      exact: in the float network; the array of `quantized` itself where that is not run.
      quantized: in the quantized network.
      valid: broadcasts to them, nonzero for real tokens; None if all are real.
      source: equal for uses that see the same tensor of the quantized network.
    """

    exact: np.ndarray
    quantized: np.ndarray
    valid: np.ndarray | None
    source: int


class PairedForward:
    """Paired forward pass, see the module docstring.

    Args:
      engine: of the model.
      batches: inputs of the model, or (inputs, targets) pairs.
      groups: uses of the layers of each stop, in graph order.
      space: where tensors between stops are kept.
      mask: see `tfquant.calibrate`.
      paired: False runs the float network alone.
      quantize_activations: the quantized network rounds its activations too, not its weights alone.
      progress: show a bar for each stop.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Sequence[Any],
        groups: Sequence[Sequence[Use]],
        space: Space,
        *,
        mask: str | Sequence[str] | None = "auto",
        paired: bool = True,
        quantize_activations: bool = False,
        progress: bool = True,
    ):
        self._engine, self._trace, self._space = engine, engine.inference, space
        self._groups, self._paired, self._activations, self._progress = (
            groups,
            paired,
            quantize_activations,
            progress,
        )
        self._flow = self._trace.analysis.flow
        self.flats = flattened(engine, batches)
        inputs = [(use.op.name, use.input) for group in groups for use in group]
        self._padding = Padding(engine.inference, inputs, mask, "layer inputs")
        stops = self._stops()
        self._frontiers = [
            stop if kept else None for stop, kept in zip(stops, narrow(stops), strict=True)
        ]
        self._given: list[tf.Tensor] = []
        self._kept: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in self.flats]

    def visit(self, group: int, substitutes: Mapping[str, tf.Variable]) -> Iterator[list[Seen]]:
        """Run both networks up to a group of uses; visit groups in order, some may be omitted.

        Args:
          group: number of the group.
          substitutes: name of a handle -> the variable that the quantized network reads in its
            place.

        Yields:
          What each use of the group sees, batch by batch.

        Raises:
          ValueError: NaN or infinity, naming the batch.
        """
        uses, frontier = self._groups[group], self._frontiers[group]
        step, places = self._step(uses, frontier, dict(substitutes))
        for number, flat in enumerate(
            tqdm(self.flats, "layer inputs", unit="batch", leave=False, disable=not self._progress)
        ):
            exact, quantized, exact_next, quantized_next = (
                [t.numpy() for t in part] for part in step(flat, *map(_tensors, self._kept[number]))
            )
            if frontier is not None:
                keep = self._space.keep
                self._kept[number] = (
                    [keep(a) for a in exact_next],
                    [keep(a) for a in quantized_next],
                )
            yield [
                self._seen(use, number, exact[i], quantized[j], j)
                for use, (i, j) in zip(uses, places, strict=True)
            ]
        if frontier is not None:
            self._given = frontier

    def _seen(
        self, use: Use, number: int, exact: np.ndarray, quantized: np.ndarray, source: int
    ) -> Seen:
        for value in (exact, quantized):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(
                    f"batch {number}: NaN or infinity goes into {use.op.name}; check the batch, or"
                    " leave the layer out of sites"
                )
        valid = self._padding.values(self.flats[number]).of(use.input)
        return Seen(exact, quantized, None if valid is None else valid.numpy(), source)

    def _step(
        self,
        uses: Sequence[Use],
        frontier: list[tf.Tensor] | None,
        substitutes: dict[str, tf.Variable],
    ):
        """Advance one batch from the current cut to `uses` and the next cut; list which results
        belong to which use.
        """
        specified, trace = self._given, self._trace
        inputs, following = [use.input for use in uses], frontier or []
        places: list[tuple[int, int]] = []

        def run(flat, exact_given, quantized_given):
            def emit(known, edits, variables):
                result = trace.emit(
                    list(flat),
                    edits,
                    targets=[*inputs, *following],
                    given={t.name: new for t, new in zip(specified, known, strict=True)},
                    substitutes=variables,
                )
                seen = [_through(edits, use, t) for use, t in zip(uses, result, strict=False)]
                return *_distinct(seen), [tf.identity(t) for t in result[len(uses) :]]

            exact, first, exact_next = emit(exact_given, Edits(), {})
            if not self._paired:
                places[:] = zip(first, first, strict=True)
                return exact, exact, exact_next, []
            quantized, second, quantized_next = emit(
                quantized_given, self._edits(flat), substitutes
            )
            places[:] = zip(first, second, strict=True)
            return exact, quantized, exact_next, quantized_next

        known = [tf.TensorSpec(t.shape, t.dtype) for t in specified]
        function = tf.function(run, autograph=False)
        return (
            function.get_concrete_function(
                list(trace.input_specs), known, known if self._paired else []
            ),
            places,
        )

    def _edits(self, flat: Sequence[tf.Tensor]) -> Edits:
        """Edits of the quantized network."""
        quantize = self._engine.site_quantizer(flat)

        def edit(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            return quantize(site, edge, tensor) if site.is_weight or self._activations else tensor

        return self._engine.placements().edits(edit)

    def _stops(self) -> list[list[tf.Tensor]]:
        """Cut tensors of each group, which determine it and all later ones, computed before its
        first operation.
        """
        index = self._flow.index
        stops: list[list[tf.Tensor]] = []
        for number, uses in enumerate(self._groups):
            start = min(index[use.op.name] for use in uses)
            stops.append(
                frontier_at(
                    self._flow,
                    start,
                    [use.input for group in self._groups[number:] for use in group],
                )
            )
        return stops


def flattened(engine: Engine, batches: Iterable[Any]) -> list[list[tf.Tensor]]:
    """Inputs of every batch as flat tensors.

    Raises:
      ValueError: there is no batch, or one does not fit; the message has its number.
    """
    flats = []
    for number, batch in enumerate(batches):
        try:
            flats.append(engine.inputs.flatten_batch(batch))
        except (ValueError, TypeError) as error:
            raise ValueError(f"batch {number}: {one_line(error)}") from error
    if not flats:
        raise ValueError("no batch was given: pass at least one")
    return flats


def _through(edits: Edits, use: Use, tensor: tf.Tensor) -> tf.Tensor:
    """Inputs of the operation itself, after quantization of its own edge."""
    edit = edits.edges.get((use.op.name, use.input_index))
    return tensor if edit is None or use.lookup else edit(tensor)


def _distinct(tensors: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[int]]:
    """Unique tensors, and the index of each tensor among them."""
    result: dict[str, int] = {}
    places = [result.setdefault(t.name, len(result)) for t in tensors]
    return [tf.identity(next(t for t in tensors if t.name == name)) for name in result], places


def _tensors(arrays: list[np.ndarray]) -> list[tf.Tensor]:
    return [tf.constant(np.asarray(a)) for a in arrays]

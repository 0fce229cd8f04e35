"""A network in which every site is behind a switch, and trials of it that start where they begin to
differ from a common base.

The graph is emitted once for each place where trials start, not once for each trial: an activation
passes through the branch that its switch names, a weight is a variable that holds the float or the
quantized values of the trial at hand. What lies before the first site that a trial switches is the
same as in the base, so that it is computed once for all trials, and kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.graph.cuts import frontier_at, narrow
from tfquant.graph.edge import Edge
from tfquant.graph.replay import Edit, Edits
from tfquant.ptq.buffers import Space
from tfquant.quantizer import Quantizer
from tfquant.site import Site

# Address -> number of the quantizer that the site has; sites that are not in it are in float.
State = Mapping[str, int]
FLOAT, OWN = 0, 1
# Places where trials may start. Each saves a part of every trial behind it, and costs a graph of
# all that follows it.
_PLACES = 6


@dataclasses.dataclass(frozen=True)
class Trial:
    """Something to be tried.

    Attributes:
      name: for messages.
      state: of all sites.
    """

    name: str
    state: State

    @property
    def key(self) -> str:
        """The same for trials of one state: the sites by the number of their quantizer."""
        numbers: dict[int, list[str]] = {}
        for address, number in self.state.items():
            numbers.setdefault(number, []).append(address)
        return "; ".join(
            f"{number}: {', '.join(sorted(addresses))}"
            for number, addresses in sorted(numbers.items())
        )


@dataclasses.dataclass
class _Slot:
    """A weight in the network.

    Attributes:
      exact: its float values.
      sites: that quantize it at this place.
      present: numbers of the quantizers that `variable` has passed.
    """

    exact: tf.Tensor
    sites: list[Site]
    variable: tf.Variable
    present: tuple[int, ...]


class SwitchedNetwork:
    """See the module.

    Attributes:
      sites: address -> site, of those that the recipe has not disabled.

    Args:
      engine: of a calibrated model.
      flats: the inputs of every batch, see `tfquant.ptq.paired_forward.flattened`.
      space: where tensors of the base are kept.
      alternatives: address -> quantizers beside the site's own (number 1), for the numbers from 2.
    """

    def __init__(
        self,
        engine: Engine,
        flats: Sequence[Sequence[tf.Tensor]],
        space: Space,
        alternatives: Mapping[str, Sequence[Quantizer]] | None = None,
    ):
        self._engine, self._trace, self._flats, self._space = engine, engine.inference, flats, space
        self.sites = {site.address: site for site in engine.plan.sites if site.enabled}
        self._quantizers = {
            a: [engine.quantizers[a], *(alternatives or {}).get(a, ())] for a in self.sites
        }
        self._flow = self._trace.analysis.flow
        placements = [(site, edge) for site, edge in engine.placements() if site.enabled]
        self._slots = self._make_slots(placements)
        switched = dict.fromkeys(
            site.address for site, edge in placements if _key(edge) not in self._slots
        )
        self._switches = {address: index for index, address in enumerate(switched)}
        self._positions = self._first_positions(placements)
        self._starts, self._frontiers = self._places()
        self._functions: dict[tuple[int, int | None], tf.types.experimental.ConcreteFunction] = {}
        self._weight_functions: dict[
            tuple[str, int, tuple[int | None, ...]], tf.types.experimental.ConcreteFunction
        ] = {}

    def base(self, number: int) -> dict[str, int]:
        """The state in which all sites have quantizer `number`, or are in float (0)."""
        return dict.fromkeys(self.sites, number)

    def outputs(self, state: State) -> Iterator[list[np.ndarray]]:
        """Flat outputs of every batch."""
        return self._run(state, 0, None, [[] for _ in self._flats])

    def each(
        self, base: State, trials: Sequence[Trial]
    ) -> Iterator[tuple[Trial, Iterator[list[np.ndarray]]]]:
        """Runs trials, those that differ from `base` late in the network last.

        Yields:
          A trial and its flat outputs of every batch, to be taken before the next trial.
        """
        place, kept = 0, [[] for _ in self._flats]
        starts = [(self._start(base, trial.state), trial) for trial in trials]
        for start, trial in sorted(starts, key=lambda pair: pair[0]):
            if start > place:
                result = self._run(base, place, start, kept)
                kept = [[self._space.keep(value) for value in values] for values in result]
                place = start
            yield trial, self._run(trial.state, place, None, kept)

    def _run(
        self, state: State, start: int, end: int | None, kept: Sequence[Sequence[np.ndarray]]
    ) -> Iterator[list[np.ndarray]]:
        """From one place to another, or to the outputs, batch by batch."""
        self._fill(state)
        choice = tf.constant([state.get(address, FLOAT) for address in self._switches], tf.int32)
        function = self._function(start, end)
        for flat, values in zip(self._flats, kept, strict=True):
            yield [
                t.numpy()
                for t in function(choice, list(flat), [tf.constant(np.asarray(v)) for v in values])
            ]

    def _function(self, start: int, end: int | None):
        if (start, end) not in self._functions:
            specified, trace = self._frontiers[start], self._trace
            targets = list(trace.outputs) if end is None else self._frontiers[end]

            def run(choice, flat, kept):
                known = {t.name: new for t, new in zip(specified, kept, strict=True)}
                result = trace.emit(flat, self._edits(choice), targets=targets, given=known)
                return [tf.identity(t) for t in result]

            function = tf.function(run, autograph=False, jit_compile=False)
            self._functions[start, end] = function.get_concrete_function(
                tf.TensorSpec([len(self._switches)], tf.int32),
                list(trace.input_specs),
                [tf.TensorSpec(t.shape, t.dtype) for t in specified],
            )
        return self._functions[start, end]

    def _edits(self, choice: tf.Tensor) -> Edits:
        edits = self._engine.edits(lambda site, tensor: self._switched(choice, site, tensor))
        edges, tensors = dict(edits.edges), dict(edits.tensors)
        for key, slot in self._slots.items():
            where: dict[Any, Edit] = tensors if isinstance(key, str) else edges
            where[key] = lambda _, slot=slot: slot.variable.read_value()
        return dataclasses.replace(edits, edges=edges, tensors=tensors)

    def _switched(self, choice: tf.Tensor, site: Site, tensor: tf.Tensor) -> tf.Tensor:
        if site.address not in self._switches:
            return tensor
        wanted, switched = choice[self._switches[site.address]], tensor
        for number, quantizer in enumerate(self._quantizers[site.address], start=OWN):
            # Not `tf.cond`: its two graphs for every site would be most of what building takes.
            exact, taken = tf.raw_ops.Switch(data=switched, pred=tf.equal(wanted, number))
            switched = tf.raw_ops.Merge(inputs=[exact, quantizer(taken)]).output
            switched.set_shape(tensor.shape)
        return switched

    def _make_slots(
        self, placements: Sequence[tuple[Site, Edge]]
    ) -> dict[tuple[str, int] | str, _Slot]:
        """Where a weight is quantized -> it; rows of tables and what depends on sizes of inputs
        count as activations.
        """
        sites: dict[tuple[str, int] | str, list[Site]] = {}
        tensors: dict[tuple[str, int] | str, tf.Tensor] = {}
        for site, edge in placements:
            if edge.parameter and edge.table is None and self._flow.is_fixed(edge.tensor):
                sites.setdefault(_key(edge), []).append(site)
                tensors[_key(edge)] = edge.tensor
        if not tensors:
            return {}
        emit = tf.function(
            lambda: self._trace.emit([], targets=list(tensors.values())), autograph=False
        )
        exact = dict(zip(tensors, emit.get_concrete_function()(), strict=True))
        return {
            key: _Slot(
                value, sites[key], tf.Variable(value, trainable=False), (FLOAT,) * len(sites[key])
            )
            for key, value in exact.items()
        }

    def _fill(self, state: State) -> None:
        """Gives the weights the values that they have in `state`; each that changes is quantized
        once for all batches.
        """
        for slot in self._slots.values():
            wanted = tuple(state.get(site.address, FLOAT) for site in slot.sites)
            if wanted != slot.present:
                value = slot.exact
                for site, number in zip(slot.sites, wanted, strict=True):
                    value = (
                        value if number == FLOAT else self._quantized(site.address, number, value)
                    )
                slot.variable.assign(value)
                slot.present = wanted

    def _quantized(self, address: str, number: int, value: tf.Tensor) -> tf.Tensor:
        key = (address, number, tuple(value.shape))
        if key not in self._weight_functions:
            # In a graph, which TensorFlow optimizes: the last bits are those of the quantized
            # network then.
            function = tf.function(self._quantizers[address][number - 1], autograph=False)
            self._weight_functions[key] = function.get_concrete_function(
                tf.TensorSpec(value.shape, value.dtype)
            )
        return self._weight_functions[key](value)

    def _first_positions(self, placements: Sequence[tuple[Site, Edge]]) -> dict[str, int]:
        """Address -> index of the first operation that has to run again if the site is switched."""
        result: dict[str, int] = {}
        for site, edge in placements:
            position = self._flow.index[
                edge.tensor.op.name if edge.consumer is None else edge.consumer[0]
            ]
            if edge.consumer is None and self._flow.is_static(edge.tensor):
                position = self._first_use(edge.tensor)
            result[site.address] = min(position, result.get(site.address, position))
        return result

    def _first_use(self, parameter: tf.Tensor) -> int:
        """Index of the first operation whose result is kept at a frontier, and depends on a
        parameter.
        """
        following = self._flow.walk_forward(
            [parameter], lambda op: all(self._flow.is_static(t) for t in op.outputs)
        )
        kept = [op for op in following if not all(self._flow.is_static(t) for t in op.outputs)]
        return min((self._flow.index[op.name] for op in kept), default=0)

    def _places(self) -> tuple[list[int], list[list[tf.Tensor]]]:
        """Indices of the operations where trials may start, and what is kept there; the first is
        the start of the network.
        """
        indices = sorted(set(self._positions.values()))
        frontiers = [frontier_at(self._flow, index, self._trace.outputs) for index in indices]
        starts, kept, last, apart = [0], [[]], 0, max(1, len(indices) // _PLACES)
        for number, few in enumerate(narrow(frontiers)):
            if few and frontiers[number] and number - last >= apart:
                starts.append(indices[number])
                kept.append(frontiers[number])
                last = number
        return starts, kept

    def _start(self, base: State, state: State) -> int:
        """Number of the last place before the first site in which two states differ."""
        differing = [
            self._positions[a] for a in self.sites if base.get(a, FLOAT) != state.get(a, FLOAT)
        ]
        first = min(differing, default=self._starts[-1])
        return max(number for number, index in enumerate(self._starts) if index <= first)


def _key(edge: Edge) -> tuple[str, int] | str:
    """The edge or tensor at which a site quantizes."""
    return edge.tensor.name if edge.consumer is None else edge.consumer

"""Engine: a traced model, its plan and the ranges of its sites, emitted as float, observed or
quantized functions.

The user's code runs once for inference and, when training is first asked for, once more; every mode
is a replay of those traces.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import calib
from tfquant.choices import MODES
from tfquant.distributed.group import Group
from tfquant.dynamic_range import DynamicRanges
from tfquant.graph.alignment import aligned_edges
from tfquant.graph.model_adapter import ModelAdapter
from tfquant.graph.plan import make_plan
from tfquant.graph.replay import Edits
from tfquant.graph.roles import Edge
from tfquant.graph.side_outputs import set_keras_mask
from tfquant.graph.trace import Trace, free_path, trace
from tfquant.inputs import Inputs
from tfquant.python_state import fingerprint
from tfquant.quantizer import Quantizer, UncalibratedError
from tfquant.rules import Recipe
from tfquant.site import Site
from tfquant.variables import state_variable

SiteEdit = Callable[[Site, tf.Tensor], tf.Tensor]
EdgeEdit = Callable[[Site, Edge, tf.Tensor], tf.Tensor]


class Engine:
    """Traced model with its plan and quantizers, see the module docstring.

    Attributes:
      source: how to call the user's model.
      inference: its trace; `training` is a second one, made when first used.
      plan: the sites.
      inputs: how what users pass becomes the inputs of the trace.
      quantizers: address of a site -> its state; of dynamic sites there is none.
      calibration: what the ranges came from, None if they were loaded or not set.
      latent: whether functions for training hold the float network as well, and run it while
        `quantizing` is false.
      quantizing: see there.
      runs: how often the network was called or made part of a graph.
      range_rate: how fast ranges move in training as a multiple of the usual; at 0 moving averages
        stand still.
    """

    def __init__(self, source: ModelAdapter, recipe: Recipe):
        self.latent = False
        self.quantizing = state_variable(True, "quantizing")
        self.range_rate = state_variable(1.0, "range_rate")
        self.calibration: calib.Calibration | None = None
        self._known: dict[str, Quantizer] = {}  # every site's of all traces so far
        self._group: Group | None = None
        self.runs = 0
        self._mode = "quantized"
        self._trace_inference(source, recipe)

    def _trace_inference(self, source: ModelAdapter, recipe: Recipe) -> None:
        """Trace a model for inference and reset all that depends on the trace; ranges are kept by
        address.
        """
        inference = trace(source)
        plan = make_plan(inference, recipe)
        # Nothing of the engine changes before this line, behind which nothing is refused.
        self.source = source.narrowed(inference.input_structure)
        self.inference, self.plan = inference, plan
        self.__dict__.pop("training", None)
        self.inputs = Inputs(self.source, inference)
        self.quantizers = {
            site.address: self._quantizer(site)
            for site in plan.sites
            if not site.spec.scale.dynamic
        }
        self._known |= self.quantizers
        self._edges = {False: {e.address: [e] for e in inference.analysis.roles.edges}}
        self._dynamic: dict[bool, DynamicRanges] = {}
        self._functions: dict[tuple[str, bool, bool, tuple[str, ...], bool], Any] = {}
        self._state = self._python_state()

    def _quantizer(self, site: Site) -> Quantizer:
        known = self._known.get(site.address)
        if known is not None and (known.site.spec, known.site.range_shape) == (
            site.spec,
            site.range_shape,
        ):
            known.site = site
            return known
        quantizer = Quantizer(site, self.range_rate)
        if self._group is not None:
            quantizer.group = self._group
        return quantizer

    def _python_state(self) -> Hashable:
        return None if self.source.model is None else fingerprint(self.source.model)

    def retrace(self) -> bool:
        """Trace the model again if Python state that the trace depends on has changed.

        Returns:
          Whether it was.

        Raises:
          TraceError, RecipeError: as for a new engine; this one is as before then.
        """
        if self._python_state() == self._state:
            return False
        self._trace_inference(self.source, self.plan.recipe)
        return True

    @functools.cached_property
    def training(self) -> Trace:
        """Trace for training, made on first use."""
        if not self.source.modes:
            return self.inference
        unchanged = self._python_state() == self._state
        found = trace(self.source, training=True)
        if unchanged:  # what the trace itself leaves on the model is no change
            self._state = self._python_state()
        return found

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        self._mode = mode

    def share_ranges(self, group: Group) -> None:
        """Let moving averages follow the batches of all ranks of `group` from now on."""
        self._group = group
        for quantizer in self._known.values():
            quantizer.group = group
        self._functions = {key: made for key, made in self._functions.items() if not key[1]}

    def check_ready(self) -> None:
        """Raise UncalibratedError if the current mode quantizes and a site has no range."""
        if self._mode == "quantized":
            self.check_calibrated()

    def check_calibrated(self) -> None:
        """Raise UncalibratedError if a site has no range."""
        if all(q.calibrated for q in self.quantizers.values()):
            return
        missing = [a for a, q in self.quantizers.items() if not q.calibrated]
        raise UncalibratedError(
            f"site {missing[0]} has no range ({len(missing)} of {len(self.quantizers)} sites have"
            " none): run tfquant.calibrate(model, batches), load ranges with tfquant.load, or"
            " model.set_mode('float')"
        )

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """Run the current mode on one structure of inputs, inside or outside of `tf.function`."""
        # Ranges are read when the graph is built outside any function; inside one they were checked
        # by who calls.
        if tf.executing_eagerly():
            self.check_ready()
        return self.run(inputs, training)[0]

    def run(
        self, inputs: Any, training: bool = False, taps: tuple[str, ...] = ()
    ) -> tuple[Any, list[tf.Tensor], list[tf.Tensor]]:
        """Run the current mode on one structure of inputs.

        Args:
          inputs: see `flatten_inputs`.
          training: as for the model.
          taps: addresses of edges.

        Returns:
          The outputs with their Keras masks, the tensors at the edges, and the losses that layers
          added.
        """
        trace = self.trace_of(training)
        flat = self.flatten_inputs(inputs)
        self.runs += 1
        found = self.function(self._mode, training, taps, side_outputs=bool(trace.side_outputs))(
            *flat
        )
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        outputs, rest = found[: len(trace.outputs)], found[len(trace.outputs) :]
        tapped, side = rest[: len(taps)], iter(rest[len(taps) :])
        for output, mask in zip(outputs, trace.masks, strict=False):
            if mask is not None:
                set_keras_mask(output, next(side))
        return self.pack_outputs(outputs, training), tapped, list(side)

    def trace_of(self, training: bool) -> Trace:
        """Return the trace that is replayed in training or in inference."""
        return self.training if training and self.source.modes else self.inference

    def function(
        self,
        mode: str,
        training: bool = False,
        taps: tuple[str, ...] = (),
        side_outputs: bool = False,
    ):
        """Return the concrete function of a mode.

        Args:
          mode: see `MODES`.
          training: as for the model.
          taps: addresses of edges.
          side_outputs: whether to return masks and added losses as well.

        Returns:
          Flat inputs -> flat outputs, then the tensors at `taps`, then `Trace.side_outputs`.
        """
        latent = self.latent and bool(training) and mode == "quantized"
        key = (mode, bool(training), latent, taps, side_outputs)
        if key not in self._functions:
            graph = self.trace_of(training)
            emit = functools.partial(self._emit_either if latent else self._emit, graph, mode)
            function = tf.function(
                lambda *flat: emit(flat, bool(training), taps, side_outputs),
                autograph=False,
                jit_compile=False,
                input_signature=graph.input_specs,
            )
            with tf.init_scope():
                self._functions[key] = function.get_concrete_function()
        return self._functions[key]

    def _emit(
        self,
        graph: Trace,
        mode: str,
        flat,
        training: bool,
        taps: tuple[str, ...],
        side_outputs: bool,
    ):
        apart = training and self.source.modes
        edits = (
            self.edits_at_edges(self.site_quantizer(flat, training), apart)
            if mode == "quantized"
            else Edits()
        )
        tapped = [self.edges(apart)[address].tensor for address in taps]
        return graph.emit(
            list(flat), edits, taps=[*tapped, *(graph.side_outputs if side_outputs else ())]
        )

    def _emit_either(
        self,
        graph: Trace,
        mode: str,
        flat,
        training: bool,
        taps: tuple[str, ...],
        side_outputs: bool,
    ):
        """Emit a conditional that runs the quantized network or, while `quantizing` is false, the
        float one.
        """

        def branch(mode: str):
            # Copied into the branch: gradients of our own keep hold of their inputs, which have to
            # be of the same graph.
            return self._emit(
                graph, mode, [tf.identity(t) for t in flat], training, taps, side_outputs
            )

        return tf.cond(self.quantizing, lambda: branch(mode), lambda: branch("float"))

    def site_quantizer(self, flat: Sequence[tf.Tensor], training: bool = False) -> EdgeEdit:
        """Return the quantizer of site tensors for a graph that is emitted with the inputs `flat`;
        disabled sites are identities.
        """
        dynamic = self._dynamic_ranges(training and self.source.modes).quantizing(flat)

        def quantize(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            if not site.enabled:
                return tensor
            return (
                dynamic(site, edge, tensor)
                if site.spec.scale.dynamic
                else self.quantizers[site.address](tensor, training)
            )

        return quantize

    def _dynamic_ranges(self, training: bool) -> DynamicRanges:
        if training not in self._dynamic:
            graph = self.training if training else self.inference
            self._dynamic[training] = DynamicRanges(graph, self.placements(training))
        return self._dynamic[training]

    def edits(self, edit: SiteEdit, training: bool = False) -> Edits:
        """Edits that pass the tensor of every site through `edit`, once per tensor, however many
        consumers share it.
        """
        return self.edits_at_edges(lambda site, edge, tensor: edit(site, tensor), training)

    def edits_at_edges(self, edit: EdgeEdit, training: bool = False) -> Edits:
        """Like `edits`, for callbacks that also take the first edge where replay meets a tensor."""
        done: dict[tuple[str, int], tf.Tensor] = {}
        kept: list[tf.Tensor] = []  # ids must not be used again while the graph is built

        def apply(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            key = (site.address, id(tensor))
            if key not in done:
                done[key] = result = edit(site, edge, tensor)
                done[(site.address, id(result))] = result
                kept.extend((tensor, result))
            return done[key]

        edges: dict[tuple[str, int], list[tuple[Site, Edge]]] = {}
        tensors: dict[str, list[tuple[Site, Edge]]] = {}
        for site, edge in self.placements(training):
            if edge.consumer is None:
                tensors.setdefault(edge.tensor.name, []).append((site, edge))
            else:
                edges.setdefault(edge.consumer, []).append((site, edge))
        return Edits(
            {key: functools.partial(_apply_all, places, apply) for key, places in edges.items()},
            {key: functools.partial(_apply_all, places, apply) for key, places in tensors.items()},
        )

    def edges(self, training: bool = False) -> dict[str, Edge]:
        """Map address -> edge in the inference or training trace; edges of the latter are listed
        under their address in the former.
        """
        return {address: edges[0] for address, edges in self._aligned(training).items()}

    def _aligned(self, training: bool) -> dict[str, list[Edge]]:
        if training not in self._edges:
            self._edges[training] = aligned_edges(self.inference, self.training)
            missing = [
                m
                for site in self.plan.sites
                for m in site.members
                if m not in self._edges[training]
            ]
            if missing:
                warnings.warn(
                    f"training computes {len(missing)} of the quantized edges in no place:"
                    f" {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; they are"
                    " quantized in inference alone",
                    stacklevel=2,
                )
        return self._edges[training]

    def placements(self, training: bool = False) -> list[tuple[Site, Edge]]:
        """List (site, edge) for every edge that a site quantizes, in the inference or training
        trace.
        """
        edges = self._aligned(training)
        return [
            (site, edge)
            for site in self.plan.sites
            for member in site.members
            for edge in edges.get(member, ())
        ]

    def weights(self) -> dict[str, tf.Variable]:
        """Path -> variable without ranges, in the order of the model. States of random generators
        (dropout) are excluded.

        Layers of one name are told apart: `dense`, `dense_1`, ... in the order data flows through
        them, then those that inference does not use in the order of the model.
        """
        traced = {
            id(variable): self.inference.paths[handle]
            for handle, variable in self.inference.variables.items()
        }
        pairs = [
            *self.source.named_variables,
            *((variable, "") for variable in self.inference.variables.values()),
        ]
        named: dict[str, tf.Variable] = {}
        seen: set[int] = set()
        for variable, path in pairs:
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            path = traced.get(id(variable)) or free_path(path, {*traced.values(), *named})
            if path.rpartition("/")[2] != "seed_generator_state":
                named[path] = variable
        return named

    def parameter_edges(self) -> dict[str, Edge]:
        """Map address of each parameter site -> one of its edges, a product in preference to a
        look-up.
        """
        found: dict[str, Edge] = {}
        for site, edge in self.placements():
            if edge.parameter and (
                site.address not in found or (found[site.address].table and not edge.table)
            ):
                found[site.address] = edge
        return found

    def parameter_values(self, edges: Mapping[str, Edge] | None = None) -> dict[str, np.ndarray]:
        """Current values of the parameters that sites quantize, as they reach the site.

        Args:
          edges: name -> where a parameter is quantized; by default one edge of every parameter
            site, by the address of the site.

        Returns:
          Name -> values, of tables all rows.

        Raises:
          calib.NonFiniteError: a weight is NaN or infinite; the message names the site.
        """
        edges = self.parameter_edges() if edges is None else edges
        values = {
            name: self.inference.variables[edge.table].numpy()
            for name, edge in edges.items()
            if edge.table is not None
        }
        targets = {name: edge.tensor for name, edge in edges.items() if edge.table is None}
        if targets:
            emit = tf.function(
                lambda: self.inference.emit([], targets=list(targets.values())), autograph=False
            )
            # A concrete function, as TensorFlow warns of functions that are made and called again
            # and again.
            values.update(
                zip(targets, [t.numpy() for t in emit.get_concrete_function()()], strict=True)
            )
        for address, value in values.items():
            if not np.isfinite(value).all():
                raise calib.NonFiniteError(
                    f"site {address}: the weight holds {int((~np.isfinite(value)).sum())} NaN or"
                    " infinite values; check the checkpoint"
                )
        return values

    def flatten_inputs(self, inputs: Any) -> list[tf.Tensor]:
        """Flatten inputs to tensors in the types of the signature, see `Inputs.flatten`."""
        return self.inputs.flatten(inputs)

    def inputs_of(self, batch: Any) -> Any:
        """Return the inputs of a batch, see `Inputs.of_batch`."""
        return self.inputs.of_batch(batch)

    def pack_outputs(self, flat, training: bool) -> Any:
        graph = self.trace_of(training)
        flat = list(flat) if isinstance(flat, (list, tuple)) else [flat]
        leaves = iter(flat)
        return tf.nest.map_structure(
            lambda leaf: next(leaves) if isinstance(leaf, tf.TensorSpec) else leaf,
            graph.output_structure,
        )

    def apply(self, calibration: calib.Calibration) -> None:
        """Set all ranges from a calibration, or none if it does not fit.

        Raises:
          ValueError: it lacks a site, or a range does not fit.
        """
        missing = [a for a in self.quantizers if a not in calibration]
        if missing:
            raise ValueError(
                f"the calibration has no range for site {missing[0]} ({len(missing)} of"
                f" {len(self.quantizers)} are missing): it was made with another model or recipe;"
                " calibrate again"
            )
        ranges, groups = {}, {}
        for address, quantizer in self.quantizers.items():
            entry, shape = calibration[address], quantizer.site.range_shape
            _check_grouping(quantizer.site, entry.grouping)
            groups[address] = None if entry.grouping is None else entry.grouping.group_of
            if entry.lower.size != np.prod(shape, dtype=int):
                raise ValueError(
                    f"site {address}: the calibration has {entry.lower.size} ranges, the site needs"
                    f" {list(shape)}; calibrate again"
                )
            ranges[address] = (entry.lower.reshape(shape), entry.upper.reshape(shape))
        ranges = fused_ranges(self.plan.sites, ranges)
        before = [(v, v.numpy()) for q in self.quantizers.values() for v in q.variables.values()]
        try:
            for address, quantizer in self.quantizers.items():
                quantizer.set_range(*ranges[address], groups[address])
        except ValueError:
            for variable, value in before:
                variable.assign(value)
            raise
        self.calibration = calibration


def _check_grouping(site: Site, found: calib.Grouping | None) -> None:
    """Raise ValueError if the groups of dimensions in a calibration are not those of the site."""
    wanted = (
        None
        if site.spec.layout.groups is None
        else (site.spec.layout.groups, site.order, site.shape[-1])
    )
    given = None if found is None else (found.groups, found.order, found.group_of.size)
    if wanted != given:
        has, wants = (
            (
                "no groups of dimensions"
                if one is None
                else f"{one[0]} groups of {one[2]} dimensions sorted by {one[1] or 'nothing'}"
            )
            for one in (given, wanted)
        )
        raise ValueError(
            f"site {site.address}: the calibration has {has}, the recipe wants {wants}: calibrate"
            " with this recipe"
        )


def _apply_all(places: list[tuple[Site, Edge]], apply: EdgeEdit, tensor: tf.Tensor) -> tf.Tensor:
    for site, edge in places:
        tensor = apply(site, edge, tensor)
    return tensor


def fused_ranges(
    sites, ranges: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give the sites of one fusion group their smallest lower and largest upper end."""
    groups: dict[str, list[str]] = {}
    for site in sites:
        if site.group:
            groups.setdefault(site.group, []).append(site.address)
    ranges = dict(ranges)
    for members in groups.values():
        lower = np.min([ranges[a][0] for a in members], axis=0)
        upper = np.max([ranges[a][1] for a in members], axis=0)
        ranges.update({a: (lower, upper) for a in members})
    return ranges

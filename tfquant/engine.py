"""Engine: a traced model and its plan, emitted as float or quantized functions.

The user's code runs once for inference and, when training is first asked for, once more; every mode
is a replay of those traces. The quantizers of the sites are in `site_quantizers`, the edges that
they stand on in `placements`, the weights of the model in `weights`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfquant.choices import MODES
from tfquant.delayed import DelayedRange, update
from tfquant.distributed.group import Group
from tfquant.dynamic_range import DynamicRanges
from tfquant.error_decay import T_MIN
from tfquant.gradient_quantizers import GradientQuantizers
from tfquant.graph.edge import Edge
from tfquant.graph.model_adapter import ModelAdapter
from tfquant.graph.plan import make_plan
from tfquant.graph.replay import Edits
from tfquant.graph.side_outputs import set_keras_mask
from tfquant.graph.trace import Trace
from tfquant.inputs import Inputs
from tfquant.placements import EdgeEdit, Placements
from tfquant.python_state import fingerprint
from tfquant.rewrites.gamma_migration import traced
from tfquant.rules import Recipe
from tfquant.site import Site
from tfquant.site_quantizers import SiteQuantizers
from tfquant.variables import state_variable

if TYPE_CHECKING:
    from tfquant.lora import Lora

SiteEdit = Callable[[Site, tf.Tensor], tf.Tensor]


class Engine:
    """Traced model with its plan and quantizers, and the functions of its modes.

    Attributes:
      source: adapter that calls the user's model.
      inference: trace for inference; `training` is a second one, made on first use.
      plan: sites and skipped contractions.
      inputs: validation and flattening of what users pass.
      quantizers: address of a site -> its quantizer, see `SiteQuantizers`.
      error_decay: t of `tfquant.error_decay`.
      gradients: likewise of the sites of gradients, which training uses.
      lora: low-rank updates of kernels, added before they are quantized; None without.
      latent: whether functions for training hold the float network as well, and run it while
        `quantizing` is false.
      quantizing: boolean variable, see `latent`.
      runs: number of calls of the network, in graphs that are being built as well.
    """

    def __init__(self, source: ModelAdapter, recipe: Recipe):
        self.latent = False
        self.quantizing = state_variable(True, "quantizing")
        self.quantizers = SiteQuantizers(state_variable(1.0, "range_rate"))
        self.error_decay = state_variable(T_MIN, "error_decay")
        self.gradients = GradientQuantizers()
        self.lora: Lora | None = None
        self.runs = 0
        self._mode = "quantized"
        self._trace_inference(source, recipe)

    def _trace_inference(self, source: ModelAdapter, recipe: Recipe) -> None:
        """Trace a model for inference and reset all that depends on the trace; ranges are kept by
        address.
        """
        inference = traced(source, recipe)
        plan = make_plan(inference, recipe)
        # Nothing of the engine changes before this line, behind which nothing is refused.
        self.source = source.narrowed(inference.input_structure)
        self.inference, self.plan = inference, plan
        self.__dict__.pop("training", None)
        self.inputs = Inputs(self.source, inference)
        self.quantizers.follow(plan.sites)
        self.gradients.follow(plan.gradients)
        self._placements = {False: Placements.of_inference(plan, inference)}
        self._dynamic: dict[bool, DynamicRanges] = {}
        self._functions: dict[tuple[str, bool, bool, tuple[str, ...], bool], Any] = {}
        self._state = self._python_state()

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
        result = traced(self.source, self.plan.recipe, training=True)
        if unchanged:  # what the trace itself leaves on the model is no change
            self._state = self._python_state()
        return result

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        self._mode = mode

    @property
    def delayed(self) -> list[DelayedRange]:
        """States of all delayed scales, of values, of gradients and of low-rank updates."""
        quantizers = (*self.quantizers.values(), *self.gradients.values())
        states = [q.state for q in quantizers if isinstance(q.state, DelayedRange)]
        return states + ([] if self.lora is None else self.lora.delayed)

    @property
    def uses_error_decay(self) -> bool:
        """Whether a site has the error-decay gradient, so that t matters."""
        return any(site.spec.gradient.error_decay for site in self.plan.sites)

    @property
    def schedules(self) -> dict[str, tf.Variable]:
        """Variables that a schedule of training sets and a checkpoint holds, by name."""
        return {"error_decay": self.error_decay} if self.uses_error_decay else {}

    def set_lora(self, lora: Lora | None) -> None:
        """Add low-rank updates to kernels from now on, or none."""
        self.lora = lora
        self._functions.clear()

    def check_merged(self, what: str) -> None:
        """Raise ValueError if kernels have low-rank updates, which `what` would not see."""
        if self.lora is not None:
            raise ValueError(
                f"{len(self.lora.updates)} kernels have LoRA updates, which {what} would leave out:"
                " merge them first, model.lora.merge()"
            )

    def update_scales(self, group: Group | None = None) -> None:
        """Set delayed scales for the next step, see `tfquant.delayed`.

        Args:
          group: the processes that train together; None: those that share ranges.
        """
        update(self.delayed, self.quantizers.group if group is None else group)

    def share_ranges(self, group: Group) -> None:
        """Let moving averages and delayed scales follow the batches of all ranks of `group` from
        now on.
        """
        self.quantizers.share(group)
        self._functions = {key: made for key, made in self._functions.items() if not key[1]}

    def check_ready(self, training: bool = False) -> None:
        """Raise UncalibratedError if the current mode quantizes and a site has no range; delayed
        scales find theirs in training.
        """
        if self._mode == "quantized":
            self.quantizers.check_calibrated(training)

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """Run the current mode on one structure of inputs, inside or outside of `tf.function`."""
        # Ranges are read when the graph is built outside any function; inside one they were checked
        # by who calls.
        if tf.executing_eagerly():
            self.check_ready(training)
        return self.run(inputs, training)[0]

    def run(
        self, inputs: Any, training: bool = False, taps: tuple[str, ...] = ()
    ) -> tuple[Any, list[tf.Tensor], list[tf.Tensor]]:
        """Run the current mode on one structure of inputs.

        Args:
          inputs: see `Inputs.flatten`.
          training: as for the model.
          taps: addresses of edges.

        Returns:
          The outputs with their Keras masks, the tensors at the edges, and the losses that layers
          added.
        """
        trace = self.trace_of(training)
        flat = self.inputs.flatten(inputs)
        self.runs += 1
        result = self.function(self._mode, training, taps, side_outputs=bool(trace.side_outputs))(
            *flat
        )
        result = list(result) if isinstance(result, (list, tuple)) else [result]
        outputs, rest = result[: len(trace.outputs)], result[len(trace.outputs) :]
        tapped, side = rest[: len(taps)], iter(rest[len(taps) :])
        for output, mask in zip(outputs, trace.masks, strict=False):
            if mask is not None:
                set_keras_mask(output, next(side))
        return trace.pack_outputs(outputs), tapped, list(side)

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
            emit = functools.partial(
                self._emit,
                graph,
                training=bool(training),
                taps=[self.placements(training).edges[address].tensor for address in taps]
                + (graph.side_outputs if side_outputs else []),
            )
            function = tf.function(
                lambda *flat: self._either(emit, flat) if latent else emit(mode, flat),
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
        flat: Sequence[tf.Tensor],
        training: bool,
        taps: list[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Replay a trace in a mode, with the inputs `flat`; return its outputs and `taps`."""
        edits = Edits()
        if mode == "quantized":
            edits = self.placements(training).edits(
                self.site_quantizer(flat, training), gradients=training
            )
        return graph.emit(list(flat), edits, taps=taps)

    def _either(
        self,
        emit: Callable[[str, list[tf.Tensor]], list[tf.Tensor]],
        flat: Sequence[tf.Tensor],
    ) -> Any:
        """Emit a conditional that runs the quantized network or, while `quantizing` is false, the
        float one.
        """

        def branch(mode: str) -> list[tf.Tensor]:
            # Copied into the branch: gradients of our own keep hold of their inputs, which have to
            # be of the same graph.
            return emit(mode, [tf.identity(t) for t in flat])

        return tf.cond(self.quantizing, lambda: branch("quantized"), lambda: branch("float"))

    def site_quantizer(self, flat: Sequence[tf.Tensor], training: bool = False) -> EdgeEdit:
        """Return the quantizer of site tensors for a graph that is emitted with the inputs `flat`;
        disabled sites are identities.
        """
        dynamic = self._dynamic_ranges(training).quantizing(flat)

        def quantize(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            if self.lora is not None:
                tensor = self.lora(site, tensor, training)
            if not site.enabled:
                return tensor
            if site.direction == "backward":
                return self.gradients.quantized(site, tensor)
            return (
                dynamic(site, edge, tensor)
                if site.spec.stateless
                else self.quantizers[site.address](tensor, training)
            )

        return quantize

    def _dynamic_ranges(self, training: bool) -> DynamicRanges:
        training = training and self.source.modes
        if training not in self._dynamic:
            self._dynamic[training] = DynamicRanges(
                self.trace_of(training), self.placements(training), self.error_decay
            )
        return self._dynamic[training]

    def edits(self, edit: SiteEdit, training: bool = False) -> Edits:
        """Edits that pass the tensor of every site through `edit`, see `Placements.edits`."""
        return self.placements(training).edits(lambda site, edge, tensor: edit(site, tensor))

    def placements(self, training: bool = False) -> Placements:
        """Edges that sites quantize, in the inference or training trace."""
        training = training and self.source.modes
        if training not in self._placements:
            self._placements[training] = Placements.of_training(
                self.plan, self.inference, self.training
            )
        return self._placements[training]

"""Recording of exponent histograms: a network whose quantizers count the values they are given.

Counters are variables inside the graph. Those of gradients are raised in the backward pass, by
identities with a gradient of their own, as quantizers of gradients are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant.calibration import check_batches
from tfquant.engine import Engine
from tfquant.exponents import (
    NUM_COUNTERS,
    SUBNORMAL,
    ExponentHistogram,
    ExponentHistograms,
    Kind,
    count_exponents,
)
from tfquant.graph.edge import Edge
from tfquant.graph.model_adapter import source_of
from tfquant.graph.padding import Padding
from tfquant.masked_scores import without_masked
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.observer_runner import batch_length, unmasked
from tfquant.recipes.op_groups import ROLES_OF_GROUPS, recipe_of
from tfquant.recipes.spec_strings import parse_spec
from tfquant.rules import Recipe
from tfquant.site import Address, Site
from tfquant.variables import state_variable
from tfquant.weights import parameter_values

Loss = Callable[[Any, Any], tf.Tensor]


def exponent_histograms(
    model: Any,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    mask: str | Sequence[str] | None = "auto",
    inputs: Any = None,
    signature: Any = None,
    progress: bool = True,
) -> ExponentHistograms:
    """Count the binary exponents of the inputs of all quantizers.

    Args:
      model: from `tfquant.quantize`, run in its current mode; or a float model, which is observed
        where all op groups of `tfquant.recipes.op_groups` would quantize.
      batches: inputs of the model, or (inputs, targets) pairs; with `loss` what that takes.
      loss: (network, batch) -> scalar; calls `network(inputs, training=True)` as it would the
        model. Gradients are counted as well then, in the training graph: at the sites of gradients,
        or, in a recipe without any, at all activation sites. None: activations and weights in
        inference.
      mask: inputs that mark real tokens, see `tfquant.calibrate`; padding is not counted.
      inputs, signature: as for `tfquant.quantize`, for float models that do not say what they take.
      progress: whether to show a bar.

    Returns:
      Histograms by address. Weights are counted once, the rest in every batch. The state of the
      model, such as moving averages, random seeds and histories of scales, is as before.

    Raises:
      ValueError: no batch or one that does not fit, or nothing is trainable and `loss` is given.
      UncalibratedError: the model quantizes and has no ranges.
      calib.NonFiniteError: a weight is NaN or infinite.
    """
    check_batches(batches, "exponent_histograms")
    if isinstance(model, (QuantizedModel, QuantizedFunction)):
        engine = engine_of(model)
    else:
        engine = Engine(source_of(model, inputs, signature), _everywhere(loss is not None))
        engine.mode = "float"
    engine.check_ready(training=loss is not None)
    recorder = _Recorder(engine, mask, gradients=loss is not None)
    empty = True
    with _preserved(recorder.state):
        shown = tqdm(batches, "exponents", batch_length(batches), disable=not progress)
        for batch in shown:
            empty = False
            if loss is None:
                recorder.function(*engine.inputs.flatten_batch(batch))
            else:
                recorder.backpropagate(loss, batch)
    if empty:
        raise ValueError("exponent_histograms: no batch was given: pass at least one")
    return recorder.result()


def _everywhere(gradients: bool) -> Recipe:
    """Return a recipe with a site at every edge of the op groups; its format does not matter."""
    spec, groups = parse_spec("e4m3"), tuple(ROLES_OF_GROUPS)
    error = spec if gradients else None
    return recipe_of(spec, spec, groups, error=error, error_groups=groups)


class _Recorder:
    """Network that counts; called like the model.

    Attributes:
      counters: address -> int64 [`NUM_COUNTERS`], of activations and gradients.

    Args:
      engine: of the network.
      mask: see `tfquant.calibrate`.
      gradients: whether to count gradients, in the training graph.
    """

    def __init__(self, engine: Engine, mask: str | Sequence[str] | None, *, gradients: bool):
        self._engine, self._training = engine, gradients
        self._trace, self._placements = engine.trace_of(gradients), engine.placements(gradients)
        self._twins = gradients and not engine.plan.gradients
        places = [(s, e) for s, e in self._placements if s.enabled and not e.parameter]
        if gradients:
            own = ((s, e.twin) for s, e in places) if self._twins else self._placements.gradients()
            places += [(site, edge) for site, edge in own if site.enabled]
        self.counters = {
            _address(site, edge): state_variable(np.zeros(NUM_COUNTERS, np.int64), "exponents")
            for site, edge in places
        }
        self._padding = Padding(self._trace, [(e.address, e.tensor) for _, e in places], mask)

    @property
    def state(self) -> list[tf.Variable]:
        """Variables that a training step changes without an optimizer."""
        if not self._training:
            return []
        quantizers = (*self._engine.quantizers.values(), *self._engine.gradients.values())
        return [
            *(v for v in self._trace.variables.values() if not v.trainable),
            *(v for quantizer in quantizers for v in quantizer.variables.values()),
            *(state.seen for state in self._engine.delayed),
        ]

    @functools.cached_property
    def function(self):
        """Concrete function: flat inputs -> flat outputs; counts on its way."""
        function = tf.function(
            lambda *flat: self._emit(flat),
            autograph=False,
            jit_compile=False,
            input_signature=self._trace.input_specs,
        )
        return function.get_concrete_function()

    def _emit(self, flat: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        engine, validity = self._engine, self._padding.values(flat)
        quantizing = engine.mode == "quantized"
        quantizer = engine.site_quantizer(flat, self._training) if quantizing else _unchanged
        counted: set[str] = set()

        def edit(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            if not site.enabled:
                return tensor
            valid = validity.of(edge.tensor)
            if edge.direction == "backward":
                address = _address(site, edge)
                return self._counting_gradient(address, quantizer(site, edge, tensor), valid)
            # Edges of one site carry views of one tensor: it is counted once.
            if not edge.parameter and site.address not in counted:
                counted.add(site.address)
                counts = _count(tensor, unmasked(edge, tensor, valid))
                self.counters[site.address].assign_add(counts, read_value=False)
            result = (
                without_masked(tensor, lambda scores: quantizer(site, edge, scores))
                if edge.role == "softmax_input"
                else quantizer(site, edge, tensor)
            )
            if self._twins and not edge.parameter:
                return self._counting_gradient(_address(site, edge.twin), result, valid)
            return result

        edits = self._placements.edits(edit, gradients=self._training, masked=True)
        return self._trace.emit(list(flat), edits)

    def _counting_gradient(
        self, address: str, tensor: tf.Tensor, valid: tf.Tensor | None
    ) -> tf.Tensor:
        """Return `tensor` with a gradient that is counted on its way back."""

        @tf.custom_gradient
        def passed(x: tf.Tensor) -> Any:
            def gradient(dy: tf.Tensor) -> tf.Tensor:
                noted = self.counters[address].assign_add(_count(dy, valid), read_value=False)
                # In a backward pass only what its result depends on is executed.
                with tf.control_dependencies([] if noted is None else [noted]):
                    return tf.identity(dy)

            return tf.identity(x), gradient

        return passed(tensor)

    def __call__(self, inputs: Any, training: bool = True) -> Any:
        """Run the network as the model is run in training, whatever `training` says."""
        outputs = self.function(*self._engine.inputs.flatten(inputs))
        listed = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        return self._trace.pack_outputs(listed[: len(self._trace.outputs)])

    def backpropagate(self, loss: Loss, batch: Any) -> None:
        """Compute and drop the gradients of a batch."""
        trained = [v for v in self._trace.variables.values() if v.trainable and v.dtype.is_floating]
        if not trained:
            raise ValueError("exponent_histograms: the model has no trainable variable: omit loss")
        with tf.GradientTape() as tape:
            value = loss(self, batch)
        tape.gradient(value, trained)

    def result(self) -> ExponentHistograms:
        """Histograms of what has been counted so far, and of the weights."""
        engine, edges = self._engine, self._engine.placements().edges
        counters = {address: one.numpy() for address, one in self.counters.items()}
        enabled = {site.address for site in engine.plan.sites if site.enabled}
        for address, value in parameter_values(engine).items():
            if address in enabled:
                counters[address] = count_exponents(value)
        histograms = []
        for address, counts in counters.items():
            parsed = Address.parse(address)
            edge = edges[str(parsed._replace(direction="forward"))]
            kind: Kind = "weight" if edge.parameter else "activation"
            kind = "gradient" if parsed.direction == "backward" else kind
            histograms.append(
                ExponentHistogram(address, kind, edge.role, edge.part, edge.block, counts)
            )
        return ExponentHistograms(histograms)


def _address(site: Site, edge: Edge) -> str:
    """Address of the counters of a site, for values or for gradients as the edge is."""
    return str(Address.parse(site.address)._replace(direction=edge.direction))


def _unchanged(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
    return tensor


def _count(x: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
    """Count exponents in the graph, as `count_exponents` does.

    Args:
      x: floating point.
      valid: nonzero or True for elements that count; broadcast to `x`. None: all do.
    """
    bits = tf.bitwise.bitwise_and(tf.bitcast(tf.cast(x, tf.float32), tf.int32), 0x7FFFFFFF)
    codes = tf.where((bits > 0) & (bits < 1 << 23), SUBNORMAL, tf.bitwise.right_shift(bits, 23))
    if valid is not None:
        counted = tf.broadcast_to(tf.cast(valid, tf.bool), tf.shape(codes))
        codes = tf.boolean_mask(codes, counted)
    return tf.math.bincount(
        tf.reshape(codes, [-1]), minlength=NUM_COUNTERS, maxlength=NUM_COUNTERS, dtype=tf.int64
    )


@contextlib.contextmanager
def _preserved(variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Restore the values of variables at the end."""
    before = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)

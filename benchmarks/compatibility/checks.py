"""Checks of one model: sites, float mode, 16 and 8 bits, gradients, training, storing, ONNX."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfquant
from benchmarks.compatibility import CHECKS
from benchmarks.compatibility.conditioning import condition_batch_normalization
from benchmarks.compatibility.inputs import random_batch
from tfquant.error_messages import one_line

# Largest relative error of outputs at 16 bits, and of gradients in float mode.
LARGEST_ERROR_16_BITS = 1e-2
LARGEST_GRADIENT_ERROR = 1e-3


class Subject:
    """A model under test with its batches and, once quantized, its quantized form.

    Attributes:
      build: makes the model with new random weights.
      model: the float model.
      batches: two batches of inputs.
    """

    def __init__(self, build: Callable[[], Any]):
        keras.utils.set_random_seed(0)
        self.build = build
        self.model = build()
        self.batches = [random_batch(self.model, seed) for seed in (0, 1)]
        condition_batch_normalization(self.model)
        self._quantized: Any = None
        self._predict = tf.function(lambda batch: self.model(batch, training=False))

    def expected(self, batch: Any) -> Any:
        """Outputs of the float model as `predict` computes them.

        Without `training`, layers that a functional model calls with a fixed `training=True` (the
        heads of DeepLabV3 and SegFormer) would compute what only a call by hand does. Called as a
        graph, since kernels that TensorFlow fuses there differ in their last bits.
        """
        return self._predict(batch)

    @property
    def quantized(self) -> Any:
        """The model with the default recipe, calibrated."""
        if self._quantized is None:
            self._quantized = tfquant.quantize(self.model, calibration=self.batches)
        self._quantized.set_mode("quantized")
        return self._quantized


def run_checks(build: Callable[[], Any], checks: tuple[str, ...] = CHECKS) -> dict[str, Any]:
    """Return check -> figure or True, or the first line of the error as `{"error": ...}`."""
    subject = Subject(build)
    result: dict[str, Any] = {}
    for name in checks:
        try:
            result[name] = _CHECKS[name](subject)
        except Exception as error:  # every failure is a cell of the table
            # Folders of temporary files differ from run to run.
            message = re.sub(rf"{tempfile.gettempdir()}/tmp\w+/", "", one_line(error, 400))
            result[name] = {"error": f"{type(error).__name__}: {message[:300]}"}
        keras.utils.set_random_seed(0)
    return result


def relative_error(expected: Any, found: Any) -> float:
    """Norm of the difference over the norm of `expected`, over all floating leaves together.

    Raises:
      AssertionError: a leaf of another type differs, or a value is not finite.
    """
    difference = norm = 0.0
    pairs = zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True)
    for one, other in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
        if one.dtype.kind != "f":
            assert one.shape == other.shape, f"shapes {one.shape} and {other.shape} differ"
            continue
        assert np.isfinite(other).all(), "outputs are not finite"
        difference += float(np.square(one.astype(np.float64) - other).sum())
        norm += float(np.square(one.astype(np.float64)).sum())
    return float(np.sqrt(difference / max(norm, 1e-30)))


def _sites(subject: Subject) -> int:
    return len(subject.quantized.plan.sites)


def _float_mode(subject: Subject) -> bool:
    subject.quantized.set_mode("float")
    batch = subject.batches[0]
    error = relative_error(subject.expected(batch), subject._quantized(batch))
    assert error < 1e-5, f"relative error {error:.2g}"
    return True


def _sixteen_bits(subject: Subject) -> float:
    recipe = tfquant.recipe(tfquant.api.DEFAULT_RECIPE).with_spec(roles=["*"], format="int16")
    # Extremes, as at 16 bits what a percentile cuts is all that is left of the error.
    recipe = recipe.with_method("max")
    # Padding counts: its outputs are compared as well, and ranges without it would clip them.
    quantized = tfquant.quantize(subject.model, recipe, calibration=subject.batches, mask=None)
    batch = subject.batches[0]
    error = relative_error(subject.expected(batch), quantized(batch))
    assert error < LARGEST_ERROR_16_BITS, f"relative error {error:.2g}"
    return float(f"{error:.2g}")


def _eight_bits(subject: Subject) -> float:
    batch = subject.batches[0]
    return float(f"{relative_error(subject.expected(batch), subject.quantized(batch)):.2g}")


def _gradients(subject: Subject) -> bool:
    """Compare gradients by all trainable variables of a random projection of the outputs.

    Gradients of the float model are those of one of the two ways in which TensorFlow runs it, as a
    graph or operation by operation: kernels that a graph fuses have other last bits, which decide
    on which side of the kink of a ReLU a value lies. Where a few values decide, the two ways differ
    by more than the limit (BASNetBackbone: 0.7 % on a processor with AMX); the quantized network
    equals one of them. No gradient counts as zero: whether TensorFlow makes one or the other of a
    branch that is not taken depends on how it is entered.
    """
    batch = subject.batches[0]
    subject.quantized.set_mode("float")
    variables = [variable.value for variable in subject.model.trainable_variables]
    result = _gradients_of(lambda b: subject._quantized(b, training=False), batch, variables)
    errors = []
    for network in (subject.expected, lambda b: subject.model(b, training=False)):
        errors.append(relative_error(_gradients_of(network, batch, variables), result))
        if errors[-1] < LARGEST_GRADIENT_ERROR:
            return True
    raise AssertionError(f"relative errors {', '.join(f'{error:.2g}' for error in errors)}")


def _gradients_of(network: Any, batch: Any, variables: list[tf.Variable]) -> list[Any]:
    generator = np.random.default_rng(7)
    with tf.GradientTape() as tape:
        loss = 0.0
        for output in tf.nest.flatten(network(batch)):
            if output.dtype.is_floating:
                direction = generator.normal(size=output.shape).astype(np.float32)
                loss += tf.reduce_mean(tf.cast(output, tf.float32) * direction)
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def _training(subject: Subject) -> bool:
    """Take one step of `fit` on mean squared errors, with quantizers."""
    quantized, batch = subject.quantized, subject.batches[0]
    outputs, size = quantized(batch), len(tf.nest.flatten(batch)[0])

    def loss_of(output):
        # Outputs that are the same for all examples (positions of pixels) cannot be trained on.
        return "mse" if output.dtype.is_floating and output.shape[0] == size else None

    targets = tf.nest.map_structure(
        lambda out: np.zeros([size, *out.shape[1:]], np.float32), outputs
    )
    losses = tf.nest.map_structure(loss_of, outputs)
    if type(subject.model).compute_loss is not keras.Model.compute_loss:
        losses = "mse"  # the model chooses the one output that its loss is of
    before = [variable.numpy() for variable in subject.model.trainable_variables]
    quantized.compile(keras.optimizers.SGD(1e-3), loss=losses)
    history = quantized.fit(batch, targets, batch_size=size, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all(), "the loss is not finite"
    after = [variable.numpy() for variable in subject.model.trainable_variables]
    moved = any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved, "no weight moved"
    return True


def _storing(subject: Subject) -> bool:
    """Save, and load into a model built a second time, whose layers have other numbers."""
    batch = subject.batches[0]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.ckpt")
        tfquant.save(subject.quantized, path)
        loaded = tfquant.load(path, subject.build(), inputs=batch)
    pairs = zip(
        tf.nest.flatten(subject.quantized(batch)), tf.nest.flatten(loaded(batch)), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in pairs), "other outputs after loading"
    return True


def _onnx(subject: Subject) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        report = tfquant.export(subject.quantized, path, check_data=subject.batches)
    return str(report).partition(": ")[2]


_CHECKS: Mapping[str, Callable[[Subject], Any]] = dict(
    zip(
        CHECKS,
        (_sites, _float_mode, _sixteen_bits, _eight_bits, _gradients, _training, _storing, _onnx),
        strict=True,
    )
)

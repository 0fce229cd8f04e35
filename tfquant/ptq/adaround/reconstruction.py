"""Layer reconstruction: optimization of the rounding variables.

Learning how the weights of one layer are rounded so that its output stays what it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfquant.ptq.adaround import rounding
from tfquant.ptq.adaround.layer_function import Form
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.buffers import Draws, seed_of, spread
from tfquant.ptq.layer_samples import Samples
from tfquant.ptq.weight import Weight

# Steps in one call of the compiled function: enough that the call counts for nothing, few enough
# that their rows are small.
_STEPS = 20
# Errors are measured on so many rows, spread over all.
_MEASURED, _MEASURED_AT_ONCE = 16384, 2048


class Reconstruction:
    """Compiled training steps for all layers of one form.

    One rounding variable and its optimizer, set again for each layer.
    """

    def __init__(self, forms: Sequence[Form], weight: Weight, options: Options):
        self._forms, self._codebook, self._options = tuple(forms), weight.codebook, options
        self._alpha = keras.Variable(np.zeros(weight.value.shape, np.float32), name="alpha")
        self._optimizer = keras.optimizers.Adam(options.learning_rate)
        self._optimizer.build([self._alpha])
        self._fresh = [(v, v.numpy()) for v in self._optimizer.variables]
        floats = [tf.TensorSpec(a.shape, tf.float32) for a in self._arrays(weight)]
        steps = tf.TensorSpec([None], tf.float32)
        data, parameters = [f.signature(1) for f in forms], [f.parameter_specs for f in forms]
        self._run = tf.function(
            self._steps, autograph=False, input_signature=[data, parameters, floats, steps, steps]
        )
        self._errors = [
            tf.function(
                functools.partial(_squared_error, form),
                autograph=False,
                input_signature=[floats[0], *form.signature(0), form.parameter_specs],
            )
            for form in forms
        ]

    @staticmethod
    def key(forms: Sequence[Form], weight: Weight) -> tuple:
        """Key that is equal for layers that can share one object."""
        return (
            *(form.key for form in forms),
            weight.value.shape,
            weight.scale.shape,
            weight.zero.shape,
            weight.codebook,
        )

    def fit(
        self,
        weight: Weight,
        samples: Sequence[Samples],
        name: str,
        progress: Callable[[int, float], None],
    ) -> np.ndarray:
        """Train the rounding variable of a layer.

        Args:
          weight: of the layer.
          samples: of its uses.
          name: of the layer, for the order in which rows are drawn.
          progress: called with the number of steps made and the mean reconstruction loss in them.

        Returns:
          alpha, float32 of the weight's shape.
        """
        options = self._options
        self._alpha.assign(
            rounding.initial_alpha(weight.fraction, options.rounding, options.annealing[0])
        )
        for variable, value in self._fresh:
            variable.assign(value)
        values, regularized = options.schedule()
        scales = np.where(
            regularized & (options.rounding != "sigmoid_temp_decay"), options.regularization, 0.0
        ).astype(np.float32)
        draws = [
            Draws(s.inputs.count, options.batch_rows, seed_of(options.seed, f"{name} {i}"))
            for i, s in enumerate(samples)
        ]
        constants = self._constants(weight)
        for start in range(0, options.iterations, _STEPS):
            part = slice(start, start + _STEPS)
            numbers = [draw(len(values[part])) for draw in draws]
            rows = [
                [tf.constant(s.inputs.take(n)), tf.constant(s.targets.take(n))]
                for s, n in zip(samples, numbers, strict=True)
            ]
            parameters = [list(s.parameters) for s in samples]
            loss = self._run(
                rows, parameters, constants, tf.constant(values[part]), tf.constant(scales[part])
            )
            progress(len(values[part]), float(loss))
        return self._alpha.numpy()

    def soft(self, weight: Weight, alpha: np.ndarray) -> np.ndarray:
        """Weight with the learned soft rounding, between two codes where that has not converged."""
        temperature = self._options.annealing[1]
        h = rounding.soft_rounding(tf.constant(alpha), self._options.rounding, temperature)
        return self._soft_weight(h, self._constants(weight)).numpy()

    def error(self, value: np.ndarray, samples: Sequence[Samples]) -> float:
        """Mean squared error of the outputs with a value of the weight, over (at most 16,384) rows
        and output features.
        """
        total, count, weight = 0.0, 0, tf.constant(value)
        for measure, s in zip(self._errors, samples, strict=True):
            numbers = spread(s.inputs.count, _MEASURED)
            for start in range(0, len(numbers), _MEASURED_AT_ONCE):
                part = numbers[start : start + _MEASURED_AT_ONCE]
                targets = s.targets.take(part)
                total += float(
                    measure(
                        weight,
                        tf.constant(s.inputs.take(part)),
                        tf.constant(targets),
                        list(s.parameters),
                    )
                )
                count += targets.size
        return total / count

    def _constants(self, weight: Weight) -> list[tf.Tensor]:
        return [tf.constant(a) for a in self._arrays(weight)]

    @staticmethod
    def _arrays(weight: Weight) -> tuple[np.ndarray, ...]:
        return weight.below, weight.gap, weight.scale, weight.zero

    def _soft_weight(self, h: tf.Tensor, constants) -> tf.Tensor:
        below, gap, scale, zero = constants
        lowest, highest = map(float, self._codebook.extremes)
        return scale * (tf.clip_by_value(below + h * gap + zero, lowest, highest) - zero)

    def _steps(self, rows, parameters, constants, values, scales) -> tf.Tensor:
        """Run as many steps as `values` is long; return the mean reconstruction loss."""
        count = tf.shape(values)[0]

        def body(i, total):
            alpha = tf.convert_to_tensor(self._alpha.value)
            h = rounding.soft_rounding(alpha, self._options.rounding, values[i])
            weight = self._soft_weight(h, constants)
            parts = zip(self._forms, rows, parameters, strict=True)
            loss = tf.add_n(
                [
                    _loss(form, weight, inputs[i], targets[i], p)
                    for form, (inputs, targets), p in parts
                ]
            )
            added = tf.cond(
                scales[i] > 0.0, lambda: scales[i] * rounding.regularizer(h, values[i]), lambda: 0.0
            )
            # Of the graph, not of a tape, which does not see operations that are replayed.
            (gradient,) = tf.gradients(loss + added, alpha)
            self._optimizer.apply([gradient], [self._alpha])
            with tf.control_dependencies([gradient]):
                return i + 1, total + loss

        _, total = tf.while_loop(
            lambda i, _: i < count, body, (tf.constant(0), tf.constant(0.0)), parallel_iterations=1
        )
        return total / tf.cast(count, tf.float32)


def _squared_error(form: Form, weight, inputs, targets, parameters) -> tf.Tensor:
    return tf.reduce_sum(tf.math.squared_difference(form(inputs, weight, parameters), targets))


def _loss(form: Form, weight, inputs, targets, parameters) -> tf.Tensor:
    """Squared error, summed over output features, mean over rows."""
    return _squared_error(form, weight, inputs, targets, parameters) / tf.cast(
        tf.shape(inputs)[0], tf.float32
    )

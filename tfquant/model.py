"""What `quantize` returns: a keras.Model, or a callable for a function, around the engine of a traced graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfquant.distributed import Group
from tfquant.engine import Engine
from tfquant.graph.plan import Plan
from tfquant.graph.source import is_keras_model
from tfquant.learned import parameter_path
from tfquant.rules import Recipe


class _State:
    """The methods that a quantized model and a quantized function have in common."""

    _engine: Engine

    @property
    def plan(self) -> Plan:
        """The sites and what is skipped."""
        return self._engine.plan

    @property
    def recipe(self) -> Recipe:
        return self._engine.plan.recipe

    @property
    def mode(self) -> str:
        """`float` or `quantized`."""
        return self._engine.mode

    def set_mode(self, mode: str) -> None:
        """Switches between `float` and `quantized`. The user's code is not traced again.

        Raises:
          ValueError: another mode.
        """
        self._engine.mode = mode

    def share_ranges(self, group: Group) -> None:
        """For training in several processes: ranges that are moving averages follow the batches of all of them together.

        What each rank sees of a step counts as one batch: the extremes are taken over all ranks before they are averaged in, so
        that N ranks have the ranges of one process with N times the batch. To be called on every rank, before training.
        """
        self._engine.share_ranges(group)

    @property
    def calibrated(self) -> bool:
        """Whether every site has a range."""
        return all(q.calibrated for q in self._engine.quantizers.values())

    def ranges(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Site address -> (lower, upper), float32 of the site's range shape; dynamic sites are left out."""
        return {a: (q.lower.numpy(), q.upper.numpy()) for a, q in self._engine.quantizers.items()}


class QuantizedModel(_State, keras.Model):
    """A model whose graph holds quantizers. Inputs, outputs and variables are those of the original; ranges come on top.

    `compile`, `fit`, `evaluate`, `predict` and `save_weights` work as on any Keras model. The weights are shared with the
    original: training one trains the other.
    """

    def __init__(self, model: Any, engine: Engine):
        super().__init__(name=getattr(model, "name", None), autocast=False)
        self._engine = engine
        self.original = model
        self.supports_jit = False  # XLA on CPU runs QDQ graphs many times slower
        tracked = {id(v.value) for v in self.variables}
        graphs = (engine.inference,) if isinstance(model, keras.layers.Layer) else (engine.inference, engine.training)
        for graph in graphs:
            for name, variable in graph.variables.items():
                if id(variable) not in tracked:
                    tracked.add(id(variable))
                    self._track_variable(adopt(variable, graph.paths[name]))
        for address, quantizer in engine.quantizers.items():
            constraints = {} if quantizer.learned is None else quantizer.learned.constraints()
            for name, variable in quantizer.variables.items():
                # Keras makes scopes of the paths of what it trains, in which a colon is not allowed.
                path = f"{address}/{name}" if quantizer.learned is None else parameter_path(address, name)
                self._track_variable(adopt(variable, path, constraints.get(name)))
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, **kwargs):
        # Both checks come before Keras wraps errors of `call` into many lines about arguments.
        self._engine.check_ready()
        if args and not any(isinstance(value, keras.KerasTensor) for value in tf.nest.flatten(args[0])):
            self._engine.flatten_inputs(args[0])
        return super().__call__(*args, **kwargs)

    def call(self, inputs, training=False):
        outputs, _, losses = self._engine.run(inputs, bool(training))
        self.add_loss(losses)
        return outputs

    def take_over_losses(self, losses: list[tf.Tensor]) -> None:
        """Replace the losses of the last call by those of a pass that was made around `call`, see `tfquant.taps`."""
        self._clear_losses()
        self.add_loss(losses)

    def set_mode(self, mode: str) -> None:
        super().set_mode(mode)
        # Keras keeps compiled steps that hold the graph of the old mode.
        self.train_function = self.test_function = self.predict_function = None

    @property
    def inputs(self):
        return getattr(self.original, "inputs", None)

    @property
    def outputs(self):
        return getattr(self.original, "outputs", None)

    @property
    def input_shape(self):
        return self.original.input_shape

    @property
    def output_shape(self):
        return self.original.output_shape

    def get_config(self):
        raise ValueError(
            "a quantized model is not rebuilt from a configuration: save it with tfquant.save(model, path) and load it with "
            "tfquant.load(path, original_model), or use save_weights"
        )


class QuantizedFunction(_State):
    """A function on tensors with quantizers in its graph; called like the original.

    Attributes:
      variables: those of the original, in the order data flows through them, then the ranges.
    """

    def __init__(self, function: Any, engine: Engine):
        self._engine = engine
        self.original = function
        self.__name__ = getattr(function, "__name__", "quantized")

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        ranges = [v for q in self._engine.quantizers.values() for v in q.variables.values()]
        return [v for v in [*self._engine.inference.variables.values(), *ranges] if v.trainable]

    @property
    def variables(self) -> list[tf.Variable]:
        ranges = [v for q in self._engine.quantizers.values() for v in q.variables.values()]
        return list(self._engine.inference.variables.values()) + ranges

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, **kwargs):
        self._engine.check_ready()
        return self._engine(self._engine.source.arguments.bind(args, kwargs))


def wrap(model: Any, engine: Engine) -> QuantizedModel | QuantizedFunction:
    """The wrapper that fits what the user gave: a keras.Model for models, a callable for functions."""
    if is_keras_model(model) or hasattr(model, "signatures"):
        return QuantizedModel(model, engine)
    return QuantizedFunction(model, engine)


def adopt(variable: tf.Variable, path: str, constraint: Callable[[tf.Tensor], tf.Tensor] | None = None) -> keras.Variable:
    """A keras.Variable that *is* `variable`: same memory, so that Keras tracks, trains and saves it.

    `constraint` is what an optimizer passes its value through after an update.
    """
    adopted = keras.Variable(
        lambda shape, dtype=None: tf.zeros(shape, dtype),
        shape=tuple(variable.shape),
        dtype=variable.dtype.name,
        trainable=variable.trainable,
        autocast=False,
        name=path.rpartition("/")[2].replace("/", "_"),
    )
    adopted._value = variable
    adopted._path = path
    adopted.constraint = constraint
    return adopted

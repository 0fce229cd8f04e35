"""Quantized models and quantized functions, the results of `quantize`.

A keras.Model, or a callable for a function, around the engine of a traced graph.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.saving import saving_lib

import calib
from tfquant.distributed.group import Group
from tfquant.engine import Engine
from tfquant.graph.migration import Migration
from tfquant.graph.model_adapter import is_keras_model
from tfquant.graph.plan import Plan
from tfquant.graph.side_outputs import get_keras_mask
from tfquant.learned import parameter_path
from tfquant.overrides import class_for
from tfquant.quantizer import Quantizer
from tfquant.rules import Recipe
from tfquant.variables import resource

if TYPE_CHECKING:
    from tfquant.lora import Lora

_NOT_SAVED = (
    "a quantized model is not rebuilt from a configuration: save it with tfquant.save(model, path)"
    " and load it with tfquant.load(path, original_model), or use save_weights"
)


_TRAINABLE: Any = keras.Model.trainable  # a property, which stubs type as a value


class _State:
    """Common methods of quantized models and quantized functions."""

    _engine: Engine
    trainable_variables: Any

    @property
    def plan(self) -> Plan:
        """Sites and skipped contractions."""
        return self._engine.plan

    @property
    def recipe(self) -> Recipe:
        return self._engine.plan.recipe

    @property
    def migration(self) -> Migration | None:
        """Layer norms whose scale was migrated, and those that keep theirs with the reason; None
        where the recipe asks for no `gamma_migration`.
        """
        return self._engine.inference.migration

    @property
    def mode(self) -> str:
        """Current mode, `float` or `quantized`."""
        return self._engine.mode

    def set_mode(self, mode: str) -> None:
        """Switch between `float` and `quantized`. The user's code is not traced again.

        Raises:
          ValueError: another mode.
        """
        self._engine.mode = mode

    def share_ranges(self, group: Group) -> None:
        """Let moving averages and delayed scales follow the batches of all ranks of a distributed
        training.

        What each rank sees of a step counts as one batch: the extremes are taken over all ranks
        before they are averaged in, so that N ranks have the ranges of one process with N times the
        batch. To be called on every rank, before training.
        """
        self._engine.share_ranges(group)

    def update_scales(self, group: Group | None = None) -> None:
        """Set delayed scales from the magnitudes of this training step, once after each update of
        the weights. `fit` and `tfquant.training.Trainer` do it; a loop of one's own has to, inside
        or outside of its `tf.function`, on every rank.

        Args:
          group: the processes that train together; None: those of `share_ranges`.
        """
        # In a graph a backward pass is ordered by its results alone: behind the update of the
        # weights all magnitudes of the step have been noted.
        with tf.control_dependencies([tf.identity(v) for v in self._updated()]):
            self._engine.update_scales(group)

    def _updated(self) -> list[tf.Variable]:
        """Variables that training updates."""
        return [resource(variable) for variable in self.trainable_variables]

    @property
    def quantizers(self) -> Mapping[str, Quantizer]:
        """Map site address -> quantizer; dynamic sites have none."""
        return self._engine.quantizers

    @property
    def calibration(self) -> calib.Calibration | None:
        """Calibration that the ranges were set from; None if they were loaded or never set."""
        return self._engine.quantizers.calibration

    @property
    def calibrated(self) -> bool:
        """Whether every site has a range."""
        return not self._engine.quantizers.uncalibrated

    @property
    def lora(self) -> Lora | None:
        """Low-rank updates of kernels that are not merged; None without."""
        return self._engine.lora

    def ranges(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Map site address -> (lower, upper), float32 of the site's range shape; dynamic sites are
        excluded.
        """
        return {a: (q.lower.numpy(), q.upper.numpy()) for a, q in self._engine.quantizers.items()}


class QuantizedModel(_State, keras.Model):
    """Model with quantizers in its graph. Inputs, outputs and variables are those of the original,
    plus ranges.

    `compile`, `fit`, `evaluate`, `predict` and `save_weights` work as on any Keras model, and
    layers, names, metrics and what the model's class defines for training are the original's. The
    weights are shared with the original: training one trains the other.
    """

    def __init__(self, model: Any, engine: Engine):
        # Not `super()`: the class of the original may stand between, and has been initialized in
        # the original.
        policy = model.dtype_policy if isinstance(model, keras.Layer) else None
        keras.Model.__init__(self, name=getattr(model, "name", None), autocast=False, dtype=policy)
        self._engine = engine
        self.original = model
        self.supports_jit = False  # XLA on CPU runs QDQ graphs many times slower
        self.supports_masking = True  # masks come out of the trace
        self._metrics.extend(
            getattr(model, "_metrics", ()) if isinstance(model, keras.Layer) else ()
        )
        self._trains_by_default = bool(_default_training(model))
        self._track_state()

    def _track_state(self) -> None:
        """Track variables that Keras does not see through the original.

        Ranges, and what a foreign model holds.
        """
        locked = self._tracker.locked
        self._tracker.unlock()
        engine, tracked = self._engine, {id(v.value): v for v in self.variables}
        foreign = not isinstance(self.original, keras.Layer)
        trained = (
            {id(v) for v in getattr(self.original, "trainable_variables", ())}
            if is_keras_model(self.original)
            else None
        )
        for trace in (engine.inference, engine.training) if foreign else (engine.inference,):
            for name, variable in trace.variables.items():
                # Keras 3 trains no variable of a layer that is not its own.
                trainable = foreign and (
                    variable.trainable if trained is None else id(variable) in trained
                )
                if id(variable) not in tracked:
                    tracked[id(variable)] = adopted = adopt(
                        variable, trace.paths[name], trainable=trainable
                    )
                    self._track_variable(adopted)
                elif foreign and tracked[id(variable)].trainable != trainable:
                    self._untrack_variable(tracked[id(variable)])
                    tracked[id(variable)].trainable = trainable
                    self._track_variable(tracked[id(variable)])
        for address, quantizer in (*engine.quantizers.items(), *engine.gradients.items()):
            constraints = {} if quantizer.learned is None else quantizer.learned.constraints()
            for name, variable in quantizer.variables.items():
                if id(variable) in tracked:
                    continue
                # Keras makes scopes of the paths of what it trains, in which a colon is not
                # allowed.
                path = (
                    f"{address}/{name}"
                    if quantizer.learned is None
                    else parameter_path(address, name)
                )
                self._track_variable(adopt(variable, path, constraints.get(name)))
        lora = {} if engine.lora is None else engine.lora.state
        for path, variable in (engine.schedules | lora).items():
            if id(variable) not in tracked:
                self._track_variable(adopt(variable, path))
        if locked:
            self._tracker.lock()

    def follow_lora(self, removed: Iterable[tf.Variable] = ()) -> None:
        """Track the variables of low-rank updates that were added, or forget those of removed ones;
        functions for training are built anew.
        """
        ids = {id(variable) for variable in removed}
        locked = self._tracker.locked
        self._tracker.unlock()
        for variable in [v for v in self.variables if id(v.value) in ids]:
            self._untrack_variable(variable)
        if locked:
            self._tracker.lock()
        self._track_state()
        self.train_function = self.test_function = self.predict_function = None

    def _split_trained(self, variables: list[Any], trained: list[Any]) -> tuple[list[Any], ...]:
        """Partition variables into trained and others: where there are low-rank updates, they
        decide.

        Args:
          variables: all of them.
          trained: those of them that Keras trains.
        """
        lora = self._engine.lora
        if lora is not None:
            trained = [v for v in variables if self.trainable and lora.trains(v)]
        ids = {id(resource(v)) for v in trained}
        return trained, [v for v in variables if id(resource(v)) not in ids]

    @property
    def trainable_variables(self):
        return self._split_trained(self.variables, super().trainable_variables)[0]

    @property
    def non_trainable_variables(self):
        return self._split_trained(self.variables, super().trainable_variables)[1]

    @property
    def trainable_weights(self):
        return self._split_trained(self.weights, super().trainable_weights)[0]

    @property
    def non_trainable_weights(self):
        return self._split_trained(self.weights, super().trainable_weights)[1]

    def retrace(self) -> None:
        """Apply changes of the Python state of the original: flags, rates, regularizers, layers.

        `compile` does it, and so does the first `fit`, `evaluate` or `predict` after it: nothing
        happens where nothing has changed. Ranges stay with the addresses of their sites.

        Raises:
          TraceError, RecipeError: as for `tfquant.quantize`; the model is as before then.
        """
        if not self._engine.retrace():
            return
        self._track_state()
        self.train_function = self.test_function = self.predict_function = None
        missing = self._engine.quantizers.uncalibrated
        if missing and len(missing) < len(self._engine.quantizers):
            warnings.warn(
                f"site {missing[0]} is new since the model was quantized and has no range"
                f" ({len(missing)} of {len(self._engine.quantizers)} sites have none): run"
                " tfquant.calibrate(model, batches)",
                stacklevel=3,
            )

    def compile(self, *args, **kwargs):
        self.retrace()
        super().compile(*args, **kwargs)

    def train_step(self, *args, **kwargs):
        result = super().train_step(*args, **kwargs)
        self.update_scales()
        return result

    def make_train_function(self, force=False):
        if force or self.train_function is None:
            self.retrace()
        return super().make_train_function(force=force)

    def make_test_function(self, force=False):
        if force or self.test_function is None:
            self.retrace()
        return super().make_test_function(force=force)

    def make_predict_function(self, force=False):
        if force or self.predict_function is None:
            self.retrace()
        return super().make_predict_function(force=force)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, training=None, mask=None, **kwargs):
        # Checks come before Keras wraps errors of `call` into many lines about arguments.
        self._engine.check_ready(self._trains_by_default if training is None else bool(training))
        inputs = self._single_argument(args, kwargs, mask)
        leaves = tf.nest.flatten(inputs)
        if any(get_keras_mask(leaf) is not None for leaf in leaves):
            raise ValueError(
                f"an input of the quantized model {self.name!r} carries a Keras mask, with which it"
                " was not traced: quantize the model that the mask comes from as a whole"
            )
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            inputs = tf.nest.pack_sequence_as(
                self._engine.inference.input_structure, self._engine.inputs.flatten(inputs)
            )
        return keras.Model.__call__(
            self, inputs, **({} if training is None else {"training": training})
        )

    def _single_argument(self, args: tuple, kwargs: dict[str, Any], mask: Any) -> Any:
        """Pack all arguments of a call except `training` into one structure.

        Raises:
          ValueError: the model was traced without one of them.
        """
        arguments = self._engine.source.arguments
        if arguments is not None:
            return arguments.bind(args, kwargs if mask is None else {**kwargs, "mask": mask})
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if mask is not None or len(args) + len(kwargs) != 1:
            extra = "mask" if mask is not None else next(iter(kwargs), "another argument")
            raise ValueError(
                f"{self.name}: {extra} was not given when the model was traced: quantize it with"
                " inputs={...}, a mapping with the names of all arguments that carry tensors"
            )
        return args[0] if args else next(iter(kwargs.values()))

    def call(self, inputs, training=None):
        training = self._trains_by_default if training is None else training
        outputs, _, losses = self._engine.run(inputs, bool(training))
        self.add_loss(losses)
        return outputs

    @property
    def losses(self):
        """Losses that layers added in the last call of this model, and weight regularizers.

        Layers are shared with the original: what a call of that, say as a teacher, added to them is
        none of this model's.
        """
        return self._losses_override or self._get_own_losses() + self._get_regularization_losses()

    def build(self, input_shape=None):
        pass

    def add_loss(self, loss):
        keras.Layer.add_loss(self, loss)

    def compute_mask(self, inputs, previous_mask):
        return None  # `call` has set the masks that the original computes

    def set_mode(self, mode: str) -> None:
        super().set_mode(mode)
        # Keras keeps compiled steps that hold the graph of the old mode.
        self.train_function = self.test_function = self.predict_function = None

    def __getattr__(self, name: str) -> Any:
        """Return attributes that only the original has.

        Attributes that its class sets, `output_names`, `input_shape` and so on.
        """
        original = self.__dict__.get("original")
        if original is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(original, name)

    @property
    def trainable(self):
        return _TRAINABLE.fget(self)

    @trainable.setter
    def trainable(self, value):
        _TRAINABLE.fset(self, value)
        if "original" in self.__dict__ and not isinstance(self.original, keras.Layer):
            self.original.trainable = value

    @property
    def layers(self):
        return self.original.layers

    @property
    def inputs(self):
        return getattr(self.original, "inputs", None)

    @property
    def outputs(self):
        return getattr(self.original, "outputs", None)

    @property
    def input(self):
        return self.original.input

    @property
    def output(self):
        return self.original.output

    @property
    def input_shape(self):
        return self.original.input_shape

    @property
    def output_shape(self):
        return self.original.output_shape

    def get_layer(self, name=None, index=None):
        return self.original.get_layer(name=name, index=index)

    def summary(self, *args, **kwargs):
        return self.original.summary(*args, **kwargs)

    def count_params(self):
        return self.original.count_params()

    def compute_output_shape(self, *args, **kwargs):
        return self.original.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    @property
    def built(self):
        # All that `keras.saving.save_model` looks at before it opens the file, which would then be
        # lost.
        caller = sys._getframe(1)
        if (
            caller.f_code.co_name == "save_model"
            and caller.f_globals.get("__name__") == saving_lib.__name__
        ):
            raise ValueError(_NOT_SAVED)
        return True

    @built.setter
    def built(self, value):
        pass  # there is nothing to build: the variables are those of the original

    def save(self, filepath, *args, **kwargs):
        raise ValueError(_NOT_SAVED)

    def export(self, filepath, *args, **kwargs):
        raise ValueError(
            "Keras exports float models: use tfquant.export(model, path, target), which keeps the"
            " quantizers and checks the file"
        )

    def get_config(self):
        raise ValueError(_NOT_SAVED)


def _default_training(model: Any) -> Any:
    """Value of `training` in a call of `model` that does not pass it."""
    parameter = (
        inspect.signature(model.call).parameters.get("training") if hasattr(model, "call") else None
    )
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


class QuantizedFunction(_State):
    """Function on tensors with quantizers in its graph; called like the original.

    Attributes:
      variables: those of the original, in the order data flows through them, then the ranges.
    """

    def __init__(self, function: Any, engine: Engine):
        self._engine = engine
        self.original = function
        self.__name__ = getattr(function, "__name__", "quantized")

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        return [variable for variable in self.variables if variable.trainable]

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self._engine.inference.variables.values(), *self._engine.quantizers.variables]

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, **kwargs):
        self._engine.check_ready()
        arguments = self._engine.source.arguments
        if arguments is None:
            raise TypeError(f"{self.__name__} is a model: it takes one batch, not arguments")
        return self._engine(arguments.bind(args, kwargs))


def wrap(model: Any, engine: Engine) -> QuantizedModel | QuantizedFunction:
    """Wrap an engine in the class that matches the user's model.

    A keras.Model for models, a callable for functions.
    """
    if is_keras_model(model) or hasattr(model, "signatures"):
        return class_for(QuantizedModel, model)(model, engine)
    return QuantizedFunction(model, engine)


def engine_of(model: QuantizedModel | QuantizedFunction) -> Engine:
    """Return the engine of a quantized model, which the stages of the pipeline work on.

    Raises:
      TypeError: the model is not quantized.
    """
    if not isinstance(model, _State):
        raise TypeError(
            f"expected a model from tfquant.quantize or tfquant.load, got {type(model).__name__}"
        )
    return model._engine


def adopt(
    variable: tf.Variable,
    path: str,
    constraint: Callable[[tf.Tensor], tf.Tensor] | None = None,
    trainable: bool | None = None,
) -> keras.Variable:
    """Create a keras.Variable that *is* `variable` (same memory), so that Keras tracks, trains and
    saves it.

    Args:
      variable: of TensorFlow.
      path: of the Keras variable.
      constraint: what an optimizer passes its value through after an update.
      trainable: None for what `variable` says.
    """
    adopted = keras.Variable(
        lambda shape, dtype: tf.zeros(shape, dtype),
        shape=tuple(variable.shape),
        dtype=variable.dtype.name,
        trainable=variable.trainable if trainable is None else trainable,
        autocast=False,
        name=path.rpartition("/")[2].replace("/", "_"),
    )
    adopted._value = variable
    adopted._path = path
    adopted.constraint = constraint
    return adopted

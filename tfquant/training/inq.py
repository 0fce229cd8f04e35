"""Incremental network quantization: weights are quantized and frozen in stages.

Each stage freezes a further share of the weights at their quantized values and trains the others in
float, so that what is still free makes up for the error of what is frozen; no straight-through
gradient is involved. Levels are computed once, from the weights that training starts with.

Source: Zhou et al. 2017, "Incremental Network Quantization", arXiv:1702.03044.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfquant import fitted, formats
from tfquant.formats.contract import Levels
from tfquant.formats.fitted import rounded
from tfquant.formats.incremental import largest_power
from tfquant.graph import producers
from tfquant.graph.edge import Edge
from tfquant.graph.trace import Trace
from tfquant.layout import shared_axes
from tfquant.model import QuantizedModel, engine_of
from tfquant.ptq.operand_view import OperandView, called
from tfquant.quantizer import Quantizer
from tfquant.site import Site
from tfquant.training.frozen import FrozenWeights
from tfquant.training.hooks import Hook
from tfquant.variables import names_of, state_variable

STRATEGIES = ("magnitude", "random")
MASKS, LEVELS = "tfquant/inq/masks/", "tfquant/inq/levels/"
# Shares that are frozen in the stages, by bits: section 4 of the source, where fewer bits have more
# and finer stages.
FRACTIONS = {
    2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
    3: (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    4: (0.3, 0.5, 0.8, 0.9, 0.95, 1.0),
    5: (0.5, 0.75, 0.875, 1.0),
}
_COPIES = ("Identity", "Cast", "StopGradient")


def fractions_of(bits: int) -> tuple[float, ...]:
    """Return the usual accumulated fractions for weights of so many bits."""
    return FRACTIONS[min(max(bits, min(FRACTIONS)), max(FRACTIONS))]


def check_fractions(fractions: Sequence[float]) -> None:
    """Verify the accumulated fractions of the stages.

    Raises:
        ValueError: they do not ascend from above 0 to 1; the message names the first that does not.
    """
    if not fractions:
        raise ValueError("no fractions: give ascending ones that end at 1, such as 0.5 0.75 1")
    for before, fraction in itertools.pairwise([0.0, *fractions]):
        if not before < fraction <= 1.0:
            raise ValueError(
                f"fraction {fraction:g} after {before:g}: fractions are accumulated, so that they"
                " must ascend from above 0 to 1"
            )
    if fractions[-1] != 1.0:
        raise ValueError(
            f"the last fraction is {fractions[-1]:g}: it must be 1, so that all weights are"
            " quantized in the end"
        )


def stage_starts(fractions: Sequence[float], total_steps: int, stage_steps: int = 0) -> list[int]:
    """Return the step at which each fraction is frozen.

    The first is frozen before the first step. Every stage but that of the last fraction, 1, trains
    the weights that are still free.

    Args:
        fractions: accumulated.
        total_steps: steps of the whole training.
        stage_steps: steps of a stage; 0 divides the training evenly, so that the last fraction is
            frozen at its end.

    Raises:
        ValueError: the stages do not fit into the training.
    """
    check_fractions(fractions)
    stages = len(fractions) - 1
    if stage_steps < 0 or stages * max(stage_steps, 1) > total_steps:
        need = f"{stages} stages of {stage_steps}" if stage_steps else f"{stages} stages"
        raise ValueError(
            f"{len(fractions)} fractions are {need} steps, training has {total_steps}: give fewer"
            " fractions or more steps"
        )
    if stage_steps:
        return [stage * stage_steps for stage in range(stages + 1)]
    return [stage * total_steps // max(stages, 1) for stage in range(stages + 1)]


class _Weight:
    """Quantized variable with the levels of its sites.

    Args:
        variable: its values.
        sites: that quantize it, with equal specs.
        quantizers: of sites that store a range.
        view: the variable in the layout of the sites.
    """

    def __init__(
        self,
        variable: tf.Variable,
        sites: Sequence[Site],
        quantizers: Sequence[Quantizer],
        view: OperandView,
    ):
        self.variable = variable
        self._site, self._quantizers, self._view = sites[0], quantizers, view
        self._levels: Levels | None = None
        format = formats.fitted_format(self._site.spec.format)
        if format is not None:  # which has no stored range
            operand = called(view.forward, self._value())
            axes = fitted.axes_of(self._site, operand.ndim)
            fit = format.fit(tf.constant(operand), axes, self._site.spec.scale)
            self._levels = Levels(*(state_variable(t, "levels") for t in fit))
        elif not all(quantizer.calibrated for quantizer in quantizers):
            self._set_ranges()

    def _value(self) -> np.ndarray:
        return tf.cast(self.variable, tf.float32).numpy()

    def _set_ranges(self) -> None:
        """Set the ranges of the sites from the current values."""
        operand = np.abs(called(self._view.forward, self._value()))
        axes = tuple(shared_axes(operand.ndim, self._site.channel_axes))
        amax = np.max(operand, axis=axes, initial=0.0)
        name = self._site.spec.format
        if name.startswith("inq_"):
            amax = largest_power(amax)
        elif name.startswith("fixed_"):
            amax = np.ones_like(amax)
        for quantizer in self._quantizers:
            quantizer.set_range(-amax, amax)

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Levels that no range holds, by the last part of their name."""
        return {} if self._levels is None else self._levels._asdict()

    def quantized(self) -> np.ndarray:
        """Current values, rounded to the levels."""

        def apply(value: tf.Tensor) -> tf.Tensor:
            operand = self._view.forward(value)
            if self._levels is None:
                result = self._quantizers[0](operand)
            else:
                levels = Levels(*map(tf.convert_to_tensor, self._levels))
                result = rounded(tf.cast(operand, tf.float32), levels)
            return self._view.back(tf.cast(result, tf.float32), value)

        return called(apply, self._value())


class IncrementalQuantization(Hook):
    """Incremental quantization of the weights of a model; a hook of `Trainer`.

    The model trains in float (its mode is `float` from now on), as its weights are free or rounded
    already. After the last stage all are rounded: the mode is `quantized` again, and quantizers
    leave the weights as they are, bit for bit, so that `tfquant.save` and exports hold what was
    trained.

        model = tfquant.quantize(model, tfquant.recipes.incremental.recipe_of("p2", 5))
        hook = IncrementalQuantization(model, (0.5, 0.75, 1.0), (0, 500, 1000))
        Trainer(model, loss, optimizer, options, hooks=[hook])

    In Keras' `fit` the same is `IncrementalQuantizationCallback`.

    Args:
        model: from `tfquant.quantize`, whose recipe quantizes weights only, with ranges per tensor
            or per channel; or from `tfquant.load`, of a training that is resumed, which keeps its
            levels.
        fractions: accumulated shares of each variable that the stages freeze; the last is 1.
        starts: number of completed steps at which each of them is frozen, see `stage_starts`.
        strategy: `magnitude` freezes the largest free weights, as in the source; `random` any.
        seed: of the strategy `random`.

    Raises:
        ValueError: an argument is out of range, or the recipe quantizes what cannot be frozen; the
            message names it.
        TypeError: `model` is not a quantized model.
    """

    def __init__(
        self,
        model: QuantizedModel,
        fractions: Sequence[float],
        starts: Sequence[int],
        *,
        strategy: str = "magnitude",
        seed: int = 0,
    ):
        if not isinstance(model, QuantizedModel):
            raise TypeError(
                "incremental quantization is for a model from tfquant.quantize or tfquant.load, got"
                f" {type(model).__name__}"
            )
        _check(fractions, starts, strategy)
        self.fractions, self.starts = tuple(fractions), tuple(starts)
        self._strategy, self._seed, self._model = strategy, seed, model
        self._weights = _quantized_variables(model)
        self._frozen = FrozenWeights({n: w.variable for n, w in self._weights.items()})
        self._fraction = 0.0
        model.set_mode("float")

    @property
    def names(self) -> list[str]:
        """Paths of the variables that are quantized."""
        return list(self._weights)

    def state(self) -> dict[str, tf.Variable]:
        """Map checkpoint name -> mask, True where a weight is free, and levels without a range."""
        levels = {
            f"{LEVELS}{name}/{part}": variable
            for name, weight in self._weights.items()
            for part, variable in weight.state.items()
        }
        return self._frozen.state(MASKS) | levels

    def frozen_share(self) -> float:
        """Share of all weights that are frozen."""
        masks = [self._frozen.free(name) for name in self._weights]
        return 1.0 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def before_step(self, step: int) -> None:
        """Freeze what is due after so many completed steps."""
        due = [f for f, start in zip(self.fractions, self.starts, strict=True) if start <= step]
        if not due or due[-1] == self._fraction:
            return
        self._fraction = due[-1]
        for index, (name, weight) in enumerate(self._weights.items()):
            free = self._frozen.free(name)
            value = weight.variable.numpy()
            still = free & ~self._chosen(index, value, free, due[-1])
            weight.variable.assign(np.where(still, value, weight.quantized().astype(value.dtype)))
            self._frozen.set(name, still)

    def _chosen(self, index: int, value: np.ndarray, free: np.ndarray, share: float) -> np.ndarray:
        """Mask of the elements of a variable to freeze, of which some may be frozen already."""
        if share == 1.0:
            return np.ones_like(free)
        if self._strategy == "random":
            # An element is frozen once the share exceeds its number: of those that are still free,
            # this freezes (f_i - f_(i-1)) / (1 - f_(i-1)), and it needs no state.
            return np.random.default_rng([self._seed, index]).random(value.shape) < share
        count = round(share * value.size) - int((~free).sum())
        return largest(np.where(free, np.abs(value), -1.0), max(count, 0))

    def after_update(self) -> None:
        """Assign frozen weights again."""
        self._frozen.impose()

    def after_training(self, step: int) -> None:
        """Freeze what is due at the end; the model is quantized from now on if all weights are."""
        self.before_step(step)
        if self._fraction == 1.0:
            self._model.set_mode("quantized")


class IncrementalQuantizationCallback(keras.callbacks.Callback):
    """Keras callback with `IncrementalQuantization`: `model.fit(...,
    callbacks=[IncrementalQuantizationCallback(fractions, starts)])`.

    Steps are those of the optimizer, counted over all calls of `fit`. With `steps_per_execution`
    above 1 a stage waits for the next execution.

    Args:
        fractions: accumulated shares of each variable that the stages freeze; the last is 1.
        starts: number of completed steps at which each of them is frozen.
        **options: `strategy` and `seed` of `IncrementalQuantization`.

    Raises:
        ValueError, TypeError: when `fit` begins, as `IncrementalQuantization` does.
    """

    def __init__(self, fractions: Sequence[float], starts: Sequence[int], **options: Any):
        super().__init__()
        self._arguments = (fractions, starts)
        self._options = options
        self._hook: IncrementalQuantization | None = None

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if self._hook is None:  # a second fit continues with the same
            self._hook = IncrementalQuantization(model, *self._arguments, **self._options)
            _call_after_updates(model.optimizer, self._hook.after_update)
            model.train_function = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._hook is not None:
            self._hook.before_step(self._steps())

    def on_train_end(self, logs: Any = None) -> None:
        if self._hook is not None:
            self._hook.after_update()  # optimizers may replace weights by their averages
            self._hook.after_training(self._steps())

    def _steps(self) -> int:
        """Number of completed optimizer steps."""
        model: Any = self.model
        return int(model.optimizer.iterations.numpy())


@keras.saving.register_keras_serializable(package="tfquant")
class StageRestarts(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that starts again at each stage.

    Args:
        starts: steps at which stages start; the first is 0.
        schedules: of the stages, each of which counts its steps from 0.
    """

    def __init__(
        self,
        starts: Sequence[int],
        schedules: Sequence[keras.optimizers.schedules.LearningRateSchedule],
    ):
        self.starts, self.schedules = tuple(starts), tuple(schedules)

    @classmethod
    def over(
        cls,
        starts: Sequence[int],
        total_steps: int,
        make: Callable[[int], keras.optimizers.schedules.LearningRateSchedule],
    ) -> StageRestarts:
        """Return the schedule of a training.

        Args:
            starts: of its stages, see `stage_starts`.
            total_steps: of the training.
            make: number of steps of a stage -> its schedule.
        """
        ends = sorted({0, total_steps, *(start for start in starts if start < total_steps)})
        return cls(ends[:-1], [make(end - start) for start, end in itertools.pairwise(ends)])

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate at a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        result = tf.convert_to_tensor(self.schedules[0](step))
        for start, schedule in zip(self.starts[1:], self.schedules[1:], strict=True):
            result = tf.where(step >= start, schedule(tf.maximum(step - start, 0.0)), result)
        return result

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"starts": self.starts, "schedules": self.schedules}


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` largest values; of equal ones, those that come first.

    Args:
        values: without NaN, of any shape.
        count: at most their number.

    Returns:
        bool of their shape.
    """
    flat = values.reshape(-1)
    if not count:
        return np.zeros(values.shape, bool)
    smallest = np.partition(flat, flat.size - count)[flat.size - count]
    result = flat > smallest
    equal = np.flatnonzero(flat == smallest)
    result[equal[: count - int(result.sum())]] = True
    return result.reshape(values.shape)


def _check(fractions: Sequence[float], starts: Sequence[int], strategy: str) -> None:
    check_fractions(fractions)
    if len(starts) != len(fractions):
        raise ValueError(f"{len(fractions)} fractions with {len(starts)} starts: give as many")
    for before, start in itertools.pairwise([-1, *starts]):
        if start <= before:
            raise ValueError(f"stage start {start} after {before}: starts must ascend from 0 on")
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")


def _quantized_variables(model: QuantizedModel) -> dict[str, _Weight]:
    """Map path -> variable of the weights that a model quantizes.

    Raises:
        ValueError: a site quantizes something else, or sites quantize one variable differently.
    """
    engine = engine_of(model)
    trace, flow = engine.inference, engine.inference.analysis.flow
    if list(engine.gradients.values()) or not model.recipe.softmax.exact:
        raise ValueError(
            "incremental quantization is for weights alone: leave gradients (direction: backward)"
            " and softmax out of the recipe"
        )
    if model.recipe.gamma_migration:
        raise ValueError(
            "incremental quantization freezes values of variables, and gamma_migration quantizes"
            " their products with the scale of a layer norm: leave gamma_migration out of the"
            " recipe"
        )
    places: dict[str, dict[str, tuple[Site, Edge]]] = {}
    for site, edge in engine.placements():
        handle = edge.table or flow.variable_behind(edge.tensor)
        if not site.enabled:
            continue
        if not edge.parameter or handle is None:
            raise ValueError(
                f"site {site.address}: incremental quantization is for weights alone: leave it out"
                " of the recipe"
            )
        places.setdefault(handle, {})[site.address] = site, edge
    if not places:
        raise ValueError("the recipe quantizes no weights: there is nothing to freeze")
    # Names are those of the model, which are the same in every process.
    names = names_of([*model.original.weights, *(trace.variables[handle] for handle in places)])
    result = {}
    for handle, of_variable in places.items():
        variable, sites = trace.variables[handle], [site for site, _ in of_variable.values()]
        first = sites[0]
        _check_sites(sites)
        quantizers = [engine.quantizers[a] for a in of_variable if a in engine.quantizers]
        view = _view(trace, next(iter(of_variable.values()))[1])
        grouped = first.channel_axes or not first.spec.layout.granularity == "per_tensor"
        if not grouped and not first.spec.fitted:
            view = OperandView(trace, (), None)  # the whole variable, also where a part is read
        result[names[id(variable)]] = _Weight(variable, sites, quantizers, view)
    return result


def _check_sites(sites: Sequence[Site]) -> None:
    """Raise ValueError if sites of one variable do not have the same symmetric levels."""
    spec = sites[0].spec
    if any((site.spec, site.channel_axes) != (spec, sites[0].channel_axes) for site in sites):
        raise ValueError(
            f"sites {' and '.join(site.address for site in sites)} quantize one variable"
            " differently: give them one rule"
        )
    stays = spec.update == "frozen" and (spec.fitted or spec.scale.source == "stored")
    plain = spec.codebook.symmetric and not spec.scale.rounds_scale and spec.transform == "none"
    if not stays or not plain or spec.layout.per_block:
        raise ValueError(
            f"site {sites[0].address}: incremental quantization has symmetric levels that stay:"
            " leave out update, transform, source, scale_format and blocks, and set symmetric: true"
        )


def _view(trace: Trace, edge: Edge) -> OperandView:
    """Layout in which an edge reads its variable.

    Raises:
        ValueError: it reads something that is computed from the variable.
    """
    if edge.table is not None:
        return OperandView(trace, (), None)
    flow = trace.analysis.flow
    root = flow.root(edge.tensor)
    if root.op.type != "ReadVariableOp":
        if producers.sliced_table(flow, edge.tensor) is not None:
            return OperandView(trace, (), None)  # rows of a table of positions
        raise ValueError(
            f"edge {edge.address}: its values come from {root.op.type}, not straight from a"
            " variable: leave it out of the recipe"
        )
    tensor = edge.tensor
    while tensor.op.type in _COPIES:
        tensor = tensor.op.inputs[0]
    return OperandView(trace, (root,), None if tensor.name == root.name else edge.tensor)


def _call_after_updates(optimizer: Any, function: Callable[[], None]) -> None:
    """Let an optimizer call a function after each update, in its graph."""
    apply = optimizer.apply

    def apply_and_call(grads: Any, trainable_variables: Any = None) -> None:
        apply(grads, trainable_variables)
        # Reads in a graph are ordered behind the assignments of the update by automatic control
        # dependencies.
        function()

    optimizer.apply = apply_and_call

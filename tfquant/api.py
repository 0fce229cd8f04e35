"""Main entry points: `plan` for a dry run, `quantize` to insert quantizers."""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import calib
from tfquant.calibration import apply, calibrate, check_batches
from tfquant.engine import Engine
from tfquant.graph.call_arguments import inputs_of_pair
from tfquant.graph.contractions import UNUSED
from tfquant.graph.model_adapter import TraceError, is_keras_model, source_of
from tfquant.graph.plan import Plan, make_plan
from tfquant.lora import lora_of_args
from tfquant.model import QuantizedFunction, QuantizedModel, wrap
from tfquant.recipes import recipe as named_recipe
from tfquant.rewrites.gamma_migration import traced
from tfquant.rules import Recipe
from tfquant.training_args import recipe_of_args

# What lost least F1 after calibration, see docs/recipes.md.
DEFAULT_RECIPE = "int8_residual_float_asymmetric"


def plan(
    model: Any,
    recipe: Recipe | str | argparse.Namespace = DEFAULT_RECIPE,
    *,
    inputs: Any = None,
    signature: Any = None,
) -> Plan:
    """Dry run: list every place that would be quantized with the deciding rule, and every skipped
    contraction with the reason.

    Args:
      model: a Keras 3 or tf-keras model or layer, a loaded SavedModel, a `tf.function` or any
        callable on tensors.
      recipe: a `Recipe`, the name of one, or parsed arguments of `tfquant.add_training_args`.
      inputs: one batch, for models and functions that do not say what they take (a tuple of
        arguments for a function).
      signature: nested structure of `tf.TensorSpec`, instead of `inputs`.

    Returns:
      The plan; `print` it.

    Raises:
      TraceError: the model could not be traced or its inputs are not known.
      RecipeError: a rule matches nothing, or rules contradict each other.
    """
    recipe = _recipe(recipe)
    return make_plan(traced(source_of(model, inputs, signature), recipe), recipe)


def quantize(
    model: Any,
    recipe: Recipe | str | argparse.Namespace = DEFAULT_RECIPE,
    calibration: Iterable[Any] | calib.Calibration | None = None,
    *,
    inputs: Any = None,
    signature: Any = None,
    **options: Any,
) -> QuantizedModel | QuantizedFunction:
    """Insert quantizers into the graph of a model; the model's source code is not changed.

    Args:
      model, recipe, inputs, signature: as for `plan`.
      calibration: batches of inputs to set the ranges from, see `tfquant.calibrate`, or an earlier
        calibration, see `tfquant.apply`. Without it the result refuses to run quantized until it is
        calibrated.
      **options: passed on to `tfquant.calibrate`.

    Returns:
      For a model a `keras.Model` with the same inputs, outputs and (shared) variables; for a
      function a callable like it.

    Raises:
      TraceError, RecipeError: as for `plan`.
      ValueError: the batches do not fit, hold NaN, or there are none; or arguments ask for LoRA
        that does not fit the model.
    """
    args = vars(recipe) if isinstance(recipe, argparse.Namespace) else {}
    recipe = _recipe(recipe)
    if isinstance(model, (QuantizedModel, QuantizedFunction)):
        raise TypeError(
            "the model is quantized already: quantize its .original with another recipe instead"
        )
    earlier = isinstance(calibration, calib.Calibration)
    if options and (calibration is None or earlier):
        raise ValueError(
            f"{sorted(options)[0]}= belongs to calibration: pass calibration=batches as well"
        )
    batches = None
    if calibration is not None and not earlier:
        check_batches(calibration)
        batches = calibration
        if inputs is None and signature is None:
            inputs, batches = _peek(model, calibration)
    try:
        source = source_of(model, inputs, signature)
    except TraceError as error:
        if inputs is None and isinstance(batches, list) and not batches:
            raise ValueError("no calibration batch was given: pass at least one") from error
        raise
    engine = Engine(source, recipe)
    _warn_of_no_site(engine.plan)
    quantized = wrap(model, engine)
    if earlier:
        apply(quantized, calibration)
    elif batches is not None:
        calibrate(quantized, batches, **options)
    lora_of_args(quantized, args)
    return quantized


def _warn_of_no_site(plan: Plan) -> None:
    """Warn where products were found and all of them stay in float, gradients as well."""
    skipped = [product for product in plan.skipped if product.reason != UNUSED]
    quantizes = plan.sites or plan.gradients or not plan.recipe.softmax.exact
    if skipped and not quantizes:
        warnings.warn(
            f"nothing is quantized, all {len(skipped)} products stay in float;"
            f" {skipped[0].path}: {skipped[0].reason}",
            stacklevel=3,
        )


def _recipe(recipe: Recipe | str | argparse.Namespace) -> Recipe:
    if isinstance(recipe, str):
        return named_recipe(recipe)
    if isinstance(recipe, argparse.Namespace):
        return recipe_of_args(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(
            "recipe must be a tfquant.Recipe, the name of one, or arguments of"
            f" tfquant.add_training_args, got {type(recipe).__name__}"
        )
    return recipe


def _peek(model: Any, batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the inputs of the first batch, and all batches including the first."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return None, []
    rest = batches if hasattr(batches, "__len__") else itertools.chain([first], iterator)
    return (inputs_of_pair(model, first) if is_keras_model(model) else first), rest

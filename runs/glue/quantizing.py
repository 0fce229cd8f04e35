"""Quantization options: the recipe that they describe, calibration, and updates of ranges in
training.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

import calib
import tfquant
from fileio.messages import printable
from runs.glue.data import estimation_batches, rounding_batches
from runs.glue.settings import SYMMETRIC, Settings, rounding_options
from runs.logging import log
from runs.settings import FlagError, checked
from tasks import glue
from tfquant import ptq
from tfquant.distributed.group import Group
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError
from tfquant.graph.trace import trace
from tfquant.ptq.layers import ChoiceError
from tfquant.recipes.qualcomm import find_letters
from tfquant.recipes.quant_dict import HIDDEN, parse_quant_dict, with_quant_dict
from tfquant.site import PARAMETER_ROLES, ROLES, address
from tfquant.training_args import recipe_of_args

BASE = "int8_outputs"
WEIGHTS = tuple(
    role for role in ROLES if role in (*PARAMETER_ROLES, "pooler", "logits") and role != "bias"
)
ACTIVATIONS = (
    "layer_output",
    "embedding_sum",
    "attention_scores",
    "softmax_output",
    "attention_output",
    "residual_sum",
    "layernorm_output",
)
MOMENTUM = 0.9  # of running_minmax, where no other is given


def recipe_of(model: keras.Model, settings: Settings) -> tfquant.Recipe:
    """Return the recipe that the options describe, for this model.

    Raises:
        RecipeError, ValueError: they contradict each other or the model; the message names what.
    """
    if settings.quant_recipe:
        return tfquant.recipe(settings.quant_recipe)
    if settings.eight_bit:
        return recipe_of_args(settings.eight_bit_arguments)
    recipe = tfquant.recipe(BASE).with_spec(
        roles=WEIGHTS,
        format=f"int{settings.n_bits}",
        symmetric=settings.qmethod == SYMMETRIC,
        method=weight_method(settings),
    )
    if settings.per_channel:
        recipe = recipe.with_spec(roles=("weight", "pooler", "logits"), granularity="per_channel")
    recipe = recipe.with_spec(
        roles=ACTIVATIONS,
        format=f"int{settings.n_bits_act or settings.n_bits}",
        symmetric=(settings.qmethod_act or settings.qmethod) == SYMMETRIC,
        narrow_range=False,
        unsigned="auto",
        method=activation_method(settings),
        dynamic=settings.dynamic_ranges,
    )
    recipe = _with_letters(model, recipe, settings)
    if settings.quant_setup == "MSE_logits":
        recipe = _with_method(
            model,
            recipe,
            find_letters(trace(source_of(model)).analysis.roles.edges)["C"],
            _searching("mse", "golden_section", None),
        )
    if settings.cross_entropy_layer:
        method = _searching("cross_entropy", settings.act_opt_method, settings.act_num_candidates)
        recipe = _with_method(
            model, recipe, (_output_of(model, recipe, settings.cross_entropy_layer),), method
        )
    off = [
        roles
        for roles, on in (
            (WEIGHTS, settings.weight_quant),
            (ACTIVATIONS, settings.rounds_activations),
        )
        if not on
    ]
    return recipe.with_rules(
        *(
            tfquant.Rule(None, role=roles, optional=True, name=f"no {roles[0]} and the like")
            for roles in off
        )
    )


def weight_method(settings: Settings) -> calib.Method:
    """Return the range method of weights; all minimum-maximum estimators are the same for
    constants.
    """
    if settings.weight_quant_method == "MSE" or (
        settings.adaround and settings.adaround_init == "mse"
    ):
        return _searching("mse", settings.weight_opt_method, settings.num_candidates)
    if settings.percentile is not None and settings.weight_quant_method == "current_minmax":
        return calib.Method.parse("percentile", percentile=settings.percentile)
    return calib.Method.parse("max")


def activation_method(settings: Settings) -> calib.Method:
    name = settings.act_quant_method
    if settings.dynamic_ranges:
        return calib.Method.parse("max")
    if name == "MSE":
        return _searching("mse", settings.act_opt_method, settings.act_num_candidates)
    if name == "running_minmax":
        return calib.Method.parse("moving_average", decay=momentum(settings))
    if name == "current_minmax" and settings.percentile is not None:
        return calib.Method.parse("percentile", percentile=settings.percentile)
    return calib.Method.parse("current_minmax" if name == "current_minmax" else "max")


def momentum(settings: Settings) -> float:
    return MOMENTUM if settings.act_momentum is None else settings.act_momentum


def _searching(name: str, search: str, candidates: int | None) -> calib.Method:
    return calib.Method.parse(
        name, search=search, **({} if candidates is None else {"candidates": candidates})
    )


def _with_letters(model: keras.Model, recipe: tfquant.Recipe, settings: Settings) -> tfquant.Recipe:
    """Return the recipe with the options for single tensors; --quant-dict wins over the others.

    Raises:
        FlagError: they name what the model does not have, or what cannot be.
    """
    order = "p" if settings.per_groups_permute or settings.per_groups_permute_shared_h else ""
    of_options = {
        f"--per-groups {settings.per_groups}": (
            {HIDDEN: f"ng{order}{settings.per_groups}"} if settings.per_groups else {}
        ),
        "--per-embd": {HIDDEN: "per_embd"} if settings.per_embd else {},
        "--per-token": {HIDDEN: "per_token"} if settings.per_token else {},
        "--quant-setup FP_logits": {"C": "fp32"} if settings.quant_setup == "FP_logits" else {},
        "--quant-dict": parse_quant_dict(settings.quant_dict) if settings.quant_dict else {},
    }
    for name, choices in of_options.items():
        try:
            if choices:
                recipe = with_quant_dict(
                    model, recipe, choices, shared_order=settings.per_groups_permute_shared_h
                )
        except RecipeError as error:
            raise FlagError(f"  {name}: {error}") from error
    return recipe


def _with_method(
    model: keras.Model, recipe: tfquant.Recipe, addresses: Iterable[str], method: calib.Method
) -> tfquant.Recipe:
    """Return the recipe with another range method for some sites."""
    sites = {site.address: site for site in tfquant.plan(model, recipe).sites}
    for site in map(sites.__getitem__, addresses):
        spec = dataclasses.replace(site.spec, method=method)
        rule = tfquant.Rule(
            spec, role=site.role, path=site.path, port=site.port, name=f"{method} at {site.path}"
        )
        recipe = recipe.with_rules(rule)
    return recipe


def _output_of(model: keras.Model, recipe: tfquant.Recipe, layer: str) -> str:
    """Return the address of the output of a layer.

    Raises:
        FlagError: there is no such site.
    """
    outputs = [site for site in tfquant.plan(model, recipe).sites if site.role == "layer_output"]
    if layer not in [site.path for site in outputs]:
        heads = ", ".join(site.path for site in outputs if len(site.shape) == 2)
        named = f"--cross-entropy-layer {printable(layer)}"
        raise FlagError(
            f"  {named}: no layer with a quantized output; behind the encoder there are {heads}"
        )
    return address("layer_output", layer, "output")


def trained(recipe: tfquant.Recipe, settings: Settings) -> tfquant.Recipe:
    """Return the recipe with the updates of ranges in training."""
    if settings.quant_recipe:  # which has its own
        return recipe
    if settings.learn_ranges:
        return recipe.with_spec(roles=["*"], update=settings.range_update or "tqt")
    if not settings.fix_weight_ranges and settings.weight_quant:
        recipe = recipe.with_spec(roles=WEIGHTS, update="moving_average", decay=0.0)
    if not settings.fix_act_ranges and settings.act_quant:
        recipe = recipe.with_spec(
            roles=ACTIVATIONS, update="moving_average", decay=momentum(settings)
        )
    return recipe


def quantized(
    model: keras.Model,
    recipe: tfquant.Recipe,
    features: Callable[[], glue.Features],
    settings: Settings,
    group: Group,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    """Return the calibrated network and figures of the calibration; dynamic activations are left
    out.
    """
    started = time.perf_counter()
    network = tfquant.quantize(model, recipe)
    batches = [] if settings.dynamic_ranges else estimation_batches(features(), settings, seed)
    _calibrate(network, batches, settings, group)
    weights = sum(site.is_weight for site in network.plan.sites)
    activations = len(network.plan.sites) - weights
    origin = (
        f"from {len(batches)} batches of {len(batches[0]['input_ids'])} rows"
        if batches
        else "in each batch again"
    )
    log(f"ranges of {weights} weights, and of {activations} activations {origin}")
    return network, {
        "recipe": recipe.to_dict(),
        "weights": weights,
        "activations": activations,
        "seconds": time.perf_counter() - started,
    }


def _calibrate(
    network: Any, batches: list[dict[str, np.ndarray]], settings: Settings, group: Group
) -> calib.Calibration:
    return tfquant.calibrate(
        network,
        batches,
        mask="input_mask",
        order=settings.est_ranges_order,
        group=group,
        progress=settings.tqdm,
    )


def round_weights(
    network: Any,
    features: glue.Features,
    settings: Settings,
    group: Group,
    seed: int,
    folder: str | None,
) -> dict[str, Any]:
    """Run AdaRound or GPTQ, then estimate the ranges of activations again; return figures.

    Args:
        folder: keeps finished layers, so that an interrupted run resumes.
    """
    name = "gptq" if settings.gptq else "adaround"
    chosen = checked(settings.gptq or settings.adaround)
    sites = chosen.split(",") if "," in chosen else chosen
    options = rounding_options(settings)
    if name == "adaround":
        options["seed"] = seed  # GPTQ draws nothing
    batches = rounding_batches(features, settings, seed)
    shown = settings.tqdm and group.rank == 0
    try:
        report = getattr(ptq, name)(
            network,
            batches,
            sites=sites,
            mask="input_mask",
            folder=folder,
            progress=shown,
            **options,
        )
    except ChoiceError as error:
        raise FlagError(f"  --{name} {chosen}: {error}") from error
    log(str(report.table()))
    if settings.rounds_activations and not settings.dynamic_ranges:
        _estimate_activations_again(network, features, settings, group, seed)
    return {
        "seconds": report.seconds,
        "layers": [dataclasses.asdict(layer) for layer in report.layers],
    }


def _estimate_activations_again(
    network: Any, features: glue.Features, settings: Settings, group: Group, seed: int
) -> None:
    """Calibrate activations again; weights keep the ranges that they were rounded for."""
    weights = [quantizer for quantizer in network.quantizers.values() if quantizer.site.is_weight]
    ends = [(np.asarray(quantizer.lower), np.asarray(quantizer.upper)) for quantizer in weights]
    _calibrate(network, estimation_batches(features, settings, seed), settings, group)
    for quantizer, (lower, upper) in zip(weights, ends, strict=True):
        quantizer.set_range(lower, upper)

"""Networks of a run: built, and loaded from checkpoints, float or quantized."""

from typing import Any

import keras

import modeling
import tfquant
from runs.eight_bit import merge_lora
from runs.logging import log
from runs.networks import load_weights
from runs.squad.flags import Settings
from tfquant import checkpoint
from tfquant.store import holds_ranges


def build(config: modeling.Config, settings: Settings, *, dropout: bool = True) -> keras.Model:
    dtype = "mixed_bfloat16" if settings.use_bf16 else "float32"
    return modeling.build_squad_model(config, dropout=dropout, seed=settings.seed, dtype=dtype)


def load_float(
    model: keras.Model, path: str, settings: Settings, *, new_head: bool = False, who: str = ""
) -> None:
    """Load weights by name; the head may be new when it is about to be trained.

    `who` begins the line about it.
    """
    loaded = load_weights(model, path, new_head=new_head, who=who)
    if settings.verbose_logging:
        log(
            f"loaded: {', '.join(loaded.loaded)}\nleft over:"
            f" {', '.join(loaded.unexpected) or 'none'}"
        )


def load_quantized(
    model: keras.Model, path: str, settings: Settings, *, training: bool = False
) -> Any:
    """Load weights, recipe and ranges, and check their placement against the flags."""
    if settings.eight_bit and not holds_ranges(path):
        load_float(model, path, settings, new_head=training)
        return tfquant.quantize(model, settings.recipe)
    if not holds_ranges(path):
        raise ValueError(
            f"--if_quant: {path} holds no ranges. Calibrate it first: run with --do_calib and start"
            " from the model.ckpt-calibrated of that"
            f" run{'' if training else ', or give --do_calib here as well'}"
        )
    network = tfquant.load(
        path, model, change=settings.for_training if training else lambda recipe: recipe
    )
    if settings.eight_bit and network.recipe.rules != settings.recipe.rules:
        raise ValueError(
            f"{path} holds a network that was quantized as {network.recipe.name}, the flags ask for"
            f" {settings.recipe.name}: give the flags that it was trained with, or another"
            " --output_dir"
        )
    if settings.asks_for_placement and network.recipe.name != settings.recipe.name:
        raise ValueError(
            f"{path} was calibrated for placement {network.recipe.name}, the flags ask for"
            f" {settings.recipe.name}: leave --quant_recipe, --quant_mode, --quantize_residual and"
            " --quant_another_add_input out, or calibrate again"
        )
    log(f"loaded weights and {len(network.plan.sites)} ranges ({network.recipe.name}) from {path}")
    return network


def load_for_prediction(model: keras.Model, settings: Settings) -> tuple[Any, int]:
    """Load the latest checkpoint of the output folder, else the initial one; return network and
    step.
    """
    path = checkpoint.latest(settings.output_dir) or settings.init_checkpoint
    if not path:
        raise ValueError(
            f"nothing to predict with: {settings.output_dir} holds no checkpoint. Give"
            " --init_checkpoint, or --do_train"
        )
    if settings.if_quant:
        network = load_quantized(model, path, settings)
        merge_lora(network)
        return network, step_of(path)
    load_float(model, path, settings)
    return model, step_of(path)


def step_of(path: str) -> int:
    number = path.rpartition("-")[2]
    return int(number) if number.isdigit() else 0

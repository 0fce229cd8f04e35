"""Flags of 8-bit inference and training that both run scripts have, see `tfquant.training_args`."""

import dataclasses
import importlib.util
from typing import Any

from runs.logging import log
from runs.settings import FREE, NOT_NEGATIVE, POSITIVE, flag
from tfquant.training_args import ARGUMENTS, requested

QUANTIZING = ("train-quantized", "validate-quantized")  # modes of run_glue.py that have them
_EVERY_MODE = ("train-baseline", "validate-baseline", *QUANTIZING)
# Files of --record_histogram.
HISTOGRAMS, RANGES, DENSITIES = "exponents.npz", "layer_distribution.png", "exponent_densities.png"


def _flag(name: str, **rules: Any) -> Any:
    argument = ARGUMENTS[name]
    return flag(argument.default, argument.help, bare=argument.bare, modes=QUANTIZING, **rules)


@dataclasses.dataclass(frozen=True)
class EightBitFlags:
    """Number formats of activations, weights and gradients, by op groups, without calibration."""

    activation: str | None = _flag("activation")
    weight: str | None = _flag("weight")
    error: str | None = _flag("error")
    quantize_forward: str = _flag("quantize_forward")
    quantize_backprop: str = _flag("quantize_backprop")
    op_fusion: str | None = _flag("op_fusion")
    force_scale_power_of_two: bool = _flag("force_scale_power_of_two")
    lora_rank: int = _flag("lora_rank", bound=NOT_NEGATIVE)
    lora_alpha: float = _flag("lora_alpha", bound=POSITIVE, needs={"lora_rank": True})
    target_modules: str = _flag("target_modules", needs={"lora_rank": True})
    posit_exp: bool = _flag("posit_exp")
    posit_exp_shifted: bool = _flag("posit_exp_shifted")
    posit_reciprocal: bool = _flag("posit_reciprocal")
    record_histogram: bool = flag(
        ARGUMENTS["record_histogram"].default,
        "Record exponents of the inputs of all quantizers, in training of gradients as well: a file"
        " and figures in the output folder.",
        FREE,
        modes=_EVERY_MODE,
    )
    dtype: str = _flag("dtype")
    quantize_weight: bool = _flag("quantize_weight")
    quantize_fwd: str | None = _flag("quantize_fwd")
    quantize_bwd: str | None = _flag("quantize_bwd")
    scaling_fwd: bool = _flag("scaling_fwd")
    scaling_bwd: bool = _flag("scaling_bwd")
    max_fwd: float = _flag("max_fwd")
    max_bwd: float = _flag("max_bwd")
    amax_history_len: int = _flag("amax_history_len")

    @property
    def eight_bit(self) -> bool:
        """Whether these flags ask for anything."""
        return requested(self.eight_bit_arguments)

    @property
    def eight_bit_arguments(self) -> dict[str, Any]:
        """Values of those of these flags that describe quantization, by name."""
        return {name: getattr(self, name) for name in ARGUMENTS if name != "record_histogram"}


def eight_bit_problems(settings: Any, others: list[str], *, trains: bool) -> list[str]:
    """Return contradictions among the flags of a run, one line each.

    Args:
        settings: with the flags; its `written` is that of `runs.checks`.
        others: names of flags of this run that describe another quantization.
        trains: whether the run trains.
    """
    from tfquant.training_args import recipe_of_args

    written = settings.written
    if not settings.eight_bit:
        changed = [
            written(name)
            for name, value in settings.eight_bit_arguments.items()
            if value != ARGUMENTS[name].default
        ]
        specs = " or ".join(map(written, ("activation", "weight", "error")))
        return [f"{changed[0]} has no effect without {specs}: leave it out"] if changed else []
    if others:
        return [
            f"{written(others[0])} describes another quantization than"
            f" {', '.join(asked_for(settings))}: leave one out"
        ]
    try:
        recipe = recipe_of_args(settings.eight_bit_arguments)
    except ValueError as error:
        return [str(error)]
    if settings.lora_rank and not trains:
        return [f"{written('lora_rank')} has no effect without training: leave it out"]
    if settings.lora_rank and getattr(settings, "sparsity", None):
        return [
            f"{written('lora_rank')} adds to kernels what {written('sparsity')} keeps at zero:"
            " leave one out"
        ]
    if not trains and any(rule.direction == "backward" for rule in recipe.rules):
        return [
            f"{written('error' if settings.error else 'quantize_bwd')} quantizes gradients, which"
            f" only training has: give {written('do_train')} as well, or leave it out"
        ]
    return []


def add_lora(network: Any, settings: Any, seed: int) -> None:
    """Add the LoRA updates that flags ask for, unless the checkpoint of a run that is resumed had
    them.
    """
    from tfquant.lora import lora_of_args

    lora = lora_of_args(network, settings.eight_bit_arguments, seed)
    if lora is not None:
        count = sum(variable.shape.num_elements() for variable in network.trainable_variables)
        log(
            f"LoRA: rank {lora.rank} in {len(lora.updates)} kernels,"
            f" {len(network.trainable_variables)} variables with {count:,} numbers are trained"
        )


def merge_lora(network: Any) -> bool:
    """Merge the LoRA updates of a network, if it has any; return whether it had."""
    if network.lora is None:
        return False
    log(f"LoRA: updates of {len(network.lora.updates)} kernels are merged")
    network.lora.merge()
    return True


def histogram_problems(settings: Any, needed: tuple[str, ...]) -> list[str]:
    """Return problems of --record_histogram, one line each.

    Args:
        settings: of a run.
        needed: names of flags, of which one has to be set.
    """
    if not settings.record_histogram:
        return []
    written = settings.written("record_histogram")
    problems = []
    if not any(getattr(settings, name) for name in needed):
        flags = " or ".join(map(settings.written, needed))
        problems.append(f"{written} needs {flags}: give it as well")
    if importlib.util.find_spec("matplotlib") is None:
        problems.append(f"{written}: figures need Matplotlib: pip install 'tfquant[plots]'")
    return problems


def asked_for(settings: Any) -> list[str]:
    """Names of those of these flags that a run sets, as they are written."""
    return [
        settings.written(name)
        for name, value in settings.eight_bit_arguments.items()
        if value != ARGUMENTS[name].default
    ]

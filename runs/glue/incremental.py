"""Flags of incremental quantization in train-quantized, and what they make of a run."""

import dataclasses
from typing import Any

from runs.logging import log
from runs.settings import POSITIVE, SAME, flag

QAT = ("train-quantized",)
MODES = ("lin", "p2", "mb", "lin_fixed")
# Flags of other quantization that incremental quantization reads as well.
SHARED = ("n_bits",)


def _flag(default: Any, help: str, **rules: Any) -> Any:
    return flag(default, help, SAME, modes=QAT, **rules)


@dataclasses.dataclass(frozen=True)
class IncrementalFlags:
    """Levels of weights, and the stages in which weights are rounded to them and frozen."""

    inq_mode: str | None = _flag(
        None,
        "Quantize weights in stages and freeze them (INQ), activations stay in float: lin, linear"
        " levels up to the largest weight; p2, powers of two; mb, multi-bit codes; lin_fixed, a"
        " linear grid from -1 to 1. --n-bits (or --nbits) are the bits.",
        choices=MODES,
    )
    inq_fractions: tuple[float, ...] = _flag(
        (),
        "Accumulated shares of the weights that the stages freeze; the last is 1. If not given,"
        " those of the paper for the number of bits.",
    )
    inq_stage_epochs: float | None = _flag(
        None,
        "Epochs of each stage; if not given, the stages divide the training evenly, and the last"
        " share is frozen at its end.",
        bound=POSITIVE,
    )
    inq_strategy: str = _flag(
        "magnitude",
        "Which of the free weights are frozen next: the largest, or any.",
        choices=("magnitude", "random"),
    )
    granularity: str | None = _flag(
        None,
        "Levels for each output of a kernel (row), or for each kernel (tensor); if not given, row"
        " for lin and mb, tensor for the others.",
        choices=("row", "tensor"),
    )
    reset_lr: bool = _flag(True, "Start the learning rate schedule again at each stage.")
    quantize_embeddings: bool = _flag(True, "Quantize embedding tables.")
    quantize_bias: bool = _flag(False, "Quantize biases of linear layers.")
    quantize_layernorm: bool = _flag(False, "Quantize scales of layer norms.")
    quantize_head: bool = _flag(False, "Quantize the kernel of the last layer.")
    sweep: bool = _flag(
        False,
        "Train with each number of bits of lin, p2 and mb, or of --inq-mode alone, each in a folder"
        " of its own, and write a table and a figure of the scores. A sweep that was cut off"
        " continues.",
    )

    @property
    def incremental(self) -> bool:
        """Whether these flags ask for anything."""
        return self.inq_mode is not None or self.sweep


def incremental_problems(settings: Any, others: list[str]) -> list[str]:
    """Return contradictions among the flags of a run, one line each.

    Args:
        settings: with the flags; its `written` is that of `runs.checks`.
        others: names of flags of this run that describe another quantization.
    """
    written = settings.written
    if not settings.incremental:
        return [
            f"{written(field.name)} only applies with {written('inq_mode')}: set that as well, or"
            " leave it out"
            for field in dataclasses.fields(IncrementalFlags)
            if getattr(settings, field.name) != field.default
        ]
    if settings.inq_mode not in (None, *MODES):  # refused by its choices
        return []
    from tfquant.training.inq import check_fractions

    problems = []
    mode = written("sweep") if settings.sweep else written("inq_mode", settings.inq_mode)
    others = [name for name in others if name not in SHARED]
    if others:
        problems.append(
            f"{written(others[0])} describes another quantization than {mode}, which is of weights"
            " alone: leave one out"
        )
    if not settings.sweep:
        try:
            recipe_of(settings)
        except ValueError as error:
            problems.append(f"{mode} {written('n_bits', settings.n_bits)}: {error}")
    elif settings.n_bits != 8 or len(settings.seed) > 1:
        name = "n_bits" if settings.n_bits != 8 else "seed"
        rule = "tries every number of bits" if name == "n_bits" else "takes one seed"
        problems.append(f"{mode} {rule}: leave out {written(name)}")
    if settings.sweep and not settings.do_eval:
        problems.append(f"{mode} is a table of scores: leave out --no-do-eval")
    try:
        check_fractions(fractions(settings))
    except ValueError as error:
        problems.append(f"{written('inq_fractions')}: {error}")
    stages, epochs = len(fractions(settings)) - 1, settings.inq_stage_epochs
    if epochs and not settings.max_steps and stages * epochs > settings.num_epochs:
        problems.append(
            f"{written('inq_stage_epochs', f'{epochs:g}')}: {stages} stages before the last share"
            f" need {stages * epochs:g} epochs, {written('num_epochs')} is"
            f" {settings.num_epochs:g}: raise it, or give fewer {written('inq_fractions')}"
        )
    if settings.load_best_model_at_end:
        problems.append(
            f"{written('load_best_model_at_end')}: weights before the last stage are not"
            f" quantized: leave out it or {written('inq_mode')}"
        )
    return problems


def fractions(settings: Any) -> tuple[float, ...]:
    """Return the accumulated shares of the stages."""
    from tfquant.training.inq import fractions_of

    return settings.inq_fractions or fractions_of(settings.n_bits)


def recipe_of(settings: Any) -> Any:
    """Return the recipe of the weights that are quantized.

    Raises:
        ValueError: the mode does not have so many bits, or not this granularity.
    """
    from tfquant.recipes import incremental

    return incremental.recipe_of(
        settings.inq_mode,
        settings.n_bits,
        settings.granularity,
        embeddings=settings.quantize_embeddings,
        biases=settings.quantize_bias,
        layer_norms=settings.quantize_layernorm,
        head=settings.quantize_head,
    )


def starts_of(settings: Any, total: int, epoch_steps: float) -> list[int]:
    """Return the step at which each share is frozen.

    Args:
        settings: of a run.
        total: steps of the training.
        epoch_steps: steps of an epoch.

    Raises:
        ValueError: the stages do not fit into the training.
    """
    from tfquant.training.inq import stage_starts

    steps = 0
    if settings.inq_stage_epochs is not None:
        steps = max(1, int(settings.inq_stage_epochs * epoch_steps))
    return stage_starts(fractions(settings), total, steps)


def hook_of(network: Any, settings: Any, starts: list[int], seed: int) -> Any:
    """Return the training hook of a network with the recipe of these flags."""
    from tfquant.training import IncrementalQuantization

    shares = fractions(settings)
    hook = IncrementalQuantization(
        network, shares, starts, strategy=settings.inq_strategy, seed=seed
    )
    stages = ", ".join(
        f"{share:g} at step {start}" for share, start in zip(shares, starts, strict=True)
    )
    log(f"INQ: {network.recipe.name}, {len(hook.names)} variables; frozen: {stages}")
    return hook

"""Checks of run_glue.py's options before any work; one message names every problem and its fix."""

import dataclasses
import os
from typing import Any

import tfquant
from runs.checks import (
    folder_problems,
    horovod_problems,
    refuse,
    size_problems,
    value_problems,
)
from runs.distillation_options import distillation_problems, set_about_answers
from runs.eight_bit import eight_bit_problems, histogram_problems
from runs.glue.evaluation import scores_of_training
from runs.glue.incremental import IncrementalFlags, incremental_problems
from runs.glue.outputs import logs_of
from runs.glue.settings import EXPORTS, PTQ, QAT, QUANTIZING, Settings, option, rounding_options
from runs.settings import FlagError, at_least, between
from tasks import glue
from tfquant.choices import PARAMETRIZED
from tfquant.export.onnx.qdq import INT16_OPSET
from tfquant.export.targets import TARGETS
from tfquant.formats.integer import MAX_BITS, MIN_BITS
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.gptq.options import Options as GPTQOptions
from tfquant.recipes.quant_dict import parse_quant_dict
from tfquant.training_args import ARGUMENTS

OLDEST_OPSET = 17
_INCREMENTAL = {field.name for field in dataclasses.fields(IncrementalFlags)}
# Options that a recipe does not replace: which data ranges are estimated on, when it starts, and
# whether from a quantized model.
_BESIDE_RECIPE = (
    *("quant_recipe", "quant_start_step", "num_est_batches", "est_ranges_batch_size"),
    *("est_ranges_pad", "est_ranges_order", "requantize", "range_learning_rate"),
)
OF_ONNX = ("onnx", "onnxruntime", "tensorrt", "openvino")


def check(settings: Settings) -> None:
    """Refuse invalid options before anything is read, computed or written.

    Raises:
        FlagError: lists every problem with its option and what to do.
    """
    checks = (
        value_problems,
        horovod_problems,
        _work,
        _export,
        _evaluation,
        _quantization,
        _eight_bit,
        _incremental,
        _recipe,
        _training_of_ranges,
        _distillation,
        _groups,
        _dynamic,
    )
    problems = [problem for look in checks for problem in look(settings)]
    refuse([*problems, *size_problems(problems, settings)], settings)


def _work(s: Settings) -> list[str]:
    """Return problems of the folders that are written, and of numbers of bits."""
    problems = []
    bits = between(MIN_BITS, MAX_BITS)
    for name in ("n_bits", "n_bits_act"):
        value = getattr(s, name)
        if name == "n_bits" and s.incremental:  # which has bits of its own
            continue
        if value is not None and not bits.holds(value):
            problems.append(f"{option(name, value)}: {bits.rule}")
    if s.trains and not s.output_dir:
        problems.append(f"{s.mode} needs --output-dir")
    output = option("output_dir", s.output_dir)
    if s.output_dir and os.path.exists(s.output_dir) and not os.path.isdir(s.output_dir):
        problems.append(f"{output}: is a file, no folder")
    elif s.output_dir and (unwritable := folder_problems(s.output_dir, output)):
        problems += unwritable
    elif (s.trains or s.tb) and (s.output_dir or s.tb_logging_dir):
        named = "--tb-logging-dir" if s.tb_logging_dir else "--output-dir"
        logs = logs_of(s.output_dir, s)
        problems += folder_problems(logs, f"{named}: {logs}")
    if s.tb and not (s.output_dir or s.tb_logging_dir):
        problems.append("--tb: give --output-dir or --tb-logging-dir as well")
    if s.double:
        others = (
            "amp",
            "save_model",
            "export",
            "adaround",
            "gptq",
        )  # which have types of their own
        problems += [
            f"--double is for scores alone: leave out it or {option(name)}"
            for name in others
            if getattr(s, name)
        ]
    return problems


def _export(s: Settings) -> list[str]:
    """Return problems that would else be found only after the work that is to be exported."""
    if s.export not in EXPORTS:  # None, or refused by `value_problems`
        return []
    problems = []
    oldest = at_least(OLDEST_OPSET)
    if s.export in OF_ONNX and not oldest.holds(s.export_opset):
        problems.append(f"{option('export_opset', s.export_opset)}: {oldest.rule}")
    missing = TARGETS[s.export].missing_packages(checked=True)
    if missing:
        problems.append(
            f"--export {s.export} needs {', '.join(missing)}: pip install -e '.[export]'"
        )
    widest = max((bits for bits in _bits(s) if bits <= MAX_BITS), default=0)
    if s.export in OF_ONNX and s.export_opset < INT16_OPSET and widest > 8:
        problems.append(
            f"--export {s.export}: {widest} bits need --export-opset {INT16_OPSET} or a later one"
        )
    if "per_token" in _values(s):
        problems.append(
            "--export: a file for another runtime has fixed ranges: leave it or 'per_token' of"
            " --quant-dict out"
        )
    return problems


def _bits(s: Settings) -> list[int]:
    """Return the bit widths that the options ask for."""
    of_options = [s.n_bits] * s.weight_quant + [s.n_bits_act or s.n_bits] * s.act_quant
    return of_options + [value for value in _values(s) if isinstance(value, int)]


def _values(s: Settings) -> list[Any]:
    """Return the values of --quant-dict, none if it cannot be parsed."""
    try:
        return list(parse_quant_dict(s.quant_dict).values()) if s.quant_dict else []
    except ValueError:
        return []


def _evaluation(s: Settings) -> list[str]:
    """Return problems of scores in training."""
    problems = []
    if s.metric_for_best_model:
        wanted = s.metric_for_best_model.removeprefix("eval_")
        for task in s.tasks:
            known = scores_of_training(glue.TASKS[task])
            if wanted not in known:
                problems.append(
                    f"--metric-for-best-model {s.metric_for_best_model}: {task} has"
                    f" {', '.join(known)}"
                )
    if s.run_name is not None and (
        s.run_name in ("", ".", "..") or os.path.basename(s.run_name) != s.run_name
    ):
        problems.append(f"--run-name {s.run_name!r}: must be the name of a folder, without a path")
    return problems


def _quantization(s: Settings) -> list[str]:
    """Return problems of what is quantized, and of how its ranges are estimated."""
    if not s.quantizes:
        return []
    problems = []
    if not (s.weight_quant or s.act_quant):
        problems.append(
            "--no-weight-quant and --no-act-quant leave nothing to quantize: take a -baseline mode"
        )
    if s.adaround and not s.gptq:
        try:
            Options(**rounding_options(s))
        except ValueError as error:
            problems.append(f"--adaround: {error}")
    if s.gptq:
        try:
            GPTQOptions(**rounding_options(s))
        except ValueError as error:
            problems.append(f"--gptq: {error}")
        if s.adaround:
            problems.append("--gptq and --adaround both round the weights: leave one of them out")
    searched = s.act_quant_method == "MSE" or s.cross_entropy_layer
    if s.act_num_candidates is not None and not (searched and s.act_opt_method == "grid"):
        problems.append(
            "--act-num-candidates only applies with --act-quant-method MSE (or"
            " --cross-entropy-layer) and --act-opt-method grid: set these, or leave it out"
        )
    if s.percentile is not None and "current_minmax" not in (
        s.weight_quant_method,
        s.act_quant_method,
    ):
        problems.append(
            "--percentile only applies with current_minmax: set that as --weight-quant-method or"
            " --act-quant-method, or leave it out"
        )
    if s.adaround and s.act_quant and s.adaround_act_quant == "no_act_quant":
        problems.append(
            "--adaround-act-quant no_act_quant leaves activations in float: give --no-act-quant as"
            " well"
        )
    if s.quant_dict:
        try:
            parse_quant_dict(s.quant_dict)
        except ValueError as error:
            problems.append(f"--quant-dict: {error}")
    return problems


def _eight_bit(s: Settings) -> list[str]:
    """Return problems of the options of 8-bit inference and training."""
    problems = histogram_problems(s, ("output_dir",))
    if s.quantizes:
        problems += eight_bit_problems(s, _quantization_options(s), trains=s.trains)
    return problems


def _recipe(s: Settings) -> list[str]:
    """Return problems of a recipe in place of other options."""
    if not s.quantizes or not s.quant_recipe:
        return []
    named = option("quant_recipe", s.quant_recipe)
    others = [
        name for name in _quantization_options(s, eight_bit=True) if name not in _BESIDE_RECIPE
    ]
    problems = [
        f"{option(name)} describes another quantization than {named}: leave one out"
        for name in others[:1]
    ]
    try:
        tfquant.recipe(s.quant_recipe)
    except (ValueError, OSError) as error:
        problems.append(f"{named}: {error}")
    return problems


def _incremental(s: Settings) -> list[str]:
    """Return problems of the options of incremental quantization."""
    if s.mode not in QAT:
        return []
    return incremental_problems(s, _quantization_options(s, eight_bit=True))


def _training_of_ranges(s: Settings) -> list[str]:
    if s.mode != "train-quantized":
        return []
    problems = []
    if s.learn_ranges and (s.fix_act_ranges or s.fix_weight_ranges):
        problems.append(
            "--learn-ranges trains them, --fix-act-ranges and --fix-weight-ranges do not: give one"
            " or the other"
        )
    if "per_token" in _values(s):
        problems.append(
            "--quant-dict: 'per_token' computes ranges in each batch, which cannot be trained: use"
            " it in validate-quantized"
        )
    if s.range_learning_rate is not None and not (s.learn_ranges or _recipe_learns(s)):
        problems.append(
            "--range-learning-rate only applies with --learn-ranges, or with a --quant-recipe that"
            " learns ranges: set one as well, or leave it out"
        )
    fixed = s.learn_ranges or s.fix_weight_ranges
    if s.weight_quant and s.weight_quant_method == "MSE" and not fixed:
        problems.append(
            "--weight-quant-method MSE: ranges that follow the weights are their minimum and"
            " maximum: give --learn-ranges or --fix-weight-ranges"
        )
    return problems


def _recipe_learns(s: Settings) -> bool:
    """Whether the recipe of --quant-recipe trains a range."""
    if not s.quant_recipe:
        return False
    try:
        rules = tfquant.recipe(s.quant_recipe).rules
    except (ValueError, OSError):
        return True  # told elsewhere
    return any(rule.spec is not None and rule.spec.update in PARAMETRIZED for rule in rules)


def _distillation(s: Settings) -> list[str]:
    problems = distillation_problems(s)
    if s.distillation and all(glue.TASKS[name].regression for name in s.tasks):
        problems += [
            f"{option(name)} only applies to classes, and {', '.join(s.tasks)} has none: leave it"
            " out"
            for name in set_about_answers(s)
        ]
    return problems


def _groups(s: Settings) -> list[str]:
    problems = []
    if s.per_groups is None and (
        s.per_groups_permute
        or (s.per_groups_permute_shared_h and "ngp" not in (s.quant_dict or ""))
    ):
        specified = (
            "--per-groups-permute" if s.per_groups_permute else "--per-groups-permute-shared-h"
        )
        problems.append(
            f"{specified}: give --per-groups K, or 'ngp<K>' in --quant-dict with"
            " --per-groups-permute-shared-h"
        )
    if s.per_groups is not None and s.per_embd:
        problems.append("--per-embd and --per-groups: give one of them")
    return problems


def _dynamic(s: Settings) -> list[str]:
    if not s.dynamic_ranges:
        return []
    name = "--per-token" if s.per_token else "--dynamic"
    problems = []
    if (
        s.act_quant_method not in ("current_minmax", "running_minmax")
        or s.act_momentum is not None
        or s.percentile is not None
    ):
        problems.append(
            f"{name} takes the extremes of each batch: leave out --act-quant-method, --act-momentum"
            " and --percentile"
        )
    if s.quant_setup == "MSE_logits" or s.cross_entropy_layer:
        problems.append(
            f"{name} estimates no ranges: leave out --quant-setup MSE_logits and"
            " --cross-entropy-layer"
        )
    if s.per_groups is not None:
        problems.append(
            f"{name}: groups are found when ranges are estimated: leave out one of {name} and"
            " --per-groups"
        )
    if s.per_token and s.per_embd:
        problems.append("--per-token and --per-embd: give one of them")
    if s.export:
        problems.append(
            f"{name}: a file for another runtime has ranges that stay: leave out one of {name} and"
            " --export"
        )
    return problems


def refuse_quantization_options(settings: Settings, source: str) -> None:
    """Refuse options of quantization for a model that was saved with its ranges.

    Raises:
        FlagError: names every such option.
    """
    specified = _quantization_options(settings, eight_bit=True, incremental=True)
    if specified:
        raise FlagError(
            f"  {', '.join(map(option, specified))}: the model in {source} was saved with its"
            f" ranges and is taken as it is; leave {'it' if len(specified) == 1 else 'them'} out,"
            " or start from the float model"
        )


def _quantization_options(
    settings: Settings, eight_bit: bool = False, incremental: bool = False
) -> list[str]:
    """Names of the options of quantization that are set.

    Args:
        settings: of a run.
        eight_bit: whether those of 8-bit inference and training count as well.
        incremental: whether those of incremental quantization do.
    """
    return [
        field.name
        for field in dataclasses.fields(Settings)
        if field.metadata["modes"] in (QUANTIZING, QAT, PTQ)
        and not field.name.startswith(("export", "distillation", "teacher"))
        and (incremental or field.name not in _INCREMENTAL)
        and (eight_bit or field.name not in ARGUMENTS)
        and getattr(settings, field.name) != field.default
    ]

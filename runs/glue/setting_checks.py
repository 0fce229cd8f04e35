"""The check of run_glue.py's settings before any work.

Every problem with its option and what to do, in one message.
"""

import dataclasses
import math
import os
from typing import Any

from runs import distillation_options
from runs.folders import problem_with
from runs.glue.evaluation import scores_of_training
from runs.glue.outputs import logs_of
from runs.glue.settings import EXPORTS, PTQ, QUANTIZING, Settings, option, rounding_options
from runs.settings import FlagError, problems_of_numbers, refuse, wrong_choices
from tasks import glue
from tfquant.distributed.group import launched
from tfquant.export.onnx.qdq import INT16_OPSET
from tfquant.export.targets import TARGETS
from tfquant.formats.integer import MAX_BITS, MIN_BITS
from tfquant.ptq.adaround.options import Options
from tfquant.recipes.quant_dict import parse_quant_dict

OLDEST_OPSET = 17
OF_ONNX = ("onnx", "onnxruntime", "tensorrt", "openvino")


def check(settings: Settings) -> None:
    """Refuses what cannot work, before anything is read, computed or written.

    Raises:
        FlagError: lists every problem with its option and what to do.
    """
    looks = (
        _numbers,
        _work,
        _export,
        _evaluation,
        _quantization,
        _training_of_ranges,
        _teaching,
        _groups,
        _dynamic,
    )
    problems = [
        *wrong_choices(settings, option),
        *(problem for look in looks for problem in look(settings)),
    ]
    refuse([*problems, *problems_of_numbers(problems, settings, option)], settings)


def _numbers(s: Settings) -> list[str]:
    at_least_one = (
        "batch_size",
        "eval_batch_size",
        "num_train_samples",
        "num_val_samples",
        "gradient_accumulation_steps",
        "logging_steps",
        "num_candidates",
        "act_num_candidates",
        "num_est_batches",
        "est_ranges_batch_size",
        "per_groups",
        "save_total_limit",
        "eval_steps",
        "max_seq_length",
    )
    problems = [
        f"{option(name)} {value}: must be at least 1"
        for name in at_least_one
        if (value := getattr(s, name)) is not None and value < 1
    ]
    for name in ("max_steps", "warmup_steps", "save_steps", "weight_decay", "max_grad_norm"):
        if (getattr(s, name) or 0) < 0:
            problems.append(f"{option(name)} {getattr(s, name)}: must not be negative")
    for name in ("learning_rate", "num_epochs", "range_learning_rate"):
        value = getattr(s, name)
        if value is not None and not 0.0 < value < math.inf:
            problems.append(f"{option(name)} {value}: must be above 0 and finite")
    for name in ("attn_dropout", "hidden_dropout", "act_momentum"):
        value = getattr(s, name)
        if value is not None and not 0.0 <= value < 1.0:
            problems.append(f"{option(name)} {value}: must be at least 0 and below 1")
    if any(seed < 0 for seed in s.seed):
        problems.append(f"--seed {min(s.seed)}: must not be negative")
    for name in ("n_bits", "n_bits_act"):
        value = getattr(s, name)
        if value is not None and not MIN_BITS <= value <= MAX_BITS:
            problems.append(f"{option(name)} {value}: must be from {MIN_BITS} to {MAX_BITS}")
    if not 0.0 <= s.export_tolerance <= 1.0:
        problems.append(f"--export-tolerance {s.export_tolerance}: is a share of rows, from 0 to 1")
    if s.percentile is not None and not 50.0 < s.percentile <= 100.0:
        problems.append(
            f"--percentile {s.percentile}: is the part of the values that the range spans, above 50"
            " and at most 100"
        )
    return problems


def _work(s: Settings) -> list[str]:
    problems = []
    if s.trains and not s.output_dir:
        problems.append(f"{s.mode} wants --output-dir")
    if s.save_model and not s.output_dir:
        problems.append("--save-model: give --output-dir as well")
    if s.output_dir and os.path.exists(s.output_dir) and not os.path.isdir(s.output_dir):
        problems.append(f"--output-dir {s.output_dir}: is a file, no folder")
    elif s.output_dir and (problem := problem_with(s.output_dir)):
        problems.append(
            f"--output-dir {s.output_dir}: cannot be written ({problem}); name another folder"
        )
    elif (
        (s.trains or s.tb)
        and (s.output_dir or s.tb_logging_dir)
        and (problem := problem_with(logs_of(s.output_dir, s)))
    ):
        named = "--tb-logging-dir" if s.tb_logging_dir else "--output-dir"
        problems.append(
            f"{named}: {logs_of(s.output_dir, s)} cannot be written ({problem}); name another"
            " folder"
        )
    if s.tb and not (s.output_dir or s.tb_logging_dir):
        problems.append("--tb: give --output-dir or --tb-logging-dir as well")
    if s.tb_graph and not s.tb:
        problems.append("--tb-graph goes with --tb: set that, or leave it out")
    if s.double:
        others = ("amp", "save_model", "export", "adaround")  # which have types of their own
        problems += [
            f"--double is for scores alone: leave out it or {option(name)}"
            for name in others
            if getattr(s, name)
        ]
    processes = launched()
    if processes > 1 and not s.horovod:
        problems.append(
            f"--horovod is missing, though this is one of {processes} processes: set it, or start"
            " one process"
        )
    if not 0.0 <= s.rank_timeout < math.inf:
        problems.append(
            f"--rank-timeout {s.rank_timeout}: must be a finite number of seconds, or 0 for no"
            " limit"
        )
    return problems


def _export(s: Settings) -> list[str]:
    """What would only be found after the work that is to be exported."""
    if not s.export:
        return []
    if s.export not in EXPORTS:
        return []  # refused by `wrong_choices`
    problems = [] if s.output_dir else ["--export: give --output-dir as well"]
    if s.export in OF_ONNX and s.export_opset < OLDEST_OPSET:
        problems.append(f"--export-opset {s.export_opset}: must be at least {OLDEST_OPSET}")
    missing = TARGETS[s.export].missing_packages(checked=True)
    if missing:
        problems.append(
            f"--export {s.export} needs {', '.join(missing)}: pip install -e '.[export]'"
        )
    widest = max((bits for bits in _bits(s) if bits <= MAX_BITS), default=0)
    if s.export in OF_ONNX and s.export_opset < INT16_OPSET and widest > 8:
        problems.append(
            f"--export {s.export}: {widest} bits want --export-opset {INT16_OPSET} or a later one"
        )
    if "per_token" in _values(s):
        problems.append(
            "--export: a file for another runtime has ranges that stay: leave it or 'per_token' of"
            " --quant-dict out"
        )
    return problems


def _bits(s: Settings) -> list[int]:
    """All numbers of bits that options name."""
    of_options = [s.n_bits] * s.weight_quant + [s.n_bits_act or s.n_bits] * s.act_quant
    return of_options + [value for value in _values(s) if isinstance(value, int)]


def _values(s: Settings) -> list[Any]:
    """Those of --quant-dict, if it can be read."""
    try:
        return list(parse_quant_dict(s.quant_dict).values()) if s.quant_dict else []
    except ValueError:
        return []


def _evaluation(s: Settings) -> list[str]:
    """Scores in training."""
    problems = []
    if s.eval_steps is not None and s.eval_strategy != "steps":
        problems.append("--eval-steps is about --eval-strategy steps: set that, or leave it out")
    if s.load_best_model_at_end and s.eval_strategy == "no":
        problems.append(
            "--load-best-model-at-end wants scores: give --eval-strategy steps or epoch"
        )
    if (s.metric_for_best_model or s.greater_is_better is not None) and s.eval_strategy == "no":
        problems.append(
            "--metric-for-best-model and --greater-is-better are about --eval-strategy steps or"
            " epoch: set one"
        )
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
        problems.append(f"--run-name {s.run_name!r}: is the name of a folder")
    return problems


def _quantization(s: Settings) -> list[str]:
    """What is quantized, and how ranges are found."""
    if not s.quantizes:
        return []
    problems = []
    if not (s.weight_quant or s.act_quant):
        problems.append(
            "--no-weight-quant and --no-act-quant leave nothing to quantize: take a -baseline mode"
        )
    if s.adaround:
        problems += _rounding(s)
    if s.num_candidates is not None and (s.weight_quant_method, s.weight_opt_method) != (
        "MSE",
        "grid",
    ):
        problems.append(
            "--num-candidates is about --weight-quant-method MSE and --weight-opt-method grid: set"
            " these"
        )
    searched = s.act_quant_method == "MSE" or s.cross_entropy_layer
    if s.act_num_candidates is not None and not (searched and s.act_opt_method == "grid"):
        problems.append(
            "--act-num-candidates is about --act-quant-method MSE and --act-opt-method grid: set"
            " these"
        )
    if s.act_momentum is not None and s.act_quant_method != "running_minmax":
        problems.append(
            "--act-momentum is about --act-quant-method running_minmax: set that, or leave it out"
        )
    if s.percentile is not None and "current_minmax" not in (
        s.weight_quant_method,
        s.act_quant_method,
    ):
        problems.append(
            "--percentile is about current_minmax: set that as --weight-quant-method or"
            " --act-quant-method"
        )
    if s.per_channel and not s.weight_quant:
        problems.append("--per-channel is about weights: leave it or --no-weight-quant out")
    if s.adaround and not s.weight_quant:
        problems.append("--adaround rounds weights: leave --no-weight-quant out")
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


def _rounding(s: Settings) -> list[str]:
    """What AdaRound is told."""
    try:
        Options(**rounding_options(s))
    except ValueError as error:
        return [f"--adaround: {error}"]
    return (
        []
        if s.adaround_num_samples >= 1
        else [f"--adaround-num-samples {s.adaround_num_samples}: must be at least 1"]
    )


def _training_of_ranges(s: Settings) -> list[str]:
    if s.mode != "train-quantized":
        return []
    problems = []
    if s.learn_ranges and (s.fix_act_ranges or s.fix_weight_ranges):
        problems.append(
            "--learn-ranges trains them, --fix-act-ranges and --fix-weight-ranges do not: give one"
            " or the other"
        )
    if s.range_learning_rate is not None and not s.learn_ranges:
        problems.append("--range-learning-rate is about --learn-ranges: set that, or leave it out")
    if s.range_update is not None and not s.learn_ranges:
        problems.append("--range-update is about --learn-ranges: set that, or leave it out")
    if "per_token" in _values(s):
        problems.append(
            "--quant-dict: 'per_token' has ranges of each batch, which nothing can train: use it in"
            " validate-quantized"
        )
    if (
        s.weight_quant
        and s.weight_quant_method == "MSE"
        and not (s.learn_ranges or s.fix_weight_ranges)
    ):
        problems.append(
            "--weight-quant-method MSE: ranges follow weights by extremes alone: give"
            " --learn-ranges or --fix-weight-ranges"
        )
    return problems


def _teaching(s: Settings) -> list[str]:
    """What is said of a teacher."""
    if not s.distillation:
        return [
            f"{option(name)} is about --distillation: set that, or leave it out"
            for name in distillation_options.given(s)
        ]
    problems = distillation_options.contradictions(s, option)
    if all(glue.TASKS[name].regression for name in s.tasks):
        idle = distillation_options.given_about_answers(s)
        problems += [
            f"{option(name)} is about classes, and {', '.join(s.tasks)} has none: leave it out"
            for name in idle
        ]
    return problems


def _groups(s: Settings) -> list[str]:
    problems = []
    if s.per_groups is None and (
        s.per_groups_permute
        or (s.per_groups_permute_shared_h and "ngp" not in (s.quant_dict or ""))
    ):
        given = "--per-groups-permute" if s.per_groups_permute else "--per-groups-permute-shared-h"
        problems.append(
            f"{given}: give --per-groups K, or 'ngp<K>' in --quant-dict with"
            " --per-groups-permute-shared-h"
        )
    if s.per_groups is not None and s.per_embd:
        problems.append("--per-embd and --per-groups: give one of them")
    if (s.per_groups is not None or s.per_embd) and not s.act_quant:
        problems.append(
            "--per-embd and --per-groups are about activations: leave --no-act-quant out"
        )
    return problems


def _dynamic(s: Settings) -> list[str]:
    if not s.dynamic_ranges:
        return []
    name = "--per-token" if s.per_token else "--dynamic"
    problems = []
    if not s.act_quant:
        problems.append(f"{name} is about activations: leave it or --no-act-quant out")
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
    """A model that was saved with its ranges says itself how it is quantized.

    Raises:
        FlagError: an option says otherwise.
    """
    free = (
        "export",
        "export_opset",
        "export_tolerance",
        "distillation",
        *distillation_options.about_teacher(settings),
    )
    given = [
        field.name
        for field in dataclasses.fields(Settings)
        if field.metadata["modes"] in (QUANTIZING, ("train-quantized",), PTQ)
        and field.name not in free
        and getattr(settings, field.name) != field.default
    ]
    if given:
        raise FlagError(
            f"  {', '.join(map(option, given))}: the model in {source} was saved with its ranges"
            f" and is taken as it is; leave {'it' if len(given) == 1 else 'them'} out, or start"
            " from the float model"
        )

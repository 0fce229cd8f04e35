"""Checks of run_squad.py's flags before any work; one message names every problem and its fix."""

import importlib.util
import os
import pathlib

from calib.names import GENERAL, NAMES
from runs.checks import (
    folder_problems,
    horovod_problems,
    refuse,
    size_problems,
    value_problems,
)
from runs.distillation_options import distillation_problems
from runs.eight_bit import (
    DENSITIES,
    HISTOGRAMS,
    RANGES,
    asked_for,
    eight_bit_problems,
    histogram_problems,
)
from runs.folders import same_files
from runs.squad.flags import MODES, TARGET_OF, TFDS, Settings
from runs.squad.model_checks import model_problems, no_room
from tasks.wordpiece import Tokenizer
from tfquant import checkpoint
from tfquant.export.fastertransformer import SMALLEST_SM
from tfquant.export.targets import TARGETS
from tfquant.recipes.spec_strings import parse_spec
from tfquant.runtimes import PACKAGES
from tfquant.training.sparsity import parse_pattern

RESULTS = (
    *("predictions.json", "nbest_predictions.json", "null_odds.json", "results.json"),
    *("squad_f1.csv", "squad_f1.png", HISTOGRAMS, RANGES, DENSITIES),
)
PLACEMENT = ("quant_recipe", "quant_mode", "quantize_residual", "quant_another_add_input")


def check(settings: Settings) -> None:
    """Refuse invalid flags before anything is read, computed or written.

    Raises:
        FlagError: lists every problem with its flag and what to do.
    """
    checks = (
        value_problems,
        horovod_problems,
        _recipe,
        _eight_bit,
        _sweep,
        _work,
        _placement,
        _export,
        distillation_problems,
        _sparsity,
        _files,
    )
    problems = [problem for look in checks for problem in look(settings)]
    problems += size_problems(problems, settings)
    if not problems:  # these read the files
        problems = model_problems(settings)
    if not problems:
        problems = _output(settings)
    refuse(problems, settings)


def _work(s: Settings) -> list[str]:
    """Return problems of what is to be done, and of numbers that depend on each other."""
    problems = []
    if not (s.do_train or s.do_calib or s.do_predict or s.do_export or s.sweep):
        problems.append(
            "nothing to do: give at least one of --do_train, --do_calib, --do_export, --do_predict,"
            " --sweep"
        )
    problems += no_room(s, Tokenizer.separators)
    if s.range_freeze_step is not None and s.range_freeze_step <= s.range_start_step:
        problems.append(
            f"--range_freeze_step={s.range_freeze_step}: must be above --range_start_step"
            f" ({s.range_start_step})"
        )
    return problems


def _placement(s: Settings) -> list[str]:
    """Return problems of what is to be quantized, and of how its ranges are calibrated."""
    problems = []
    placement = [name for name in PLACEMENT if getattr(s, name)]
    if placement and not (s.if_quant or s.do_calib):
        problems.append(
            f"--{placement[0]} has no effect on a float run: set --if_quant to quantize, or"
            " --do_calib to calibrate"
        )
    for number, name in enumerate(PLACEMENT[:2]):
        others = PLACEMENT[number + 1 :]
        if getattr(s, name) and any(getattr(s, other) not in (None, "", False) for other in others):
            problems.append(
                f"--{name} sets the placement: leave out"
                f" {', '.join(f'--{other}' for other in others)}"
            )
    if s.quant_another_add_input and s.quantize_residual is False:
        problems.append(
            "--quant_another_add_input needs --quantize_residual: set both, or the second to false"
            " as well"
        )
    if s.percentile is not None and s.calib_method in NAMES and s.calib_method != "percentile":
        problems.append(
            f"--percentile={s.percentile} only applies with --calib_method=percentile: leave it"
            f" or --calib_method={s.calib_method} out"
        )
    if s.calib_method in set(NAMES) - set(GENERAL):
        problems.append(
            f"--calib_method={s.calib_method}: is for logits alone; name it in a rule of"
            " --quant_recipe"
        )
    file = s.calibrator_file
    if os.path.basename(file) != file or not file.endswith(".npz"):
        problems.append(
            f"--calibrator_file={file}: must be the name of an .npz file, without a folder"
        )
    return problems


def _eight_bit(s: Settings) -> list[str]:
    """Return problems of the flags of 8-bit inference and training."""
    others = [name for name in (*PLACEMENT, "calib_method", "percentile") if getattr(s, name)]
    problems = eight_bit_problems(s, others, trains=s.do_train)
    problems += histogram_problems(s, ("do_train", "do_calib", "do_predict"))
    if s.eight_bit and not problems and s.do_calib:
        specs = [rule.spec for rule in s.recipe.rules if rule.direction == "forward"]
        if not any(spec is not None and spec.scale.calibrated for spec in specs):
            flags = ", ".join(asked_for(s))
            return [f"--do_calib has no effect with {flags}, which need no ranges: leave it out"]
    return problems


def _sweep(s: Settings) -> list[str]:
    """Return problems of a sweep over number formats."""
    if not s.sweep:
        return []
    others = ("do_train", "do_calib", "do_predict", "do_export", "if_quant", *PLACEMENT)
    problems = [f"--sweep is a run of its own: leave out --{o}" for o in others if getattr(s, o)]
    if s.eight_bit:
        problems.append(f"--sweep has formats of its own: leave out {', '.join(asked_for(s))}")
    for name in ("init_checkpoint", "predict_file"):
        if not getattr(s, name):
            problems.append(f"--{name} is required for --sweep")
    specs = []
    for text in s.sweep_formats:
        try:
            specs.append(parse_spec(text))
        except ValueError as error:
            problems.append(f"--sweep_formats: {error}")
    if any(spec.scale.calibrated for spec in specs) and not s.train_file:
        problems.append("--train_file is required for --sweep of formats that are calibrated on it")
    return problems


def _export(s: Settings) -> list[str]:
    """Return problems of the exported file, and of prediction with it."""
    problems = []
    target = TARGETS.get(s.target)
    if s.predict_with in TARGET_OF and target and s.predict_with not in target.readers:
        problems.append(
            f"--export_target={s.target}: --predict_with={s.predict_with} cannot read such a file"
        )
    if s.do_export and s.export_target in ("packed", "fastertransformer") and not s.if_quant:
        problems.append(
            f"--export_target={s.export_target} stores quantized weights: give --if_quant as well"
        )
    if s.export_sm < SMALLEST_SM:
        problems.append(f"--export_sm={s.export_sm}: must be at least {SMALLEST_SM}")
    if (s.do_export or s.predict_with != "tensorflow") and s.use_bf16:
        problems.append(
            "--use_bf16: exported networks compute in float32: leave it out, the checkpoint is the"
            " same"
        )
    needed = [s.predict_with] if s.predict_with in TARGET_OF else []
    needed += target.readers[:1] if s.do_export and target else []
    missing = [
        name for name in dict.fromkeys(needed) if importlib.util.find_spec(PACKAGES[name]) is None
    ]
    if missing:
        problems.append(
            f"export and prediction with its file need {', '.join(missing)}: pip install -e"
            " '.[export]'"
        )
    return problems


def _sparsity(s: Settings) -> list[str]:
    if not s.sparsity:
        return []
    problems = []
    try:
        parse_pattern(s.sparsity)
    except ValueError as error:
        problems.append(f"--sparsity={s.sparsity}: {error}")
    begin, end = s.sparsity_begin_step, s.sparsity_end_step
    if end is not None and end != -1 and end < begin:
        problems.append(
            f"--sparsity_end_step={end}: must be at least --sparsity_begin_step ({begin}), or -1"
        )
    return problems


def _recipe(s: Settings) -> list[str]:
    if s.eight_bit or s.quant_mode not in ("", *MODES) or s.calib_method not in (None, *NAMES):
        return []  # refused by `value_problems`
    try:
        _ = s.recipe
    except (ValueError, OSError) as error:
        flag = (
            "calib_method" if s.calib_method else "quant_recipe" if s.quant_recipe else "percentile"
        )
        return [f"--{flag}={getattr(s, flag)}: {error}"]
    return []


def _files(s: Settings) -> list[str]:
    required = ("bert_config_file", "vocab_file", "output_dir")
    problems = [f"--{name} is required" for name in required if not getattr(s, name)]
    if (s.do_train or s.do_calib) and not s.train_file:
        problems.append(
            f"--train_file is required for --{'do_train' if s.do_train else 'do_calib'}"
        )
    if s.do_predict and not s.predict_file:
        problems.append("--predict_file is required for --do_predict")
    if s.do_export and not (s.predict_file or s.train_file):
        problems.append(
            "--predict_file or --train_file is required for --do_export: the file is compared with"
            " the network on it"
        )
    used = ["bert_config_file", "vocab_file"]
    used += ["train_file"] if s.do_train or s.do_calib or s.do_export else []
    used += ["predict_file"] if s.do_predict or s.do_export or s.sweep else []
    used += ["train_file"] if s.sweep and s.train_file else []
    used += ["teacher_config_file"] if s.teacher_config_file else []
    for name in used:
        path = getattr(s, name)
        if path and not path.startswith(TFDS) and not os.path.isfile(path):
            problems.append(f"--{name}={path}: there is no such file")
    for name in ("init_checkpoint", "teacher"):
        path = getattr(s, name)
        if path and os.path.isdir(path) and not list(pathlib.Path(path).glob("*.safetensors")):
            prefix = checkpoint.latest(path)
            what = (
                f"give the prefix of a checkpoint, such as {prefix}"
                if prefix
                else "it holds no checkpoint and no .safetensors"
            )
            problems.append(f"--{name}={path}: is a folder: {what}")
        elif path and not (
            os.path.isfile(path + ".index") or os.path.isdir(path) or path.endswith(".safetensors")
        ):
            problems.append(
                f"--{name}={path}: is one file of a checkpoint; give its prefix, without .index"
                if path.endswith(".index") and os.path.isfile(path)
                else f"--{name}={path}: there is no {path}.index and no such folder; give the"
                " prefix of a TensorFlow checkpoint or a Hugging Face folder"
            )
    return problems


def _output(s: Settings) -> list[str]:
    """Return a problem if results cannot be written, or would replace what the run reads."""
    places = (s.output_dir, os.path.join(s.output_dir, "tensorboard"))
    for place in places:
        if problems := folder_problems(place, f"--output_dir={s.output_dir}"):
            return problems
    written = [os.path.join(s.output_dir, name) for name in (*RESULTS, s.calibrator_file)]
    names = ("bert_config_file", "vocab_file", "train_file", "predict_file", "teacher_config_file")
    return [
        f"--output_dir={s.output_dir}: {os.path.basename(path)} of this run would replace --{name}:"
        " name another folder"
        for name in names
        if getattr(s, name)
        for path in same_files(written, [getattr(s, name)])
    ]

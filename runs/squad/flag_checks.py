"""The check of run_squad.py's settings before any work.

Every problem with its flag and what to do, in one message.
"""

import importlib.util
import math
import os
import pathlib

import modeling
from calib.names import GENERAL, NAMES
from runs.folders import problem_with, same_files
from runs.settings import problems_of_numbers, refuse, wrong_choices
from runs.squad import teacher_flags
from runs.squad.flags import MODES, TARGET_OF, TFDS, Settings
from tasks.wordpiece import num_ids, read_vocab
from tfquant import checkpoint
from tfquant.distributed.group import launched
from tfquant.export.fastertransformer import SMALLEST_SM
from tfquant.export.targets import TARGETS
from tfquant.runtimes import PACKAGES
from tfquant.training.sparsity import parse_pattern

RESULTS = ("predictions.json", "nbest_predictions.json", "null_odds.json", "results.json")


def check(settings: Settings) -> None:
    """Refuses what cannot work, before anything is read, computed or written.

    Raises:
        FlagError: lists every problem with its flag and what to do.
    """
    without_files = (
        _numbers,
        _recipe,
        _work,
        _placement,
        _ranges,
        _export,
        teacher_flags.contradictions,
        _sparsity,
    )
    problems = [problem for look in (*without_files, _files) for problem in look(settings)]
    problems += wrong_choices(settings, teacher_flags.written)
    problems += problems_of_numbers(problems, settings, teacher_flags.written)
    if not problems:  # these read the files
        problems = _model(settings)
    if not problems:
        problems = _output(settings)
    refuse(problems, settings)


def _numbers(s: Settings) -> list[str]:
    at_least_one = (
        "doc_stride",
        "max_query_length",
        "train_batch_size",
        "predict_batch_size",
        "num_accumulation_steps",
        "save_checkpoints_steps",
        "n_best_size",
        "max_answer_length",
        "calib_batch",
    )
    problems = [
        f"--{name}={getattr(s, name)}: must be at least 1"
        for name in at_least_one
        if getattr(s, name) < 1
    ]
    if s.num_eval_iterations is not None and s.num_eval_iterations < 1:
        problems.append(
            f"--num_eval_iterations={s.num_eval_iterations}: must be at least 1, or left out"
            " for all"
        )
    for name in ("keep_checkpoint_max", "seed", "range_start_step", "quant_start_step"):
        if getattr(s, name) < 0:
            problems.append(f"--{name}={getattr(s, name)}: must not be negative")
    for name in ("learning_rate", "num_train_epochs"):
        if not 0.0 < getattr(s, name) < math.inf:
            problems.append(f"--{name}={getattr(s, name)}: must be above 0 and finite")
    if s.range_learning_rate is not None and not 0.0 < s.range_learning_rate < math.inf:
        problems.append(
            f"--range_learning_rate={s.range_learning_rate}: must be above 0 and finite"
        )
    if not 0.0 <= s.warmup_proportion < 1.0:
        problems.append(
            f"--warmup_proportion={s.warmup_proportion}: must be at least 0 and below 1"
        )
    if s.max_seq_length <= s.max_query_length + 3:
        problems.append(
            f"--max_seq_length={s.max_seq_length}: must be above --max_query_length"
            f" ({s.max_query_length}) + 3, or there is no room for the paragraph"
        )
    return problems


def _work(s: Settings) -> list[str]:
    """What is to be done, in which processes."""
    problems = []
    if not (s.do_train or s.do_calib or s.do_predict or s.do_export):
        problems.append(
            "nothing to do: give at least one of --do_train, --do_calib, --do_export, --do_predict"
        )
    processes = launched()
    if processes > 1 and not s.horovod:
        problems.append(
            f"--horovod is missing, though this is one of {processes} processes: set it, or each"
            " works for itself and all write the same files; or start one process, without mpirun"
            " or horovodrun"
        )
    for name in ("horovod_compression", "horovod_sparse_as_dense"):
        if getattr(s, name) not in ("none", False) and not s.horovod:
            problems.append(f"--{name} is used with --horovod only: set that, or leave it out")
    if not 0.0 <= s.rank_timeout < math.inf:
        problems.append(
            f"--rank_timeout={s.rank_timeout}: must be a finite number of seconds, or 0 for no"
            " limit"
        )
    if s.loss_scale != "none" and not s.do_train:
        problems.append("--loss_scale is about training: set --do_train as well, or leave it out")
    return problems


def _placement(s: Settings) -> list[str]:
    """What is to be quantized, and how its ranges are found."""
    problems = []
    if s.quant_mode and (s.quantize_residual is not None or s.quant_another_add_input):
        problems.append(
            "--quant_mode sets the placement: leave out --quantize_residual and"
            " --quant_another_add_input"
        )
    placement = [
        n
        for n in ("quant_recipe", "quant_mode", "quantize_residual", "quant_another_add_input")
        if getattr(s, n)
    ]
    if placement and not (s.if_quant or s.do_calib):
        problems.append(
            f"--{placement[0]} has no effect on a float run: set --if_quant to quantize, or"
            " --do_calib to calibrate"
        )
    if s.quant_recipe and (
        s.quant_mode or s.quantize_residual is not None or s.quant_another_add_input
    ):
        problems.append(
            "--quant_recipe sets the placement: leave out --quant_mode, --quantize_residual and"
            " --quant_another_add_input"
        )
    if s.quant_another_add_input and s.quantize_residual is False:
        problems.append(
            "--quant_another_add_input needs --quantize_residual: set both, or the second to false"
            " as well"
        )
    if s.percentile is not None and s.calib_method in NAMES and s.calib_method != "percentile":
        problems.append(
            f"--percentile={s.percentile} says nothing to --calib_method={s.calib_method}: leave"
            " one out"
        )
    if s.percentile is not None and not 0.0 < s.percentile <= 100.0:
        problems.append(f"--percentile={s.percentile}: must be above 0 and at most 100")
    if s.calib_method in set(NAMES) - set(GENERAL):
        problems.append(
            f"--calib_method={s.calib_method}: is for logits alone; name it in a rule of"
            " --quant_recipe"
        )
    if s.calib_order == "sequential" and not s.do_calib:
        problems.append(
            "--calib_order is about calibration: set --do_calib as well, or leave it out"
        )
    if os.path.basename(s.calibrator_file) != s.calibrator_file or not s.calibrator_file.endswith(
        ".npz"
    ):
        problems.append(
            f"--calibrator_file={s.calibrator_file}: must be the name of an .npz file, without a"
            " folder"
        )
    return problems


def _ranges(s: Settings) -> list[str]:
    """What training does to ranges, and when."""
    problems = []
    for name in ("range_update", "ste", "range_decay"):
        if getattr(s, name) is not None and not (s.do_train and s.if_quant):
            problems.append(
                f"--{name} is about quantized training: set --do_train and --if_quant as well, or"
                " leave it out"
            )
    for name in (
        "range_learning_rate",
        "range_start_step",
        "range_freeze_step",
        "quant_start_step",
    ):
        if getattr(s, name) and not (s.do_train and s.if_quant):
            problems.append(
                f"--{name} is about quantized training: set --do_train and --if_quant as well, or"
                " leave it out"
            )
    if s.range_update_of != "all" and s.range_update is None:
        problems.append(
            "--range_update_of is used with --range_update only: set that, or leave it out"
        )
    if s.range_freeze_step is not None and s.range_freeze_step <= s.range_start_step:
        problems.append(
            f"--range_freeze_step={s.range_freeze_step}: must be above --range_start_step"
            f" ({s.range_start_step})"
        )
    if s.range_decay is not None and s.range_update != "moving_average":
        problems.append(
            "--range_decay is used with --range_update=moving_average only: set that, or leave"
            " it out"
        )
    if s.range_decay is not None and not 0.0 <= s.range_decay < 1.0:
        problems.append(f"--range_decay={s.range_decay}: must be at least 0 and below 1")
    return problems


def _export(s: Settings) -> list[str]:
    """What is written for another runtime, and what answers."""
    problems = []
    if s.predict_with != "tensorflow" and not s.do_predict:
        problems.append(
            f"--predict_with={s.predict_with} is about prediction: set --do_predict as well, or"
            " leave it out"
        )
    if (
        s.predict_with in TARGET_OF
        and s.target in TARGETS
        and s.predict_with not in TARGETS[s.target].readers
    ):
        problems.append(
            f"--export_target={s.target}: --predict_with={s.predict_with} cannot answer with what"
            " it writes"
        )
    if s.do_export and s.export_target in ("packed", "fastertransformer") and not s.if_quant:
        problems.append(
            f"--export_target={s.export_target} stores quantized weights: give --if_quant as well"
        )
    if s.export_sm < SMALLEST_SM:
        problems.append(f"--export_sm={s.export_sm}: must be at least {SMALLEST_SM}")
    if s.export_opset < 17:
        problems.append(f"--export_opset={s.export_opset}: must be at least 17")
    if not 0.0 <= s.export_tolerance <= 1.0:
        problems.append(
            f"--export_tolerance={s.export_tolerance}: is a share of windows, from 0 to 1"
        )
    defaults = Settings()
    for name in ("export_opset", "export_sm", "export_tolerance"):
        if getattr(s, name) != getattr(defaults, name) and not s.do_export:
            problems.append(f"--{name} is about export: set --do_export as well, or leave it out")
    if (s.do_export or s.predict_with != "tensorflow") and s.use_bf16:
        problems.append(
            "--use_bf16: exported networks compute in float32: leave it out, the checkpoint is the"
            " same"
        )
    needed = [s.predict_with] if s.predict_with in TARGET_OF else []
    needed += TARGETS[s.target].readers[:1] if s.do_export and s.target in TARGETS else []
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
        defaults = Settings()
        names = ("sparsity_begin_step", "sparsity_end_step", "sparsity_frequency")
        given = [name for name in names if getattr(s, name) != getattr(defaults, name)]
        return [
            f"--{name} is used with --sparsity only: set that, or leave it out" for name in given
        ]
    problems = []
    try:
        parse_pattern(s.sparsity)
    except ValueError as error:
        problems.append(f"--sparsity={s.sparsity}: {error}")
    if not s.do_train:
        problems.append("--sparsity is about training: set --do_train as well, or leave it out")
    if s.sparsity_begin_step < 0:
        problems.append(f"--sparsity_begin_step={s.sparsity_begin_step}: must not be negative")
    if s.sparsity_frequency < 1:
        problems.append(f"--sparsity_frequency={s.sparsity_frequency}: must be at least 1")
    if (
        s.sparsity_end_step is not None
        and s.sparsity_end_step != -1
        and s.sparsity_end_step < s.sparsity_begin_step
    ):
        problems.append(
            f"--sparsity_end_step={s.sparsity_end_step}: must be at least --sparsity_begin_step"
            f" ({s.sparsity_begin_step}), or -1"
        )
    return problems


def _recipe(s: Settings) -> list[str]:
    if s.quant_mode not in ("", *MODES) or s.calib_method not in (None, *NAMES):
        return []  # refused by `wrong_choices`
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
    used += ["predict_file"] if s.do_predict or s.do_export else []
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
                f"--{name}={path}: there is no {path}.index and no such folder; give the prefix of"
                " a TensorFlow checkpoint or a Hugging Face folder"
            )
    return problems


def _model(s: Settings) -> list[str]:
    """What configuration, vocabulary and checkpoint have to agree on."""
    problems = []
    try:
        config = modeling.BertConfig.from_json_file(s.bert_config_file)
        if s.max_seq_length > config.max_position_embeddings:
            problems.append(
                f"--max_seq_length={s.max_seq_length}: the model of {s.bert_config_file} has only "
                f"{config.max_position_embeddings} positions"
            )
        if config.num_segments < 2:
            problems.append(
                f"--bert_config_file={s.bert_config_file}: type_vocab_size {config.num_segments}"
                " has no segment for the paragraph: SQuAD wants a model with at least 2"
            )
        modeling.check_memory(config)
        block = parse_pattern(s.sparsity)[1] if s.sparsity else 1
        for name in ("hidden_size", "intermediate_size"):
            if getattr(config, name) % block:
                problems.append(
                    f"--sparsity={s.sparsity}: {name} {getattr(config, name)} is no multiple of"
                    f" {block}"
                )
        pieces = num_ids(read_vocab(s.vocab_file))
        if pieces > config.vocab_size:
            problems.append(
                f"--vocab_file={s.vocab_file} has {pieces} pieces, the model of"
                f" {s.bert_config_file} only {config.vocab_size}: give those that belong together"
            )
        if s.distillation:
            problems += teacher_flags.misfits(s, config)
        for name in ("vocab_file", "init_checkpoint", "teacher"):
            path = getattr(s, name)
            found = modeling.detect_lower_case(path) if path else None
            if found not in (None, s.do_lower_case):
                problems.append(
                    f"--do_lower_case={s.do_lower_case}, but --{name}={path} is"
                    f" {'uncased' if found else 'cased'}: set --do_lower_case={found}"
                )
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def _output(s: Settings) -> list[str]:
    """Whether results can be written."""
    places = (s.output_dir, os.path.join(s.output_dir, "tensorboard"))
    problem = next(filter(None, map(problem_with, places)), None)
    if problem:
        return [f"--output_dir={s.output_dir}: cannot be written ({problem}); name another folder"]
    written = [os.path.join(s.output_dir, name) for name in (*RESULTS, s.calibrator_file)]
    names = ("bert_config_file", "vocab_file", "train_file", "predict_file", "teacher_config_file")
    return [
        f"--output_dir={s.output_dir}: {os.path.basename(path)} of this run would replace --{name}:"
        " name another folder"
        for name in names
        if getattr(s, name)
        for path in same_files(written, [getattr(s, name)])
    ]

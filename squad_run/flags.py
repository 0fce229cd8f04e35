"""Settings of run_squad.py: one frozen object, absl flags made from it, and the check of them before any work.

The names are those of NVIDIA's run_squad.py. Nothing here is read at import time.
"""

import dataclasses
import math
import os
import tempfile
from typing import Any

from absl import flags

import calib
import modeling
import tfquant
from squad_run import teacher_flags
from tasks.wordpiece import read_vocab
from tfquant import recipes
from tfquant.distributed import COMPRESSIONS
from tfquant.spec import PARAMETER_ROLES, ROLES, STES, UPDATES
from tfquant.training.distillation import DIRECTIONS, TEMPERATURE
from tfquant.training.sparsity import parse_pattern

MODES = ("ft1", "ft2", "ft3", "trt")
LOSS_SCALES = ("none", "dynamic")
RANGES_OF = {"all": ROLES, "weights": PARAMETER_ROLES, "activations": tuple(r for r in ROLES if r not in PARAMETER_ROLES)}
TFDS = "tfds:"  # what a data file's name begins with when it is a split of squad/plain_text


class FlagError(ValueError):
    """Flags that cannot be followed; the message names every one of them."""


# What a flag must do when training goes on from a checkpoint: be the same, name a file that holds the same, or nothing.
SAME, CONTENT, FREE = "same", "content", "free"


def _flag(default: Any, help: str, resume: str = SAME) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "resume": resume})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is to do. Each field is a flag of the same name; its help says what it means.

    A flag that changes what training computes is `SAME` or `CONTENT` for resuming; see squad_run/resume.py.
    """

    bert_config_file: str | None = _flag(None, "Google's bert_config.json or Hugging Face's config.json.", CONTENT)
    vocab_file: str | None = _flag(None, "WordPiece vocabulary, one piece a line.", CONTENT)
    output_dir: str | None = _flag(None, "Where everything is written.", FREE)
    train_file: str | None = _flag(
        None, "SQuAD JSON, or tfds:SPLIT for squad/plain_text of TensorFlow Datasets; for training and for calibration.", CONTENT
    )
    predict_file: str | None = _flag(None, "SQuAD JSON or tfds:SPLIT to answer; scored if it holds answers.", FREE)
    tfds_dir: str | None = _flag(None, "Where TensorFlow Datasets keeps its data; its own default if not given.", FREE)
    init_checkpoint: str | None = _flag(
        None, "Weights to start from: prefix of a TensorFlow checkpoint (Google's or ours) or a Hugging Face folder.", CONTENT
    )
    do_train: bool = _flag(False, "Fine-tune; with --if_quant quantization-aware, from a calibrated checkpoint.", FREE)
    do_predict: bool = _flag(False, "Answer --predict_file; with --if_quant by the quantized network.", FREE)
    do_calib: bool = _flag(False, "Find the ranges of float weights on --train_file; writes model.ckpt-calibrated.", FREE)
    if_quant: bool = _flag(False, "Quantize in the forward pass of training and prediction.")

    do_lower_case: bool = _flag(True, "Lower-case the text; must be so for uncased and not for cased vocabularies.")
    max_seq_length: int = _flag(384, "Longest window in word pieces: question, paragraph and three special ones.")
    doc_stride: int = _flag(128, "Word pieces from one window over a long paragraph to the next.")
    max_query_length: int = _flag(64, "Longer questions are cut.")
    version_2_with_negative: bool = _flag(False, "SQuAD 2.0: questions may have no answer.")

    train_batch_size: int = _flag(8, "Windows in a batch of training or calibration.")
    predict_batch_size: int = _flag(8, "Windows in a batch of prediction.", FREE)
    learning_rate: float = _flag(5e-6, "Highest learning rate.")
    num_train_epochs: float = _flag(3.0, "How often every question is seen.")
    warmup_proportion: float = _flag(0.1, "Part of the steps in which the learning rate rises.")
    num_accumulation_steps: int = _flag(1, "Batches whose gradients make one step.")
    save_checkpoints_steps: int = _flag(1000, "Steps between checkpoints; training goes on from the last one there is.", FREE)
    keep_checkpoint_max: int = _flag(1, "How many checkpoints to keep; 0 keeps all.", FREE)
    use_bf16: bool = _flag(False, "Compute in bfloat16; weights, softmax, LayerNorm and quantization stay float32.")
    seed: int = _flag(12345, "Seed of initial weights, dropout, and order of the data.")

    n_best_size: int = _flag(20, "Starts and ends that are combined, and answers that are listed for a question.", FREE)
    max_answer_length: int = _flag(30, "Longest answer in word pieces.", FREE)
    null_score_diff_threshold: float = _flag(0.0, "SQuAD 2.0: no answer wins if it is better by more than this.", FREE)
    num_eval_iterations: int | None = _flag(None, "Answer only so many times --predict_batch_size questions.", FREE)

    calib_batch: int = _flag(4, "Number of batches, of --train_batch_size windows each, to calibrate on.", FREE)
    calib_method: str | None = _flag(
        None,
        f"Range of activations: {', '.join(calib.methods.NAMES)}. If not given percentile, or what --quant_recipe says.",
        FREE,
    )
    percentile: float | None = _flag(None, "Percentile of --calib_method=percentile; 99.99 if not given.", FREE)
    calibrator_file: str = _flag("calibrators.npz", "Name of the calibration file in --output_dir.", FREE)
    quantize_residual: bool | None = _flag(
        None, "Quantize the skip operand of each Add before a LayerNorm; true if not given.", FREE
    )
    quant_another_add_input: bool = _flag(False, "Quantize the other operand of these additions as well.", FREE)
    quant_mode: str = _flag("", f"A later placement of NVIDIA's instead of --quantize_residual: {', '.join(MODES)}.", FREE)
    quant_recipe: str = _flag(
        "", f"Instead of the other placement flags: a recipe file (.yaml, .json) or one of {', '.join(recipes.names())}.", FREE
    )

    range_update: str | None = _flag(
        None, f"What quantized training does to ranges: {', '.join(UPDATES)}. If not given frozen, or what the recipe says."
    )
    range_update_of: str = _flag("all", f"Which ranges --range_update is about: {', '.join(RANGES_OF)}.")
    ste: str | None = _flag(
        None, "Whether gradients reach values exactly on an end of a range: inclusive (if not given) or strict, as NVIDIA's do."
    )
    range_decay: float | None = _flag(None, "Decay of --range_update=moving_average in each step; 0.9999 if not given.")
    range_learning_rate: float | None = _flag(None, "Highest learning rate of learned ranges; --learning_rate if not given.")
    range_start_step: int = _flag(0, "Quantized training: steps before ranges move, learned or as moving averages.")
    range_freeze_step: int | None = _flag(None, "Quantized training: steps after which ranges stay as they are.")
    quant_start_step: int = _flag(0, "Quantized training: steps in float before quantization is switched on.")

    loss_scale: str = _flag(
        "none",
        "dynamic scales the loss so that gradients sent as float16 do not vanish, and skips a step whose loss or gradient is NaN "
        "or Inf; none ends the run there.",
    )
    sparsity: str = _flag("", "Keep encoder kernels sparse: 2x4 has 2 zeros in every 4 consecutive weights along the inputs.")
    sparsity_begin_step: int = _flag(0, "Steps made before the zeros of --sparsity are chosen.")
    sparsity_end_step: int | None = _flag(
        None, "Until this step they are chosen anew every --sparsity_frequency steps; -1 to the end. Once if not given."
    )
    sparsity_frequency: int = _flag(100, "Steps between two choices.")

    horovod: bool = _flag(
        False,
        "Train, calibrate and predict in all processes that mpirun or horovodrun started. Training takes --train_batch_size in "
        "each and multiplies --learning_rate by their number; calibration and prediction deal the same batches out.",
        FREE,
    )
    horovod_compression: str = _flag("none", "What gradients are sent as: none, or fp16.", FREE)
    horovod_sparse_as_dense: bool = _flag(
        False, "Send the gradients of embeddings as whole tables instead of the rows that occur in the batches.", FREE
    )

    distillation: bool = _flag(False, "Train on the answers of --teacher as well.")
    teacher: str | None = _flag(None, "Checkpoint that teaches; runs in float.", CONTENT)
    teacher_config_file: str | None = _flag(
        None, "Configuration of a --teacher of another size; the student's if not given.", CONTENT
    )
    distillation_loss_scale: float = _flag(10000.0, "Weight of the divergence from the teacher's answers; 0 leaves it out.")
    distillation_temperature: float = _flag(TEMPERATURE, "What both answers are divided by before they are compared.")
    distillation_direction: str = _flag(
        DIRECTIONS[0], "student_teacher is KL(student || teacher), as NVIDIA's; teacher_student is KL(teacher || student)."
    )
    distillation_hidden_scale: float = _flag(0.0, "Weight of the mean squared error from the teacher's hidden states.")
    distillation_attention_scale: float = _flag(0.0, "Weight of the mean squared error from the teacher's attention.")
    distillation_layers: str = _flag(
        "", "Hidden states and attention: layers of student:teacher, counted from 0, such as 0:1,1:3; spread evenly if not given."
    )
    verbose_logging: bool = _flag(False, "Show windows, loaded variables, the placement, and the trace of an error.", FREE)

    @property
    def recipe(self) -> tfquant.Recipe:
        """What the placement flags ask for, with the range method of the flags.

        Raises:
            ValueError: unknown recipe or method, a file that is none, or a percentile out of range.
        """
        if self.quant_recipe:
            recipe = tfquant.recipe(self.quant_recipe)
            if self.calib_method is None and self.percentile is None:
                return recipe
        else:
            recipe = tfquant.recipe(self._placement)
        method = self.calib_method or "percentile"
        options = {"percentile": self.percentile} if method == "percentile" and self.percentile is not None else {}
        return recipe.with_method(method, **options)

    @property
    def _placement(self) -> str:
        if self.quant_mode:
            return self.quant_mode
        if self.quantize_residual is False:
            return "int8_residual_float"
        return "int8_residual_both" if self.quant_another_add_input else "int8_residual"

    def for_training(self, recipe: tfquant.Recipe) -> tfquant.Recipe:
        """The recipe of a calibrated checkpoint with what the flags say about training it."""
        of_ranges = {"update": self.range_update, "decay": self.range_decay}
        for roles, wanted in ((RANGES_OF[self.range_update_of], of_ranges), (ROLES, {"ste": self.ste})):
            changes = {name: value for name, value in wanted.items() if value is not None}
            recipe = recipe.with_spec(roles=roles, **changes) if changes else recipe
        return recipe

    @property
    def asks_for_placement(self) -> bool:
        """Whether any placement flag was given, so that it has to agree with a calibrated checkpoint."""
        return bool(self.quant_recipe or self.quant_mode) or self.quantize_residual is not None or self.quant_another_add_input


def define() -> None:
    """Defines the absl flags."""
    makers = {
        "bool": flags.DEFINE_bool,
        "int": flags.DEFINE_integer,
        "float": flags.DEFINE_float,
        "str": flags.DEFINE_string,
    }
    for field in dataclasses.fields(Settings):
        kind = getattr(field.type, "__name__", str(field.type)).replace(" | None", "")
        makers[kind.split(" |")[0]](field.name, field.default, field.metadata["help"])
    flags.DEFINE_alias("use_fp16", "use_bf16")


def from_flags() -> Settings:
    """The settings that the command line asked for; `define` and absl's parsing come before."""
    return Settings(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)})


def arguments(settings: Settings) -> list[str]:
    """The command line that asks for these settings."""
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings) if getattr(settings, f.name) != f.default}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()]


def check(settings: Settings) -> None:
    """Refuses what cannot work, before anything is read, computed or written.

    Raises:
        FlagError: lists every problem with its flag and what to do.
    """
    problems = _numbers(settings) + _recipe(settings) + _contradictions(settings) + _sparsity(settings) + _files(settings)
    if not problems:  # these read the files
        problems = _model(settings)
    if not problems:
        problems = _output(settings)
    if problems:
        raise FlagError("\n".join(f"  {problem}" for problem in problems))


def _numbers(s: Settings) -> list[str]:
    at_least_one = (
        "doc_stride", "max_query_length", "train_batch_size", "predict_batch_size", "num_accumulation_steps",
        "save_checkpoints_steps", "n_best_size", "max_answer_length", "calib_batch",
    )  # fmt: skip
    problems = [f"--{name}={getattr(s, name)}: must be at least 1" for name in at_least_one if getattr(s, name) < 1]
    if s.num_eval_iterations is not None and s.num_eval_iterations < 1:
        problems.append(f"--num_eval_iterations={s.num_eval_iterations}: must be at least 1, or left out for all")
    for name in ("keep_checkpoint_max", "seed", "range_start_step", "quant_start_step"):
        if getattr(s, name) < 0:
            problems.append(f"--{name}={getattr(s, name)}: must not be negative")
    for name in ("learning_rate", "num_train_epochs"):
        if not 0.0 < getattr(s, name) < math.inf:
            problems.append(f"--{name}={getattr(s, name)}: must be above 0 and finite")
    if s.range_learning_rate is not None and not 0.0 < s.range_learning_rate < math.inf:
        problems.append(f"--range_learning_rate={s.range_learning_rate}: must be above 0 and finite")
    if not 0.0 <= s.warmup_proportion < 1.0:
        problems.append(f"--warmup_proportion={s.warmup_proportion}: must be at least 0 and below 1")
    if s.max_seq_length <= s.max_query_length + 3:
        problems.append(
            f"--max_seq_length={s.max_seq_length}: must be above --max_query_length ({s.max_query_length}) + 3, or "
            "there is no room for the paragraph"
        )
    return problems


def _contradictions(s: Settings) -> list[str]:
    problems = []
    if not (s.do_train or s.do_calib or s.do_predict):
        problems.append("nothing to do: give at least one of --do_train, --do_calib, --do_predict")
    if s.quant_mode and s.quant_mode not in MODES:
        problems.append(f"--quant_mode={s.quant_mode}: must be one of {', '.join(MODES)}, or empty")
    if s.quant_mode and (s.quantize_residual is not None or s.quant_another_add_input):
        problems.append("--quant_mode sets the placement: leave out --quantize_residual and --quant_another_add_input")
    placement = [n for n in ("quant_recipe", "quant_mode", "quantize_residual", "quant_another_add_input") if getattr(s, n)]
    if placement and not (s.if_quant or s.do_calib):
        problems.append(f"--{placement[0]} has no effect on a float run: set --if_quant to quantize, or --do_calib to calibrate")
    if s.quant_recipe and (s.quant_mode or s.quantize_residual is not None or s.quant_another_add_input):
        problems.append(
            "--quant_recipe sets the placement: leave out --quant_mode, --quantize_residual and --quant_another_add_input"
        )
    if s.quant_another_add_input and s.quantize_residual is False:
        problems.append("--quant_another_add_input needs --quantize_residual: set both, or the second to false as well")
    if s.percentile is not None and s.calib_method in calib.methods.NAMES and s.calib_method != "percentile":
        problems.append(f"--percentile={s.percentile} says nothing to --calib_method={s.calib_method}: leave one out")
    if s.horovod_compression not in COMPRESSIONS:
        problems.append(f"--horovod_compression={s.horovod_compression}: must be {' or '.join(COMPRESSIONS)}")
    for name in ("horovod_compression", "horovod_sparse_as_dense"):
        if getattr(s, name) not in ("none", False) and not s.horovod:
            problems.append(f"--{name} is used with --horovod only: set that, or leave it out")
    for name, known in (("range_update", UPDATES), ("ste", STES)):
        if getattr(s, name) not in (None, *known):
            problems.append(f"--{name}={getattr(s, name)}: must be one of {', '.join(known)}")
    for name in ("range_update", "ste", "range_decay"):
        if getattr(s, name) is not None and not (s.do_train and s.if_quant):
            problems.append(f"--{name} is about quantized training: set --do_train and --if_quant as well, or leave it out")
    for name in ("range_learning_rate", "range_start_step", "range_freeze_step", "quant_start_step"):
        if getattr(s, name) and not (s.do_train and s.if_quant):
            problems.append(f"--{name} is about quantized training: set --do_train and --if_quant as well, or leave it out")
    if s.range_update_of not in RANGES_OF:
        problems.append(f"--range_update_of={s.range_update_of}: must be one of {', '.join(RANGES_OF)}")
    if s.range_update_of != "all" and s.range_update is None:
        problems.append("--range_update_of is used with --range_update only: set that, or leave it out")
    if s.range_freeze_step is not None and s.range_freeze_step <= s.range_start_step:
        problems.append(f"--range_freeze_step={s.range_freeze_step}: must be above --range_start_step ({s.range_start_step})")
    if s.range_decay is not None and s.range_update != "moving_average":
        problems.append("--range_decay is used with --range_update=moving_average only: set that, or leave it out")
    if s.range_decay is not None and not 0.0 <= s.range_decay < 1.0:
        problems.append(f"--range_decay={s.range_decay}: must be at least 0 and below 1")
    if s.loss_scale not in LOSS_SCALES:
        problems.append(f"--loss_scale={s.loss_scale}: must be {' or '.join(LOSS_SCALES)}")
    if s.loss_scale != "none" and not s.do_train:
        problems.append("--loss_scale is about training: set --do_train as well, or leave it out")
    if os.path.basename(s.calibrator_file) != s.calibrator_file or not s.calibrator_file.endswith(".npz"):
        problems.append(f"--calibrator_file={s.calibrator_file}: must be the name of an .npz file, without a folder")
    return problems + teacher_flags.contradictions(s)


def _sparsity(s: Settings) -> list[str]:
    if not s.sparsity:
        defaults = Settings()
        names = ("sparsity_begin_step", "sparsity_end_step", "sparsity_frequency")
        given = [name for name in names if getattr(s, name) != getattr(defaults, name)]
        return [f"--{name} is used with --sparsity only: set that, or leave it out" for name in given]
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
    if s.sparsity_end_step is not None and s.sparsity_end_step != -1 and s.sparsity_end_step < s.sparsity_begin_step:
        problems.append(
            f"--sparsity_end_step={s.sparsity_end_step}: must be at least --sparsity_begin_step ({s.sparsity_begin_step}), or -1"
        )
    return problems


def _recipe(s: Settings) -> list[str]:
    if s.quant_mode and s.quant_mode not in MODES:
        return []  # said already
    try:
        _ = s.recipe
    except (ValueError, OSError) as error:
        flag = "calib_method" if s.calib_method else "quant_recipe" if s.quant_recipe else "percentile"
        return [f"--{flag}={getattr(s, flag)}: {error}"]
    return []


def _files(s: Settings) -> list[str]:
    required = ("bert_config_file", "vocab_file", "output_dir")
    problems = [f"--{name} is required" for name in required if not getattr(s, name)]
    if (s.do_train or s.do_calib) and not s.train_file:
        problems.append(f"--train_file is required for --{'do_train' if s.do_train else 'do_calib'}")
    if s.do_predict and not s.predict_file:
        problems.append("--predict_file is required for --do_predict")
    used = ["bert_config_file", "vocab_file"]
    used += ["train_file"] if s.do_train or s.do_calib else []
    used += ["predict_file"] if s.do_predict else []
    used += ["teacher_config_file"] if s.teacher_config_file else []
    for name in used:
        path = getattr(s, name)
        if path and not path.startswith(TFDS) and not os.path.isfile(path):
            problems.append(f"--{name}={path}: there is no such file")
    for name in ("init_checkpoint", "teacher"):
        path = getattr(s, name)
        if path and not (os.path.isfile(path + ".index") or os.path.isdir(path) or path.endswith(".safetensors")):
            problems.append(
                f"--{name}={path}: there is no {path}.index and no such folder; give the prefix of a TensorFlow "
                "checkpoint or a Hugging Face folder"
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
        block = parse_pattern(s.sparsity)[1] if s.sparsity else 1
        for name in ("hidden_size", "intermediate_size"):
            if getattr(config, name) % block:
                problems.append(f"--sparsity={s.sparsity}: {name} {getattr(config, name)} is no multiple of {block}")
        pieces = len(read_vocab(s.vocab_file))
        if pieces > config.vocab_size:
            problems.append(
                f"--vocab_file={s.vocab_file} has {pieces} pieces, the model of {s.bert_config_file} only "
                f"{config.vocab_size}: give those that belong together"
            )
        if s.distillation:
            problems += teacher_flags.misfits(s, config)
        for name in ("vocab_file", "init_checkpoint", "teacher"):
            path = getattr(s, name)
            found = modeling.detect_lower_case(path) if path else None
            if found not in (None, s.do_lower_case):
                problems.append(
                    f"--do_lower_case={s.do_lower_case}, but --{name}={path} is {'uncased' if found else 'cased'}: "
                    f"set --do_lower_case={found}"
                )
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def _output(s: Settings) -> list[str]:
    """A trial file, removed at once: permissions alone do not tell."""
    try:
        os.makedirs(s.output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=s.output_dir) as file:
            file.write(b"x")
    except OSError as error:
        return [f"--output_dir={s.output_dir}: cannot be written ({error.strerror}); name another folder"]
    return []

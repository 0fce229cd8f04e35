"""Settings of run_squad.py: one frozen object.

The names are those of NVIDIA's run_squad.py. `runs/squad/flag_checks.py` refuses what cannot work.
TensorFlow is not imported here.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from calib.names import GENERAL, NAMES
from runs.eight_bit import EightBitFlags
from runs.settings import (
    AT_LEAST_1,
    BELOW_1,
    CONTENT,
    FINITE,
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    SAME,
    SHARE,
    Bound,
    StepNames,
    at_least,
    flag,
)
from runs.settings import FlagError as FlagError
from tfquant import recipes
from tfquant.choices import (
    COMPRESSIONS,
    DIRECTIONS,
    DISTILLATION_SCALE,
    ORDERS,
    RANGE_UPDATES,
    STES,
    TEMPERATURE,
)
from tfquant.distributed.watchdog import TIMEOUT
from tfquant.export.targets import TARGETS, targets_for
from tfquant.runtimes import RUNTIMES as RUNTIMES_OF_FILES
from tfquant.site import PARAMETER_ROLES, ROLES
from tfquant.training_args import recipe_of_args

if TYPE_CHECKING:
    import tfquant

MODES = ("ft1", "ft2", "ft3", "trt")
LOSS_SCALES = ("none", "dynamic")
RANGES_OF = {
    "all": ROLES,
    "weights": PARAMETER_ROLES,
    "activations": tuple(r for r in ROLES if r not in PARAMETER_ROLES),
}
# What else than TensorFlow answers in prediction -> what --do_export writes for it if
# --export_target does not say.
TARGET_OF = {
    runtime: targets_for(runtime)[0] for runtime in RUNTIMES_OF_FILES if runtime != "tensorflow"
}
RUNTIMES = ("tensorflow", *TARGET_OF)
TFDS = "tfds:"  # what a data file's name begins with when it is a split of squad/plain_text
# Number formats of --sweep: without a scale, as in the source, but for integers, which need one.
SWEPT = (
    *("posit8_1", "e4m3", "e5m2", "int8,qs=per_tensor_symmetric", "e3m2", "e2m1"),
    *("mxfp8", "mxfp4"),
)
QUANTIZED_TRAINING = {"do_train": True, "if_quant": True}
PERCENTILE = Bound(lambda percent: 0.0 < percent <= 100.0, "must be above 0 and at most 100")


def option(name: str, value: Any = None) -> str:
    """Return a flag as it is written on the command line, with its value if that is given."""
    return f"--{name}" if value is None else f"--{name}={value}"


def _one_of(
    choices: Iterable[str], default: str | None, help: str, resume: str = SAME, **metadata: Any
) -> Any:
    """Return a field whose value is a name."""
    return flag(default, help, resume, choices=tuple(choices), metavar="NAME", **metadata)


@dataclasses.dataclass(frozen=True)
class Settings(EightBitFlags):
    """Settings of a run. Each field is a flag of the same name, and has its help.

    A flag that changes what training computes is `SAME` or `CONTENT` for resuming; see
    runs/resume.py.
    """

    STEPS: ClassVar = StepNames(
        "train_batch_size",
        "num_accumulation_steps",
        "learning_rate",
        "num_train_epochs",
        unit="windows",
    )
    written = staticmethod(option)

    # Paths that are `str` may be None too: `flag_checks` refuses that where they are used.
    bert_config_file: str = flag(
        None, "Google's bert_config.json or Hugging Face's config.json.", CONTENT
    )
    vocab_file: str = flag(
        None,
        "Vocabulary of the model: vocab.txt (WordPiece), vocab.json with merges.txt beside it"
        " (byte-level BPE of RoBERTa), or a tokenizer.json of either kind.",
        CONTENT,
    )
    output_dir: str = flag(None, "Where everything is written.", FREE)
    train_file: str = flag(
        None,
        "SQuAD JSON, or tfds:SPLIT for squad/plain_text of TensorFlow Datasets; for training and"
        " for calibration.",
        CONTENT,
    )
    predict_file: str = flag(
        None, "SQuAD JSON or tfds:SPLIT to answer; scored if it holds answers.", FREE
    )
    tfds_dir: str | None = flag(
        None, "Where TensorFlow Datasets keeps its data; its own default if not given.", FREE
    )
    init_checkpoint: str | None = flag(
        None,
        "Weights to start from: prefix of a TensorFlow checkpoint (Google's or ours) or a Hugging"
        " Face folder.",
        CONTENT,
    )
    do_train: bool = flag(
        False, "Fine-tune; with --if_quant quantization-aware, from a calibrated checkpoint.", FREE
    )
    do_predict: bool = flag(
        False, "Answer --predict_file; with --if_quant by the quantized network.", FREE
    )
    do_calib: bool = flag(
        False,
        "Find the ranges of float weights on --train_file; writes model.ckpt-calibrated.",
        FREE,
    )
    do_export: bool = flag(
        False,
        "Write the network, with --if_quant the quantized one, as a file for another runtime.",
        FREE,
    )
    sweep: bool = flag(
        False,
        "Score --sweep_formats at every level of op fusion; writes squad_f1.csv and a heat map.",
        FREE,
    )
    sweep_formats: tuple[str, ...] = flag(
        SWEPT,
        "Specs of weights and activations in --sweep, one after the other.",
        FREE,
        needs={"sweep": True},
        metavar="SPEC",
    )
    if_quant: bool = flag(False, "Quantize in the forward pass of training and prediction.")

    do_lower_case: bool = flag(
        True,
        "WordPiece: lower-case the text; must be so for uncased and not for cased vocabularies."
        " Byte-level BPE is always cased.",
    )
    max_seq_length: int = flag(
        384, "Longest window in pieces: question, paragraph and special tokens."
    )
    doc_stride: int = flag(
        128, "Pieces from one window over a long paragraph to the next.", bound=AT_LEAST_1
    )
    max_query_length: int = flag(64, "Longer questions are cut.", bound=AT_LEAST_1)
    version_2_with_negative: bool = flag(False, "SQuAD 2.0: questions may have no answer.")

    train_batch_size: int = flag(
        8, "Windows in a batch of training or calibration.", bound=AT_LEAST_1
    )
    predict_batch_size: int = flag(8, "Windows in a batch of prediction.", FREE, bound=AT_LEAST_1)
    learning_rate: float = flag(5e-6, "Highest learning rate.", bound=POSITIVE)
    num_train_epochs: float = flag(3.0, "How often every question is seen.", bound=POSITIVE)
    warmup_proportion: float = flag(
        0.1, "Part of the steps in which the learning rate rises.", bound=BELOW_1
    )
    num_accumulation_steps: int = flag(
        1, "Batches whose gradients make one step.", bound=AT_LEAST_1
    )
    save_checkpoints_steps: int = flag(
        1000,
        "Steps between checkpoints; training resumes from the last one.",
        FREE,
        bound=AT_LEAST_1,
    )
    keep_checkpoint_max: int = flag(
        1, "How many checkpoints to keep; 0 keeps all.", FREE, bound=NOT_NEGATIVE
    )
    use_bf16: bool = flag(
        False, "Compute in bfloat16; weights, softmax, LayerNorm and quantization stay float32."
    )
    seed: int = flag(
        12345, "Seed of initial weights, dropout, and order of the data.", bound=NOT_NEGATIVE
    )

    n_best_size: int = flag(
        20,
        "Starts and ends that are combined, and answers that are listed for a question.",
        FREE,
        bound=AT_LEAST_1,
    )
    max_answer_length: int = flag(30, "Longest answer in pieces.", FREE, bound=AT_LEAST_1)
    null_score_diff_threshold: float = flag(
        0.0, "SQuAD 2.0: no answer wins if it is better by more than this.", FREE
    )
    num_eval_iterations: int | None = flag(
        None,
        "Answer only so many times --predict_batch_size questions.",
        FREE,
        bound=AT_LEAST_1,
    )

    export_target: str | None = _one_of(
        TARGETS,
        None,
        "What --do_export writes to --output_dir: "
        + ", ".join(f"{name} ({target.file})" for name, target in TARGETS.items())
        + "; if not given, what --predict_with reads best.",
        FREE,
    )
    export_opset: int = flag(
        17,
        "ONNX opset of the file, from 17; from 21 on 4-bit weights take half a byte.",
        FREE,
        bound=at_least(17),
        needs={"do_export": True},
    )
    export_sm: int = flag(
        80,
        "GPU that --export_target=fastertransformer is for: 75 (Turing) or from 80 on.",
        FREE,
        needs={"do_export": True},
    )
    export_tolerance: float = flag(
        0.1,
        "--do_export compares the file with the network: largest share of windows with other starts"
        " or with other ends.",
        FREE,
        bound=SHARE,
        needs={"do_export": True},
    )
    predict_with: str = _one_of(
        RUNTIMES,
        "tensorflow",
        f"What answers in --do_predict: {', '.join(RUNTIMES)}; all but the first with the exported"
        " file.",
        FREE,
        needs={"do_predict": True},
    )

    calib_batch: int = flag(
        4,
        "Number of batches, of --train_batch_size windows each, to calibrate on.",
        FREE,
        bound=AT_LEAST_1,
    )
    calib_method: str | None = _one_of(
        NAMES,
        None,
        f"Range of activations: {', '.join(GENERAL)}. If not given percentile, or what"
        " --quant_recipe says.",
        FREE,
    )
    calib_order: str = _one_of(
        ORDERS,
        "parallel",
        "Ranges from the float network (parallel), or from the one quantized so far (sequential).",
        FREE,
        needs={"do_calib": True},
    )
    percentile: float | None = flag(
        None,
        "Percentile of --calib_method=percentile; 99.99 if not given.",
        FREE,
        bound=PERCENTILE,
    )
    calibrator_file: str = flag(
        "calibrators.npz", "Name of the calibration file in --output_dir.", FREE
    )
    quantize_residual: bool | None = flag(
        None, "Quantize the skip operand of each Add before a LayerNorm; true if not given.", FREE
    )
    quant_another_add_input: bool = flag(
        False, "Quantize the other operand of these additions as well.", FREE
    )
    quant_mode: str = _one_of(
        ("", *MODES),
        "",
        f"A later placement of NVIDIA's instead of --quantize_residual: {', '.join(MODES)}.",
        FREE,
    )
    quant_recipe: str = flag(
        "",
        "Instead of the other placement flags: a recipe file (.yaml, .json) or one of"
        f" {', '.join(recipes.names())}.",
        FREE,
    )

    range_update: str | None = _one_of(
        RANGE_UPDATES,
        None,
        f"What quantized training does to ranges: {', '.join(RANGE_UPDATES)}. If not given frozen,"
        " or what the recipe says.",
        needs=QUANTIZED_TRAINING,
    )
    range_update_of: str = _one_of(
        RANGES_OF,
        "all",
        f"Which ranges --range_update is about: {', '.join(RANGES_OF)}.",
        needs={"range_update": True},
    )
    ste: str | None = _one_of(
        STES,
        None,
        "Whether gradients reach values exactly on an end of a range: inclusive (if not given) or"
        " strict, as NVIDIA's do; identity: also those beyond it; error_decay: IR-Net's, of binary"
        " weights.",
        needs=QUANTIZED_TRAINING,
    )
    range_decay: float | None = flag(
        None,
        "Decay of --range_update=moving_average in each step; 0.9999 if not given.",
        bound=BELOW_1,
        needs=QUANTIZED_TRAINING | {"range_update": "moving_average"},
    )
    range_learning_rate: float | None = flag(
        None,
        "Highest learning rate of learned ranges; --learning_rate if not given.",
        bound=POSITIVE,
        needs=QUANTIZED_TRAINING,
    )
    range_start_step: int = flag(
        0,
        "Quantized training: steps before ranges move, learned or as moving averages.",
        bound=NOT_NEGATIVE,
        needs=QUANTIZED_TRAINING,
    )
    range_freeze_step: int | None = flag(
        None,
        "Quantized training: steps after which ranges stay as they are.",
        needs=QUANTIZED_TRAINING,
    )
    quant_start_step: int = flag(
        0,
        "Quantized training: steps in float before quantization is switched on.",
        bound=NOT_NEGATIVE,
        needs=QUANTIZED_TRAINING,
    )

    loss_scale: str = _one_of(
        LOSS_SCALES,
        "none",
        "dynamic scales the loss so that gradients sent as float16 do not vanish, and skips a step"
        " whose loss or gradient is NaN or Inf; none ends the run there.",
        needs={"do_train": True},
    )
    sparsity: str = flag(
        "",
        "Keep encoder kernels sparse: 2x4 has 2 zeros in every 4 consecutive weights along the"
        " inputs.",
        needs={"do_train": True},
    )
    sparsity_begin_step: int = flag(
        0,
        "Steps made before the zeros of --sparsity are chosen.",
        bound=NOT_NEGATIVE,
        needs={"sparsity": True},
    )
    sparsity_end_step: int | None = flag(
        None,
        "Until this step they are chosen every --sparsity_frequency steps; -1 to the end. Once"
        " if not given.",
        needs={"sparsity": True},
    )
    sparsity_frequency: int = flag(
        100, "Steps between two choices.", bound=AT_LEAST_1, needs={"sparsity": True}
    )

    horovod: bool = flag(
        False,
        "Train, calibrate and predict in all processes that mpirun or horovodrun started. Training"
        " takes --train_batch_size in each and multiplies --learning_rate by their number;"
        " calibration and prediction deal the same batches out.",
        FREE,
    )
    rank_timeout: float = flag(
        TIMEOUT,
        "Seconds that a process waits for the others in one place before it ends with a line; 0"
        " waits for ever.",
        FREE,
        bound=FINITE,
    )
    horovod_compression: str = _one_of(
        COMPRESSIONS,
        "none",
        "What gradients are sent as: none, or fp16.",
        FREE,
        needs={"horovod": True},
    )
    horovod_sparse_as_dense: bool = flag(
        False,
        "Send the gradients of embeddings as whole tables instead of the rows that occur in the"
        " batches.",
        FREE,
        needs={"horovod": True},
    )

    distillation: bool = flag(
        False,
        "Train on the answers of --teacher as well.",
        needs={"do_train": True, "teacher": True},
    )
    teacher: str = flag(
        None,
        "Checkpoint that teaches; runs in float without --teacher_quantized.",
        CONTENT,
        needs={"distillation": True},
    )
    teacher_quantized: bool = flag(
        False,
        "The teacher answers quantized, by its own recipe and ranges: the second step of a"
        " distillation to fewer bits.",
        needs={"distillation": True},
    )
    teacher_config_file: str | None = flag(
        None,
        "Configuration of a --teacher of another size; the student's if not given.",
        CONTENT,
        needs={"distillation": True},
    )
    distillation_loss_scale: float = flag(
        DISTILLATION_SCALE,
        "Weight of the divergence from the teacher's answers; 0 leaves it out.",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_temperature: float = flag(
        TEMPERATURE,
        "What both answers are divided by before they are compared.",
        bound=POSITIVE,
        needs={"distillation": True},
    )
    distillation_direction: str = _one_of(
        DIRECTIONS,
        DIRECTIONS[0],
        "student_teacher is KL(student || teacher), as NVIDIA's; teacher_student is KL(teacher ||"
        " student).",
        needs={"distillation": True},
    )
    distillation_hidden_scale: float = flag(
        0.0,
        "Weight of the mean squared error from the teacher's hidden states.",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_attention_scale: float = flag(
        0.0,
        "Weight of the mean squared error from the teacher's attention.",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_layers: str = flag(
        "",
        "Hidden states and attention: layers of student:teacher, counted from 0, such as 0:1,1:3;"
        " spread evenly if not given.",
        needs={"distillation": True},
    )
    verbose_logging: bool = flag(
        False, "Show windows, loaded variables, the placement, and the trace of an error.", FREE
    )

    @property
    def recipe(self) -> "tfquant.Recipe":
        """Recipe of the placement flags, with the range method of the flags, or of those of 8-bit
        training.

        Raises:
            ValueError: unknown recipe or method, a file that is none, or a percentile out of range.
        """
        import tfquant

        if self.eight_bit:
            return recipe_of_args(self.eight_bit_arguments)
        if self.quant_recipe:
            recipe = tfquant.recipe(self.quant_recipe)
            if self.calib_method is None and self.percentile is None:
                return recipe
        else:
            recipe = tfquant.recipe(self._placement)
        method = self.calib_method or "percentile"
        options: dict[str, Any] = {}
        if method == "percentile" and self.percentile is not None:
            options["percentile"] = self.percentile
        return recipe.with_method(method, **options)

    @property
    def target(self) -> str:
        """Target of --do_export."""
        return self.export_target or TARGET_OF.get(self.predict_with, "onnx")

    @property
    def exported_file(self) -> str:
        """Path that --do_export writes."""
        return self.file_of(self.target)

    def file_of(self, target: str) -> str:
        """Return the path that --export_target=TARGET writes."""
        return os.path.join(self.output_dir, TARGETS[target].file)

    @property
    def _placement(self) -> str:
        if self.quant_mode:
            return self.quant_mode
        if self.quantize_residual is False:
            return "int8_residual_float"
        return "int8_residual_both" if self.quant_another_add_input else "int8_residual"

    def for_training(self, recipe: "tfquant.Recipe") -> "tfquant.Recipe":
        """Return the recipe of a calibrated checkpoint with the training flags applied."""
        of_ranges = {"update": self.range_update, "decay": self.range_decay}
        for roles, wanted in (
            (RANGES_OF[self.range_update_of], of_ranges),
            # The error-decay gradient is that of binary weights alone.
            (("weight",) if self.ste == "error_decay" else ROLES, {"ste": self.ste}),
        ):
            changes = {name: value for name, value in wanted.items() if value is not None}
            recipe = recipe.with_spec(roles=roles, **changes) if changes else recipe
        return recipe

    @property
    def asks_for_placement(self) -> bool:
        """Whether any placement flag was given, so that it has to agree with a calibrated
        checkpoint.
        """
        return (
            self.eight_bit
            or bool(self.quant_recipe or self.quant_mode)
            or self.quantize_residual is not None
            or self.quant_another_add_input
        )

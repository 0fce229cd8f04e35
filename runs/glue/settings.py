"""Settings of run_glue.py: one frozen object with the option names of Bondarenko et al.'s
`main.py`.
"""

import dataclasses
from typing import Any, ClassVar

from runs.eight_bit import QUANTIZING, EightBitFlags
from runs.glue.incremental import IncrementalFlags
from runs.settings import (
    AT_LEAST_1,
    BELOW_1,
    CONTENT,
    FINITE,
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Bound,
    StepNames,
    flag,
)
from tasks.glue.task import TASKS
from tfquant.choices import COMPRESSIONS, DECAYS, DIRECTIONS, DISTILLATION_SCALE, TEMPERATURE
from tfquant.distributed.watchdog import TIMEOUT
from tfquant.export.targets import TARGETS

MODES = ("train-baseline", "validate-baseline", "train-quantized", "validate-quantized")
TRAINING = ("train-baseline", "train-quantized")
VALIDATING = ("validate-baseline", "validate-quantized")
QAT, PTQ = ("train-quantized",), ("validate-quantized",)
ALL = "all"
# Names of `--model-name` -> repository of Hugging Face's hub, where the weights are taken from if
# --model-path is not given.
HUB = {
    "bert_base_uncased": "bert-base-uncased",
    "bert_base_cased": "bert-base-cased",
    "bert_large_uncased": "bert-large-uncased",
    "roberta_base": "roberta-base",
    "distilroberta_base": "distilroberta-base",
    "distilbert_base_uncased": "distilbert-base-uncased",
    "mobilebert_uncased": "google/mobilebert-uncased",
}
ARCHITECTURES = {  # `model_type` of their configurations
    name: "roberta" if "roberta" in name else name.partition("_")[0] for name in HUB
}
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)
SYMMETRIC, ASYMMETRIC = "symmetric_uniform", "asymmetric_uniform"
ESTIMATORS = ("current_minmax", "allminmax", "running_minmax", "MSE")
SEARCHES = ("grid", "golden_section")
STRATEGIES = ("no", "steps", "epoch")
EVALUATED = {"eval_strategy": ("steps", "epoch")}
SPANNED = Bound(
    lambda percent: 50.0 < percent <= 100.0,
    "is the part of the values that the range spans, above 50 and at most 100",
)
SETUPS = ("all", "FP_logits", "MSE_logits")
ORDERS = ("sequential", "parallel")
# FasterTransformer wants the sites of a recipe of its own, which these options do not describe.
EXPORTS = tuple(name for name in TARGETS if name != "fastertransformer")
# Names of `--adaround-mode` -> those of `tfquant.ptq`.
ROUNDINGS = {
    "learned_hard_sigmoid": "hard_sigmoid",
    "learned_sigmoid": "sigmoid",
    "sigmoid_temp_decay": "sigmoid_temp_decay",
}


def option(name: str, value: Any = None) -> str:
    """Return a setting as it is written on the command line, with its value if that is given."""
    return f"--{name.replace('_', '-')}" + ("" if value is None else f" {value}")


def _of(modes: tuple[str, ...], default: Any, help: str, resume: str = FREE, **how: Any) -> Any:
    return flag(default, help, resume, modes=modes, **how)


def _any(default: Any, help: str, resume: str = FREE, **how: Any) -> Any:
    return _of(MODES, default, help, resume, **how)


@dataclasses.dataclass(frozen=True)
class Settings(IncrementalFlags, EightBitFlags):
    """Settings of a run. Each field is an option of the same name, with hyphens or underscores, and
    has its help.

    Options that change what training computes are not `FREE`; see runs/resume.py.
    """

    STEPS: ClassVar = StepNames(
        "batch_size", "gradient_accumulation_steps", "learning_rate", "num_epochs"
    )
    written = staticmethod(option)

    mode: str = _any("train-baseline", "What to do.", choices=MODES, positional=True)
    task: tuple[str, ...] = _any(
        ("mrpc",),
        f"One of {', '.join(TASKS)}, or {ALL}; may be given more than once.",
        "same",
        choices=(*TASKS, ALL),
        metavar="TASK",
        parse=str.lower,
    )
    data_dir: str = _any(
        "~/.glue_data", "Folder with the tasks' folders (RTE/train.tsv, ...), tfds, or tfds:FOLDER."
    )
    seed: tuple[int, ...] = _any(
        (1000,),
        "Of initial weights, dropout, data order; several give median and spread.",
        "same",
        bound=NOT_NEGATIVE,
    )
    output_dir: str | None = _any(None, "Where everything is written; training wants it.")
    overwrite_output: bool = _of(
        TRAINING, False, "Train again where the folder holds an earlier run, which is gone then."
    )
    cuda: bool = _any(True, "Use GPUs, if there are any.")

    max_seq_length: int = _any(
        128, "Longest sequence in pieces; longer ones are cut.", "same", bound=AT_LEAST_1
    )
    pad_to_max_length: bool = _any(
        True,
        "Pad every sequence to --max-seq-length, instead of to the longest of its batch.",
        "same",
    )
    num_train_samples: int | None = _any(
        None,
        "Use only the first rows of the training data.",
        "same",
        bound=AT_LEAST_1,
    )
    num_val_samples: int | None = _any(
        None,
        "Use only the first rows of the data that are scored; of MNLI the matched ones alone.",
        bound=AT_LEAST_1,
    )

    model_name: str | None = _any(
        None,
        f"{', '.join(HUB)}: from Hugging Face's hub, unless --model-path is given.",
        choices=tuple(HUB),
    )
    model_path: str | None = _any(
        None,
        "Folder of a model (config.json, vocabulary, weights), or of runs, in which out or"
        " <task>/**/out is found; train-baseline takes the first alone.",
        CONTENT,
    )
    cache_dir: str | None = _any(
        None, "Where files of the hub are kept; its own default if not given."
    )
    attn_dropout: float | None = _any(
        None,
        "Dropout of attention probabilities; if not given that of the model.",
        "same",
        bound=BELOW_1,
    )
    hidden_dropout: float | None = _any(
        None,
        "Dropout of hidden states; if not given that of the model.",
        "same",
        bound=BELOW_1,
    )

    do_eval: bool = _of(TRAINING, True, "Score the validation data at the end.")
    eval_strategy: str = _of(
        TRAINING, "no", "When to score the validation data in training.", "same", choices=STRATEGIES
    )
    eval_steps: int | None = _of(
        TRAINING,
        None,
        "Steps between scores of --eval-strategy steps; --logging-steps if not given.",
        "same",
        bound=AT_LEAST_1,
        needs={"eval_strategy": "steps"},
    )
    load_best_model_at_end: bool = _of(
        TRAINING,
        False,
        "End with the weights that scored best in training, in place of the last.",
        "same",
        needs=EVALUATED,
    )
    metric_for_best_model: str | None = _of(
        TRAINING,
        None,
        "Score that tells which are best: a metric of the task, loss, or score, its final one."
        " [score]",
        "same",
        needs=EVALUATED,
    )
    greater_is_better: bool | None = _of(
        TRAINING,
        None,
        "More of it is better; if not given so for all but loss. --no-greater-is-better for less.",
        "same",
        needs=EVALUATED,
    )
    run_name: str | None = _any(
        None, "Folder of this run below TensorBoard's, by which its curves are called."
    )
    batch_size: int = _any(8, "Rows in a batch of training.", "same", bound=AT_LEAST_1)
    eval_batch_size: int | None = _any(
        None,
        "Rows in a batch of validation; --batch-size if not given.",
        bound=AT_LEAST_1,
    )
    learning_rate: float = _of(TRAINING, 5e-5, "Highest learning rate.", "same", bound=POSITIVE)
    lr_scheduler_type: str = _of(
        TRAINING,
        "linear",
        "Learning rate schedule after the warm-up.",
        "same",
        choices=SCHEDULES,
    )
    weight_decay: float = _of(
        TRAINING,
        0.0,
        "Of AdamW; biases and layer norms are left out.",
        "same",
        bound=NOT_NEGATIVE,
    )
    max_grad_norm: float | None = _of(
        TRAINING,
        None,
        "Largest norm of a step's gradient; 0 or not given does not clip.",
        "same",
        bound=NOT_NEGATIVE,
    )
    num_epochs: float = _of(TRAINING, 3.0, "How often every row is seen.", "same", bound=POSITIVE)
    max_steps: int = _of(
        TRAINING,
        0,
        "Steps of training, whatever --num-epochs says; 0 for that.",
        "same",
        bound=NOT_NEGATIVE,
    )
    warmup_steps: int = _of(
        TRAINING, 0, "Steps in which the learning rate rises.", "same", bound=NOT_NEGATIVE
    )
    gradient_accumulation_steps: int = _of(
        TRAINING,
        1,
        "Batches whose gradients make one step.",
        "same",
        bound=AT_LEAST_1,
    )
    amp: bool = _any(
        False,
        "Compute in bfloat16; weights, softmax, layer norms and quantization stay float32.",
        "same",
    )
    double: bool = _of(
        VALIDATING, False, "Compute in float64; quantized values are those of float32."
    )
    logging_steps: int = _of(TRAINING, 500, "Steps between TensorBoard scalars.", bound=AT_LEAST_1)
    logging_first_step: bool = _of(TRAINING, False, "Scalars of the first step as well.")
    save_steps: int = _of(
        TRAINING,
        0,
        "Steps between checkpoints, from which training resumes; 0 saves at the end alone.",
        bound=NOT_NEGATIVE,
    )
    save_total_limit: int | None = _of(
        TRAINING,
        None,
        "How many checkpoints to keep; if not given all.",
        bound=AT_LEAST_1,
    )
    save_model: bool = _any(
        False, "Leave the model in out/ at the end.", needs={"output_dir": True}
    )
    tb: bool = _any(
        False,
        "Histograms of the input of each feed-forward part, of its output, and of their sum, for"
        " one validation batch, in TensorBoard.",
    )
    tb_graph: bool = _any(False, "With --tb the graph of the network as well.", needs={"tb": True})
    tb_logging_dir: str | None = _any(
        None,
        "TensorBoard's folder, with one for each of several tasks or seeds in it; if not given"
        " tb_logs in the output folder.",
    )
    tqdm: bool = _any(True, "Show progress.")
    horovod: bool = _any(
        False,
        "Work in all processes that mpirun or horovodrun started. Training takes --batch-size in"
        " each and multiplies --learning-rate by their number; calibration and validation deal the"
        " same batches out.",
    )
    rank_timeout: float = _any(
        TIMEOUT,
        "Seconds that a process waits for the others in one place before it ends with a line; 0"
        " waits for ever.",
        bound=FINITE,
    )
    horovod_compression: str = _any("none", "What gradients are sent as.", choices=COMPRESSIONS)

    quant_recipe: str | None = _of(
        QUANTIZING,
        None,
        "Named recipe, such as q8bert, or a recipe file, in place of the options of ranges and"
        " placement.",
        CONTENT,
    )
    qmethod: str | None = _of(
        QUANTIZING, None, "Grid of weights.", "same", choices=(SYMMETRIC, ASYMMETRIC)
    )
    qmethod_act: str | None = _of(
        QUANTIZING,
        None,
        "Grid of activations; --qmethod if not given.",
        "same",
        choices=(SYMMETRIC, ASYMMETRIC),
    )
    weight_quant: bool = _of(QUANTIZING, True, "Quantize weights.", "same")
    act_quant: bool = _of(QUANTIZING, True, "Quantize activations.", "same")
    n_bits: int = _of(
        QUANTIZING, 8, "Bits of weights, 2 to 16; with --inq-mode those of its mode.", "same"
    )
    n_bits_act: int | None = _of(
        QUANTIZING,
        None,
        "Bits of activations; --n-bits if not given.",
        "same",
    )
    per_channel: bool = _of(
        QUANTIZING,
        False,
        "A range for each output channel of a kernel.",
        "same",
        needs={"weight_quant": True},
    )
    weight_quant_method: str = _of(
        QUANTIZING, "current_minmax", "Range of weights.", "same", choices=ESTIMATORS
    )
    weight_opt_method: str = _of(
        QUANTIZING, "grid", "Search of --weight-quant-method=MSE.", "same", choices=SEARCHES
    )
    num_candidates: int | None = _of(
        QUANTIZING,
        None,
        "Points of that grid; 100 if not given.",
        "same",
        bound=AT_LEAST_1,
        needs={"weight_quant_method": "MSE", "weight_opt_method": "grid"},
    )
    percentile: float | None = _of(
        QUANTIZING,
        None,
        "Per cent of the values that a range of current_minmax spans, such as 99.99.",
        "same",
        bound=SPANNED,
    )
    act_quant_method: str = _of(
        QUANTIZING, "running_minmax", "Range of activations.", "same", choices=ESTIMATORS
    )
    act_opt_method: str = _of(
        QUANTIZING,
        "grid",
        "Search of --act-quant-method=MSE or cross_entropy.",
        "same",
        choices=SEARCHES,
    )
    act_num_candidates: int | None = _of(
        QUANTIZING,
        None,
        "Points of that grid; 100 if not given.",
        "same",
        bound=AT_LEAST_1,
    )
    act_momentum: float | None = _of(
        QUANTIZING,
        None,
        "Weight of the past in running_minmax; 0.9 if not given.",
        "same",
        bound=BELOW_1,
        needs={"act_quant_method": "running_minmax"},
    )
    cross_entropy_layer: str | None = _of(
        QUANTIZING,
        None,
        "Path of a layer behind the encoder, such as output_weights, whose range shall keep its"
        " softmax.",
        "same",
    )
    quant_setup: str = _of(
        QUANTIZING,
        "all",
        "Logits: as other activations, in float, or by the error of the values.",
        "same",
        choices=SETUPS,
    )
    num_est_batches: int = _of(QUANTIZING, 1, "Batches to estimate ranges on.", bound=AT_LEAST_1)
    est_ranges_batch_size: int | None = _of(
        QUANTIZING,
        None,
        "Rows in such a batch; --batch-size if not given.",
        bound=AT_LEAST_1,
    )
    est_ranges_pad: bool | None = _of(
        QUANTIZING,
        None,
        "Pad them to --max-seq-length; as --pad-to-max-length says if not given. Padding never"
        " counts.",
        negative="est_ranges_no_pad",
    )
    est_ranges_order: str = _of(
        QUANTIZING,
        "parallel",
        "Ranges from the float network, or from what is quantized so far.",
        choices=ORDERS,
    )
    quant_dict: str | None = _of(
        QUANTIZING,
        None,
        "Other choices for some tensors, such as \"{'y': 16, 'x3': 'fp32', 'h': 'ngp6', 'Et':"
        ' 2}".',
        "same",
    )
    per_embd: bool = _of(
        QUANTIZING,
        False,
        "A range for each embedding dimension of hidden states.",
        "same",
        needs={"act_quant": True},
    )
    per_groups: int | None = _of(
        QUANTIZING,
        None,
        "A range for each of so many groups of embedding dimensions.",
        "same",
        bound=AT_LEAST_1,
        needs={"act_quant": True},
    )
    per_groups_permute: bool = _of(QUANTIZING, False, "Group dimensions of like ranges.", "same")
    per_groups_permute_shared_h: bool = _of(
        QUANTIZING,
        False,
        "Group them alike in a whole block, by the output of its feed-forward network.",
        "same",
    )
    dynamic: bool = _of(
        PTQ,
        False,
        "Ranges of activations are those of each batch, without padding; none are estimated.",
        needs={"act_quant": True},
    )
    per_token: bool = _of(
        PTQ,
        False,
        "Hidden states have such a range for each token; implies --dynamic.",
        needs={"act_quant": True},
    )

    adaround: str | None = _of(
        PTQ,
        None,
        "Round weights up or down, layer by layer: all, kernels, or paths of layers with commas"
        " between.",
        needs={"weight_quant": True},
    )
    adaround_num_samples: int = _of(PTQ, 1024, "Rows of training data for that.", bound=AT_LEAST_1)
    adaround_init: str = _of(
        PTQ,
        "range_estimator",
        "Ranges of weights: as estimated, or by MSE.",
        choices=("range_estimator", "mse"),
    )
    adaround_mode: str = _of(
        PTQ, "learned_hard_sigmoid", "How rounding is relaxed.", choices=tuple(ROUNDINGS)
    )
    adaround_asym: bool = _of(PTQ, True, "Inputs of a layer come from the quantized network.")
    adaround_include_act_func: bool = _of(
        PTQ,
        True,
        "Compare behind the activation function, where one follows.",
        negative="adaround_no_act_func",
    )
    adaround_lr: float = _of(PTQ, 1e-2, "Learning rate of the rounding.")
    adaround_iters: int = _of(PTQ, 1000, "Steps for each layer.")
    adaround_weight: float = _of(PTQ, 0.01, "Weight of the term that makes rounding hard.")
    adaround_annealing: tuple[float, float] = _of(
        PTQ, (20.0, 2.0), "Exponent of that term, or temperature, at both ends."
    )
    adaround_decay_type: str = _of(
        PTQ, "cosine", "How it goes from one to the other.", choices=tuple(DECAYS)
    )
    adaround_decay_shape: float | None = _of(PTQ, None, "Steepness of sigmoid, power, exp and log.")
    adaround_decay_start: float = _of(
        PTQ, 0.0, "Share of the steps after the warm-up before it moves."
    )
    adaround_warmup: float = _of(PTQ, 0.2, "Share of the steps without that term.")
    adaround_act_quant: str = _of(
        PTQ,
        "post_adaround",
        "Activations: quantized, with ranges estimated again afterwards, or left in float.",
        choices=("post_adaround", "no_act_quant"),
    )

    gptq: str | None = _of(
        PTQ,
        None,
        "Round weights with GPTQ, layer by layer: all, kernels, or paths of layers with commas"
        " between.",
        needs={"weight_quant": True},
    )
    gptq_num_samples: int = _of(PTQ, 256, "Rows of training data for that.", bound=AT_LEAST_1)
    gptq_percdamp: float = _of(
        PTQ, 0.01, "Damping of the Hessians, as a share of their mean diagonal."
    )
    gptq_act_order: bool = _of(PTQ, True, "Round the inputs with the largest squares first.")

    learn_ranges: bool = _of(QAT, False, "Train the ranges.", "same")
    range_update: str | None = _of(
        QAT,
        None,
        "How --learn-ranges does it; tqt if not given.",
        "same",
        choices=("tqt", "lsq", "pact"),
        needs={"learn_ranges": True},
    )
    quant_start_step: int = _of(
        QAT,
        0,
        "Steps that are made in float before quantization is switched on.",
        "same",
        bound=NOT_NEGATIVE,
    )
    range_learning_rate: float | None = _of(
        QAT,
        None,
        "Highest learning rate of ranges that --learn-ranges or the --quant-recipe learns;"
        " --learning-rate if not given.",
        "same",
        bound=POSITIVE,
    )
    fix_act_ranges: bool = _of(
        QAT,
        False,
        "Without --learn-ranges: ranges of activations stay; else they follow the batches.",
        "same",
    )
    fix_weight_ranges: bool = _of(
        QAT,
        False,
        "Without --learn-ranges: ranges of weights stay; else they follow the weights.",
        "same",
    )
    distillation: bool = _of(
        QAT,
        False,
        "Train on what a float model answers as well: the one that is quantized, or --teacher.",
        "same",
    )
    teacher: str | None = _of(
        QAT,
        None,
        "Folder of another model that teaches, or of runs; it may be larger.",
        CONTENT,
        needs={"distillation": True},
    )
    teacher_quantized: bool = _of(
        QAT,
        False,
        "The teacher answers quantized, by its own recipe and ranges: the second step of a"
        " distillation to fewer bits.",
        "same",
        needs={"distillation": True},
    )
    requantize: bool = _of(
        QAT,
        False,
        "Start from the weights of a quantized model, and quantize them by --quant-recipe with new"
        " ranges.",
        "same",
        needs={"quant_recipe": True},
    )
    distillation_loss_scale: float = _of(
        QAT,
        DISTILLATION_SCALE,
        "Weight of the divergence from its answers (of a regression the squared error).",
        "same",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_temperature: float = _of(
        QAT,
        TEMPERATURE,
        "What both answers are divided by before they are compared; of classes alone.",
        "same",
        bound=POSITIVE,
        needs={"distillation": True},
    )
    distillation_direction: str = _of(
        QAT,
        DIRECTIONS[0],
        "student_teacher is KL(student || teacher), teacher_student the other; of classes alone.",
        "same",
        choices=DIRECTIONS,
        needs={"distillation": True},
    )
    distillation_hidden_scale: float = _of(
        QAT,
        0.0,
        "Weight of the squared error from its hidden states.",
        "same",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_attention_scale: float = _of(
        QAT,
        0.0,
        "Weight of the squared error from its attention.",
        "same",
        bound=FINITE,
        needs={"distillation": True},
    )
    distillation_layers: str = _of(
        QAT,
        "",
        "Hidden states and attention: layers of student:teacher, counted from 0, such as 0:1,1:3;"
        " spread evenly if not given.",
        "same",
        needs={"distillation": True},
    )
    export: str | None = _of(
        QUANTIZING,
        None,
        "Write the quantized model to out/ for another runtime: "
        + ", ".join(
            f"{name} ({target.file})" for name, target in TARGETS.items() if name in EXPORTS
        )
        + ".",
        choices=EXPORTS,
        metavar="TARGET",
        needs={"output_dir": True},
    )
    export_opset: int = _of(QUANTIZING, 17, "ONNX opset of that file.")
    export_tolerance: float = _of(
        QUANTIZING,
        0.1,
        "Largest share of rows with another answer than the network's.",
        bound=SHARE,
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order in which they are run."""
        return (
            tuple(TASKS) if ALL in self.task else tuple(name for name in TASKS if name in self.task)
        )

    @property
    def trains(self) -> bool:
        return self.mode in TRAINING

    @property
    def trains_new_head(self) -> bool:
        """Whether the head may have random weights at first: 8-bit training and incremental
        quantization need no calibrated model, so that they can be the first on the task.
        """
        return self.trains and bool(not self.quantizes or self.eight_bit or self.incremental)

    @property
    def quantizes(self) -> bool:
        return self.mode in QUANTIZING

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are quantized in the end."""
        return self.act_quant and not (self.adaround and self.adaround_act_quant == "no_act_quant")

    @property
    def dynamic_ranges(self) -> bool:
        """Whether activations have the ranges of each batch."""
        return self.dynamic or self.per_token

    @property
    def validation_batch(self) -> int:
        return self.eval_batch_size or self.batch_size

    @property
    def estimation_pads(self) -> bool:
        return self.pad_to_max_length if self.est_ranges_pad is None else self.est_ranges_pad


def rounding_options(settings: Settings) -> dict[str, Any]:
    """Return the options of `ptq.gptq`, or of `ptq.adaround`."""
    if settings.gptq:
        return {"percdamp": settings.gptq_percdamp, "act_order": settings.gptq_act_order}
    return {
        "iterations": settings.adaround_iters,
        "learning_rate": settings.adaround_lr,
        "regularization": settings.adaround_weight,
        "rounding": ROUNDINGS[settings.adaround_mode],
        "annealing": settings.adaround_annealing,
        "decay": settings.adaround_decay_type,
        "decay_shape": settings.adaround_decay_shape,
        "decay_start": settings.adaround_decay_start,
        "warmup": settings.adaround_warmup,
        "include_activation": settings.adaround_include_act_func,
        "asymmetric": settings.adaround_asym,
    }

"""Training: loop, optimizer, distillation, schedules and sparsity.

BERT's optimizer and schedule, distillation, sparsity, and a loop that resumes exactly.
"""

from tfquant.lora import Lora
from tfquant.training.distillation import Distillation, DistillationOptions
from tfquant.training.distillation_losses import divergence
from tfquant.training.error_decay import (
    ErrorDecayCallback,
    ErrorDecaySchedule,
    error_decay_hooks,
)
from tfquant.training.evaluation import Best, Evaluation
from tfquant.training.hooks import Hook
from tfquant.training.inq import (
    IncrementalQuantization,
    IncrementalQuantizationCallback,
    StageRestarts,
)
from tfquant.training.interrupt import TrainingInterrupted
from tfquant.training.loop import Trainer
from tfquant.training.meter import TrainSummary
from tfquant.training.optimizer import BertAdamW, WarmupLinearDecay
from tfquant.training.options import TrainOptions
from tfquant.training.schedule import QuantizationCallback, QuantizationSchedule
from tfquant.training.sparsity import StructuredSparsity, encoder_kernels
from tfquant.training.state import NonFiniteLossError, seed_variables

__all__ = [
    "BertAdamW",
    "Best",
    "Distillation",
    "DistillationOptions",
    "ErrorDecayCallback",
    "ErrorDecaySchedule",
    "Evaluation",
    "Hook",
    "IncrementalQuantization",
    "IncrementalQuantizationCallback",
    "Lora",
    "NonFiniteLossError",
    "QuantizationCallback",
    "QuantizationSchedule",
    "StageRestarts",
    "StructuredSparsity",
    "TrainOptions",
    "TrainSummary",
    "Trainer",
    "TrainingInterrupted",
    "WarmupLinearDecay",
    "divergence",
    "encoder_kernels",
    "error_decay_hooks",
    "seed_variables",
]

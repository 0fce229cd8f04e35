"""Training: BERT's optimizer and schedule, and distillation, a loop that resumes exactly."""

from tfquant.training.distillation import divergence
from tfquant.training.loop import NonFiniteLossError, Trainer, TrainOptions, TrainSummary, seed_variables
from tfquant.training.optimizer import BertAdamW, WarmupLinearDecay

__all__ = [
    "BertAdamW",
    "NonFiniteLossError",
    "TrainOptions",
    "TrainSummary",
    "Trainer",
    "WarmupLinearDecay",
    "divergence",
    "seed_variables",
]

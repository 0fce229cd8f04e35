"""Training: BERT's optimizer and schedule, and a loop that resumes exactly."""

from tfquant.training.loop import NonFiniteLossError, Trainer, TrainOptions, TrainSummary, seed_variables
from tfquant.training.optimizer import BertAdamW, WarmupLinearDecay

__all__ = [
    "BertAdamW",
    "NonFiniteLossError",
    "TrainOptions",
    "TrainSummary",
    "Trainer",
    "WarmupLinearDecay",
    "seed_variables",
]

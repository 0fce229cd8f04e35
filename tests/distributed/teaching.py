"""What each rank does that learns from a teacher, and one process in their place."""

import keras
import numpy as np

import modeling
from tests.graph import models
from tfquant.training import BertAdamW, Distillation, DistillationOptions, Trainer, TrainOptions

INPUTS = ("input_ids", "input_mask", "segment_ids")


def batches(group, start):
    """This rank's rows of every batch of eight; all tokens are real, so that means of halves make
    the mean of the whole.
    """
    for index in range(start, 4):
        ids = (
            np.random.default_rng([3, index])
            .integers(0, models.VOCAB, (8, 5))
            .astype(np.int32)[group.rank :: group.size]
        )
        yield {
            "input_ids": ids,
            "input_mask": 0 * ids + 1,
            "segment_ids": 0 * ids,
            "label": ids[:, 0] % 2,
        }


def hard(outputs, batch):
    return keras.ops.mean(
        keras.losses.sparse_categorical_crossentropy(
            batch["label"], outputs["start_logits"], from_logits=True
        )
    )


def taught(folder, group, seed: int) -> dict[str, float]:
    """Sum of absolute values of each weight, projections included, after four steps."""
    student = modeling.build_squad_model(models.bert_config(1), dropout=False, seed=seed)
    teacher = modeling.build_squad_model(
        models.bert_config(1, hidden_size=24, num_attention_heads=3), dropout=False, seed=9
    )
    options = DistillationOptions(
        logits_scale=2.0, hidden_scale=1.0, attention_scale=5.0, seed=seed
    )
    loss = Distillation(
        student, teacher, hard, inputs=lambda batch: {n: batch[n] for n in INPUTS}, options=options
    )
    group.broadcast([*student.variables, *loss.variables])
    trainer = Trainer(
        student,
        loss,
        BertAdamW(1e-2),
        TrainOptions(folder, 4),
        group=group,
        loss_variables=loss.variables,
    )
    trainer.fit(lambda start: batches(group, start))
    return {v.path: float(np.abs(v.numpy()).sum()) for v in [*student.weights, *loss.variables]}

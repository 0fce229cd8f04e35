"""Validation: logits of every row, shared out to the processes, and the scores of the task."""

import io
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from glue_run.data import INPUTS, LENGTH_MULTIPLE, features_of, validation_splits
from glue_run.settings import Settings
from runs.batches import only
from runs.narration import say
from tasks import glue
from tfquant.distributed import Group

Scores = dict[str, dict[str, float]]


def validate(network: Any, task: glue.Task, tokenizer: Any, settings: Settings, group: Group, *, clamp: bool = False) -> Scores:
    """Split -> metric -> score, a fraction.

    Args:
        network: float or quantized.
        clamp: similarities beyond 0 and 5 count as these.
    """
    forward, scores = forward_of(network), {}
    for split in validation_splits(task, settings):
        features = features_of(task, split, tokenizer, settings)
        predicted = glue.predictions(task, logits_of(forward, features, settings, group))
        if task.regression and clamp:
            predicted = glue.clamp_similarity(predicted)
        scores[split] = glue.score(task, predicted, features.labels)
        say(f"{task.name}, {split}: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in scores[split].items()))
    return scores


def forward_of(network: Any) -> Any:
    """A network as one graph for batches of every size."""
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    return tf.function(
        lambda inputs: network(inputs, training=False)["logits"], input_signature=[signature], autograph=False, jit_compile=False
    )


def logits_of(forward: Any, features: glue.Features, settings: Settings, group: Group) -> np.ndarray:
    """[rows, outputs] in the order of the rows; every rank computes its share of the batches and gets all."""
    batches = glue.batches(
        features, settings.validation_batch, training=False, length_multiple=LENGTH_MULTIPLE,
        pad_to_max_length=settings.pad_to_max_length,
    )  # fmt: skip
    own, ids, found = batches.dealt(group.rank, group.size), [], []
    for batch in tqdm(own, "validate", unit="batch", disable=group.rank > 0 or not settings.tqdm):
        ids.append(batch["unique_ids"])
        found.append(forward(only(batch, INPUTS)).numpy())
    return _in_order(ids, found, group)


def _in_order(ids: list[np.ndarray], found: list[np.ndarray], group: Group) -> np.ndarray:
    part = {"ids": np.concatenate(ids), "logits": np.concatenate(found)} if ids else {}
    parts = [part]
    if group.size > 1:
        file = io.BytesIO()
        np.savez(file, **part)
        parts = [dict(np.load(io.BytesIO(data))) for data in group.gather(file.getvalue())]
    parts = [one for one in parts if one]
    order = np.argsort(np.concatenate([one["ids"] for one in parts]))
    return np.concatenate([one["logits"] for one in parts])[order]

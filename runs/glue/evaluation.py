"""Validation: logits of every row, shared out to the processes, and the scores of the task."""

import functools
import io
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special
from tqdm import tqdm

from runs.batches import only
from runs.glue.data import INPUTS, LENGTH_MULTIPLE, features_of, validation_splits
from runs.glue.settings import Settings
from runs.logging import log
from tasks import glue
from tfquant.distributed.group import Group

Scores = dict[str, dict[str, float]]
SCORE, LOSS = "score", "loss"  # of all splits: the task's final one, and what training minimizes


class Validation:
    """A task's validation data and a network for it; rows are read and the network is traced once.

    Args:
        network: float or quantized.
        clamp: similarities beyond 0 and 5 count as these.
    """

    def __init__(
        self,
        network: Any,
        task: glue.Task,
        tokenizer: Any,
        settings: Settings,
        group: Group,
        *,
        clamp: bool = False,
    ):
        self._network, self._task, self._settings, self._group, self._clamp = (
            network,
            task,
            settings,
            group,
            clamp,
        )
        self._features = functools.cache(
            lambda split: features_of(task, split, tokenizer, settings)
        )

    def scores(self) -> Scores:
        """Split -> metric -> score, a fraction."""
        scores = {split: self._scored(split, logits) for split, logits in self._logits().items()}
        for split, found in scores.items():
            log(
                f"{self._task.name}, {split}: "
                + ", ".join(f"{name} {100 * value:.2f}" for name, value in found.items())
            )
        return scores

    def summary(self) -> dict[str, float]:
        """What is said of a network while it is trained.

        `score` and `loss` of all splits, and every metric, its mean over them.
        """
        logits = self._logits()
        scores = {split: self._scored(split, found) for split, found in logits.items()}
        losses = [
            loss_of(self._task, found, self._features(split).labels)
            for split, found in logits.items()
        ]
        means = {
            name: float(np.mean([found[name] for found in scores.values()]))
            for name in next(iter(scores.values()))
        }
        return {SCORE: glue.final_score(self._task, scores), LOSS: float(np.mean(losses))} | means

    def first_batch(self) -> dict[str, np.ndarray]:
        """The batch that is scored first."""
        return batches_of(self._features(self._task.eval_splits[0]), self._settings)[0]

    @functools.cached_property
    def _forward(self) -> Any:
        return forward_of(self._network)

    def _logits(self) -> dict[str, np.ndarray]:
        splits = validation_splits(self._task, self._settings)
        return {
            split: logits_of(self._forward, self._features(split), self._settings, self._group)
            for split in splits
        }

    def _scored(self, split: str, logits: np.ndarray) -> dict[str, float]:
        predicted = glue.predictions(self._task, logits)
        if self._task.regression and self._clamp:
            predicted = glue.clamp_similarity(predicted)
        return glue.score(self._task, predicted, self._features(split).labels)


def scores_of_training(task: glue.Task) -> tuple[str, ...]:
    """Names that `Validation.summary` has."""
    return SCORE, LOSS, *task.metrics, *(("combined_score",) if len(task.metrics) > 1 else ())


def loss_of(task: glue.Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared error of a regression, cross-entropy of classes."""
    if task.regression:
        return float(np.mean(np.square(logits[:, 0] - labels)))
    return float(
        -special.log_softmax(logits.astype(np.float64), -1)[
            np.arange(len(labels)), labels.astype(int)
        ].mean()
    )


def forward_of(network: Any) -> Any:
    """A network as one graph for batches of every size."""
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    return tf.function(
        lambda inputs: network(inputs, training=False)["logits"],
        input_signature=[signature],
        autograph=False,
        jit_compile=False,
    )


def logits_of(
    forward: Any, features: glue.Features, settings: Settings, group: Group
) -> np.ndarray:
    """[rows, outputs] in the order of the rows; every rank computes its share of the batches and
    gets all.
    """
    own, ids, found = batches_of(features, settings).shard_by_cost(group.rank, group.size), [], []
    for batch in tqdm(own, "validate", unit="batch", disable=group.rank > 0 or not settings.tqdm):
        ids.append(batch["unique_ids"])
        found.append(forward(only(batch, INPUTS)).numpy())
    return _in_order(ids, found, group)


def batches_of(features: glue.Features, settings: Settings) -> glue.Batches:
    """All rows, in batches of validation."""
    return glue.batches(
        features,
        settings.validation_batch,
        training=False,
        length_multiple=LENGTH_MULTIPLE,
        pad_to_max_length=settings.pad_to_max_length,
    )


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

"""Validation: logits of every example, computed by all ranks, and the scores of the task."""

import functools
import io
from typing import Any

import numpy as np
from scipy import special
from tqdm import tqdm

from runs.glue.data import LENGTH_MULTIPLE, features_of, validation_splits
from runs.glue.settings import Settings
from runs.logging import log
from runs.networks import inference_graph
from runs.settings import checked
from tasks import glue
from tfquant.distributed.group import Group

Scores = dict[str, dict[str, float]]
SCORE, LOSS = "score", "loss"  # of all splits: the task's final one, and what training minimizes


class Validation:
    """Validation data of a task and a network for it; data are read and the network is traced once.

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
        """Return split -> metric -> score, a fraction."""
        scores = {split: self._scored(split, logits) for split, logits in self._logits().items()}
        for split, result in scores.items():
            log(
                f"{self._task.name}, {split}: "
                + ", ".join(f"{name} {100 * value:.2f}" for name, value in result.items())
            )
        return scores

    def summary(self) -> dict[str, float]:
        """Return the scores of a network in training."""
        logits = self._logits()
        scores = {split: self._scored(split, result) for split, result in logits.items()}
        losses = [
            loss_of(self._task, result, self._labels(split)) for split, result in logits.items()
        ]
        means = {
            name: float(np.mean([result[name] for result in scores.values()]))
            for name in next(iter(scores.values()))
        }
        return {SCORE: glue.final_score(self._task, scores), LOSS: float(np.mean(losses))} | means

    def first_batch(self) -> dict[str, np.ndarray]:
        """Return the batch that is scored first."""
        return self.first_batches(1)[0]

    def first_batches(self, number: int) -> list[dict[str, np.ndarray]]:
        """Return at most `number` of the batches of the first split."""
        split = validation_splits(self._task, self._settings)[0]
        batches = batches_of(self._features(split), self._settings)
        return [batches[i] for i in range(min(number, len(batches)))]

    @functools.cached_property
    def _forward(self) -> Any:
        return inference_graph(self._network)

    def _logits(self) -> dict[str, np.ndarray]:
        splits = validation_splits(self._task, self._settings)
        return {
            split: logits_of(self._forward, self._features(split), self._settings, self._group)
            for split in splits
        }

    def _labels(self, split: str) -> np.ndarray:
        return checked(self._features(split).labels)

    def _scored(self, split: str, logits: np.ndarray) -> dict[str, float]:
        predicted = glue.predictions(self._task, logits)
        if self._task.regression and self._clamp:
            predicted = glue.clamp_similarity(predicted)
        return glue.score(self._task, predicted, self._labels(split))


def scores_of_training(task: glue.Task) -> tuple[str, ...]:
    """Return the names of the scores of `Validation.summary`."""
    return SCORE, LOSS, *task.metrics, *(("combined_score",) if len(task.metrics) > 1 else ())


def loss_of(task: glue.Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared error of a regression, or the cross-entropy of classes."""
    if task.regression:
        return float(np.mean(np.square(logits[:, 0] - labels)))
    return float(
        -special.log_softmax(logits.astype(np.float64), -1)[
            np.arange(len(labels)), labels.astype(int)
        ].mean()
    )


def logits_of(
    forward: Any, features: glue.Features, settings: Settings, group: Group
) -> np.ndarray:
    """Compute logits [examples, outputs] in the order of the examples; every rank computes its
    share of the batches and gets all.
    """
    own, ids, result = batches_of(features, settings).shard_by_cost(group.rank, group.size), [], []
    for batch in tqdm(own, "validate", unit="batch", disable=group.rank > 0 or not settings.tqdm):
        ids.append(batch["unique_ids"])
        result.append(forward(batch)["logits"].numpy())
    return _in_order(ids, result, group)


def batches_of(features: glue.Features, settings: Settings) -> glue.Batches:
    """Return all examples, in batches of validation."""
    return glue.batches(
        features,
        settings.validation_batch,
        training=False,
        length_multiple=LENGTH_MULTIPLE,
        pad_to_max_length=settings.pad_to_max_length,
    )


def _in_order(ids: list[np.ndarray], found: list[np.ndarray], group: Group) -> np.ndarray:
    part: dict[str, Any] = (
        {"ids": np.concatenate(ids), "logits": np.concatenate(found)} if ids else {}
    )
    parts = [part]
    if group.size > 1:
        file = io.BytesIO()
        np.savez(file, **part)
        parts = [dict(np.load(io.BytesIO(data))) for data in group.gather(file.getvalue())]
    parts = [one for one in parts if one]
    order = np.argsort(np.concatenate([one["ids"] for one in parts]))
    return np.concatenate([one["logits"] for one in parts])[order]

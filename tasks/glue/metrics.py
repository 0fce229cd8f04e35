"""Scores of the GLUE tasks, as fractions, with scikit-learn and SciPy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats
from sklearn import metrics

from tasks.glue.task import SIMILARITY_RANGE, TASKS, Task, task_named

logger = logging.getLogger(__name__)

# WNLI's dev set contradicts its training set; averages over GLUE are commonly given without it.
WITHOUT_WNLI = tuple(name for name in TASKS if name != "wnli")


def predictions(task: str | Task, logits: np.ndarray) -> np.ndarray:
    """Return what logits predict.

    Args:
        task: the task or its name.
        logits: float [rows, num_labels] (for a regression also [rows]).

    Returns:
        int64 [rows], the class of the largest logit; or float [rows], the value of a regression
        (not clamped).

    Raises:
        ValueError: another shape, or a logit that is NaN or infinite.
    """
    task = task_named(task)
    logits = np.asarray(logits)
    if task.regression and logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim != 2 or logits.shape[1] != task.num_labels:
        raise ValueError(
            f"{task.name}: logits have shape {logits.shape}, expected [rows, {task.num_labels}]"
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise ValueError(
            f"{task.name}: logits of {broken.size} of {len(logits)} rows are NaN or infinite"
            f" (first: {broken[0]})"
        )
    return logits[:, 0] if task.regression else logits.argmax(axis=1)


def clamp_similarity(values: np.ndarray) -> np.ndarray:
    """Return predictions of STS-B moved into the range of its labels, 0 to 5 (`score` does not do
    this by itself).
    """
    return np.clip(values, *SIMILARITY_RANGE)


def score(task: str | Task, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predictions.

    Args:
        task: the task or its name.
        predicted: [rows], from `predictions`: class numbers, or values of a regression.
        labels: [rows], the truth.

    Returns:
        The value of each of `task.metrics`, as fractions, and where there are several their mean,
        "combined_score". Where a metric is not defined it is 0: correlations with something
        constant (with a warning), Matthews' where one class is predicted throughout, F1 where the
        positive class neither is nor should be predicted.

    Raises:
        ValueError: no rows, not as many predictions as labels, or values that are NaN or infinite.
    """
    task = task_named(task)
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            f"{task.name}: {predicted.shape} predictions for {labels.shape} labels; both must be"
            " [rows]"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(labels).all()):
        raise ValueError(f"{task.name}: predictions or labels are NaN or infinite")
    values = {name: float(_METRICS[name](labels, predicted)) for name in task.metrics}
    if len(values) > 1:
        values["combined_score"] = float(np.mean(list(values.values())))
    return values


def final_score(task: str | Task, scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the one number of a task: its final metric, the mean over its splits (MNLI: matched
    and mismatched).

    Args:
        task: the task or its name.
        scores: split -> what `score` returned; MNLI may have one of its splits only.

    Raises:
        ValueError: a split that is none of the task's `eval_splits`, or no split.
    """
    task = task_named(task)
    if not scores or set(scores) - set(task.eval_splits):
        raise ValueError(
            f"{task.name}: scores of {', '.join(scores) or 'nothing'}, expected"
            f" {', '.join(task.eval_splits)}"
        )
    return float(np.mean([values[task.final_metric] for values in scores.values()]))


def averages(final_scores: Mapping[str, float]) -> dict[str, float]:
    """Return the GLUE averages: the plain means over tasks.

    Args:
        final_scores: task name -> `final_score`.

    Returns:
        "glue" over the eight tasks without WNLI and "glue_with_wnli" over all nine; each only where
        all its tasks have a score.
    """
    wanted = {"glue": WITHOUT_WNLI, "glue_with_wnli": tuple(TASKS)}
    return {
        name: float(np.mean([final_scores[task] for task in tasks]))
        for name, tasks in wanted.items()
        if set(tasks) <= set(final_scores)
    }


def _correlation(compute: Callable, name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a metric that is 0, with a warning, where the correlation is not defined."""

    def metric(labels: np.ndarray, predicted: np.ndarray) -> float:
        # In float64, as sums over thousands of float32 values lose digits.
        labels, predicted = labels.astype(np.float64), predicted.astype(np.float64)
        for what, values in (("predictions", predicted), ("labels", labels)):
            if np.ptp(values) == 0:
                logger.warning(
                    "%s is not defined, as all %d %s are %g: it is given as 0",
                    name,
                    len(values),
                    what,
                    values[0],
                )
                return 0.0
        return compute(predicted, labels).statistic

    return metric


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predicted: metrics.f1_score(labels, predicted, zero_division=0),
    "matthews_correlation": metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr, "pearson"),
    "spearmanr": _correlation(stats.spearmanr, "spearmanr"),
}

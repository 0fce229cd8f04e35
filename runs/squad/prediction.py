"""Prediction: answers to the predict file, computed by all ranks, written and scored."""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from runs.squad.data import read_examples, to_features
from runs.squad.flags import Settings
from squad_evaluate import evaluate
from tasks import squad
from tfquant.distributed.errors import together
from tfquant.distributed.group import Group

# A batch of windows -> (start logits, end logits), each of windows x positions.
Forward = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def predict(
    forward: Forward, step: int, tokenizer: squad.LibraryTokenizer, settings: Settings, group: Group
) -> dict[str, Any]:
    """Answer the predict file; rank 0 writes the answers and scores them where the truth is known.

    Returns:
        The figures; on other ranks only how many windows there are and how fast they were.
    """
    with together(group, lambda: (0, "prediction")):
        examples = read_examples(settings.predict_file, settings, training=False)
        if settings.num_eval_iterations is not None:
            examples = examples[: settings.num_eval_iterations * settings.predict_batch_size]
        features = to_features(examples, tokenizer, settings, training=False)
        scores, seconds, sizes = window_logits(forward, features, settings, group)
    parts = group.gather(scores.packed()) if group.size > 1 else []
    figures = {"questions": len(examples), "windows": len(features), "step": step} | speed(
        seconds, sizes, group
    )
    with together(group, lambda: (0, "answers")):
        if group.rank == 0:
            for part in parts:
                scores.join(part)
            figures |= answer(examples, scores, settings)
            log(figures, step, settings)
    return figures


def answer(
    examples: list[squad.SquadExample], scores: squad.RawScores, settings: Settings
) -> dict[str, Any]:
    """Write the answers; return their scores if the truth is known."""
    result = decoded(examples, scores, settings)
    result.write(settings.output_dir)
    with_truth = sum(bool(example.answers) for example in examples)
    if not with_truth:
        return {}
    figures = scored(examples, result, settings)
    if with_truth < len(examples) and not settings.version_2_with_negative:
        figures["scored_questions"] = with_truth
    return figures


def decoded(
    examples: list[squad.SquadExample], scores: squad.RawScores, settings: Settings
) -> squad.Predictions:
    """Return the answers that the flags ask for."""
    return squad.decode(
        examples,
        scores,
        n_best_size=settings.n_best_size,
        max_answer_length=settings.max_answer_length,
        version_2=settings.version_2_with_negative,
        null_score_diff_threshold=settings.null_score_diff_threshold,
    )


def scored(
    examples: list[squad.SquadExample], found: squad.Predictions, settings: Settings
) -> dict[str, Any]:
    """Return the scores of SQuAD's official script."""
    version = "v2.0" if settings.version_2_with_negative else "1.1"
    return evaluate(squad.to_dataset(examples, version=version), found.answers)


def log(figures: dict[str, Any], step: int, settings: Settings) -> None:
    """Write figures as TensorBoard scalars."""
    writer = tf.summary.create_file_writer(os.path.join(settings.output_dir, "tensorboard"))
    with writer.as_default(step=step):
        for name, value in figures.items():
            if name != "step":
                tf.summary.scalar(f"predict/{name}", value)
    writer.close()


def forward_of(session: Callable[[dict[str, np.ndarray]], Mapping[str, Any]]) -> Forward:
    """Return the logits of a network's graph or of an exported file, for prediction."""

    def forward(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        outputs = session(batch)
        return np.asarray(outputs["start_logits"]), np.asarray(outputs["end_logits"])

    return forward


def window_logits(
    forward: Forward, features: squad.Features, settings: Settings, group: Group
) -> tuple[squad.RawScores, list[float], list[int]]:
    """Return logits of this rank's share of the windows, and seconds and size of each batch.

    All ranks together run the very batches that one process alone would, so that every number is
    the same.
    """
    scores, seconds, sizes = squad.RawScores(features), [], []
    batches = squad.batches(features, settings.predict_batch_size, training=False).shard_by_cost(
        group.rank, group.size
    )
    hidden: dict[str, Any] = {"disable": True} if group.rank else {}
    share = "" if group.size == 1 else f" 1/{group.size}"
    with tqdm(total=batches.rows, desc=f"predict{share}", unit="examples", **hidden) as bar:
        for batch in batches:
            started = time.perf_counter()
            start, end = forward(batch)
            seconds.append(time.perf_counter() - started)
            sizes.append(len(start))
            scores.add(batch["unique_ids"], start, end)
            bar.update(len(start))
    return scores, seconds, sizes


def speed(seconds: list[float], sizes: list[int], group: Group) -> dict[str, float]:
    """Return throughput and latencies over all ranks.

    The first two batches of each do not count, they trace the network.
    """
    ranks = [json.loads(data) for data in group.gather(json.dumps([seconds, sizes]).encode())]
    rate, steady = 0.0, []
    for seconds, sizes in ranks:
        first = 2 if len(seconds) > 2 else 0
        rate += sum(sizes[first:]) / sum(seconds[first:]) if seconds else 0.0
        steady += seconds[first:]
    figures = {
        "predict_seconds": max(sum(seconds) for seconds, _ in ranks),
        "examples_per_second": rate,
    }
    figures["latency_ms_average"] = 1000 * float(np.mean(steady))
    for percent in (50, 90, 95, 99, 100):
        figures[f"latency_ms_{percent}"] = 1000 * float(
            np.percentile(steady, percent, method="higher")
        )
    return figures

"""Prediction: answers to the predict file, written and scored."""

import json
import os
import time
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from squad_evaluate import evaluate
from squad_run.data import INPUTS, only, read_examples, to_features
from squad_run.flags import Settings
from squad_run.narration import say
from tasks import squad


def predict(network: Any, step: int, tokenizer: squad.Tokenizer, settings: Settings) -> dict[str, Any]:
    """Answers the predict file, writes the answers, and scores them where the truth is known."""
    examples = read_examples(settings.predict_file, settings, training=False)
    if settings.num_eval_iterations is not None:
        examples = examples[: settings.num_eval_iterations * settings.predict_batch_size]
    features = to_features(examples, tokenizer, settings, training=False)
    scores, speed = window_logits(network, features, settings)
    found = squad.decode(
        examples,
        scores,
        n_best_size=settings.n_best_size,
        max_answer_length=settings.max_answer_length,
        version_2=settings.version_2_with_negative,
        null_score_diff_threshold=settings.null_score_diff_threshold,
    )
    found.write(settings.output_dir)
    figures = {"questions": len(examples), "windows": len(features), "step": step} | speed
    if any(example.answers for example in examples):
        version = "v2.0" if settings.version_2_with_negative else "1.1"
        figures |= evaluate(squad.to_dataset(examples, version=version), found.answers)
        say(json.dumps({name: figures[name] for name in figures if name.startswith(("exact", "f1"))}))
    writer = tf.summary.create_file_writer(os.path.join(settings.output_dir, "tensorboard"))
    with writer.as_default(step=step):
        for name, value in figures.items():
            if name != "step":
                tf.summary.scalar(f"predict/{name}", value)
    writer.close()
    return figures


def window_logits(network: Any, features: squad.Features, settings: Settings) -> tuple[squad.RawScores, dict[str, Any]]:
    """Logits of all windows, and how long the batches took. The first two do not count, they trace the network."""
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    forward = tf.function(
        lambda inputs: network(inputs, training=False), input_signature=[signature], autograph=False, jit_compile=False
    )
    scores, seconds, sizes = squad.RawScores(features), [], []
    batches = squad.batches(features, settings.predict_batch_size, training=False)
    with tqdm(total=len(features), desc="predict", unit=" examples") as bar:
        for batch in batches:
            started = time.perf_counter()
            outputs = forward(only(batch, INPUTS))
            start, end = outputs["start_logits"].numpy(), outputs["end_logits"].numpy()
            seconds.append(time.perf_counter() - started)
            sizes.append(len(start))
            scores.add(batch["unique_ids"], start, end)
            bar.update(len(start))
    first = 2 if len(seconds) > 2 else 0
    speed = {"predict_seconds": sum(seconds), "examples_per_second": sum(sizes[first:]) / sum(seconds[first:])}
    speed["latency_ms_average"] = 1000 * float(np.mean(seconds[first:]))
    for percent in (50, 90, 95, 99, 100):
        speed[f"latency_ms_{percent}"] = 1000 * float(np.percentile(seconds[first:], percent, method="higher"))
    return scores, speed

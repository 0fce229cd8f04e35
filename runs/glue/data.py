"""Examples of a task as features and batches."""

import os
from typing import Any

import numpy as np

from runs.batches import INPUTS, only
from runs.glue.settings import Settings
from runs.logging import log
from tasks import glue

LABELS = ("labels",)
TFDS = "tfds"
LENGTH_MULTIPLE = 8  # batches that are padded to their longest row


def reads_files(settings: Settings) -> bool:
    """Whether data are TSV files, not those of TensorFlow Datasets."""
    return settings.data_dir.partition(":")[0] != TFDS


def read(task: glue.Task, split: str, settings: Settings, *, progress: bool) -> glue.Examples:
    """Read the examples of a split that the settings ask for."""
    if reads_files(settings):
        examples = glue.read(task, os.path.expanduser(settings.data_dir), split, progress=progress)
    else:
        examples = glue.from_tfds(
            task, split, settings.data_dir.partition(":")[2] or None, progress=progress
        )
    wanted = settings.num_train_samples if split == "train" else settings.num_val_samples
    return examples if wanted is None else examples.head(wanted)


def validation_splits(task: glue.Task, settings: Settings) -> tuple[str, ...]:
    """Return the splits that are scored; of a part of MNLI the matched one alone, as in the
    source.
    """
    return task.eval_splits[:1] if settings.num_val_samples is not None else task.eval_splits


def features_of(task: glue.Task, split: str, tokenizer: Any, settings: Settings) -> glue.Features:
    examples = read(task, split, settings, progress=settings.tqdm)
    features = glue.convert(
        examples, tokenizer, max_seq_length=settings.max_seq_length, progress=settings.tqdm
    )
    log(f"{task.name}, {split}: {len(features)} rows of up to {int(features.lengths.max())} pieces")
    return features


def training_plan(
    features: glue.Features, batch: int, settings: Settings, epoch: int, seed: int
) -> glue.Batches:
    return glue.batches(
        features,
        batch,
        training=True,
        seed=seed,
        epoch=epoch,
        length_multiple=LENGTH_MULTIPLE,
        bucket_by_length=not settings.pad_to_max_length,
        pad_to_max_length=settings.pad_to_max_length,
    )


def rounding_batches(
    features: glue.Features, settings: Settings, seed: int
) -> list[dict[str, np.ndarray]]:
    """Return batches of training examples for AdaRound or GPTQ: as many as it needs, or all there
    are.
    """
    result = training_plan(features, min(settings.batch_size, len(features)), settings, 0, seed)
    samples = settings.gptq_num_samples if settings.gptq else settings.adaround_num_samples
    wanted = min(len(result), -(-samples // settings.batch_size))
    return [only(result[number], INPUTS) for number in range(wanted)]


def estimation_batches(
    features: glue.Features, settings: Settings, seed: int
) -> list[dict[str, np.ndarray]]:
    """Return batches of training examples drawn at random, for range estimation."""
    size = settings.est_ranges_batch_size or settings.batch_size
    wanted = settings.num_est_batches
    if len(features) < size * wanted:
        raise ValueError(
            f"--num-est-batches={wanted} of {size} rows need {size * wanted} training rows, there"
            f" are {len(features)}: lower one"
        )
    result = glue.batches(
        features,
        size,
        training=True,
        seed=seed,
        length_multiple=1,
        bucket_by_length=False,
        pad_to_max_length=settings.estimation_pads,
    )
    return [only(result[number], INPUTS) for number in range(wanted)]

"""Sequences to padded batches of arrays."""

from __future__ import annotations

import numpy as np

from tasks.batching import Batches, padded_batches
from tasks.glue.features import Features


def batches(
    features: Features,
    batch_size: int,
    *,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    bucket_by_length: bool = True,
    pad_to_max_length: bool = False,
    length_multiple: int = 1,
    drop_remainder: bool | None = None,
    start: int = 0,
) -> Batches:
    """Lay out one pass over the rows.

    The result depends on the arguments alone: the same seed and epoch give the same batches, and
    `start=n` gives exactly what is left after the first n of them, at no cost for those.
    `Batches.shard` and `Batches.shard_by_cost` share it out among ranks.

    Args:
        features: from `convert`.
        batch_size: rows a batch.
        training: shuffle; labels are needed. Otherwise rows keep their order or, bucketed, go
          longest first; results
            are matched by `unique_ids`, never by order.
        seed, epoch: choose the order of a training pass.
        bucket_by_length: batch rows of like length.
        pad_to_max_length: pad every batch to `max_seq_length` instead of to its longest row.
        length_multiple: pad to a multiple of this, capped at `max_seq_length`, so that fewer
          distinct shapes occur.
        drop_remainder: leave out rows that do not fill a batch; None: in training only.
        start: number of batches to leave out at the front.

    Returns:
        A sized iterable of dicts: int32 `input_ids`, `input_mask`, `segment_ids` [B, S], int32
          `unique_ids` [B] (row
        numbers) and, where they are known, `labels` [B], int32 or float32.

    Raises:
        ValueError: training without labels, fewer rows than one batch, or `start` outside the pass.
    """
    if training and features.labels is None:
        raise ValueError("these rows have no labels to train on: read the train split")
    if length_multiple < 1:
        raise ValueError(f"length_multiple is {length_multiple}; it must be at least 1")
    return padded_batches(
        features,
        batch_size,
        training=training,
        drop_remainder=drop_remainder,
        multiple=None if pad_to_max_length else length_multiple,
        unique_ids=np.arange(len(features), dtype=np.int32),
        second_offset=features.second_offset,
        labels={"labels": features.labels},
        seed=seed,
        epoch=epoch,
        bucket_by_length=bucket_by_length,
        start=start,
    )

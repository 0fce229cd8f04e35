"""Windows to padded batches of arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.batching import padded_length, plan_batches
from tasks.squad.features import Features

LENGTH_MULTIPLE = 32


class Batches:
    """One pass over the windows, batch by batch; can be iterated again and again with the same result.

    Attributes:
        features: the windows.
        plan: row numbers of each batch, from the first one to be yielded on.
        rows: how many windows a full iteration yields.
    """

    def __init__(self, features: Features, plan: list[np.ndarray], *, labels: bool, bucket_by_length: bool):
        self.features = features
        self.plan = plan
        self.rows = sum(len(rows) for rows in plan)
        self._labels = labels
        self._bucketed = bucket_by_length

    def shard(self, rank: int, size: int) -> Batches:
        """This pass with every `size`-th row of each batch, from row `rank` on: together the shards are the pass."""
        plan = [rows[rank::size] for rows in self.plan]
        return Batches(self.features, plan, labels=self._labels, bucket_by_length=self._bucketed)

    def dealt(self, rank: int, size: int) -> Batches:
        """This pass with every `size`-th batch, from number `rank` on: whole batches, of the very shapes they had."""
        return Batches(self.features, self.plan[rank::size], labels=self._labels, bucket_by_length=self._bucketed)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self.plan)))

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Return batch `number` of the plan: int32 arrays, [B, S] inputs and [B] ids and labels."""
        rows = self.plan[number]
        features = self.features
        limit = features.max_seq_length
        width = padded_length(int(features.lengths[rows].max()), limit, LENGTH_MULTIPLE) if self._bucketed else limit
        # [B, S]: which positions are real, and where each one is in the flat columns.
        column = np.arange(width)
        mask = column < features.lengths[rows, None]
        flat = np.where(mask, features.bounds[rows, None] + column, 0)
        batch = {
            "unique_ids": features.unique_ids[rows],
            "input_ids": np.where(mask, features.input_ids[flat], features.pad_id).astype(np.int32),
            "input_mask": mask.astype(np.int32),
            "segment_ids": (mask & (column >= features.context_offset[rows, None])).astype(np.int32),
        }
        if self._labels:
            batch["start_positions"] = features.start_positions[rows]
            batch["end_positions"] = features.end_positions[rows]
        return batch


def batches(
    features: Features,
    batch_size: int,
    *,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    bucket_by_length: bool = True,
    drop_remainder: bool | None = None,
    start: int = 0,
) -> Batches:
    """Lay out one pass over the windows.

    The result depends on the arguments alone: the same seed and epoch give the same batches, and `start=n` gives
    exactly what is left after the first n of them, at no cost for those.

    Args:
        features: from `convert`.
        batch_size: windows a batch.
        training: shuffle, and add the labels. Otherwise windows keep their order or, bucketed, go longest first;
            results are matched by `unique_ids`, never by order.
        seed, epoch: choose the order of a training pass.
        bucket_by_length: batch windows of like length and pad each batch to the next multiple of 32; otherwise all
            batches have width `max_seq_length`.
        drop_remainder: leave out windows that do not fill a batch; None: in training only.
        start: number of batches to leave out at the front.

    Returns:
        A sized iterable of dicts: int32 `input_ids`, `input_mask`, `segment_ids` [B, S], `unique_ids` [B] and, in
        training, `start_positions`, `end_positions` [B].

    Raises:
        ValueError: training without labels, fewer windows than one batch, or `start` outside the pass.
    """
    if training and features.start_positions is None:
        raise ValueError("these windows have no labels: convert the questions with training=True")
    plan = plan_batches(
        features.lengths,
        batch_size,
        shuffle=training,
        seed=seed,
        epoch=epoch,
        bucket_by_length=bucket_by_length,
        drop_remainder=training if drop_remainder is None else drop_remainder,
    )
    if not plan:
        raise ValueError(f"{len(features)} windows do not fill one batch of {batch_size}: lower the batch size")
    if not 0 <= start <= len(plan):
        raise ValueError(f"start {start} is outside the pass of {len(plan)} batches")
    return Batches(features, plan[start:], labels=training, bucket_by_length=bucket_by_length)

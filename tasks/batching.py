"""Rows to batches.

Which go into which (seeded shuffling and bucketing by length, computable for any epoch at once).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

# Rows are shuffled over the whole epoch, then sorted by length inside runs of this many batches:
# batches stay random while rows of like length meet.
BATCHES_PER_RUN = 50


class Batches:
    """Batches of one epoch; can be iterated repeatedly with the same result.

    Args:
        plan: row numbers of each batch, from the first one to be yielded on.
        make: returns the arrays of a batch of these rows.

    Attributes:
        plan: as given.
        rows: how many rows a full iteration yields.
    """

    def __init__(self, plan: list[np.ndarray], make: Callable[[np.ndarray], dict[str, np.ndarray]]):
        self.plan = plan
        self.rows = sum(len(rows) for rows in plan)
        self._make = make

    def shard(self, rank: int, size: int) -> Batches:
        """Return every `size`-th example of each batch, from number `rank` on.

        Together the shards are the pass.
        """
        return Batches([rows[rank::size] for rows in self.plan], self._make)

    def shard_by_cost(self, rank: int, size: int) -> Batches:
        """Return every `size`-th batch, from number `rank` on.

        Whole batches, of the very shapes they had.
        """
        return Batches(self.plan[rank::size], self._make)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self.plan)))

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Return batch `number` of the plan."""
        return self._make(self.plan[number])


def plan_batches(
    lengths: np.ndarray,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    bucket_by_length: bool = True,
    drop_remainder: bool = False,
    start: int = 0,
) -> list[np.ndarray]:
    """Plan one pass over rows of the given lengths.

    A pure function of its arguments, so a run resumed in the middle of an epoch skips a slice of
    the list.

    Args:
        lengths: int [rows], the unpadded length of each row.
        batch_size: rows a batch.
        shuffle: random order (training); otherwise rows keep their order, or, bucketed, go longest
          first so that
            the largest memory need shows at once.
        seed, epoch: together choose the order; not negative.
        bucket_by_length: put rows of like length together.
        drop_remainder: leave out the rows that do not fill a batch (random ones when shuffling).
        start: number of batches to leave out at the front.

    Returns:
        One int64 array of row numbers per batch.

    Raises:
        ValueError: batch_size below 1, fewer rows than one batch, or `start` outside the pass.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    lengths = np.asarray(lengths)
    rows = np.arange(len(lengths), dtype=np.int64)
    rng = np.random.default_rng([seed, epoch])
    if shuffle:
        rng.shuffle(rows)
    if drop_remainder:
        rows = rows[: len(rows) // batch_size * batch_size]
    if not len(rows):
        raise ValueError(
            f"{len(lengths)} rows do not fill one batch of {batch_size}: lower the batch size"
        )
    plan = (
        _bucket(rows, lengths, batch_size, shuffle, rng)
        if bucket_by_length
        else _cut(rows, batch_size)
    )
    if not 0 <= start <= len(plan):
        raise ValueError(f"start {start} is outside the pass of {len(plan)} batches")
    return plan[start:]


def _bucket(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, shuffle: bool, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return batches of rows of like length: longest first, or in random order."""
    if not shuffle:
        return _cut(rows[np.argsort(-lengths[rows], kind="stable")], batch_size)
    plan = []
    for run in _cut(rows, batch_size * BATCHES_PER_RUN):
        plan += _cut(run[np.argsort(lengths[run], kind="stable")], batch_size)
    return [plan[index] for index in rng.permutation(len(plan))]


def padded_batches(
    features: Any,
    batch_size: int,
    *,
    training: bool,
    drop_remainder: bool | None,
    multiple: int | None,
    unique_ids: np.ndarray,
    second_offset: np.ndarray,
    labels: Mapping[str, np.ndarray | None],
    **order: Any,
) -> Batches:
    """Plan one pass over the rows of `features` and pad each batch.

    Args:
        features: columns `input_ids`, `bounds` and `lengths`, with `max_seq_length` and `pad_id`.
        batch_size: rows a batch.
        training: shuffle.
        drop_remainder: leave out rows that do not fill a batch; None: in training only.
        multiple: pad to a multiple of this, at most to `max_seq_length`; None: to that.
        unique_ids: int32 [rows].
        second_offset: int [rows], where in a sequence the second segment begins.
        labels: name -> values [rows], None to leave them out.
        **order: `seed`, `epoch`, `bucket_by_length` and `start` of `plan_batches`.
    """
    plan = plan_batches(
        features.lengths,
        batch_size,
        shuffle=training,
        drop_remainder=training if drop_remainder is None else drop_remainder,
        **order,
    )
    return Batches(
        plan, functools.partial(_padded, features, multiple, unique_ids, second_offset, labels)
    )


def _padded(
    features: Any,
    multiple: int | None,
    unique_ids: np.ndarray,
    second_offset: np.ndarray,
    labels: Mapping[str, np.ndarray | None],
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the arrays of a batch: int32 inputs [B, S], ids and labels [B]."""
    width = features.max_seq_length
    if multiple is not None:
        width = padded_length(int(features.lengths[rows].max()), width, multiple)
    bounds = np.stack([features.bounds[rows], features.bounds[rows + 1]], axis=1)
    inputs = model_inputs(
        features.input_ids, bounds, second_offset[rows], width=width, pad_id=features.pad_id
    )
    chosen = {name: values[rows] for name, values in labels.items() if values is not None}
    return {"unique_ids": unique_ids[rows], **inputs, **chosen}


def model_inputs(
    input_ids: np.ndarray, bounds: np.ndarray, second_offset: np.ndarray, *, width: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Gather sequences out of a flat column into BERT's inputs.

    Args:
        input_ids: int32 [positions], all sequences one behind the other.
        bounds: int64 [B, 2], first position of each sequence and the one behind its last.
        second_offset: int [B], where in a sequence the second segment begins.
        width: S, at least the longest.
        pad_id: what fills up.

    Returns:
        int32 [B, S] `input_ids`, `input_mask` (1 where there is a piece) and `segment_ids`.
    """
    # [B, S]: which positions are real, and where each one is in the flat column.
    column = np.arange(width)
    mask = column < np.diff(bounds)
    flat = np.where(mask, bounds[:, :1] + column, 0)
    return {
        "input_ids": np.where(mask, input_ids[flat], pad_id).astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "segment_ids": (mask & (column >= second_offset[:, None])).astype(np.int32),
    }


def padded_length(longest: int, limit: int, multiple: int) -> int:
    """Round `longest` up to a multiple, capped at `limit`, so that few distinct shapes occur."""
    return min(limit, -(-longest // multiple) * multiple)


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

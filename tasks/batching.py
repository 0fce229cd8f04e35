"""Which rows go into which batch: seeded shuffling and bucketing by length, computable for any epoch at once."""

from __future__ import annotations

import numpy as np

# Rows are shuffled over the whole epoch, then sorted by length inside runs of this many batches: batches stay
# random while rows of like length meet.
BATCHES_PER_RUN = 50


def plan_batches(
    lengths: np.ndarray,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    bucket_by_length: bool = True,
    drop_remainder: bool = False,
) -> list[np.ndarray]:
    """Plan one pass over rows of the given lengths.

    A pure function of its arguments, so a run resumed in the middle of an epoch skips a slice of the list.

    Args:
        lengths: int [rows], the unpadded length of each row.
        batch_size: rows a batch.
        shuffle: random order (training); otherwise rows keep their order, or, bucketed, go longest first so that
            the largest memory need shows at once.
        seed, epoch: together choose the order; not negative.
        bucket_by_length: put rows of like length together.
        drop_remainder: leave out the rows that do not fill a batch (random ones when shuffling).

    Returns:
        One int64 array of row numbers per batch.
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
    if not bucket_by_length:
        return _cut(rows, batch_size)
    if not shuffle:
        return _cut(rows[np.argsort(-lengths[rows], kind="stable")], batch_size)
    plan = []
    for run in _cut(rows, batch_size * BATCHES_PER_RUN):
        plan += _cut(run[np.argsort(lengths[run], kind="stable")], batch_size)
    return [plan[index] for index in rng.permutation(len(plan))]


def padded_length(longest: int, limit: int, multiple: int) -> int:
    """Round `longest` up to a multiple, capped at `limit`, so that few distinct shapes occur."""
    return min(limit, -(-longest // multiple) * multiple)


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

"""Windows to padded batches of arrays."""

from __future__ import annotations

from tasks.batching import Batches, padded_batches
from tasks.squad.features import Features

LENGTH_MULTIPLE = 32


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

    The result depends on the arguments alone: the same seed and epoch give the same batches, and
    `start=n` gives exactly what is left after the first n of them, at no cost for those.

    Args:
        features: from `convert`.
        batch_size: windows a batch.
        training: shuffle, and add the labels. Otherwise windows keep their order or, bucketed, go
          longest first;
            results are matched by `unique_ids`, never by order.
        seed, epoch: choose the order of a training pass.
        bucket_by_length: batch windows of like length and pad each batch to the next multiple of
          32; otherwise all
            batches have width `max_seq_length`.
        drop_remainder: leave out windows that do not fill a batch; None: in training only.
        start: number of batches to leave out at the front.

    Returns:
        A sized iterable of dicts: int32 `input_ids`, `input_mask`, `segment_ids` [B, S],
          `unique_ids` [B] and, in
        training, `start_positions`, `end_positions` [B].

    Raises:
        ValueError: training without labels, fewer windows than one batch, or `start` outside the
          pass.
    """
    if training and features.start_positions is None:
        raise ValueError("these windows have no labels: convert the questions with training=True")
    return padded_batches(
        features,
        batch_size,
        training=training,
        drop_remainder=drop_remainder,
        multiple=LENGTH_MULTIPLE if bucket_by_length else None,
        unique_ids=features.unique_ids,
        second_offset=features.second_offset,
        labels={
            "start_positions": features.start_positions if training else None,
            "end_positions": features.end_positions if training else None,
        },
        seed=seed,
        epoch=epoch,
        bucket_by_length=bucket_by_length,
        start=start,
    )

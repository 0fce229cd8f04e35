"""Rows of a task to model inputs.

`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, or what the tokenizer's model wants.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from tqdm import tqdm

from tasks.glue.examples import Examples
from tasks.sequences import Encoded, LibraryTokenizer

ROWS_PER_CALL = 1024


@dataclasses.dataclass(frozen=True)
class Features:
    """Sequences as columns, in the order of the examples. Row `i` owns `bounds[i]:bounds[i + 1]` of
    the flat column.

    Attributes:
        bounds: int64 [rows + 1], ascending.
        input_ids: int32 [positions], flat, without padding.
        second_offset: int32 [rows], where in a row the second segment begins; its length where
          there is none.
        labels: int32 or float32 [rows], or None when unknown.
        max_seq_length: what no row exceeds.
        pad_id: id that fills up a batch.
    """

    bounds: np.ndarray
    input_ids: np.ndarray
    second_offset: np.ndarray
    labels: np.ndarray | None
    max_seq_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.second_offset)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows], positions of each row."""
        return np.diff(self.bounds)

    def row(self, number: int) -> slice:
        """Return the place of a row in the flat column."""
        return slice(int(self.bounds[number]), int(self.bounds[number + 1]))


def convert(
    examples: Examples,
    tokenizer: LibraryTokenizer,
    *,
    max_seq_length: int = 128,
    progress: bool = True,
) -> Features:
    """Convert rows to sequences.

    Args:
        examples: from `read`, `from_tfds` or `from_rows`.
        tokenizer: of the model, from `load_tokenizer`.
        max_seq_length: longest sequence, special tokens included; longer ones are cut
          (`tasks.sequences`).
        progress: show a bar.

    Returns:
        One sequence per row.

    Raises:
        ValueError: max_seq_length leaves no room for the texts.
    """
    result: list[Encoded] = []
    with tqdm(
        total=len(examples),
        desc=f"{examples.task.name} features",
        unit=" rows",
        disable=not progress,
    ) as bar:
        for begin in range(0, len(examples), ROWS_PER_CALL):
            part = slice(begin, begin + ROWS_PER_CALL)
            seconds = None if examples.seconds is None else examples.seconds[part]
            result += tokenizer.encode_sequences(examples.firsts[part], seconds, max_seq_length)
            bar.update(len(result) - begin)
    return Features(
        bounds=np.cumsum([0, *(len(sequence.ids) for sequence in result)], dtype=np.int64),
        input_ids=np.concatenate([sequence.ids for sequence in result]),
        second_offset=np.asarray([sequence.second_offset for sequence in result], np.int32),
        labels=examples.labels,
        max_seq_length=max_seq_length,
        pad_id=tokenizer.pad_id,
    )

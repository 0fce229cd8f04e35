"""AG News: rows of CSV files or TensorFlow Datasets, their token ids and batches."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from examples.settings import TFDS
from fileio.messages import printable
from tasks.batching import plan_batches
from tasks.files import read_text
from tasks.tfds_builder import check_split, tfds_builder
from tasks.wordpiece import Tokenizer

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
INPUTS = ("input_ids", "input_mask")
LABELS = "labels"
_SOURCE = "https://www.tensorflow.org"


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts and classes.

    Attributes:
      texts: title and description, joined by a space.
      labels: int32 [rows], from 0.
    """

    texts: list[str]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids and classes.

    Attributes:
      ids: int32 [tokens] of each row, with [CLS] and [SEP].
      labels: int32 [rows], from 0.
      pad_id: of what batches are filled with.
    """

    ids: list[np.ndarray]
    labels: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch_size: int, *, seed: int | None, epoch: int = 0) -> list[np.ndarray]:
        """Row numbers of the batches of an epoch, shuffled unless `seed` is None."""
        lengths = np.array([len(ids) for ids in self.ids])
        return plan_batches(
            lengths,
            batch_size,
            shuffle=seed is not None,
            seed=seed or 0,
            epoch=epoch,
            bucket_by_length=True,
        )

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return inputs [rows, longest] and labels [rows], int32."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = np.full((len(rows), longest), self.pad_id, np.int32)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(self.ids[row])] = self.ids[row]
            mask[place, : len(self.ids[row])] = 1
        return {"input_ids": ids, "input_mask": mask, LABELS: self.labels[rows]}

    def endless(self, batch_size: int, seed: int, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield shuffled batches, epoch after epoch, from number `start` on."""
        of_epoch = len(self.batches(batch_size, seed=seed))
        epoch, first = divmod(start, of_epoch)
        while True:
            for rows in self.batches(batch_size, seed=seed, epoch=epoch)[first:]:
                yield self.batch(rows)
            epoch, first = epoch + 1, 0


def read(source: str, split: str, tfds_dir: str | None = None) -> Rows:
    """Return the rows of a split.

    Args:
      source: folder with train.csv and test.csv, rows of class (1 to 4), title and description, or
        `tfds:DATASET` of TensorFlow Datasets.
      split: "train" or "test".
      tfds_dir: where TensorFlow Datasets keeps its data; None for its default.

    Raises:
      FileNotFoundError: no such file or data set.
      ValueError: a row is not of this form.
    """
    if source.startswith(TFDS):
        return _records(source, split, tfds_dir)
    return read_csv(os.path.join(source, f"{split}.csv"))


def read_csv(path: str) -> Rows:
    """Return the rows of a file of class, title and description.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not UTF-8, no rows, or a row without a class from 1 to 4 and a text.
    """
    texts, labels = [], []
    known = [str(number) for number in range(1, len(CLASSES) + 1)]
    for number, row in enumerate(
        csv.reader(io.StringIO(read_text(path, "CSV file"), newline="")), start=1
    ):
        if not row:
            continue
        if len(row) < 2 or row[0].strip() not in known:
            first = printable(row[0], 30)
            raise ValueError(
                f"{printable(path)}: row {number} begins with {first!r} and has {len(row)} columns;"
                f" rows are class ({known[0]} to {known[-1]}), title, description"
            )
        labels.append(int(row[0]) - 1)
        texts.append(" ".join(text for text in row[1:] if text))
    if not texts:
        raise ValueError(f"{printable(path)}: holds no rows")
    return Rows(texts, np.array(labels, np.int32))


def _records(name: str, split: str, tfds_dir: str | None) -> Rows:
    import tensorflow_datasets as tfds

    dataset = name.removeprefix(TFDS)
    builder = tfds_builder((dataset,), tfds_dir, source=_SOURCE, instead="a folder of CSV files")
    check_split(builder, split)
    records = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
    needed = ("title", "description", "label")
    if not records or not all(key in records[0] for key in needed):
        raise ValueError(f"{name}: its records lack one of {', '.join(needed)}")
    texts = [" ".join(r[key].decode() for key in needed[:2] if r[key]) for r in records]
    return Rows(texts, np.array([r["label"] for r in records], np.int32))


def tokenize(rows: Rows, tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Return the token ids of texts, cut after `max_length`."""
    encoded: list[Any] = tokenizer.encode_sequences(rows.texts, None, max_length)
    return Tokens([one.ids for one in encoded], rows.labels, tokenizer.pad_id)

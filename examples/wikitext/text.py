"""Text of a file or of TensorFlow Datasets, and its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from examples.settings import TFDS, split_name
from tasks.files import read_text
from tasks.tfds_builder import check_split, tfds_builder

_SOURCE = "https://www.tensorflow.org"


def read(path: str, *, join_lines: bool, tfds_dir: str | None = None) -> str:
    """Return the text of a file, or of a split of TensorFlow Datasets.

    Args:
        path: file, or `tfds:DATASET:SPLIT` whose records have a feature `text`.
        join_lines: join the lines of a file by two newlines; records always are.
        tfds_dir: where TensorFlow Datasets keeps its data; None for its default.

    Raises:
        FileNotFoundError: no such file or data set.
        ValueError: not UTF-8, no such split, or records without text.
    """
    if path.startswith(TFDS):
        return join(_records(path, tfds_dir))
    text = read_text(path, "text file")
    return join(text.splitlines(keepends=True)) if join_lines else text


def join(rows: Iterable[str]) -> str:
    """Join rows by two newlines, blank ones as empty, as the rows of WikiText are published."""
    return "\n\n".join(row if row.strip() else "" for row in rows)


def _records(name: str, tfds_dir: str | None) -> list[str]:
    import tensorflow_datasets as tfds

    dataset, split = split_name(name)
    builder = tfds_builder((dataset,), tfds_dir, source=_SOURCE, instead="a text file")
    check_split(builder, split)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
    records = tfds.as_numpy(
        builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    )
    result = []
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("text"), bytes):
            raise ValueError(f"{name}: its records have no feature `text`")
        result.append(record["text"].decode())
    return result


def tokenize(tokenizer: Any, text: str, start_token: str) -> np.ndarray:
    """Return the token ids of a text, tokenised once as a whole, int32 [tokens].

    Args:
        tokenizer: of KerasHub.
        text: the text.
        start_token: "auto", "always" or "never": whether the start token comes first. "auto" is
            the habit of Hugging Face's tokenizers, which published figures were computed with:
            that of Llama adds one, that of GPT-2, whose start token is its end token, does not.

    Raises:
        ValueError: there is no start token, though it is asked for.
    """
    ids = np.asarray(tokenizer(text), np.int32).reshape(-1)
    start = getattr(tokenizer, "start_token_id", None)
    if start is None:
        if start_token == "always":
            raise ValueError("--start_token=always: the tokenizer has no start token")
        return ids
    separate = start != getattr(tokenizer, "end_token_id", None)
    if start_token == "always" or (start_token == "auto" and separate):
        return np.insert(ids, 0, start)
    return ids

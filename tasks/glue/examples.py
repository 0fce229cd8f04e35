"""Rows of a GLUE task as columns, and the making of them from any rows of texts and a label."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from tasks.glue.task import SIMILARITY_RANGE, Task, task_named

# What stands for a hidden label in test splits of the public loaders.
UNKNOWN_LABEL = -1
BAR_DELAY_SECONDS = 1


class GlueFormatError(ValueError):
    """The data does not have the form of its task; the message names the file and the line."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of one split.

    Attributes:
        task: what they belong to.
        firsts: the first text of each row.
        seconds: the second one, or None for tasks on single sentences.
        labels: int32 [rows] class numbers, float32 [rows] values of a regression, or None when
          unknown (test).
    """

    task: Task
    firsts: list[str]
    seconds: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.firsts)

    def head(self, count: int) -> Examples:
        """Return the first `count` rows, or all when there are fewer."""
        if count < 1:
            raise ValueError(f"count is {count}; it must be at least 1")
        seconds = None if self.seconds is None else self.seconds[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Examples(self.task, self.firsts[:count], seconds, labels)


def from_rows(
    task: str | Task,
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str = "rows",
    progress: bool = True,
) -> Examples:
    """Make examples from rows as Hugging Face's `datasets` or TensorFlow Datasets give them.

    Args:
        task: the task or its name.
        rows: each with the task's `fields` (str, or bytes of UTF-8) and its `label` (a class
          number, a class name, or
            the value of a regression). Where every label is missing, None or -1, labels are
            unknown.
        source: what errors call the rows.
        progress: show a bar when it takes more than a second.

    Returns:
        The examples, in the same order.

    Raises:
        GlueFormatError: a field is missing, a label is not one of the task's, or there is no row.
    """
    task = task_named(task)
    builder = ExamplesBuilder(task)
    unknown = 0
    for number, row in enumerate(reading(rows, task, progress)):
        place = f"{source}: row {number}"
        missing = [field for field in task.fields if field not in row]
        if missing:
            raise GlueFormatError(
                f"{place}: no field {', '.join(map(repr, missing))} (found"
                f" {', '.join(map(repr, row))})"
            )
        label = row.get("label")
        hidden = label is None or (not isinstance(label, str | bytes) and label == UNKNOWN_LABEL)
        unknown += hidden
        if unknown and not (hidden and unknown == number + 1):
            raise GlueFormatError(f"{place}: some rows have a label and others have none")
        builder.add(
            [_text(row[field], place) for field in task.fields],
            None if hidden else _text(label, place),
            place,
        )
    return builder.finish(source)


def reading(rows: Iterable, task: Task, progress: bool) -> Iterable:
    """Return the rows with a bar that appears only when they take long."""
    return tqdm(
        rows,
        desc=f"reading {task.name}",
        unit=" rows",
        disable=not progress,
        delay=BAR_DELAY_SECONDS,
    )


class ExamplesBuilder:
    """Examples under construction, checked row by row."""

    def __init__(self, task: Task):
        self._task = task
        self._texts: list[list[str]] = [[] for _ in task.fields]
        self._labels: list[float] = []

    def add(self, texts: list[str], label: str | None, place: str) -> None:
        """Append a row; errors begin with `place`. Either all rows have a label or none."""
        if not any(text.strip() for text in texts):
            raise GlueFormatError(f"{place}: no text in {' and '.join(self._task.fields)}")
        for column, text in zip(self._texts, texts, strict=True):
            column.append(text)
        if label is not None:
            self._labels.append(parse_label(self._task, label, place))

    def finish(self, source: str) -> Examples:
        """Return the rows; none at all is an error."""
        firsts = self._texts[0]
        if not firsts:
            raise GlueFormatError(f"{source}: no row in it")
        seconds = self._texts[1] if len(self._texts) == 2 else None
        labels = (
            np.asarray(self._labels, np.float32 if self._task.regression else np.int32)
            if self._labels
            else None
        )
        return Examples(self._task, firsts, seconds, labels)


def parse_label(task: Task, text: str, place: str) -> float | int:
    """Return the class number of a name or a number, or the value of a regression; errors begin
    with `place`.
    """
    text = text.strip()
    if not task.regression:
        if text in task.labels:
            return task.labels.index(text)
        if text.isascii() and text.isdigit() and int(text) < task.num_labels:
            return int(text)
        named = ", ".join(f"{number} or {name}" for number, name in enumerate(task.labels))
        raise GlueFormatError(f"{place}: label {text!r} of {task.name} is none of {named}")
    low, high = SIMILARITY_RANGE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise GlueFormatError(
            f"{place}: label {text!r} of {task.name} is no number from {low:g} to {high:g}"
        )
    return value


def _text(value: Any, place: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GlueFormatError(f"{place}: not UTF-8 text: {error}") from error
    return str(value)

"""GLUE through TensorFlow Datasets."""

from __future__ import annotations

import os
from typing import Any

from tasks.glue.examples import Examples, from_rows
from tasks.glue.task import Task, task_named
from tasks.tfds_builder import check_split, tfds_builder

SOURCE = "https://dl.fbaipublicfiles.com"


def from_tfds(
    task: str | Task,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Examples:
    """Read a split of a task through TensorFlow Datasets, preparing it (from the network) when it
    is not on disk yet.

    Args:
        task: the task or its name.
        split: one of `task.splits`, or a slice such as "train[:1%]".
        data_dir: where TFDS keeps prepared data sets; None for its default.
        progress: show a bar when it takes more than a second.

    Returns:
        The rows, in TFDS' order; labels are None where they are hidden (test splits).

    Raises:
        FileNotFoundError: the data set is neither on disk nor to be had.
        ValueError: no such task or split.
        GlueFormatError: as for `from_rows`.
    """
    import tensorflow_datasets as tfds

    task = task_named(task)
    builder = check_tfds(task, split, data_dir)
    rows = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    return from_rows(task, rows, source=f"{builder.info.full_name}:{split}", progress=progress)


def check_tfds(task: Task, split: str, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """Return the builder that `from_tfds` reads from, without reading any row.

    Args and errors: see there.
    """
    instead = f"a folder with {task.directory}/train.tsv"
    builder = tfds_builder((f"glue/{task.name}",), data_dir, source=SOURCE, instead=instead)
    check_split(builder, split)
    return builder

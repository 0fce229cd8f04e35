"""Data sets of TensorFlow Datasets: found where they are prepared, else prepared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def tfds_builder(names: Sequence[str], data_dir: str | os.PathLike[str] | None, *, instead: str) -> Any:
    """Return the builder of the first of these data sets that is prepared, or prepare the last one (from the network).

    Args:
        names: such as "squad/v1.1"; several where a data set was renamed.
        data_dir: where TFDS keeps prepared data sets; None for its default.
        instead: what an error says can be given otherwise.

    Raises:
        FileNotFoundError: it is neither on disk nor to be had.
    """
    import tensorflow_datasets as tfds

    where = None if data_dir is None else os.fspath(data_dir)
    for name in names:
        try:
            builder = tfds.builder(name, data_dir=where)
        except (ValueError, tfds.core.DatasetNotFoundError):
            continue  # An old name, and nothing on disk under it.
        if builder.info.splits:
            return builder
    try:
        builder = tfds.builder(names[-1], data_dir=where)
        builder.download_and_prepare()
    except Exception as error:  # TFDS passes on whatever its parts raise: network, disk, checksums, imports.
        raise FileNotFoundError(
            f"{' or '.join(names)} is not prepared in {where or 'the default folder of TFDS'} and cannot be had "
            f"({type(error).__name__}: {error}); give {instead} instead, or the folder of prepared data"
        ) from error
    return builder

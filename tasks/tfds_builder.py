"""Data sets of TensorFlow Datasets: found where they are prepared, else prepared."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from fileio.messages import printable

_PROBE_SECONDS = 5


def tfds_builder(
    names: Sequence[str], data_dir: str | os.PathLike[str] | None, *, source: str, instead: str
) -> Any:
    """Return the builder of the first of these data sets that is prepared, or prepare the last one
    (from the network).

    Args:
        names: such as "squad/v1.1"; several where a data set was renamed.
        data_dir: where TFDS keeps prepared data sets; None for its default.
        source: address that the data come from, asked before TFDS tries to get them.
        instead: what an error says can be given otherwise.

    Raises:
        FileNotFoundError: it is neither on disk nor to be had; without a network that is said at
          once.
    """
    import tensorflow_datasets as tfds

    where = None if data_dir is None else os.fspath(data_dir)
    absent = (
        f"{' or '.join(names)} is not prepared in"
        f" {printable(where or tfds.core.constants.DATA_DIR)}"
    )
    hint = f"give {instead} instead, or the folder of prepared data"
    for name in names:
        for folder in prepared(name, where or tfds.core.constants.DATA_DIR):
            try:
                return tfds.builder_from_directory(folder)
            except Exception as error:  # TFDS passes on whatever its parts raise.
                raise FileNotFoundError(
                    f"{printable(folder)} cannot be read as prepared data ({_said(error)}); {hint}"
                ) from error
    if reason := unreachable(source):
        raise FileNotFoundError(
            f"{absent}, and {source} cannot be reached to prepare it ({reason}); {hint}"
        )
    try:
        builder = tfds.builder(names[-1], data_dir=where)
        builder.download_and_prepare()
    except Exception as error:  # network, disk, checksums, imports
        raise FileNotFoundError(f"{absent} and cannot be had ({_said(error)}); {hint}") from error
    return builder


def check_split(builder: Any, split: str) -> None:
    """Raise ValueError where a prepared data set has no such split (or slice of one,
    `train[:1%]`).
    """
    try:
        _ = builder.info.splits[split]
    except Exception as error:  # of several kinds, and of those that parse slices
        there = ", ".join(map(printable, builder.info.splits))
        raise ValueError(
            f"{builder.info.full_name} has no split {printable(repr(split), 60)}; it has {there}"
        ) from error


def prepared(name: str, data_dir: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the folders of the versions of a data set that are prepared, the newest first."""
    folder = pathlib.Path(os.path.expanduser(data_dir), name)
    if not folder.is_dir():
        return
    versions = [place for place in folder.iterdir() if (place / "dataset_info.json").is_file()]
    yield from map(str, sorted(versions, key=_version, reverse=True))


def unreachable(address: str) -> str | None:
    """Return why an address cannot be reached, None if it can.

    TFDS itself tries again and again for a minute.
    """
    import requests

    try:
        requests.head(address, timeout=_PROBE_SECONDS)
    except requests.RequestException as error:
        return type(error).__name__
    return None


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()))}"

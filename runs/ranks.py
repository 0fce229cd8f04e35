"""Agreement of a run's ranks on flags and data, and the lock on its output folder."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from fileio.locks import folder_in_use
from runs.logging import log_on_chief_only
from runs.resume import content
from runs.settings import CONTENT
from tfquant.distributed.errors import agree, together
from tfquant.distributed.group import Group, start
from tfquant.resume import digest

# Files that are read and do not have to have the same name on every machine, beside those that are
# `CONTENT`.
_FILES = ("predict_file",)
# Folders of data and caches, which may lie elsewhere on other machines; what is in them is compared
# once it is read.
_LOCAL = ("tfds_dir", "cache_dir", "data_dir")


def start_ranks(settings: Any, script: str) -> Group:
    """Start the ranks of a run, silence all but rank 0, and compare their flags.

    Args:
        settings: of the run.
        script: its name.

    Raises:
        DivergedError: on every rank; the ranks were started with different flags or files.
    """
    group = start(
        settings.horovod,
        settings.horovod_compression,
        getattr(settings, "horovod_sparse_as_dense", False),
        timeout=settings.rank_timeout,
    )
    log_on_chief_only(group.rank)
    agree_on_settings(group, script, settings)
    return group


def agree_on_settings(group: Group, script: str, settings: Any) -> None:
    """Make sure that all ranks were started with the same flags and files, before anything waits
    for all of them.

    Args:
        group: the ranks.
        script: that runs.
        settings: a dataclass whose fields say how they are compared, see `runs.settings`.

    Raises:
        DivergedError: on every rank; names what differs.
    """
    if group.size == 1:
        return
    values: dict[str, Any] = {"script": script}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in _LOCAL:
            continue
        by_content = field.metadata["resume"] == CONTENT or field.name in _FILES
        values[f"--{field.name}"] = content(value) if by_content and value else value
    agree(group, values, "flags or files")


def agree_on_data(group: Group, ids: np.ndarray) -> None:
    """Make sure that all ranks have read the same data.

    Args:
        group: the ranks.
        ids: token ids of all examples, of any shape.

    Raises:
        DivergedError: on every rank.
    """
    if group.size > 1:
        agree(
            group,
            {"tokens": int(ids.size), "content": digest([np.ascontiguousarray(ids)])},
            "training data",
        )


@contextlib.contextmanager
def output_of(group: Group, folder: str | os.PathLike | None) -> Iterator[None]:
    """Hold the output folder of a run, so that no other run writes to it; rank 0 does.

    Args:
        group: the ranks.
        folder: None for a run that writes nothing.

    Raises:
        FolderInUseError: another run holds it.
        OtherRankError: that, on the other ranks.
    """
    with contextlib.ExitStack() as held:
        with together(group, lambda: (0, "the output folder")):
            if group.rank == 0 and folder is not None:
                held.enter_context(folder_in_use(folder))
        yield

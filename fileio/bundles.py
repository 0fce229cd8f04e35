"""Opening TensorFlow's name-based checkpoints.

Under any name, beside a writer, and never a device in the place of a file.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import re
import tempfile
import weakref
from typing import Any

import tensorflow as tf

from fileio.reading import check_regular
from fileio.staging import staging
from fileio.transaction import open_unchanged, recover

INDEX = ".index"


def open_bundle(prefix: str | os.PathLike[str]) -> Any:
    """`tf.train.load_checkpoint(prefix)` with the data open, so that it stays what it is when the
    files are replaced.

    TensorFlow takes a prefix for a pattern of file names. One with characters that would not stand
    for themselves is read through links in a temporary folder, which stays as long as the reader is
    used.

    Args:
      prefix: the path without `.index`.

    Raises:
      FileNotFoundError: it has no index.
      ContentError: one of its files is a folder, a device or a pipe.
      OSError: it is replaced again and again, or a killed process was replacing it and that cannot
        be finished.
      tf.errors.OpError, ValueError, IndexError, RuntimeError: it is damaged.
    """
    recover(pathlib.Path(prefix).parent)
    return open_unchanged(lambda: bundle_files(prefix), lambda: _opened(prefix))


def bundle_files(prefix: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Paths of the files of a checkpoint, its index first."""
    prefix = pathlib.Path(prefix)
    shard = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-\d{5}")
    names = sorted(os.listdir(prefix.parent)) if prefix.parent.is_dir() else []
    return [
        prefix.with_name(prefix.name + INDEX),
        *(prefix.parent / name for name in names if shard.fullmatch(name)),
    ]


def _opened(prefix: str | os.PathLike[str]) -> Any:
    files = bundle_files(prefix)
    for path in files:
        check_regular(path)
    reader = _reader(os.fspath(prefix), files)
    shapes = {
        name: shape for name, shape in reader.get_variable_to_shape_map().items() if 0 not in shape
    }
    if shapes:  # the data are opened with the first tensor that is read
        reader.get_tensor(min(shapes, key=lambda name: (math.prod(shapes[name]), name)))
    return reader


def _reader(prefix: str, files: list[pathlib.Path]) -> Any:
    if not re.search(r"[\[\]\\*?]", prefix):
        return tf.train.load_checkpoint(prefix)
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(staging(tempfile.gettempdir()))
        for path in files:
            (links / f"model{path.name.removeprefix(os.path.basename(prefix))}").symlink_to(
                path.absolute()
            )
        reader = tf.train.load_checkpoint(str(links / "model"))
        weakref.finalize(reader, stack.pop_all().close)
    return reader

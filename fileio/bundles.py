"""TensorFlow's reader of name-based checkpoints, under whatever name they have."""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from typing import Any

import tensorflow as tf


def open_bundle(prefix: str | os.PathLike[str]) -> Any:
    """`tf.train.load_checkpoint(prefix)`, also where the prefix has brackets or backslashes.

    TensorFlow takes a prefix for a pattern of file names. One with characters that would not stand for themselves is read through
    links in a temporary folder, which stays as long as the reader is used.

    Args:
      prefix: the path without `.index`.

    Raises:
      tf.errors.OpError, ValueError, RuntimeError: there is no checkpoint, or it is damaged.
    """
    prefix = os.fspath(prefix)
    if not re.search(r"[\[\\]", prefix):
        return tf.train.load_checkpoint(prefix)
    links = tempfile.TemporaryDirectory(prefix="checkpoint-")
    folder, name = os.path.split(os.path.abspath(prefix))
    for file in os.listdir(folder):
        if re.fullmatch(re.escape(name) + r"\.(index|data-\d{5}-of-\d{5})", file):
            os.symlink(os.path.join(folder, file), os.path.join(links.name, f"model{file.removeprefix(name)}"))
    reader = tf.train.load_checkpoint(os.path.join(links.name, "model"))
    weakref.finalize(reader, links.cleanup)
    return reader

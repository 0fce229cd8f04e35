"""Name-based TensorFlow checkpoints, written atomically (safe against a full disk or a killed
process).

A checkpoint is what `tf.compat.v1.train.Saver` wrote for BERT: `<prefix>.index` beside
`<prefix>.data-00000-of-00001`, tensors looked up by name. `tf.train.load_checkpoint(prefix)` and
`tf.train.latest_checkpoint(directory)` read what is written here.

A write is decided by one rename, see `fileio.transaction`: killed before it, the old checkpoint is
untouched; killed after it, the next `read`, `latest` or `write` finishes the move. A reader beside
a writer gets the old checkpoint or the new one.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from fileio import transaction
from fileio.bundles import INDEX as INDEX
from fileio.bundles import open_bundle
from fileio.errors import ContentError
from fileio.messages import printable
from fileio.reading import check_regular
from fileio.transaction import STATE as STATE
from fileio.transaction import locked, replacing_together

DATA = ".data-00000-of-00001"
# What TensorFlow's checkpoint reader throws at a damaged file; IndexError is its "fewer bytes than
# expected".
_READ_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, IndexError)


class CheckpointError(OSError):
    """A checkpoint could not be written, or the files on disk are incomplete or damaged."""


class Checkpoint(Mapping[str, np.ndarray | str]):
    """Tensors of one checkpoint by name, each read from disk on access.

    A scalar string comes back as `str`, everything else as a NumPy array.

    Attributes:
        prefix: the path without `.index`.
        shapes: shape of each tensor, without reading it.
        dtypes: `tf.DType` of each tensor, without reading it.
    """

    def __init__(self, prefix: str, reader: Any):
        self.prefix = prefix
        self._reader = reader
        self.shapes: dict[str, tuple[int, ...]] = {
            k: tuple(v) for k, v in reader.get_variable_to_shape_map().items()
        }
        self.dtypes: dict[str, tf.DType] = dict(reader.get_variable_to_dtype_map())

    def __getitem__(self, name: str) -> np.ndarray | str:
        if name not in self.shapes:
            raise KeyError(f"checkpoint {self.prefix} has no tensor '{name}'")
        try:
            value = self._reader.get_tensor(name)
        except _READ_ERRORS as error:
            raise _damaged(self.prefix, error) from error
        return value.decode() if isinstance(value, bytes) else value

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.shapes))

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def write(prefix: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically and make it the latest of its folder.

    Args:
        prefix: where, without `.index`; missing folders are made.
        tensors: name -> NumPy array, tensor, variable, number or string.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full. Nothing is left behind
          and a checkpoint
            that was there before still loads.
        ValueError: no tensors, or an empty name.
    """
    target = pathlib.Path(prefix)
    if str(prefix).endswith("/") or target.is_dir():
        example = printable(target / "model.ckpt")
        raise ValueError(
            f"checkpoint {printable(prefix)} is a folder: give a name inside it, such as {example}"
        )
    if not tensors or not all(tensors):
        raise ValueError(
            f"checkpoint {printable(target)}: needs at least one tensor and no empty name"
        )
    try:
        for suffix in (INDEX, DATA):
            _check_replaceable(_file(target, suffix))
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_together(target.parent) as staging:
            _save_bundle(staging / target.name, tensors)
            (staging / STATE).write_text(f'model_checkpoint_path: "{_escaped(target.name)}"\n')
    except (OSError, tf.errors.OpError) as error:
        raise CheckpointError(
            f"cannot write checkpoint {printable(target)}: {_reason(error)}. Free some space or"
            " name another folder; a checkpoint that was there before still loads"
        ) from error


def read(prefix: str | os.PathLike) -> Checkpoint:
    """Open a checkpoint; complete a write that was interrupted after its commit point.

    Args:
        prefix: the path without `.index` (a path with it is understood).

    Raises:
        FileNotFoundError: there is no such checkpoint; the message lists those that are there.
        CheckpointError: the files are there but damaged.
    """
    target = pathlib.Path(str(prefix).removesuffix(INDEX))
    try:
        return Checkpoint(str(target), open_bundle(target))
    except FileNotFoundError:
        others = ", ".join(_names(target.parent)[:8]) or "none"
        name = printable(target)
        raise FileNotFoundError(
            f"no checkpoint {name}: {name}{INDEX} does not exist. Checkpoints there:"
            f" {printable(others)}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {printable(target)}: {_reason(error)}") from error
    except _READ_ERRORS as error:
        raise _damaged(str(target), error) from error


def recover(prefix: str | os.PathLike) -> None:
    """Complete or remove what a killed `write` left in the folder of `prefix`.

    Does nothing where nothing was left.
    """
    directory = pathlib.Path(prefix).parent
    try:
        transaction.recover(directory)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def latest(directory: str | os.PathLike) -> str | None:
    """Return the prefix of the checkpoint written last into a folder, or None.

    Goes by TensorFlow's `checkpoint` file; where that is missing or names something that is gone,
    by the highest step.
    """
    directory = pathlib.Path(directory)
    recover(directory / STATE)
    named = _stated(directory)
    if named is not None and _file(named, INDEX).is_file():
        return str(named)
    numbered = steps(directory)
    return numbered[-1][1] if numbered else None


def steps(directory: str | os.PathLike, base: str = "model.ckpt") -> list[tuple[int, str]]:
    """List (step, prefix) of every `<base>-<step>` in a folder, lowest step first."""
    directory = pathlib.Path(directory)
    recover(directory / base)
    pattern = re.compile(re.escape(base) + r"-([0-9]{1,18})")
    result = [(pattern.fullmatch(name), name) for name in _names(directory)]
    return sorted((int(match[1]), str(directory / name)) for match, name in result if match)


def prune(directory: str | os.PathLike, keep: int, base: str = "model.ckpt") -> None:
    """Remove all but the `keep` highest steps of `<base>-<step>`; 0 keeps all. Other names are not
    touched.

    Raises:
        ValueError: `keep` is negative.
    """
    if keep < 0:
        raise ValueError(f"cannot keep {keep} checkpoints: give 0 (all) or more")
    directory = pathlib.Path(directory)
    if keep == 0 or not directory.is_dir():
        return
    kept = {step for step, _ in steps(directory, base)[-keep:]}
    pattern = re.compile(re.escape(base) + r"-([0-9]{1,18})\.(index|data-\d{5}-of-\d{5})")
    with locked(directory):
        # The index goes first: without it the rest is no checkpoint any more, so a cut-off here
        # leaves nothing half.
        for path in sorted(directory.iterdir(), key=lambda path: not path.name.endswith(INDEX)):
            match = pattern.fullmatch(path.name)
            if match and int(match[1]) not in kept:
                path.unlink(missing_ok=True)


def _names(directory: pathlib.Path) -> list[str]:
    """Sorted names of the checkpoints in a folder.

    Listed, as a pattern would take characters of the folder for its own.
    """
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(name.removesuffix(INDEX) for name in names if name.endswith(INDEX))


def _stated(directory: pathlib.Path) -> pathlib.Path | None:
    """Prefix that TensorFlow's `checkpoint` file of a folder names, resolved in this folder
    whatever path the file contains.
    """
    try:
        state = (
            tf.train.get_checkpoint_state(str(directory)) if (directory / STATE).is_file() else None
        )
    except (*_READ_ERRORS, OSError):  # a damaged one: there are the names of the files
        return None
    name = pathlib.Path(state.model_checkpoint_path).name if state is not None else ""
    return directory / name if name else None


def _file(prefix: pathlib.Path, suffix: str) -> pathlib.Path:
    return prefix.with_name(prefix.name + suffix)


def _check_replaceable(path: pathlib.Path) -> None:
    """Raise OSError if the path exists and is not a regular file, such as a device."""
    if os.path.lexists(path) and not path.is_symlink():
        try:
            check_regular(path)
        except ContentError as error:
            raise OSError(str(error)) from error


def _save_bundle(prefix: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    names = sorted(tensors)
    with tf.device("CPU:0"):
        values = [tf.convert_to_tensor(tensors[name]) for name in names]
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=values,
        )


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _reason(error: Exception) -> str:
    """Return a short cause of an exception.

    TensorFlow's messages carry the op's name before it and after it.
    """
    if isinstance(error, OSError):
        name = f" ({printable(error.filename)})" if error.filename else ""
        return f"{error.strerror or error}{name}"
    text = getattr(error, "message", None) or str(error)
    return printable(re.sub(r"^\{\{.*?\}\}\s*|\s*\[Op:.*?\]\s*$", "", text).rpartition("; ")[2])


def _damaged(prefix: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {printable(prefix)} is damaged: {_reason(error)}. Restore the file or use"
        " another one"
    )

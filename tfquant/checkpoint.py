"""Name-based TensorFlow checkpoints that survive a full disk and a killed process.

A checkpoint is what `tf.compat.v1.train.Saver` wrote for BERT: `<prefix>.index` beside `<prefix>.data-00000-of-00001`,
tensors looked up by name. `tf.train.load_checkpoint(prefix)` and `tf.train.latest_checkpoint(directory)` read what is
written here.

How a write stays whole. Two files cannot be replaced in one step, so they are made to look as if they were:

1. everything is written and synced in a temporary folder inside the target folder;
2. that folder is renamed to `.tfquant-commit`: the one atomic step that decides whether the write has happened;
3. its files are moved over the old ones and the folder is removed.

Killed before 2, the old checkpoint is untouched; killed after it, the next `read`, `latest` or `write` finishes step 3.
A lock on the folder keeps a reader from tidying up under a live writer.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

INDEX = ".index"
DATA = ".data-00000-of-00001"
STATE = "checkpoint"  # TensorFlow's own name for the small file that says which checkpoint is the latest
_COMMIT = ".tfquant-commit"
_STAGING = ".tfquant-tmp-"
# What TensorFlow's checkpoint reader throws at a damaged file; IndexError is its "fewer bytes than expected".
_READ_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, IndexError)


class CheckpointError(OSError):
    """A checkpoint could not be written, or what is on the disk is not a whole checkpoint."""


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of one checkpoint by name, each read from the disk when it is asked for.

    A scalar string comes back as `str`, everything else as a NumPy array.

    Attributes:
        prefix: the path without `.index`.
        shapes: shape of each tensor, without reading it.
        dtypes: `tf.DType` of each tensor, without reading it.
    """

    def __init__(self, prefix: str, reader: Any):
        self.prefix = prefix
        self._reader = reader
        self.shapes: dict[str, tuple[int, ...]] = {k: tuple(v) for k, v in reader.get_variable_to_shape_map().items()}
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
    """Writes a checkpoint and makes it the latest of its folder; replaces an old one as a whole or not at all.

    Args:
        prefix: where, without `.index`; missing folders are made.
        tensors: name -> NumPy array, tensor, variable, number or string.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full. Nothing is left behind and a checkpoint
            that was there before still loads.
        ValueError: no tensors, or an empty name.
    """
    target = pathlib.Path(prefix)
    if str(prefix).endswith("/") or target.is_dir():
        raise ValueError(f"checkpoint {prefix} is a folder: give a name inside it, such as {target / 'model.ckpt'}")
    if not tensors or not all(tensors):
        raise ValueError(f"checkpoint {target}: needs at least one tensor and no empty name")
    staging = target.parent / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _tidy(target.parent)
            staging.mkdir()
            _save_bundle(staging / target.name, tensors)
            (staging / STATE).write_text(f'model_checkpoint_path: "{_escaped(target.name)}"\n')
            for path in (*staging.iterdir(), staging):
                _sync(path)
            os.rename(staging, target.parent / _COMMIT)
            _sync(target.parent)
            _tidy(target.parent)
    except (OSError, tf.errors.OpError) as error:
        raise CheckpointError(
            f"cannot write checkpoint {target}: {_reason(error)}. Free some space or name another folder; "
            "a checkpoint that was there before still loads"
        ) from error
    finally:  # also when a signal ends the process; once renamed it is not there any more
        shutil.rmtree(staging, ignore_errors=True)


def read(prefix: str | os.PathLike) -> Checkpoint:
    """Opens a checkpoint, finishing a write that was cut off after its point of no return.

    Args:
        prefix: the path without `.index` (a path with it is understood).

    Raises:
        FileNotFoundError: there is no such checkpoint; the message lists those that are there.
        CheckpointError: the files are there but damaged.
    """
    target = pathlib.Path(str(prefix).removesuffix(INDEX))
    recover(target)
    if not _file(target, INDEX).is_file():
        others = ", ".join(sorted(p.name.removesuffix(INDEX) for p in target.parent.glob("*" + INDEX))[:8]) or "none"
        raise FileNotFoundError(f"no checkpoint {target}: {target}{INDEX} does not exist. Checkpoints there: {others}")
    try:
        return Checkpoint(str(target), tf.train.load_checkpoint(str(target)))
    except _READ_ERRORS as error:
        raise _damaged(str(target), error) from error


def recover(prefix: str | os.PathLike) -> None:
    """Finishes or removes what a killed `write` left in the folder of `prefix`. Does nothing where nothing was left."""
    directory = pathlib.Path(prefix).parent
    if not _leftovers(directory):
        return
    try:
        with _locked(directory):
            _tidy(directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory} holds a half-moved checkpoint and cannot be repaired: {_reason(error)}. Make it writable once"
        ) from error


def latest(directory: str | os.PathLike) -> str | None:
    """Prefix of the checkpoint written last into a folder, or None.

    Goes by TensorFlow's `checkpoint` file; where that is missing or names something that is gone, by the highest step.
    """
    directory = pathlib.Path(directory)
    recover(directory / STATE)
    state = tf.train.get_checkpoint_state(str(directory)) if directory.is_dir() else None
    if state is not None and pathlib.Path(state.model_checkpoint_path + INDEX).is_file():
        return state.model_checkpoint_path
    numbered = steps(directory)
    return numbered[-1][1] if numbered else None


def steps(directory: str | os.PathLike, base: str = "model.ckpt") -> list[tuple[int, str]]:
    """(step, prefix) of every `<base>-<step>` in a folder, lowest step first."""
    directory = pathlib.Path(directory)
    recover(directory / base)
    pattern = re.compile(re.escape(base) + r"-(\d+)" + re.escape(INDEX))
    found = [(pattern.fullmatch(path.name), path) for path in directory.glob("*" + INDEX)]
    return sorted((int(match[1]), str(path).removesuffix(INDEX)) for match, path in found if match)


def prune(directory: str | os.PathLike, keep: int, base: str = "model.ckpt") -> None:
    """Removes all but the `keep` highest steps of `<base>-<step>`; 0 keeps all. Other names are left alone.

    Raises:
        ValueError: `keep` is negative.
    """
    if keep < 0:
        raise ValueError(f"cannot keep {keep} checkpoints: give 0 (all) or more")
    directory = pathlib.Path(directory)
    if keep == 0 or not directory.is_dir():
        return
    kept = {step for step, _ in steps(directory, base)[-keep:]}
    pattern = re.compile(re.escape(base) + r"-(\d+)\.(index|data-\d{5}-of-\d{5})")
    with _locked(directory):
        # The index goes first: without it the rest is no checkpoint any more, so a cut-off here leaves nothing half.
        for path in sorted(directory.iterdir(), key=lambda path: not path.name.endswith(INDEX)):
            match = pattern.fullmatch(path.name)
            if match and int(match[1]) not in kept:
                path.unlink(missing_ok=True)


def _file(prefix: pathlib.Path, suffix: str) -> pathlib.Path:
    return prefix.with_name(prefix.name + suffix)


def _save_bundle(prefix: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    names = sorted(tensors)
    with tf.device("CPU:0"):
        values = [tf.convert_to_tensor(tensors[name]) for name in names]
        tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)


def _leftovers(directory: pathlib.Path) -> list[pathlib.Path]:
    if not directory.is_dir():
        return []
    return [p for p in directory.iterdir() if p.name == _COMMIT or p.name.startswith(_STAGING)]


def _tidy(directory: pathlib.Path) -> None:
    """Rolls a committed write forward and drops uncommitted ones. The caller holds the folder's lock."""
    for left in _leftovers(directory):
        if left.name != _COMMIT:
            shutil.rmtree(left, ignore_errors=True)
            continue
        # Data, then index, then the file that says which is the latest: each may refer to the one before it.
        for path in sorted(left.iterdir(), key=lambda p: (p.name == STATE, p.name.endswith(INDEX))):
            os.replace(path, directory / path.name)
        _sync(directory)
        os.rmdir(left)


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock, which the system drops when the process dies. Disks that have no locks go without."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(path: pathlib.Path) -> None:
    """Forces a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _reason(error: Exception) -> str:
    """The cause in a few words: TensorFlow's messages carry the op's name before it and after it."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    text = getattr(error, "message", None) or str(error)
    return re.sub(r"^\{\{.*?\}\}\s*|\s*\[Op:.*?\]\s*$", "", text).rpartition("; ")[2]


def _damaged(prefix: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"checkpoint {prefix} is damaged: {_reason(error)}. Restore the file or use another one")

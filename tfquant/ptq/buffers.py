"""Array buffers in memory up to a limit, in a temporary folder beyond it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import weakref

import numpy as np

from fileio.staging import staging


class Space:
    """Memory up to a limit, then files, which are deleted at the end of the `with` statement.

    Args:
      limit: bytes of arrays in memory at a time.
    """

    def __init__(self, limit: int):
        self.limit, self.used, self.on_disk = limit, 0, 0
        self._folder: pathlib.Path | None = None
        self._cleanup = contextlib.ExitStack()
        self._files = 0

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_) -> None:
        self._cleanup.close()

    def keep(self, value: np.ndarray) -> np.ndarray:
        """Store a copy of `value`, which occupies space until nothing refers to it any more.

        Raises:
          OSError: the disk is full; the message names the folder.
        """
        value = np.asarray(value)
        if (
            self.used + value.nbytes <= self.limit or value.ndim == 0 or value.nbytes == 0
        ):  # the last two cannot be mapped
            kept = value.copy()
            self.used += value.nbytes
            weakref.finalize(kept, self._free, value.nbytes)
            return kept
        return self._write(value)

    def _free(self, nbytes: int) -> None:
        self.used -= nbytes

    def _write(self, value: np.ndarray) -> np.ndarray:
        if self._folder is None:
            self._folder = self._cleanup.enter_context(staging(tempfile.gettempdir()))
        path = str(self._folder / str(self._files))
        self._files += 1
        self.on_disk += value.nbytes
        try:
            # Not through the map: a full disk would end the process there instead of raising.
            np.ascontiguousarray(value).tofile(path)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep {value.nbytes:,} bytes of layer inputs in {path} ({error.strerror}):"
                " free some space, point TMPDIR at another disk, raise memory_limit or give fewer"
                " batches",
            ) from error
        mapped = np.memmap(path, value.dtype, "r", shape=value.shape)
        weakref.finalize(mapped, _remove, path)
        return mapped


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class Rows:
    """Samples of one tensor, [rows, ...], appended batch by batch and drawn by index.

    Attributes:
      count: how many rows there are.
    """

    def __init__(self, space: Space):
        self._space = space
        self._chunks: list[np.ndarray] = []
        self._starts: list[int] = []
        self.count = 0

    def append(self, rows: np.ndarray) -> None:
        if len(rows):
            self._chunks.append(self._space.keep(rows))
            self._starts.append(self.count)
            self.count += len(rows)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Select rows by index, [*numbers.shape, ...]."""
        flat = np.ravel(numbers)
        result = np.empty((len(flat), *self._chunks[0].shape[1:]), self._chunks[0].dtype)
        order = np.argsort(flat, kind="stable")
        borders = np.searchsorted(flat[order], [*self._starts, self.count])
        for chunk, start, first, last in zip(
            self._chunks, self._starts, borders[:-1], borders[1:], strict=True
        ):
            places = order[first:last]
            result[places] = chunk[flat[places] - start]
        return result.reshape(*np.shape(numbers), *result.shape[1:])


class Draws:
    """Random row indices for consecutive steps.

    Permutations of all rows, one behind the other.
    """

    def __init__(self, count: int, size: int, seed: int):
        self._count, self.size = count, min(size, count)
        self._rng = np.random.default_rng(seed)
        self._left = np.empty(0, np.int64)

    def __call__(self, steps: int) -> np.ndarray:
        """int64 [steps, size]."""
        wanted = steps * self.size
        pieces = [self._left]
        have = len(self._left)
        while have < wanted:
            pieces.append(self._rng.permutation(self._count))
            have += self._count
        numbers = np.concatenate(pieces)
        self._left = numbers[wanted:]
        return numbers[:wanted].reshape(steps, self.size)


def spread(count: int, most: int) -> np.ndarray:
    """Select at most `most` of `count` rows, evenly spaced."""
    return (
        np.arange(count) if count <= most else (np.arange(most) * (count / most)).astype(np.int64)
    )


def seed_of(seed: int, name: str) -> int:
    """Derive a random seed from a name."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])

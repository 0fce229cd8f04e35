"""Batches from a NumPy file: one array for each input, rows first."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tfquant.error_messages import one_line
from tfquant.host_memory import check_fits

# What reading a damaged or hostile archive raises: of zipfile, of its decompressors, of the parser
# of headers.
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
# Version of an array's format -> what reads its header.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: str) -> dict[str, np.ndarray]:
    """Input name -> rows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no `.npz` file, a damaged one, one that memory does not hold, or its arrays
        differ in their number of rows.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(archive, member)
            check_fits(sum(member.file_size for member in archive.infolist()), "its arrays")
        with np.load(path, allow_pickle=False) as arrays:
            rows = dict(arrays)
    except _UNREADABLE as error:
        reason = one_line(error, 200) or type(error).__name__
        raise ValueError(
            f"{path}: is no .npz file of NumPy with one array for each input ({reason})"
        ) from error
    sizes = {name: len(array) if array.ndim else 0 for name, array in rows.items()}
    if not sizes or min(sizes.values()) == 0 or len(set(sizes.values())) > 1:
        raise ValueError(
            f"{path}: needs arrays with the same number of rows, at least one: {sizes}"
        )
    return rows


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError for what is no array, or an array larger than what the archive holds of it.

    NumPy allocates what the header of an array says before it reads the first value.
    """
    name = repr(member.filename)
    if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{name} is no array")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(
                f"{name} has the format version {version}, known are"
                f" {', '.join(map(str, _HEADERS))}"
            )
        shape, _, dtype = _HEADERS[version](file)
        if dtype.kind not in "biufcSU":
            raise ValueError(f"{name} holds values of type {dtype}, not numbers or texts")
        held = member.file_size - file.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(
            f"{name} says that it has the shape {list(shape)} of {dtype}, and holds {held} bytes"
        )


def batches(rows: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """All rows in their order, `size` at a time.

    Raises:
      ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"--batch_size={size}: must be at least 1")
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in rows.items()}

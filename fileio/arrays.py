"""Guarded reading of NumPy's `.npz` files: no pickles, no memory for more than what is there."""

from __future__ import annotations

import io
import math
import os
import zipfile

import numpy as np

from fileio.errors import ContentError
from fileio.messages import printable
from fileio.reading import check_regular

_SUFFIX = ".npy"
_ENCRYPTED = 0x1


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Name -> array of a `.npz` file.

    Raises:
      FileNotFoundError: there is none.
      ContentError: it is no such file, or damaged, encrypted or not of plain numbers and texts.
      OSError: it cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        return _arrays(file, os.fspath(path))


def parse_arrays(data: bytes, source: str) -> dict[str, np.ndarray]:
    """Name -> array of the bytes of a `.npz` file; `source` is what they are called in messages.

    Raises:
      ContentError: as `read_arrays`.
    """
    return _arrays(io.BytesIO(data), source)


def _arrays(file: io.BufferedIOBase, source: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                info.filename.removesuffix(_SUFFIX): _array(archive, info)
                for info in archive.infolist()
            }
    except Exception as error:  # damage makes zipfile, zlib and NumPy raise all kinds of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ContentError(
            f"{printable(source)}: is no .npz file of NumPy, or damaged ({printable(reason)})"
        ) from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return one member of an archive.

    Raises:
      Exception: of many kinds, it is damaged.
    """
    if not info.filename.endswith(_SUFFIX):
        raise ValueError(f"it holds {info.filename!r}, which is no array")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{info.filename!r} is encrypted")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read_header:
            raise ValueError(f"{info.filename!r} has version {version} of the format")
        shape, _, dtype = read_header[version](member)
        size = math.prod(shape) * dtype.itemsize
        if (
            dtype.hasobject
            or any(length < 0 for length in shape)
            or size != info.file_size - member.tell()
        ):
            raise ValueError(
                f"{info.filename!r} does not hold an array of shape {list(shape)} and type {dtype}"
            )
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)

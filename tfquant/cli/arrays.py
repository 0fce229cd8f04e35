"""Batches from a NumPy file: one array for each input, rows first."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Iterator

import numpy as np


def add(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The flags of a comparison with an exported file."""
    otherwise = "" if required else "; without it nothing is compared"
    parser.add_argument(
        "--check_data", required=required, help=f".npz with one array for each input, rows first{otherwise}"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="rows of --check_data at a time (default %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="largest share of rows with another answer (default %(default)s)"
    )


def read(path: str) -> dict[str, np.ndarray]:
    """Input name -> rows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no `.npz` file, or its arrays differ in their number of rows.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path) as arrays:
            rows = dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile, TypeError) as error:
        raise ValueError(f"{path}: is no .npz file of NumPy with one array for each input ({error})") from error
    if not all(isinstance(array, np.ndarray) for array in rows.values()):
        raise ValueError(f"{path}: is no .npz file of NumPy, it holds other files than arrays")
    sizes = {name: len(array) if array.ndim else 0 for name, array in rows.items()}
    if not sizes or min(sizes.values()) == 0 or len(set(sizes.values())) > 1:
        raise ValueError(f"{path}: needs arrays with the same number of rows, at least one: {sizes}")
    return rows


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

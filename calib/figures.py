"""PNG files of figures.

Matplotlib is the extra `plots`: it is imported when a figure is made, never with the package.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calib import storage
from calib.errors import CalibrationFileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of 100 dots per inch.

    Args:
        width, height: inches.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need Matplotlib: pip install 'tfquant[plots]'", name=error.name
        ) from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file, atomically.

    Args:
        figure: drawn.
        path: of the file.

    Raises:
        CalibrationFileError: it cannot be written.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    storage.write(os.fspath(path), stream.getvalue())


def numbered_paths(folder: str, addresses: Sequence[str], suffix: str = "") -> list[str]:
    """Make a folder, and return a path of a PNG in it for each site, in the order of the sites.

    Args:
        folder: may exist.
        addresses: of the sites; numbers before them keep shortened names unique.
        suffix: of the names.

    Raises:
        CalibrationFileError: the folder cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise CalibrationFileError(
            f"{folder}: cannot be made ({error.strerror}); check the path"
        ) from error
    digits = len(str(len(addresses)))
    names = (re.sub(r"[^A-Za-z0-9._-]+", "_", address)[:120] for address in addresses)
    return [
        os.path.join(folder, f"{number:0{digits}d}_{name}{suffix}.png")
        for number, name in enumerate(names)
    ]

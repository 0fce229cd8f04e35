"""PNG files of figures.

Matplotlib is the extra `plots`: it is imported when a figure is made, never with the package.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from calib import storage

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

"""PNG files of figures."""

import io
import os

from matplotlib.figure import Figure

from calib import storage


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of 100 dots per inch.

    Args:
        width, height: inches.
    """
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file, which appears whole or not at all.

    Args:
        figure: drawn.
        path: of the file.

    Raises:
        CalibrationFileError: it cannot be written.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    storage.write(os.fspath(path), stream.getvalue())

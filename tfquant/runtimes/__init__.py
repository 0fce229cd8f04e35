"""Runtimes: how an exported file is run, for checks, predictions and timings."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable

from fileio.messages import printable
from fileio.transaction import open_unchanged, recover
from tfquant.runtimes.session import Contractions, Input, RuntimeFileError, Session

__all__ = [
    "PACKAGES",
    "RUNTIMES",
    "Contractions",
    "Input",
    "RuntimeFileError",
    "Session",
    "open_file",
    "runtime_of",
]


def _opener(module: str) -> Callable[..., Session]:
    """Return the `open_file` of a module of this package, which is imported at the first call."""

    def call(path: str, **options: int | None) -> Session:
        return importlib.import_module(f"{__name__}.{module}").open_file(path, **options)

    return call


# Name -> what opens a file in it.
RUNTIMES = {
    "onnxruntime": _opener("onnxruntime"),
    "openvino": _opener("openvino"),
    "litert": _opener("litert"),
    "tensorflow": _opener("saved_model"),
}
# Name -> the package it needs.
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "tensorflow": "tensorflow",
}
_BY_SUFFIX = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert", "": "tensorflow"}


def runtime_of(path: str | os.PathLike) -> str:
    """The runtime that a file is made for, by its suffix.

    Raises:
      RuntimeFileError: no runtime has such files.
    """
    suffix = os.path.splitext(path)[1]
    if os.path.isfile(os.path.join(path, "model.ckpt.index")):
        raise RuntimeFileError(f"{path}: holds a checkpoint, which no runtime here answers with")
    if os.path.isdir(path):
        return "tensorflow"
    if suffix not in _BY_SUFFIX:
        known = ", ".join(
            f"{ending or 'a folder (SavedModel)'}: {name}" for ending, name in _BY_SUFFIX.items()
        )
        raise RuntimeFileError(
            f"{path}: no runtime for files that end in {suffix!r}; known: {known}"
        )
    return _BY_SUFFIX[suffix]


def open_file(
    path: str | os.PathLike, runtime: str | None = None, *, threads: int | None = None
) -> Session:
    """Opens an exported file for running.

    Args:
      path: of an `.onnx` file, an OpenVINO `.xml` file, a `.tflite` file or a SavedModel folder.
      runtime: one of `RUNTIMES`; if not given, the one that such files are made for. OpenVINO reads
        ONNX files as well.
      threads: for one call; the runtime's own choice if not given.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: the runtime is not installed; the message says how.
      RuntimeFileError: the runtime cannot read the file.
      ValueError: unknown runtime, or `threads` is not positive.
    """
    path = os.fspath(path)
    try:
        recover(os.path.dirname(path) or ".")
    except OSError as error:
        raise RuntimeFileError(str(error)) from error
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {printable(path)}")
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise RuntimeFileError(f"{printable(path)}: is a device or a pipe, not a file")
    runtime = runtime_of(path) if runtime is None else runtime
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime {runtime!r}: must be one of {', '.join(RUNTIMES)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    return open_unchanged(
        lambda: _files(pathlib.Path(path)), lambda: RUNTIMES[runtime](path, threads=threads)
    )


def _files(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """A file, or folder, and what it may refer to."""
    return path, path.with_suffix(".bin"), path.with_name(path.name + ".data")

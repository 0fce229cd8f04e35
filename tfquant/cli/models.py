"""Models that a command names: a function, a file, and a checkpoint of their weights and ranges."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fileio.messages import printable
from fileio.transaction import open_unchanged, recover
from tfquant.error_messages import one_line


def load(options: argparse.Namespace, rows: Mapping[str, np.ndarray] | None) -> Any:
    """The quantized model that the flags name; `rows` are inputs, for models that do not say what
    they take.
    """
    import tfquant

    inputs = None if rows is None else {name: array[:1] for name, array in rows.items()}
    return tfquant.load(options.checkpoint, built(options.model), inputs=inputs)


def built(source: str) -> Any:
    """The model that `--model` names.

    Raises:
      FileNotFoundError: there is no such file, folder or module.
      ValueError: the module has no such function.
    """
    module, _, function = source.partition(":")
    if function:
        return _called(source, _imported(module, function))
    path, shown = pathlib.Path(source), f"--model={printable(source)}"
    try:
        recover(path.parent)
    except OSError as error:
        raise ValueError(f"{shown}: {error}") from error
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(
            f"{shown}: there is no such file or folder; a function is written module:function"
        )
    load = _saved_model if path.is_dir() else _keras_file
    if path.is_file() and path.suffix != ".keras":
        raise ValueError(f"{shown}: must be module:function, a .keras file or a SavedModel folder")
    return open_unchanged(lambda: (path,), lambda: load(path, shown))


def _saved_model(path: pathlib.Path, shown: str) -> Any:
    import tensorflow as tf

    try:
        return tf.saved_model.load(str(path))
    except Exception as error:  # damage makes TensorFlow raise errors of all kinds
        reason = one_line(error, 200)
        raise ValueError(
            f"{shown}: TensorFlow cannot load it, it is no SavedModel or damaged: {reason}"
        ) from error


def _keras_file(path: pathlib.Path, shown: str) -> Any:
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.flag_bits & 0x1 for info in archive.infolist()):
                raise ValueError("it is encrypted")
            damaged = archive.testzip()  # Keras leaves some files of it for later
            if damaged is not None:
                raise ValueError(f"its file {damaged!r} is damaged")
        return keras.models.load_model(path, compile=False)
    except (
        Exception
    ) as error:  # of all kinds; Keras fills paragraphs with the layer's configuration
        reason = one_line(error, 200)
        raise ValueError(
            f"{shown}: Keras cannot load it, it is damaged or has layers of your own (for those"
            f" give module:function): {reason}"
        ) from error


def _called(source: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:
        raise ValueError(
            f"--model={source}: raised {type(error).__name__}: {one_line(error, 300)}"
        ) from error


def _imported(module: str, function: str) -> Any:
    sys.path.insert(0, os.getcwd())  # as `python script.py` would find it
    try:
        result = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"--model={module}:{function}: cannot import {error.name}"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 300)}"
        raise ValueError(
            f"--model={module}:{function}: importing {module} raised {reason}"
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(result):
        raise ValueError(f"--model={module}:{function}: {module} has no function {function}")
    return result

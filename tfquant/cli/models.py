"""Models that a command names: a function, a file, and a checkpoint of their weights and ranges."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfquant.messages import one_line


def add(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("checkpoint", help="prefix as given to tfquant.save, for example out/model.ckpt-calibrated")
    parser.add_argument(
        "--model", required=True,
        help="the model, built like the saved one: module:function that returns it, a .keras file, or a SavedModel folder",
    )  # fmt: skip


def load(options: argparse.Namespace, rows: Mapping[str, np.ndarray] | None) -> Any:
    """The quantized model that the flags name; `rows` are inputs, for models that do not say what they take."""
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
    if os.path.isdir(source):
        import tensorflow as tf

        return tf.saved_model.load(source)
    if not os.path.isfile(source):
        raise FileNotFoundError(f"--model={source}: there is no such file or folder; a function is written module:function")
    if pathlib.Path(source).suffix != ".keras":
        raise ValueError(f"--model={source}: must be module:function, a .keras file or a SavedModel folder")
    import keras

    try:
        return keras.models.load_model(source, compile=False)
    except (TypeError, ValueError, OSError) as error:  # Keras fills paragraphs with the layer's configuration
        reason = one_line(error, 200)
        raise ValueError(f"--model={source}: Keras cannot load it, use module:function for layers of your own: {reason}") from error


def _called(source: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:
        raise ValueError(f"--model={source}: raised {type(error).__name__}: {one_line(error, 300)}") from error


def _imported(module: str, function: str) -> Any:
    sys.path.insert(0, os.getcwd())  # as `python script.py` would find it
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"--model={module}:{function}: cannot import {error.name}") from error
    except Exception as error:
        raise ValueError(f"--model={module}:{function}: importing {module} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueError(f"--model={module}:{function}: {module} has no function {function}")
    return found

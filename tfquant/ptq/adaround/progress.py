"""Finished layers in a folder, so that a run that was cut off goes on behind the last of them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calib import storage
from fileio.arrays import read_arrays
from fileio.messages import printable
from fileio.reading import parse_json
from tfquant import resume
from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.adaround.report import LayerResult
from tfquant.ptq.layers import Layer

_FINGERPRINT = "adaround.json"


class Progress:
    """A folder with one file a finished layer, or nothing at all.

    Args:
      folder: None keeps nothing.
      fingerprint: see `fingerprint`.

    Raises:
      ValueError: the folder holds another run; the message says what differs.
      OSError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, fingerprint: dict[str, Any]):
        self._folder = None if folder is None else pathlib.Path(folder)
        if self._folder is not None:
            resume.claim(self._folder, _FINGERPRINT, fingerprint, "AdaRound run")

    def load(self, layer: Layer) -> tuple[np.ndarray, LayerResult] | None:
        """Weight and result of a finished layer.

        Raises:
          ValueError: its file is damaged.
        """
        path = self._path(layer)
        if path is None or not path.exists():
            return None
        try:
            arrays = read_arrays(path)
            data = parse_json(arrays["result"].tobytes().decode(), "its result")
            return arrays["weight"], LayerResult(**{**data, "shape": tuple(data["shape"])})
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(
                f"{printable(path)} is damaged ({reason}): remove it, then its layer is rounded"
                " again"
            ) from error

    def save(self, layer: Layer, weight: np.ndarray, result: LayerResult) -> None:
        path = self._path(layer)
        if path is None:
            return
        stream = io.BytesIO()
        text = json.dumps(dataclasses.asdict(result)).encode()
        np.savez(stream, weight=weight, result=np.frombuffer(text, np.uint8))
        storage.write(str(path), stream.getvalue())

    def _path(self, layer: Layer) -> pathlib.Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{resume.file_name(layer.address)}.npz"


def fingerprint(
    engine: Engine,
    layers: Sequence[Layer],
    flats: Sequence[Sequence[tf.Tensor]],
    mask: str | None,
    options: Options,
) -> dict[str, Any]:
    """What decides the result of a run, by name."""
    return {
        **resume.fingerprint(engine, flats),
        "sites": [layer.address for layer in layers],
        "mask": mask,
        **{
            f"option {name}": value
            for name, value in json.loads(json.dumps(dataclasses.asdict(options))).items()
        },
    }

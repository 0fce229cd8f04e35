"""Finished layers in a folder, so that a run that was cut off goes on behind the last of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calib import storage
from tfquant.engine import Engine
from tfquant.messages import one_line
from tfquant.ptq.layers import Layer
from tfquant.ptq.options import Options
from tfquant.ptq.report import LayerResult

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
        if self._folder is None:
            return
        path = self._folder / _FINGERPRINT
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.write(str(path), json.dumps(fingerprint, indent=2).encode())
            return
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove the folder, or name another one") from error
        differing = [name for name in {**fingerprint, **saved} if fingerprint.get(name) != saved.get(name)]
        if differing:
            raise ValueError(f"folder {folder} holds another AdaRound run: {_differences(differing, saved, fingerprint)}; "
                             "remove it, or name another one")  # fmt: skip

    def load(self, layer: Layer) -> tuple[np.ndarray, LayerResult] | None:
        """Weight and result of a finished layer.

        Raises:
          ValueError: its file is damaged.
        """
        path = self._path(layer)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                data = json.loads(file["result"].tobytes().decode())
                return file["weight"], LayerResult(**{**data, "shape": tuple(data["shape"])})
        except Exception as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {one_line(error)}): remove it, then its layer is rounded again"
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
        return self._folder / f"{hashlib.sha256(layer.address.encode()).hexdigest()[:16]}.npz"


def fingerprint(
    engine: Engine, layers: Sequence[Layer], flats: Sequence[Sequence[tf.Tensor]], mask: str | None, options: Options
) -> dict[str, Any]:
    """What decides the result of a run, by name."""
    ends = [end.numpy() if hasattr(end, "numpy") else end for q in engine.quantizers.values() for end in (q.lower, q.upper)]
    return {
        "recipe": _digest([engine.plan.recipe.to_json().encode()]),
        "ranges": _digest(np.ascontiguousarray(end) for end in ends),
        "weights": _digest(np.ascontiguousarray(v.numpy()) for v in engine.inference.variables.values()),
        "data": _digest(np.ascontiguousarray(t.numpy()) for flat in flats for t in flat),
        "sites": [layer.address for layer in layers],
        "mask": mask,
        **{f"option {name}": value for name, value in json.loads(json.dumps(dataclasses.asdict(options))).items()},
    }


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            part = part.view(np.uint8) if part.dtype.kind not in "OUS" and part.ndim else part.tobytes()
        digest.update(part)
    return digest.hexdigest()[:32]


def _differences(names: Sequence[str], saved: dict[str, Any], own: dict[str, Any]) -> str:
    """`option iterations was 1000 and is 500; data differ`."""
    shown = []
    for name in names:
        values = [repr(d.get(name)) for d in (saved, own)]
        hashes = name in ("recipe", "ranges", "weights", "data") or max(map(len, values)) > 60
        shown.append(f"{name} differs" if hashes else f"{name} was {values[0]} and is {values[1]}")
    return ", ".join(shown)

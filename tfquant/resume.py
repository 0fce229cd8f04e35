"""Resumable runs: fingerprint of a run, and cache of its finished results in a folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from fileio.arrays import read_arrays
from fileio.atomic import write_bytes, write_json
from fileio.errors import ContentError
from fileio.messages import printable
from fileio.reading import parse_json, read_json
from tfquant.engine import Engine
from tfquant.error_messages import one_line

T = TypeVar("T")

_VALUES = "result"  # array of an .npz file with the values of JSON, as bytes
_HASHES = ("recipe", "ranges", "weights", "data")


def fingerprint(engine: Engine, flats: Sequence[Sequence[tf.Tensor]]) -> dict[str, Any]:
    """Hash everything that determines the results of a run on a calibrated model, except options.

    Args:
      engine: of the model.
      flats: flat inputs of every batch.
    """
    ends = [
        end.numpy() if hasattr(end, "numpy") else end
        for q in engine.quantizers.values()
        for end in (q.lower, q.upper)
    ]
    return {
        "recipe": digest([engine.plan.recipe.to_json().encode()]),
        "ranges": digest(np.ascontiguousarray(end) for end in ends),
        "weights": digest(
            np.ascontiguousarray(v.numpy()) for v in engine.inference.variables.values()
        ),
        "data": digest(np.ascontiguousarray(t.numpy()) for flat in flats for t in flat),
    }


def digest(parts: Iterable[Any]) -> str:
    """Hexadecimal hash of arrays and bytes, in their order."""
    result = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            result.update(f"{part.dtype}{part.shape}".encode())
            plain = part.dtype.kind not in "OUS" and part.ndim
            part = part.view(np.uint8).data if plain else part.tobytes()
        result.update(part)
    return result.hexdigest()[:32]


def claim(folder: pathlib.Path, file: str, own: Mapping[str, Any], what: str) -> None:
    """Mark a folder as belonging to a run, or check that it does.

    Args:
      folder: made if there is none.
      file: its name in the folder.
      own: the fingerprint, values of JSON.
      what: the run is called, as in `AdaRound run`.

    Raises:
      ValueError: the folder holds another run; the message says what differs.
      OSError: it cannot be written.
    """
    own = json.loads(json.dumps(own))  # as a file gives it back: lists for tuples
    path = folder / file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, own, indent=2)
        return
    try:
        saved = read_json(path)
    except ContentError as error:
        raise ValueError(f"{error}: remove the folder, or name another one") from error
    if not isinstance(saved, dict):
        raise ValueError(
            f"{printable(path)} is damaged (it holds no JSON object): remove the folder, or name"
            " another one"
        )
    differing = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
    if differing:
        raise ValueError(
            f"folder {printable(folder)} holds another {what}:"
            f" {_differences(differing, saved, own)}; remove it, or name another one"
        )


class Results:
    """Result cache of a resumable run: one file per finished result.

    A result is a mapping of values of JSON and arrays; with arrays its file is an `.npz`.

    Args:
      folder, file, own, what: see `claim`; None for `folder` keeps nothing.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, file: str, own: Mapping[str, Any], what: str
    ):
        self._folder = None if folder is None else pathlib.Path(folder)
        if self._folder is not None:
            claim(self._folder, file, own, what)

    def get(self, name: str, make: Callable[[dict[str, Any]], T]) -> T | None:
        """Return a finished result, None if there is none.

        Args:
          name: of the result.
          make: makes the result from what `put` wrote; may raise for what it does not understand.

        Raises:
          ValueError: its file is damaged.
        """
        for suffix, read in ((".json", _read_json), (".npz", _read_arrays)):
            path = self._path(name, suffix)
            if path is None or not path.exists():
                continue
            try:
                return make(read(path))
            except Exception as error:  # a damaged file makes readers raise all kinds of errors
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise ValueError(
                    f"{printable(path)} is damaged ({reason}): remove it, and its result is"
                    " computed again"
                ) from error
        return None

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Write a finished result.

        Raises:
          OSError: it cannot be written.
        """
        arrays = {key: value for key, value in result.items() if isinstance(value, np.ndarray)}
        path = self._path(name, ".npz" if arrays else ".json")
        if path is None:
            return
        if not arrays:
            write_json(path, {"name": name, "result": result})
            return
        text = json.dumps({key: value for key, value in result.items() if key not in arrays})
        stream = io.BytesIO()
        named: dict[str, Any] = {**arrays, _VALUES: np.frombuffer(text.encode(), np.uint8)}
        np.savez(stream, **named)
        write_bytes(path, stream.getvalue())

    def _path(self, name: str, suffix: str) -> pathlib.Path | None:
        if self._folder is None:
            return None
        # Hashed: a name may hold any characters and be longer than file systems allow.
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    result = read_json(path)["result"]
    if not isinstance(result, dict):
        raise ValueError("no JSON object")
    return result


def _read_arrays(path: pathlib.Path) -> dict[str, Any]:
    arrays = read_arrays(path)
    return parse_json(arrays.pop(_VALUES).tobytes().decode(), "its values") | arrays


def _differences(names: Sequence[str], saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Describe differing fields, such as `option iterations was 1000 and is 500; data differ`."""
    shown = []
    for name in names:
        values = [repr(d.get(name)) for d in (saved, own)]
        hashes = name in _HASHES or max(map(len, values)) > 60
        shown.append(f"{name} differs" if hashes else f"{name} was {values[0]} and is {values[1]}")
    return ", ".join(shown)

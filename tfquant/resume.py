"""Long runs that keep what is finished in a folder.

The fingerprint that tells one run from another, and results by name.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fileio.atomic import write_json
from fileio.errors import ContentError
from fileio.messages import printable
from fileio.reading import read_json
from tfquant.engine import Engine

_HASHES = ("recipe", "ranges", "weights", "data")


def fingerprint(engine: Engine, flats: Sequence[Sequence[tf.Tensor]]) -> dict[str, Any]:
    """What decides the result of a run on a calibrated model and data, options apart, by name."""
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
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            part = (
                part.view(np.uint8)
                if part.dtype.kind not in "OUS" and part.ndim
                else part.tobytes()
            )
        found.update(part)
    return found.hexdigest()[:32]


def claim(folder: pathlib.Path, file: str, own: Mapping[str, Any], what: str) -> None:
    """Marks a folder as that of a run, or makes sure that it is.

    Args:
      folder: made if there is none.
      file: its name in the folder.
      own: the fingerprint, values of JSON.
      what: the run is called, as in `AdaRound run`.

    Raises:
      ValueError: the folder holds another run; the message says what differs.
      OSError: it cannot be written.
    """
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


def file_name(name: str) -> str:
    """A short name for the file of what may be called anything."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


class Results:
    """A folder with one JSON file a result, or nothing at all.

    Args:
      folder, file, own, what: see `claim`; None for `folder` keeps nothing.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, file: str, own: Mapping[str, Any], what: str
    ):
        self._folder = None if folder is None else pathlib.Path(folder)
        if self._folder is not None:
            claim(self._folder, file, own, what)

    def get(self, name: str) -> dict[str, Any] | None:
        """The result of that name, None if it is not finished.

        Raises:
          ValueError: its file is damaged.
        """
        if self._folder is None or not (path := self._path(name)).exists():
            return None
        try:
            result = read_json(path)["result"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = type(error).__name__
            raise ValueError(
                f"{printable(path)} is damaged ({reason}): remove it, and it is measured again"
            ) from error
        if not isinstance(result, dict):
            raise ValueError(
                f"{printable(path)} is damaged (no JSON object): remove it, and it is measured"
                " again"
            )
        return result

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        if self._folder is not None:
            write_json(self._path(name), {"name": name, "result": result})

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{file_name(name)}.json"


def _differences(names: Sequence[str], saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """`option iterations was 1000 and is 500; data differ`."""
    shown = []
    for name in names:
        values = [repr(d.get(name)) for d in (saved, own)]
        hashes = name in _HASHES or max(map(len, values)) > 60
        shown.append(f"{name} differs" if hashes else f"{name} was {values[0]} and is {values[1]}")
    return ", ".join(shown)

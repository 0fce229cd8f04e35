"""Layers that a method of rounding weights has finished, kept in a folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant import resume
from tfquant.engine import Engine
from tfquant.ptq.layers import Layer


def opened(
    folder: str | os.PathLike[str] | None,
    method: str,
    engine: Engine,
    flats: Sequence[Sequence[tf.Tensor]],
    layers: Sequence[Layer],
    mask: str | Sequence[str] | None,
    options: Any,
) -> resume.Results:
    """Open the results of a run.

    Args:
      folder: where they lie; None keeps nothing.
      method: its name.
      engine: of the model.
      flats: flat inputs of every batch.
      layers: that are rounded.
      mask: as the method was called.
      options: dataclass of the method.

    Raises:
      ValueError: the folder holds another run.
    """
    if folder is None:
        return resume.Results(None, "", {}, "")
    own = {
        **resume.fingerprint(engine, flats),
        "sites": [layer.address for layer in layers],
        "mask": mask,
        **{f"option {name}": value for name, value in dataclasses.asdict(options).items()},
    }
    return resume.Results(folder, f"{method.lower()}.json", own, f"{method} run")


def stored(weight: np.ndarray, result: Any) -> dict[str, Any]:
    """What is kept of a layer: its weight and the fields of its result."""
    return {"weight": weight, **dataclasses.asdict(result)}


def read(saved: dict[str, Any], result: type) -> tuple[np.ndarray, Any]:
    """Weight and result of what `stored` returned."""
    weight = saved.pop("weight")
    return weight, result(**{**saved, "shape": tuple(saved["shape"])})

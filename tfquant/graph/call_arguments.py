"""Arguments of `call` of a Keras layer.

Distinguishes a batch of one input structure from a batch of several arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tfquant.graph.arguments import ArgumentError, Arguments


def inputs_of_pair(model, batch: Any) -> Any:
    """Extract the inputs of a first batch, which may be (inputs, targets) or (inputs, targets,
    weights), for a Keras model.
    """
    if not isinstance(batch, (tuple, list)) or not (isinstance(batch, tuple) or len(batch) > 1):
        return batch
    needed = _needed_arguments(model)
    if len(needed) > 1:
        nested = (
            isinstance(batch[0], (tuple, list))
            and len(batch[0]) == len(needed)
            or isinstance(batch[0], Mapping)
        )
        return batch[0] if nested else batch
    return batch[0] if isinstance(batch, tuple) and len(batch) in (2, 3) else batch


def _needed_arguments(model) -> list[str]:
    """Parameters of `call` without a default, `training` and `mask` left out."""
    parameters = inspect.signature(model.call).parameters.values()
    specified = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in specified and p.name not in ("training", "mask")
    ]


def call_arguments(model, batch) -> Arguments | None:
    """Signature of the call of a layer with several tensor arguments; None for one that takes its
    inputs as one structure.

    Args:
      model: a layer or subclassed model.
      batch: of arrays or specs: a tuple of arguments where `call` has several without a default, or
        a mapping with their names; anything else is the first argument.

    Raises:
      ArgumentError: `call` has several arguments without a default, and the batch does not hold
        them.
    """
    signature = inspect.signature(model.call)
    needed, names = _needed_arguments(model), set(signature.parameters) - {"training"}
    by_name = (
        isinstance(batch, Mapping)
        and bool(batch)
        and set(batch) <= names
        and set(needed) <= set(batch)
    )
    if (
        len(needed) > 1
        and not by_name
        and not (isinstance(batch, (tuple, list)) and len(batch) == len(needed))
    ):
        raise ArgumentError(
            f"call of {type(model).__name__} {model.name!r} takes {', '.join(needed)}: give a batch"
            " as a tuple of them, or as a mapping with their names"
        )
    if len(needed) <= 1 and not by_name:
        return None
    return Arguments.bound(
        f"{model.name}.call", signature, dict(batch) if by_name else tuple(batch)
    )

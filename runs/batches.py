"""Arrays of a batch by name."""

from collections.abc import Mapping
from typing import Any

INPUTS = ("input_ids", "input_mask", "segment_ids")  # of every model


def only(batch: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arrays of a batch with these names."""
    return {name: batch[name] for name in names}

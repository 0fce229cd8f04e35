"""What of a batch something is given."""

from collections.abc import Mapping
from typing import Any


def only(batch: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: batch[name] for name in names}

"""Number formats by name. One file a family; a format turns a name in a recipe into the levels a value may take."""

from tfquant.formats.integer import IntegerFormat
from tfquant.messages import shown

__all__ = ["IntegerFormat", "get"]


def get(name: str) -> IntegerFormat:
    """Returns the format called `name`, for example `"int8"`.

    Raises:
      ValueError: no family knows the name; the message lists what exists.
    """
    found = IntegerFormat.parse(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"unknown number format {shown(name)}; known: int2 ... int16")
    return found

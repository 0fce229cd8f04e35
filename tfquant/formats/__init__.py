"""Number formats by name, one file a family; `tfquant.formats.contract` says what a format is."""

from __future__ import annotations

from calib.codebook import Codebook, UniformCodebook
from tfquant.formats.contract import Format
from tfquant.formats.integer import KNOWN, IntegerFormat
from tfquant.messages import shown

__all__ = ["Format", "IntegerFormat", "get", "of"]


def get(name: str) -> Format:
    """The format called `name`, for example `"int8"`.

    Raises:
      ValueError: no family knows the name; the message lists what exists.
    """
    found = IntegerFormat.parse(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"unknown number format {shown(name)}; known: {KNOWN}")
    return found


def of(codebook: Codebook) -> Format:
    """The format that a codebook belongs to."""
    if isinstance(codebook, UniformCodebook):
        return IntegerFormat((codebook.num_codes - 1).bit_length())
    return get(codebook.name)

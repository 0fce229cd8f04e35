"""Number formats by name, one file per family, see `tfquant.formats.contract`."""

from __future__ import annotations

from calib.codebook import Codebook, ScaledCodebook
from tfquant.error_messages import shown
from tfquant.formats import floating, integer, normal_float, posit, powers_of_two
from tfquant.formats.contract import Format
from tfquant.formats.floating import FloatFormat
from tfquant.formats.integer import IntegerFormat

__all__ = ["FloatFormat", "Format", "IntegerFormat", "get", "of"]

_FAMILIES = (integer, floating, posit, normal_float, powers_of_two)


def get(name: str) -> Format:
    """Return the format called `name`, for example `"int8"` or `"e4m3"`.

    Raises:
      ValueError: no family knows the name; the message lists what exists.
    """
    for family in _FAMILIES if isinstance(name, str) else ():
        format = family.parse(name)
        if format is not None:
            return format
    known = ", ".join(family.KNOWN for family in _FAMILIES)
    raise ValueError(f"unknown number format {shown(name)}; known: {known}")


def of(codebook: Codebook) -> Format:
    """Return the format of a codebook."""
    if isinstance(codebook, ScaledCodebook):
        return get(codebook.name)
    return IntegerFormat((codebook.num_codes - 1).bit_length())

"""Number formats by name, one file per family, see `tfquant.formats.contract`."""

from __future__ import annotations

from typing import Any

from calib.codebook import Codebook, ScaledCodebook
from tfquant.error_messages import shown
from tfquant.formats import (
    binary,
    floating,
    incremental,
    integer,
    multi_bit,
    normal_float,
    posit,
    powers_of_two,
    ternary,
)
from tfquant.formats.contract import FittedFormat, Format
from tfquant.formats.fitted import FittedCodebook
from tfquant.formats.floating import FloatFormat
from tfquant.formats.integer import IntegerFormat

__all__ = [
    "FittedFormat",
    "FloatFormat",
    "Format",
    "IntegerFormat",
    "fitted_format",
    "get",
    "of",
]

_FAMILIES = (
    *(integer, floating, posit, normal_float, powers_of_two, incremental),
    *(binary, ternary, multi_bit),
)


def get(name: str) -> Format | FittedFormat:
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


def fitted_format(name: str) -> FittedFormat | None:
    """Return the format called `name` if its values are fitted to the tensor, else None."""
    format: Any = get(name)
    return format if format.kind == "fitted" else None


def of(codebook: Codebook) -> Format:
    """Return the format of a codebook.

    Raises:
      TypeError: the values are fitted to the tensor.
    """
    if isinstance(codebook, FittedCodebook):
        raise TypeError(f"the values of {codebook.name} are fitted to the tensor")
    if isinstance(codebook, ScaledCodebook):
        format: Any = get(codebook.name)
        return format
    return IntegerFormat((codebook.num_codes - 1).bit_length())

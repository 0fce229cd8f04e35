"""Names of combinations of a number format, a layout and a scale.

The microscaling formats of the Open Compute Project: blocks of 32 elements, which share a power of
two of 8 bits. In a spec, `format: mxfp4` stands for the fields listed here; fields that are given
beside it take precedence.
"""

from __future__ import annotations

from typing import Any

_MICROSCALING = {
    "granularity": "per_block",
    "block_size": 32,
    "source": "dynamic",
    "scale_format": "e8m0",
}
# Name -> (number format, fields of a spec).
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "mxfp8": ("e4m3", _MICROSCALING),
    "mxfp8_e5m2": ("e5m2", _MICROSCALING),
    "mxfp6": ("e2m3", _MICROSCALING),
    "mxfp6_e3m2": ("e3m2", _MICROSCALING),
    "mxfp4": ("e2m1", _MICROSCALING),
    "mxint8": ("int8", _MICROSCALING),
}

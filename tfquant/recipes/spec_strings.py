"""Short spec strings of the literature, such as `posit8_1,qs=per_tensor_symmetric,qmax=64,ahl=10`.

    spec := dtype ("," key "=" value)*

Data types are the number formats of this library, and their names in the source: `fp8_e4m3`,
`fp8.e4m3`, `fp6_e3m2`, `uint8`. Keys, with their short forms:

    qscheme, qs             per_tensor_symmetric, per_channel_symmetric, microscaling
    quant_max, qmax         what the largest magnitude is mapped to
    amax_history_len, ahl   number of steps that a delayed scale looks back
    ch_axis, ax             axis of the channels: 0 of a weight, -1 of an activation
    block_size, bs          number of elements of a block
    scale_dtype, scale      number format of the scale

Without `qs` there is no scale: values are rounded to those of the data type themselves. With
`per_tensor_symmetric` and `per_channel_symmetric` the scale is delayed (`tfquant.delayed`), with
`microscaling` it is that of each block along the axis that a product sums over (ax=-1 or -2 there,
as weights and operands lie in the source). Gradients pass as through the identity, as in the
source.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators", and
its code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tfquant.error_messages import shown
from tfquant.recipes import combinations

if TYPE_CHECKING:
    from tfquant.spec import QuantSpec

SCHEMES = ("per_tensor_symmetric", "per_channel_symmetric", "microscaling")
_KEYS = {
    "qscheme": "qs",
    "quant_max": "qmax",
    "amax_history_len": "ahl",
    "ch_axis": "ax",
    "block_size": "bs",
    "scale_dtype": "scale",
}
_SHORT = tuple(_KEYS.values())
_FLOAT = re.compile(r"fp([0-9]+)[_.]e([0-9])m([0-9])")
_SCALE_FORMATS = {"e8m0": "e8m0", "fp8_e8m0": "e8m0", "fp8_e5m3": "e5m3", "e5m3": "e5m3"}


def parse_spec(text: str, *, power_of_two: bool = False) -> QuantSpec:
    """Return the spec that a string describes.

    Args:
      text: see the module; letters of any case.
      power_of_two: whether scales are rounded up to powers of two (`--force_scale_power_of_two`);
        of blocks down, as the Open Compute Project's are.

    Raises:
      ValueError: unknown data type, key or value; the message lists the valid ones.
    """
    from tfquant.spec import QuantSpec

    if not isinstance(text, str):
        raise ValueError(f"a quantization spec is a string such as 'int8', got {shown(text)}")
    dtype, *options = (part.strip() for part in text.lower().split(","))
    where = f"quantization spec {shown(text)}"
    values = _options(options, where)
    try:
        format, fields = _format(dtype)
        if format not in combinations.NAMES:
            fields |= _scaling(values, power_of_two, where)
        elif values:
            raise ValueError(f"{dtype} has a scale of its own: leave out {', '.join(values)}")
        return QuantSpec(format, ste="identity", **fields)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


def _options(options: list[str], where: str) -> dict[str, str]:
    """Map short key -> value."""
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        short = _KEYS.get(key, key)
        if not equals and short in _SHORT:
            raise ValueError(f"{where}: {key} has no value; write {key}=value")
        if not equals or short not in _SHORT:
            known = ", ".join(f"{long} ({short})" for long, short in _KEYS.items())
            raise ValueError(f"{where}: unknown key {shown(key)}; write key=value with {known}")
        if short in values:
            raise ValueError(f"{where}: {key} occurs twice")
        values[short] = value
    return values


def _format(dtype: str) -> tuple[str, dict[str, Any]]:
    """Name of a number format, and fields that its kind of name sets."""
    from tfquant import formats

    if dtype in combinations.NAMES:
        return dtype, {}
    name = dtype
    if match := _FLOAT.fullmatch(dtype):
        bits, exponent, mantissa = (int(number) for number in match.groups())
        if bits != 1 + exponent + mantissa:
            raise ValueError(
                f"data type {dtype!r} has {1 + exponent + mantissa} bits with its sign, not {bits}"
            )
        name = f"e{exponent}m{mantissa}"
    fields: dict[str, Any] = {}
    if match := re.fullmatch(r"(u?)(int[0-9]+)", dtype):
        name = match[2]
        fields = {"unsigned": True} if match[1] else {"narrow_range": False}
    formats.get(name)
    return name, fields


def _scaling(values: dict[str, str], power_of_two: bool, where: str) -> dict[str, Any]:
    """Fields of layout and scale."""
    scheme = values.pop("qs", None)
    if scheme is None:
        if values:
            raise ValueError(f"{where}: {', '.join(values)} needs qs, one of {', '.join(SCHEMES)}")
        return {"source": "none"}
    if scheme not in SCHEMES:
        raise ValueError(f"{where}: unknown qs {shown(scheme)}; known: {', '.join(SCHEMES)}")
    allowed = {
        "per_tensor_symmetric": ("qmax", "ahl"),
        "per_channel_symmetric": ("qmax", "ahl", "ax"),
        "microscaling": ("qmax", "ax", "bs", "scale"),
    }[scheme]
    wrong = [key for key in values if key not in allowed]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} does not belong to qs={scheme}")
    fields: dict[str, Any] = {}
    if "qmax" in values:
        fields["quant_max"] = _number(values["qmax"], float, "qmax", where)
    if scheme == "microscaling":
        return fields | _blocks(values, power_of_two, where)
    fields |= {"source": "delayed", "history": _number(values.get("ahl", "50"), int, "ahl", where)}
    if power_of_two:
        fields["scale_format"] = "power_of_two"
    if scheme == "per_channel_symmetric":
        fields["granularity"] = _channels(values, where)
    return fields


def _channels(values: dict[str, str], where: str) -> str:
    """Granularity of one scale per channel: of a weight, or of the last axis of an activation."""
    axis = _number(values.get("ax", "0"), int, "ax", where)
    if axis == -1:
        return "per_embedding"
    if axis == 0:
        return "per_channel"
    raise ValueError(
        f"{where}: ax={axis} is not supported: 0 for the output channels of weights, -1 for the"
        " last axis of activations"
    )


def _blocks(values: dict[str, str], power_of_two: bool, where: str) -> dict[str, Any]:
    if "bs" not in values:
        raise ValueError(f"{where}: qs=microscaling needs bs, the number of elements of a block")
    scale = values.get("scale")
    if scale is not None and scale not in _SCALE_FORMATS:
        raise ValueError(
            f"{where}: unknown scale {shown(scale)}; known: {', '.join(_SCALE_FORMATS)}"
        )
    fields: dict[str, Any] = {
        "granularity": "per_block",
        "source": "dynamic",
        "block_size": _number(values["bs"], int, "bs", where),
        "scale_format": "e8m0" if power_of_two else _SCALE_FORMATS.get(scale or "", "float32"),
    }
    axis = _number(values.get("ax", "-1"), int, "ax", where)
    if axis not in (-1, -2):
        raise ValueError(
            f"{where}: ax={axis} is not supported: blocks lie along the axis that a product sums"
            " over, ax=-1 or ax=-2 in this notation; set block_axis in a recipe for another"
        )
    return fields


def _number(text: str, kind: type, key: str, where: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"{where}: {key} must be {what}, got {shown(text)}") from None

"""Bit packing: dense storage of codes of 1 to 16 bits, and safetensors files of packed arrays.

The meaning of the tensors and texts in a file is up to its writer; a checksum covers both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from calib.codebook import UniformCodebook
from fileio.atomic import replacing
from fileio.errors import ContentError, WriteError
from fileio.messages import printable
from fileio.reading import check_regular
from tfquant import formats
from tfquant.checkpoint import CheckpointError
from tfquant.error_messages import one_line
from tfquant.formats import multi_bit
from tfquant.quantized_array import FittedArray, QuantizedArray, QuantParams
from tfquant.scale import Scale

MAX_BITS = 16
CHECKSUM = "sha256"
# Codes that are spread to bits at once: memory stays small, and every chunk but the last ends with
# a byte.
_CHUNK = 1 << 20
_E8M0_BIAS = 127


def packed_size(count: int, bits: int) -> int:
    """Size in bytes of `count` packed codes of `bits` bits."""
    return (count * bits + 7) // 8


def pack(codes: Any, bits: int) -> np.ndarray:
    """Pack codes densely, in row-major order.

    The lowest bit of a code comes first, into the lowest bit of a byte that is free; what is left
    of the last byte is 0.

    Args:
      codes: integers from 0 to 2**bits - 1, of any shape.
      bits: of one code, 1 to 16.

    Returns:
      uint8 of shape [packed_size].

    Raises:
      ValueError: a code does not fit, `codes` are no integers, or there is no such number of bits.
    """
    _check_bits(bits)
    flat = np.asarray(codes).reshape(-1)
    if flat.dtype.kind not in "iu":
        raise ValueError(f"codes are {flat.dtype.name}, must be integers")
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(
            f"codes {flat.min()}..{flat.max()} do not fit into {bits} bits: must lie in"
            f" 0..{2**bits - 1}"
        )
    packed = np.empty(packed_size(flat.size, bits), np.uint8)
    for start in range(0, flat.size, _CHUNK):
        chunk = (
            np.ascontiguousarray(flat[start : start + _CHUNK], "<u2").view(np.uint8).reshape(-1, 2)
        )
        spread = np.unpackbits(chunk, axis=1, bitorder="little")[:, :bits]
        first = start * bits // 8
        packed[first : first + packed_size(len(chunk), bits)] = np.packbits(
            spread, bitorder="little"
        )
    return packed


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unpack codes of `pack`; uint16 of `shape`.

    Raises:
      ValueError: `packed` are not the bytes of so many codes.
    """
    _check_bits(bits)
    count = math.prod(shape)
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.shape != (packed_size(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bits are uint8 of shape [{packed_size(count, bits)}], got"
            f" {packed.dtype.name} of shape {list(packed.shape)}"
        )
    codes = np.empty(count, np.uint16)
    for start in range(0, count, _CHUNK):
        size, first = min(_CHUNK, count - start), start * bits // 8
        chunk = packed[first : first + packed_size(size, bits)]
        spread = np.zeros((size, MAX_BITS), np.uint8)
        spread[:, :bits] = np.unpackbits(chunk, count=size * bits, bitorder="little").reshape(
            size, bits
        )
        codes[start : start + size] = np.packbits(spread, axis=1, bitorder="little").view("<u2")[
            :, 0
        ]
    return codes.reshape(shape)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"codes of {bits} bits: must be 1 to {MAX_BITS}")


def pack_array(
    array: QuantizedArray | FittedArray,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors and attributes that store a quantized array.

    Returns:
      Of a fitted array, (`codes` and `levels`, or `coefficients` of multi-bit codes; `bits`, the
      name of the `format` and `blocks`, if any). Of others,
      (tensors, attributes): `codes`, bits of code - smallest code; `scale`; and `zero` where the
      codebook is asymmetric, integers like `scale`. And, for JSON, `bits` of one code, `axes` with
      scales of their own, and `qmin`, the smallest code, of integers or else the name of the
      `format`; `blocks`, (axis, number of elements), where these share a scale, of which powers of
      two are stored as uint8 exponents with the bias 127.
    """
    if isinstance(array, FittedArray):
        tensors = _fitted_tensors(array)
        attributes = {"bits": array.bits, "format": array.format}
        return tensors, attributes | ({"blocks": array.blocks} if array.blocks else {})
    params, bits = array.params, array.params.format.bits
    attributes: dict[str, Any] = {"bits": bits}
    if params.codebook.uniform:
        attributes["qmin"] = params.integers.qmin
    else:
        attributes["format"] = params.format.name
    tensors = {"codes": pack(array.codes - attributes.get("qmin", 0), bits), "scale": params.scale}
    if params.blocks is not None:
        attributes["blocks"] = params.blocks
        exponents = np.log2(params.scale)
        if (exponents == np.rint(exponents)).all():  # as microscaling formats store them
            tensors["scale"] = (exponents + _E8M0_BIAS).astype(np.uint8)
    if not params.codebook.symmetric:
        tensors["zero"] = params.zero.astype(np.uint8 if bits <= 8 else np.uint16)
    return tensors, attributes | {"axes": params.axes}


def _fitted_tensors(array: FittedArray) -> dict[str, np.ndarray]:
    """Codes and levels; of multi-bit codes, where they are sums of k coefficients bit for bit, the
    signs and these.
    """
    scales = multi_bit.scales_of(array.levels) if multi_bit.parse(array.format) else None
    if scales is None:
        return {"codes": pack(array.codes, array.bits), "levels": array.levels}
    places = np.argsort(multi_bit.signed_sums(scales), -1, kind="stable")
    by_place = dataclasses.replace(array, levels=places)
    return {"codes": pack(by_place.values(), array.bits), "coefficients": scales}


def unpack_array(
    tensors: Mapping[str, np.ndarray], attributes: Mapping[str, Any], shape: tuple[int, ...]
) -> QuantizedArray | FittedArray:
    """Rebuild a quantized array from the result of `pack_array`.

    Args:
      tensors: by name; `zero` may be missing, `levels` or `coefficients` are those of a fitted
        array.
      attributes: of `pack_array`.
      shape: of the array.

    Raises:
      ValueError: `tensors` are not of such an array, or there are no such codes.
    """
    bits, zero = attributes["bits"], tensors.get("zero")
    codes = unpack(tensors["codes"], bits, shape).astype(np.int32)
    if "coefficients" in tensors:
        return _fitted_array(codes, multi_bit.signed_sums(tensors["coefficients"]), attributes)
    if "levels" in tensors:
        return _fitted_array(codes, tensors["levels"], attributes)
    axes = tuple(attributes["axes"])
    if "format" in attributes:
        codebook = formats.get(attributes["format"]).codebook(Scale())
    else:
        codes += attributes["qmin"]
        codebook = _integers(bits, attributes["qmin"], symmetric=zero is None)
    scale, blocks = tensors["scale"], attributes.get("blocks")
    if scale.dtype == np.uint8:
        scale = np.ldexp(np.float32(1), scale.astype(np.int32) - _E8M0_BIAS)
    zeros = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    blocks = None if blocks is None else (blocks[0], blocks[1])
    return QuantizedArray(codes, QuantParams(scale, zeros, codebook, axes, blocks))


def _fitted_array(
    codes: np.ndarray, levels: np.ndarray, attributes: Mapping[str, Any]
) -> FittedArray:
    """Fitted array of a file.

    Raises:
      ValueError: the levels do not fit the codes.
    """
    blocks, sizes = attributes.get("blocks"), list(codes.shape)
    if blocks is not None:
        sizes[blocks[0]] = -(-sizes[blocks[0]] // blocks[1])
    groups = zip(levels.shape, sizes, strict=False)
    fits = levels.ndim == codes.ndim + 1 and all(own in (1, size) for own, size in groups)
    fits = fits and (blocks is None or levels.shape[blocks[0]] == sizes[blocks[0]])
    if not fits or levels.dtype != np.float32 or codes.max(initial=0) >= levels.shape[-1]:
        raise ValueError(
            f"levels of {levels.dtype.name} {list(levels.shape)} do not fit codes of shape"
            f" {list(codes.shape)} up to {codes.max(initial=0)}"
        )
    blocks = None if blocks is None else (blocks[0], blocks[1])
    return FittedArray(codes, levels, attributes["format"], attributes["bits"], blocks)


def _integers(bits: int, qmin: int, symmetric: bool) -> UniformCodebook:
    """Uniform codebook of a file, whose largest code follows from the smallest."""
    narrow = symmetric and qmin == 1 - 2 ** (bits - 1)
    return UniformCodebook(qmin, qmin + 2**bits - (2 if narrow else 1), symmetric)


def write_file(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> None:
    """Write a safetensors file with `texts` and a checksum as metadata.

    Raises:
      CheckpointError: it could not be written.
    """
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(dense, temporary, {**texts, CHECKSUM: _checksum(dense, texts)})
    except WriteError as error:
        raise CheckpointError(str(error)) from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {printable(path)}: {one_line(error)}") from error


def read_file(
    path: str | os.PathLike, marks: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read tensors and texts of a file of `write_file`.

    Args:
      path: of the file.
      marks: texts that it must have.

    Raises:
      FileNotFoundError: no such file.
      CheckpointError: it is damaged.
      ValueError: it has not the marks.
    """
    try:
        check_regular(path)
    except ContentError as error:
        raise CheckpointError(
            f"{printable(path)} is damaged, or no safetensors file: {error}"
        ) from error
    try:
        with safe_open(path, framework="np") as file:
            texts = file.metadata() or {}
            for name, mark in marks.items():
                if texts.get(name) != mark:
                    raise ValueError(
                        f"{path}: {name} is {texts.get(name)!r}, not {mark!r}: another program or"
                        " version wrote it"
                    )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path)} is damaged, or no safetensors file: {one_line(error)}"
        ) from error
    if texts.pop(CHECKSUM, None) != _checksum(tensors, texts):
        raise CheckpointError(
            f"{path} is damaged: its contents do not have its checksum. Restore the file or write"
            " it again"
        )
    return tensors, texts


def _checksum(tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    """SHA-256 over a line `<name> <type> <shape>` and the bytes of each tensor, then a line `<name>
    <text>` of each text, sorted by name.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype.name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].tobytes())
    for name in sorted(texts):
        digest.update(f"{name} {texts[name]}\n".encode())
    return digest.hexdigest()

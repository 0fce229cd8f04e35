"""Calibration file format.

A .npz archive with a JSON header and the arrays of every site; never a pickle.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from calib.errors import CalibrationFileError
from calib.grouping import Grouping
from calib.statistics import DECAY, Histogram, Statistics
from fileio.arrays import parse_arrays
from fileio.atomic import write_bytes
from fileio.errors import ContentError, WriteError
from fileio.messages import printable
from fileio.reading import parse_json, read_bytes

KIND = "tfquant calibration"
VERSION = 1
_EXTREMES = ("minimum", "maximum")
_OPTIONAL = ("ema_minimum", "ema_maximum", "rows", "tokens")
_PARSER_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)


def pack(sites: Mapping[str, Any], samples: int, dimensions: Mapping[str, Statistics]) -> bytes:
    """Serialize a calibration as the bytes of its file."""
    entries, arrays = [], {}
    for index, (address, site) in enumerate(sites.items()):
        stats = site.statistics
        entry = {
            "address": address,
            "method": site.method.to_dict(),
            "grid": site.codebook.to_dict(),
            "count": stats.count,
            "batches": stats.batches,
            "constant": stats.constant,
            "ema_decay": stats.ema_decay,
        }
        named = {
            "lower": site.lower,
            "upper": site.upper,
            "minimum": stats.minimum,
            "maximum": stats.maximum,
        }
        named |= {
            name: getattr(stats, name) for name in _OPTIONAL if getattr(stats, name) is not None
        }
        if stats.histogram is not None:
            entry["histogram"] = {
                "bin_width": stats.histogram.bin_width,
                "signed": stats.histogram.signed,
            }
            named["counts"] = stats.histogram.counts
        if site.grouping is not None:
            entry["grouping"] = site.grouping.to_dict()
            named["group_of"] = site.grouping.group_of
        entries.append(entry)
        arrays |= {f"{index}/{name}": array for name, array in named.items()}
    header = {"kind": KIND, "version": VERSION, "samples": samples, "sites": entries}
    if dimensions:
        header["dimensions"] = [
            {"address": address, "count": stats.count, "batches": stats.batches}
            for address, stats in dimensions.items()
        ]
        for index, stats in enumerate(dimensions.values()):
            arrays |= {f"dimensions/{index}/{name}": getattr(stats, name) for name in _EXTREMES}
    stream = io.BytesIO()
    np.savez_compressed(
        stream, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays
    )
    return stream.getvalue()


def unpack(data: bytes, source: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Parse a calibration file into (header, arrays)."""
    with damage(source):
        arrays = parse_arrays(data, "its archive")
        header = parse_json(arrays.pop("header").tobytes().decode(), "its header")
        kind, version = header["kind"], header["version"]
    if kind != KIND:
        raise CalibrationFileError(f"{source}: not a calibration file")
    if version != VERSION:
        raise CalibrationFileError(
            f"{source}: calibration file of version {version}, this program reads version"
            f" {VERSION}; calibrate again"
        )
    return header, arrays


def read_statistics(entry: Mapping, arrays: Mapping[str, np.ndarray], index: int) -> Statistics:
    """Read the statistics of site number ``index``."""
    histogram = None
    if "histogram" in entry:
        histogram = Histogram(arrays[f"{index}/counts"], **entry["histogram"])
    return Statistics(
        minimum=arrays[f"{index}/minimum"],
        maximum=arrays[f"{index}/maximum"],
        count=entry["count"],
        batches=entry["batches"],
        histogram=histogram,
        constant=entry["constant"],
        ema_decay=entry.get("ema_decay", DECAY),  # files of before it could be chosen
        **{name: arrays.get(f"{index}/{name}") for name in _OPTIONAL},
    )


def read_grouping(entry: Mapping, arrays: Mapping[str, np.ndarray], index: int) -> Grouping | None:
    """Read the groups of the dimensions of site number ``index``; None if it has none."""
    return (
        Grouping.from_dict(entry["grouping"], arrays[f"{index}/group_of"])
        if "grouping" in entry
        else None
    )


def read_dimensions(header: Mapping, arrays: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    """Read the statistics of dimensions that are stored beside the sites, by address."""
    result = {}
    for index, entry in enumerate(header.get("dimensions", [])):
        minimum, maximum = (arrays[f"dimensions/{index}/{name}"] for name in _EXTREMES)
        result[entry["address"]] = Statistics(minimum, maximum, entry["count"], entry["batches"])
    return result


@contextlib.contextmanager
def damage(source: str) -> Iterator[None]:
    """Convert any exception of the parsers on a damaged file into one CalibrationFileError."""
    try:
        yield
    except CalibrationFileError:
        raise
    except _PARSER_ERRORS as error:
        raise CalibrationFileError(
            f"{printable(source)}: damaged or not a calibration file ({type(error).__name__}:"
            f" {printable(error)}); calibrate again"
        ) from error


def read(path: str) -> bytes:
    """Read the content of ``path``; raise FileNotFoundError if there is none."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{printable(path)}: no such calibration file; check the path or calibrate first"
        )
    try:
        return read_bytes(path)
    except ContentError as error:
        raise CalibrationFileError(str(error)) from error


def write(path: str, data: bytes) -> None:
    """Write ``data`` atomically: ``path`` holds either its old content or all of the new, also
    after a crash.
    """
    try:
        write_bytes(path, data)
    except WriteError as error:
        raise CalibrationFileError(
            f"{printable(path)}: cannot be written ({error.reason}); check that the folder exists,"
            " may be written and has room"
        ) from error

"""Sums of two 8-bit products that overflow 16 bits, on x86 processors without VNNI: what to tell
the user, and where.
"""

from __future__ import annotations

import pathlib

from tfquant.export.request import ExportRequest
from tfquant.site import Site

_NOTES = {
    "onnxruntime": (
        "open it with the session option session.x64quantprecision=1 or other answers come out"
    ),
    "openvino": (
        "quantize weights with 7 bits for such processors: recipe.with_spec(roles=['weight'],"
        " format='int7')"
    ),
}


def note(request: ExportRequest, runtime: str) -> str:
    """Return a note for a file on a processor like this one; empty where nothing overflows."""
    if (
        runtime not in _NOTES
        or not _lacks_vnni()
        or not any(_is_wide(site) for site in request.sites())
    ):
        return ""
    return (
        f"this processor has no VNNI, where sums of two 8-bit products overflow: {_NOTES[runtime]}"
    )


def _is_wide(site: Site) -> bool:
    """Whether a parameter has codes of 8 bits; those of 7 cannot overflow."""
    codebook = site.spec.codebook
    return site.is_weight and codebook.uniform and codebook.quant_max > 64


def _lacks_vnni() -> bool:
    flags = _processor_flags()
    return "avx2" in flags and not any("vnni" in flag or flag == "amx_int8" for flag in flags)


def _processor_flags() -> set[str]:
    """Return the processor flags of Linux; empty on other systems."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(
        next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split()
    )

"""Export.

A quantized model as a file that an integer runtime takes, checked against the simulation.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfquant.export.exporting import (
        KINDS,
        TARGETS,
        Exported,
        ExportError,
        MismatchError,
        OutputAgreement,
        ParityReport,
        compare,
        export,
    )

__all__ = [
    "KINDS",
    "TARGETS",
    "ParityReport",
    "ExportError",
    "Exported",
    "MismatchError",
    "OutputAgreement",
    "compare",
    "export",
]


def __getattr__(name: str) -> Any:
    """Return a public name; TensorFlow is imported with the first one."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.exporting"), name)

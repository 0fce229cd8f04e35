"""Package versions for results."""

import importlib.metadata
import platform

PACKAGES = ("tfquant", "tensorflow", "keras", "numpy", "tokenizers")


def versions(*more: str) -> dict[str, str]:
    """Return package -> version, of those that all scripts use and `more`, and of Python."""
    return {name: importlib.metadata.version(name) for name in (*PACKAGES, *more)} | {
        "python": platform.python_version()
    }

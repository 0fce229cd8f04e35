"""Packages that import their public names, and what these need, when the first one is used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any


def lazy_names(namespace: dict[str, Any]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package whose public names are those of its module `public`.

    Args:
      namespace: `globals()` of the package; all public names are put there with the first one.
    """
    package = namespace["__name__"]

    def find(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        public = importlib.import_module(f"{package}.public")
        result = getattr(public, name)
        namespace.update({one: getattr(public, one) for one in public.__all__})
        return result

    return find

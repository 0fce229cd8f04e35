"""GLUE: the nine tasks, reading, features, batches, scores, and a generated data set of the same form."""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.glue.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Return a module or a public name; all public names are imported with the first one."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    public = importlib.import_module(f"{__name__}.public")
    found = getattr(public, name)
    globals().update({one: getattr(public, one) for one in public.__all__})
    return found

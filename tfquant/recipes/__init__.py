"""Named recipes, one YAML file each."""

from __future__ import annotations

import pathlib

from tfquant.spec import Recipe

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """All named recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe(name: str) -> Recipe:
    """Returns a named recipe, for example `"int8_residual_float"`.

    Raises:
      ValueError: there is none of that name; the message lists them.
    """
    if name not in names():
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(names())} (a file is read with Recipe.load)")
    return Recipe.load(_FOLDER / f"{name}.yaml")

"""Named recipes, one YAML file each."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from fileio.messages import printable

if TYPE_CHECKING:
    from tfquant.rules import Recipe

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """All named recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe(name: str) -> Recipe:
    """Returns a named recipe, for example `"int8_residual_float"`, or reads a recipe file.

    Args:
      name: one of `names()`, or a path that ends in .yaml, .yml or .json.

    Raises:
      ValueError: there is none of that name, the message lists them; or the file is no recipe.
      FileNotFoundError: there is no such file.
    """
    from tfquant.rules import Recipe

    if name.endswith((".yaml", ".yml", ".json")):
        if not pathlib.Path(name).exists():
            raise FileNotFoundError(f"there is no recipe file {printable(name)}")
        return Recipe.load(name)
    if name not in names():
        raise ValueError(
            f"unknown recipe {name!r}{_format_hint(name)}; known: {', '.join(names())}; or give the"
            " path of a .yaml or .json file"
        )
    return Recipe.load(_FOLDER / f"{name}.yaml")


def _format_hint(name: str) -> str:
    """Where number formats go, if a name is one's."""
    from tfquant.recipes.spec_strings import parse_spec

    try:
        parse_spec(name)
    except ValueError:
        return ""
    spec = f"tfquant.recipes.spec_strings.parse_spec({name!r})"
    return (
        ", which is a number format: quantize with tfquant.recipes.op_groups.recipe_of(spec, spec)"
        f" where spec = {spec}"
    )

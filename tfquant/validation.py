"""Validation and conversion of fields of the frozen dataclasses in recipes.

Every complaint is one line that says what was expected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tfquant.error_messages import shown


def sequence(value: Any, kinds: tuple[type, ...], message: str, *, single: bool = True) -> tuple:
    """Return `value`'s elements, of the allowed types, as a tuple; `single` also takes one string.

    Not empty where `single`.
    """
    if single and isinstance(value, str):
        value = (value,)
    fits = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    items = tuple(value) if fits else ()
    if (
        not fits
        or (single and not items)
        or any(not isinstance(i, kinds) or isinstance(i, bool) for i in items)
    ):
        raise ValueError(f"{message}, got {shown(value)}")
    return items


def mapping(data: Any, what: str) -> dict[str, Any]:
    """Return a copy of `data`, which must be a mapping."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a {what} is a mapping, got {shown(data)}")
    return dict(data)


def public_fields(instance) -> dict[str, Any]:
    """Map field -> value of a dataclass instance, without conversion of nested ones."""
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}


def build(cls, data: Mapping[str, Any], what: str, known: Iterable[str] | None = None):
    """Build an instance of a dataclass from keys and values.

    Args:
      cls: the dataclass.
      data: key -> value.
      what: name of the data in messages.
      known: keys that exist; None: the fields of the class.

    Raises:
      ValueError: `data` is no mapping, or has an unknown key.
    """
    data = mapping(data, what)
    known = {f.name for f in dataclasses.fields(cls)} if known is None else set(known)
    unknown = sorted(map(str, set(data) - known))
    if unknown:
        named = f"{what} {shown(data['name'])}" if "name" in data else what
        raise ValueError(
            f"{named}: unknown key {shown(unknown[0])}; known: {', '.join(sorted(known))}"
        )
    return cls(**data)

"""Match layer names of a file with those of a model whose unnamed layers Keras numbered
differently.

Keras numbers a layer without a name by how many of its class a process has made before (`dense`,
`dense_1`), and TensorFlow numbers repeated scopes. Such numbers are ignored; names set by the user
are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras.src.utils.naming import to_snake_case

from tfquant.site import Site

_NUMBERS = re.compile(r"(_\d+)+(?=[/:#]|$)")
_PARTS = re.compile(r"[^/:]+")


class AmbiguousNamesError(ValueError):
    """Names and order of layers contradict each other."""


def given_names(model: Any) -> frozenset[str] | None:
    """Layer names set by the user of a Keras or tf-keras model; None for anything else."""
    if not hasattr(model, "_flatten_layers"):
        return None
    layers = list(model._flatten_layers())
    wrapped = {
        id(inner)
        for layer in layers
        if _is_wrapper(layer)
        for inner in layer._flatten_layers(include_self=False)
    }
    return frozenset(
        layer.name for layer in layers if not _is_automatic(layer, id(layer) in wrapped)
    )


def _is_wrapper(layer: Any) -> bool:
    """Return whether a layer is a Keras wrapper that renames the layers inside it.

    `forward_gru_1`.
    """
    return type(layer).__module__.startswith(("keras.src.layers.rnn", "tf_keras.src.layers.rnn"))


def _is_automatic(layer: Any, wrapped: bool) -> bool:
    kind, name = type(layer).__name__, _NUMBERS.sub("", layer.name)
    names = {to_snake_case(kind)} | (
        {"model"} if kind == "Functional" else set()
    )  # tf-keras calls them so
    return "." in name or name in names or (wrapped and name.endswith(f"_{to_snake_case(kind)}"))


def pair_weights(
    own: Sequence[str], stored: Sequence[str], given: frozenset[str] | None
) -> dict[str, str] | None:
    """Map path of a variable in the model -> its path in the file; None where they do not
    correspond.

    Args:
      own: in the order of the model.
      stored: in the order of the model that was saved.
      given: see `given_names`.

    Raises:
      AmbiguousNamesError: by their names variables belong together otherwise than by their order.
    """
    by_name = {name: name for name in own} if set(own) == set(stored) else None
    by_order = dict(zip(own, stored, strict=True)) if _correspond(own, stored, given) else None
    if given is not None and by_name and by_order and by_name != by_order:
        name = next(name for name in own if by_order[name] != name)
        raise AmbiguousNamesError(
            f"variable {name!r} stands where {by_order[name]!r} stood when the model was saved, and"
            " layers without names have other numbers in every process: give these layers names,"
            " or make them in the same order"
        )
    return by_name or by_order


def pair_sites(
    own: Sequence[Site],
    stored: Sequence[str],
    weights: Mapping[str, str],
    given: frozenset[str] | None,
) -> dict[str, str] | None:
    """Map address in the model -> address in the file; None where they do not correspond.

    Args:
      own: in graph order.
      stored: addresses in the graph order of the model that was saved.
      weights: see `pair_weights`; says which layer is which.
      given: see `given_names`.
    """
    if len(own) != len(stored):
        return None
    addresses = [site.address for site in own]
    layers = {a.rpartition("/")[0]: b.rpartition("/")[0] for a, b in weights.items()}
    renamed = [_renamed(address, layers) for address in addresses]
    if set(renamed) == set(stored):
        return dict(zip(addresses, renamed, strict=True))
    result = {}
    for site, address, other in zip(own, renamed, stored, strict=True):
        # Of several edges with one range the first by name has given it its address; numbers may
        # make it another one.
        edges = [address, *(_renamed(member, layers) for member in site.members)]
        if not any(_correspond([edge], [other], given) for edge in edges):
            return None
        result[site.address] = other
    return result


def _renamed(address: str, layers: Mapping[str, str]) -> str:
    """Replace the path of the innermost enclosing layer of `layers` in an address."""
    path, colon, rest = address.partition(":")
    inner, behind = path, ""
    while inner and inner.partition("#")[0] not in layers:
        inner, slash, last = inner.rpartition("/")
        behind = f"{slash}{last}{behind}"
    name, hash_, use = inner.partition("#")
    return f"{layers[name]}{hash_}{use}{behind}{colon}{rest}" if name in layers else address


def _correspond(own: Sequence[str], stored: Sequence[str], given: frozenset[str] | None) -> bool:
    """Return whether names are equal one by one, except for automatic numbers."""
    return len(own) == len(stored) and all(
        _NUMBERS.sub("", a) == _NUMBERS.sub("", b)
        and _given_parts(a, given) == _given_parts(b, given)
        for a, b in zip(own, stored, strict=True)
    )


def _given_parts(name: str, given: frozenset[str] | None) -> list[str | None]:
    """The user-given name behind each part of a name, without TensorFlow's numbers; None for parts
    without one.
    """
    parts = []
    for part in _PARTS.findall(name):
        part = part.partition("#")[0]
        while given and part not in given and re.search(r"_\d+$", part):
            part = part.rpartition("_")[0]
        parts.append(part if given and part in given else None)
    return parts

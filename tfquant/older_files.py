"""Compatibility with checkpoints and calibrations of earlier versions, which lack some sites.

They gave all uses of one variable one range, however it was moved, cut or scaled on the way, and
left the second use of a layer norm, activation or residual connection in float. Such files keep
loading: ranges of parameters follow from the weights, and what was in float stays in float.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from tfquant.graph.dataflow import parent
from tfquant.rules import Recipe, Rule
from tfquant.site import PARAMETER_ROLES, Site

_NUMBER = re.compile(r"#\d+$")
_REPEATED_ROLES = (
    "layernorm_input",
    "layernorm_output",
    "residual",
    "residual_other",
    "residual_sum",
    "activation_output",
)


def lacking(sites: Iterable[Site], known: Iterable[str]) -> list[Site]:
    """Return the sites that a file of an earlier version lacks, in their order.

    Args:
      sites: of the model, in graph order.
      known: addresses in the file.
    """
    sites, known = list(sites), set(known)
    if len(sites) <= len(known):
        return []
    layers = {_layer(address) for address in known if _is_of_parameter(address)}
    unknown = [site for site in sites if site.address not in known]
    return [site for site in unknown if _could_be_shared(site, layers) or _was_dropped(site)]


def with_partners(sites: Iterable[Site], parted: Iterable[str]) -> list[str]:
    """Return the addresses of parameters whose ranges cannot be taken from a file of an earlier
    version.

    Such a file has one range for all uses of a variable, which is that of any of them: it fits none
    for certain.

    Args:
      sites: of the model.
      parted: addresses of the parameters that the file lacks.
    """
    parted = set(parted)
    layers = {_layer(address) for address in parted}
    return [
        site.address
        for site in sites
        if site.address in parted or (site.is_weight and _layer(site.address) in layers)
    ]


def recipe_of_file(recipe: Recipe, sites: Iterable[Site]) -> Recipe:
    """Return a recipe that leaves in float what an earlier version did not quantize; parameters are
    not changed.

    Args:
      recipe: of the file.
      sites: from `lacking`.
    """
    rules = []
    for member in (member for site in sites if _was_dropped(site) for member in site.members):
        path, role, port = member.rsplit(":", 2)
        pattern, name = f"re:^{re.escape(path)}$", f"float as saved: {member}"
        rules.append(Rule(None, role=role, path=pattern, port=port, optional=True, name=name))
    return dataclasses.replace(recipe, rules=(*recipe.rules, *rules))


def _layer(address: str) -> str:
    return _NUMBER.sub("", address.rsplit(":", 2)[0])


def _is_of_parameter(address: str) -> bool:
    _, role, port = address.rsplit(":", 2)
    return role in PARAMETER_ROLES or port in ("kernel", "table")


def _could_be_shared(site: Site, layers: set[str]) -> bool:
    """Return whether a site of the file may have quantized the same variable.

    One of that layer, or of a variable of it.
    """
    own = _layer(site.address)
    return site.is_weight and any(
        own in (layer, parent(layer)) or parent(own) == layer for layer in layers
    )


def _was_dropped(site: Site) -> bool:
    parts = [member.rsplit(":", 2) for member in site.members]
    return all(role in _REPEATED_ROLES and _NUMBER.search(path) for path, role, _ in parts)

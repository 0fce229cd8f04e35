"""Groups of sites that are switched together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tfquant import formats
from tfquant.error_messages import some_of
from tfquant.layout import static_shape
from tfquant.site import Site
from tfquant.site_selection import matches

GROUPINGS = {"sites": lambda s: s.address, "layers": lambda s: s.path, "roles": lambda s: s.role}
_WORDS = {
    "all": lambda s: True,
    "activations": lambda s: not s.is_weight,
    "weights": lambda s: s.is_weight,
}


def chosen_sites(there: Sequence[Site], sites: str | Sequence[str]) -> list[Site]:
    """The sites that `all`, `activations`, `weights`, a role or a pattern means, or several of
    these; in the order of `there`.

    Raises:
      ValueError: an entry means none.
    """
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    named = {
        site.address
        for pattern in patterns
        for site in _meant(there, pattern, f"sites={pattern!r}")
    }
    return [site for site in there if site.address in named]


def make_groups(
    there: Sequence[Site], groups: str | Mapping[str, str | Sequence[str]]
) -> dict[str, tuple[Site, ...]]:
    """Name of a group -> its sites.

    Args:
      there: the sites there are.
      groups: `sites`, `layers` (by layer path), `roles`, or name -> what `chosen_sites` takes;
        these may overlap.

    Raises:
      ValueError: there is no such grouping, or a group means no site.
    """
    if isinstance(groups, Mapping):
        result = {}
        for name, patterns in groups.items():
            patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
            members = {
                s.address: s
                for pattern in patterns
                for s in _meant(there, pattern, f"group {name!r}: {pattern!r}")
            }
            result[str(name)] = tuple(members.values())
            if not members:
                raise ValueError(f"group {name!r} has no pattern: give it one, or leave it out")
        if not result:
            raise ValueError("groups is an empty mapping: name at least one group")
        return result
    if groups not in GROUPINGS:
        raise ValueError(
            f"unknown groups {groups!r}; known: {', '.join(GROUPINGS)}, or a mapping from names to"
            " patterns of sites"
        )
    by_key: dict[str, list[Site]] = {}
    for site in there:
        by_key.setdefault(GROUPINGS[groups](site), []).append(site)
    return {name: tuple(members) for name, members in by_key.items()}


def parameter_bits(site: Site, format: str | None = None) -> int:
    """Bits of the parameter that a site quantizes, in its own format or another; 0 for an
    activation.
    """
    if not site.is_weight:
        return 0
    return math.prod(static_shape(site.shape)) * formats.get(format or site.spec.format).bits


def _meant(there: Sequence[Site], pattern: str, where: str) -> list[Site]:
    word = _WORDS.get(pattern)
    result = [site for site in there if (word(site) if word else matches(pattern, site))]
    if not result:
        near = some_of(site.address for site in there) or "none"
        raise ValueError(f"{where} matches no quantized site; there are {near}")
    return result

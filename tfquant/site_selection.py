"""Selection of sites by role or by pattern."""

from __future__ import annotations

from calib import patterns
from tfquant.site import ROLES, Site


def matches(pattern: str, site: Site) -> bool:
    """Return whether a role, or a pattern of addresses or layer paths, selects a site.

    Raises:
      ValueError: the pattern is an invalid regular expression.
    """
    if pattern in ROLES:
        return site.role == pattern
    patterns.check(pattern, "sites")
    names = (site.address, site.path, *site.members)
    return any(patterns.matches(pattern, name) for name in names)

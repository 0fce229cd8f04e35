"""Sites that are meant by a role or a pattern."""

from __future__ import annotations

import fnmatch
import re

from tfquant.site import ROLES, Site


def matches(pattern: str, site: Site) -> bool:
    """Whether a site is meant by a role, or by a glob (after `re:` a regular expression) of
    addresses or layer paths.

    Raises:
      ValueError: it is no regular expression.
    """
    if pattern in ROLES:
        return site.role == pattern
    names = (site.address, site.path, *site.members)
    if pattern.startswith("re:"):
        try:
            return any(re.search(pattern[3:], name) for name in names)
        except re.error as error:
            raise ValueError(f"sites={pattern!r} is not a regular expression ({error})") from error
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)

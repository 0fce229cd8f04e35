"""Pattern language for names of sites, layers, ports and variables: globs and regular expressions.

A pattern is a glob (`*/layer_0/*`, case matters), or after `re:` a regular expression that is
searched for in the name.
"""

import fnmatch
import re

REGEX = "re:"


def check(pattern: str, where: str) -> None:
    """Raise ValueError, beginning with `where`, for a regular expression that does not compile."""
    if not pattern.startswith(REGEX):
        return
    expression = pattern[len(REGEX) :]
    try:
        re.compile(expression)
    except re.error as error:
        message = f"{where}: {expression!r} is not a regular expression ({error})"
        raise ValueError(message) from error


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern, valid by `check`, matches a name."""
    if pattern.startswith(REGEX):
        return re.search(pattern[len(REGEX) :], name) is not None
    return fnmatch.fnmatchcase(name, pattern)

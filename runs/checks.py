"""Checks of settings that every run script makes before any work.

Settings are frozen dataclasses whose fields `runs.settings.flag` makes, and have a method
`written`: (name of a field, its value if wanted) -> both as they are written on the command line.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from fileio.messages import printable
from runs.folders import problem_with
from runs.settings import LARGEST, MAX_FLOAT, MAX_INTEGER, FlagError
from tfquant.distributed.group import launched

_FLAG = re.compile(r"--[\w-]+")


def refuse(problems: Sequence[str], settings: Any) -> None:
    """Raise `FlagError` with all problems, one a line; characters of names that a terminal would
    act on are escaped.

    Args:
        problems: one line each, empty if there is none.
        settings: whose values the problems name.
    """
    raw = [v for v in vars(settings).values() if isinstance(v, str) and not v.isprintable()]
    lines = []
    for problem in dict.fromkeys(problems):
        for value in raw:
            problem = problem.replace(value, printable(value, None))
        lines.append(f"  {problem}")
    if lines:
        raise FlagError("\n".join(lines))


def value_problems(settings: Any) -> list[str]:
    """Return a problem for every value that its own field forbids.

    These are values outside the field's `choices` or `bound`, and values without effect because the
    flags of the field's `needs` are not set.
    """
    problems = []
    for field in dataclasses.fields(settings):
        name, value, rules = field.name, getattr(settings, field.name), field.metadata
        choices, bound = rules.get("choices"), rules.get("bound")
        for one in value if isinstance(value, tuple) else (value,):
            shown = settings.written(name, one)
            if one is not None and choices and one not in choices:
                problems.append(f"{shown}: must be one of {', '.join(filter(None, choices))}")
            if one is not None and bound and not bound.holds(one):
                problems.append(f"{shown}: {bound.rule}")
        # A mode ignores the options that it does not have.
        in_use = getattr(settings, "mode", None) in (None, *rules.get("modes", ())) or (
            "modes" not in rules
        )
        if value != field.default and in_use:
            problems += _unmet(name, rules.get("needs", {}), settings)
    return problems


def _unmet(name: str, needs: dict[str, Any], settings: Any) -> list[str]:
    """Return one problem if a flag has no effect for want of others, else none."""
    missing = []
    for other, wanted in needs.items():
        value = getattr(settings, other)
        met = value == wanted or (wanted is True and bool(value))
        if not (value in wanted if isinstance(wanted, tuple) else met):
            text = " or ".join(wanted) if isinstance(wanted, tuple) else wanted
            missing.append(settings.written(other, None if wanted is True else text))
    if not missing:
        return []
    return [
        f"{settings.written(name)} only applies with {' and '.join(missing)}: set"
        f" {'that' if len(missing) == 1 else 'them'} as well, or leave it out"
    ]


def size_problems(problems: Sequence[str], settings: Any) -> list[str]:
    """Return a problem for every number that is NaN, infinite or too large to compute with.

    Args:
        problems: those found otherwise; a flag that begins one of them is not named again.
        settings: fields that are no numbers are passed over.
    """
    named = {match[0] for problem in problems if (match := _FLAG.match(problem))}
    result = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            usual = MAX_INTEGER if isinstance(number, int) else MAX_FLOAT
            largest = LARGEST.get(field.name, usual)
            if isinstance(number, float) and not math.isfinite(number):
                rule = "must be a finite number"
            elif abs(number) > largest:
                rule = f"must be at most {largest:,.10g}"
            else:
                continue
            if settings.written(field.name) not in named:
                result.append(f"{settings.written(field.name, printable(number, 40))}: {rule}")
    return result


def horovod_problems(settings: Any) -> list[str]:
    """Return a problem if this is one of several processes and --horovod is not set."""
    processes = launched()
    if processes == 1 or settings.horovod:
        return []
    return [
        f"--horovod is missing, though this is one of {processes} processes: set it, or each"
        " works for itself and all write the same files; or start one process, without mpirun"
        " or horovodrun"
    ]


def folder_problems(folder: str, flag: str) -> list[str]:
    """Return a problem if a folder cannot be written.

    Args:
        folder: it may not exist yet.
        flag: the flag that names it, as it is written on the command line.
    """
    problem = problem_with(folder)
    return [f"{flag}: cannot be written ({problem}); name another folder"] if problem else []

"""Settings of a run as fields of a frozen dataclass, each with its help and what it must do when
training is resumed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fileio.messages import printable

# What a flag must do when training goes on from a checkpoint: be the same, name a file that holds
# the same, or nothing.
SAME, CONTENT, FREE = "same", "content", "free"

MAX_INTEGER = 2**31 - 1  # steps, sizes and counts are int32
MAX_SEED = 2**32 - 1  # NumPy's
MAX_EPOCHS = 1e6
MAX_CANDIDATES = 100_000  # each is one row of a table in memory
_FLAG = re.compile(r"--[\w-]+")
_MAX_FLOAT = 3.4e38  # of float32
_LARGEST = {
    "seed": MAX_SEED,
    "num_candidates": MAX_CANDIDATES,
    "act_num_candidates": MAX_CANDIDATES,
}
_LARGEST |= {"num_train_epochs": MAX_EPOCHS, "num_epochs": MAX_EPOCHS}


class FlagError(ValueError):
    """Flags that cannot be followed; the message names every one of them."""


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


def problems_of_numbers(
    problems: Sequence[str], settings: Any, written: Callable[..., str]
) -> list[str]:
    """Return a problem for every number that nothing can be computed with and that no other problem
    names.

    Args:
        problems: found otherwise, one line each, those about one flag with its name in front.
        settings: a dataclass; fields that are no numbers are passed over.
        written: name of a field, and its value if given -> the two as they are written on the
          command line.

    Returns:
        One line for each NaN, infinity, and number that is far too large.
    """
    named = {match[0] for problem in problems if (match := _FLAG.match(problem))}
    return [
        problem
        for name, problem in _unusable_numbers(settings, written)
        if written(name) not in named
    ]


def _unusable_numbers(settings: Any, written: Callable[..., str]) -> Iterator[tuple[str, str]]:
    """Yield (field, problem) of every number that nothing can be computed with; see
    `problems_of_numbers`.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            largest = _LARGEST.get(
                field.name, MAX_INTEGER if isinstance(number, int) else _MAX_FLOAT
            )
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                yield field.name, f"{written(field.name, number)}: must be a finite number"
            elif abs(number) > largest:
                yield (
                    field.name,
                    (
                        f"{written(field.name, printable(number, 40))}: must be at most"
                        f" {largest:,.10g}"
                    ),
                )


def wrong_choices(settings: Any, written: Callable[[str, Any], str]) -> list[str]:
    """Return a problem for every field whose value is none of its `choices`.

    Args:
        settings: a dataclass with fields made by `flag`; None is no choice and no problem.
        written: (name of a field, its value) -> the two as they are written on the command line.
    """
    problems = []
    for field in dataclasses.fields(settings):
        choices, value = field.metadata.get("choices"), getattr(settings, field.name)
        for name in value if isinstance(value, tuple) else (value,):
            if choices and name is not None and name not in choices:
                problems.append(
                    f"{written(field.name, name)}: must be one of"
                    f" {', '.join(filter(None, choices))}"
                )
    return problems


def flag(default: Any, help: str, resume: str = SAME, **metadata: Any) -> Any:
    """A field of settings.

    Args:
        default: its value where it is not given.
        help: what it means.
        resume: `SAME`, `CONTENT` or `FREE`.
        **metadata: what else the command line wants to know of it, see `runs.command_line`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "resume": resume, **metadata})


@dataclasses.dataclass(frozen=True)
class StepNames:
    """Which fields of some settings say what a step of training is.

    Attributes:
        batch: examples in a batch of one process.
        batches: of such batches in a step.
        rate: highest learning rate of one process.
        epochs: how often the data are seen.
        unit: what the examples are, in messages.
    """

    batch: str
    batches: str
    rate: str
    epochs: str
    unit: str = "examples"

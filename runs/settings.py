"""Settings of a run as fields of a frozen dataclass, each with its help, its bounds, and its role
when training is resumed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# Requirement on a flag when training resumes: the same value, a file of the same content, or none.
SAME, CONTENT, FREE = "same", "content", "free"

MAX_INTEGER = 2**31 - 1  # steps, sizes and counts are int32
MAX_FLOAT = 3.4e38  # of float32
_MAX_CANDIDATES = 100_000  # each is one row of a table in memory
LARGEST = {  # field -> largest value, where it is not that of its type
    "seed": 2**32 - 1,  # NumPy's
    "num_candidates": _MAX_CANDIDATES,
    "act_num_candidates": _MAX_CANDIDATES,
    "num_train_epochs": 1e6,
    "num_epochs": 1e6,
}


def checked(value: T | None) -> T:
    """Return a value that the checks of the settings guarantee to be set."""
    assert value is not None
    return value


class FlagError(ValueError):
    """Invalid flags; the message names every one of them."""


class Bound(NamedTuple):
    """Values that a number may have.

    Attributes:
        holds: whether a number is one of them; False for NaN.
        rule: the same in words, for messages.
    """

    holds: Callable[[Any], bool]
    rule: str


def at_least(low: int) -> Bound:
    """Return the bound of integers from `low` on."""
    return Bound(lambda number: number >= low, f"must be at least {low}")


def between(low: float, high: float) -> Bound:
    """Return the bound of numbers from `low` to `high`, both included."""
    return Bound(lambda number: low <= number <= high, f"must be from {low:g} to {high:g}")


AT_LEAST_1 = at_least(1)
NOT_NEGATIVE = Bound(lambda number: number >= 0, "must not be negative")
FINITE = Bound(lambda number: 0.0 <= number < math.inf, "must be at least 0 and finite")
POSITIVE = Bound(lambda number: 0.0 < number < math.inf, "must be above 0 and finite")
BELOW_1 = Bound(lambda number: 0.0 <= number < 1.0, "must be at least 0 and below 1")
SHARE = between(0.0, 1.0)


def flag(default: Any, help: str, resume: str = SAME, **metadata: Any) -> Any:
    """Return a field of settings.

    Args:
        default: its value if the flag is not set.
        help: shown by --help.
        resume: `SAME`, `CONTENT` or `FREE`.
        **metadata: `choices`; `bound`, a `Bound`; `needs`, flags without which this one has no
            effect, {name: True for any value, a value, or a tuple of alternatives}; and what
            `runs.command_line` reads.
    """
    return dataclasses.field(default=default, metadata={"help": help, "resume": resume, **metadata})


@dataclasses.dataclass(frozen=True)
class StepNames:
    """Names of the settings that determine a training step.

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

"""Settings of a run as fields of a frozen dataclass, each with its help and what it must do when training is resumed."""

import dataclasses
from typing import Any

# What a flag must do when training goes on from a checkpoint: be the same, name a file that holds the same, or nothing.
SAME, CONTENT, FREE = "same", "content", "free"


class FlagError(ValueError):
    """Flags that cannot be followed; the message names every one of them."""


def flag(default: Any, help: str, resume: str = SAME, **metadata: Any) -> Any:
    """A field of settings.

    Args:
        default: its value where it is not given.
        help: what it means.
        resume: `SAME`, `CONTENT` or `FREE`.
        **metadata: what else the command line wants to know of it.
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

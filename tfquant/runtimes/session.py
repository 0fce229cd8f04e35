"""What all runtimes have in common: an opened file with named inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tfquant.error_messages import one_line

if TYPE_CHECKING:
    import numpy as np

Outputs = Mapping[str, "np.ndarray"]


class RuntimeFileError(RuntimeError):
    """A runtime cannot read a file; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of an opened file.

    Attributes:
      name: as the model has it.
      dtype: of NumPy.
      shape: open sizes are None.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Contractions:
    """Products and convolutions of a network as a runtime computes them.

    Attributes:
      integer: names of those with integer operands.
      floating: names of the others.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.integer)} of {len(self.integer) + len(self.floating)} products in integers"
        )


class Session(Protocol):
    """An opened file."""

    inputs: tuple[Input, ...]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        """Answers one batch; entries that are no input are passed over.

        Raises:
          KeyError: an input is missing.
        """
        ...

    def contractions(self) -> Contractions:
        """How the products are computed on this machine."""
        ...


def fed(inputs: Sequence[Input], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of `feed` the file takes, in its types.

    Raises:
      KeyError: an input is missing.
    """
    import numpy as np

    missing = [entry.name for entry in inputs if entry.name not in feed]
    if missing:
        raise KeyError(
            f"input {missing[0]!r} is missing; the file takes"
            f" {', '.join(entry.name for entry in inputs)}"
        )
    return {entry.name: np.asarray(feed[entry.name], entry.dtype) for entry in inputs}


def read(path: str, runtime: str, load: Callable[[], Any]) -> Any:
    """`load()`, whose errors, of many kinds, become one of ours.

    Raises:
      RuntimeFileError: it failed.
    """
    try:
        return load()
    except Exception as error:  # runtimes have exceptions of their own without a common base
        reason = one_line(error, 300)
        raise RuntimeFileError(f"{path}: {runtime} cannot read it: {reason}") from error


def missing_package(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The same with a hint how to install it."""
    return ModuleNotFoundError(
        f"{what} needs {error.name}: pip install -e '.[export]'", name=error.name
    )

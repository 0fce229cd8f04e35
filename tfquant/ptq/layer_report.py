"""Report of a method that rounds the weights of a model layer by layer."""

from __future__ import annotations

import abc
import dataclasses
import json
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from rich.table import Table

from calib import tables


class _HasAddress(Protocol):
    """Result of one weight."""

    @property
    def address(self) -> str: ...


Result = TypeVar("Result", bound=_HasAddress)
Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class LayerReport(abc.ABC, Generic[Result, Options]):
    """Base of such reports; `print` shows the table.

    Attributes:
      layers: one result a weight, in the order they were rounded.
      skipped: (address, reason) of chosen weights that were left as they were.
      options: as they were used.
      seconds: all in all.
      METHOD: name of the method.
      RESULT, OPTIONS: classes of the results and of the options.
    """

    layers: tuple[Result, ...]
    skipped: tuple[tuple[str, str], ...]
    options: Options
    seconds: float
    METHOD: ClassVar[str]
    RESULT: ClassVar[Any]
    OPTIONS: ClassVar[Any]

    def layer(self, address: str) -> Result:
        """Result of a site.

        Raises:
          KeyError: the method did not round it.
        """
        results = {result.address: result for result in self.layers}
        if address in results:
            return results[address]
        raise KeyError(
            f"{address} was not rounded with {self.METHOD};"
            f" {', '.join(list(results)[:3])}, ... were"
        )

    @abc.abstractmethod
    def table(self) -> str:
        """Table of all layers and of the omitted sites."""

    def _with_skipped(self, grid: Table) -> str:
        skipped = (f"left out: {address}: {reason}" for address, reason in self.skipped)
        return "\n".join([tables.render(grid), *skipped])

    def _repr_html_(self) -> str:
        return tables.as_html(self.table())

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        layers = tuple(
            cls.RESULT(**{**layer, "shape": tuple(layer["shape"])}) for layer in data["layers"]
        )
        skipped = tuple(map(tuple, data["skipped"]))
        return cls(layers, skipped, cls.OPTIONS(**data["options"]), data["seconds"])

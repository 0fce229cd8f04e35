"""What is to be exported, as every target takes it."""

from __future__ import annotations

import dataclasses
import functools

from tfquant.engine import Engine
from tfquant.export.interface import Interface


@dataclasses.dataclass(frozen=True)
class Order:
    """A network of an engine in one mode.

    Attributes:
      engine: calibrated if `mode` is `quantized`.
      mode: of `tfquant.engine.MODES`.
      opset: of ONNX, for targets that are made of it.
    """

    engine: Engine
    mode: str
    opset: int

    @functools.cached_property
    def interface(self) -> Interface:
        return Interface.of(self.engine.inference)

    def sites(self) -> list:
        """Enabled sites; none in mode `float`."""
        return [site for site in self.engine.plan.sites if site.enabled and self.mode == "quantized"]

"""What is to be exported, as every target takes it."""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.errors import ExportError
from tfquant.export.interface import Interface
from tfquant.site import Site


@dataclasses.dataclass(frozen=True)
class Order:
    """A network of an engine in one mode.

    Attributes:
      engine: calibrated if `mode` is `quantized`.
      mode: of `tfquant.engine.MODES`.
      opset: of ONNX, for targets that are made of it.
      sm: compute capability of the GPU times ten, for targets whose layout depends on it.
    """

    engine: Engine
    mode: str
    opset: int = 17
    sm: int = 80

    @functools.cached_property
    def interface(self) -> Interface:
        return Interface.of(self.engine.inference)

    def check_types(self, lacking: str) -> None:
        """Raises ExportError if the network computes in bfloat16, for runtimes of which `lacking` says that they do not."""
        for op in self.engine.inference.operations:
            if any(t.dtype == tf.bfloat16 for t in op.outputs):
                raise ExportError(
                    f"the network computes in bfloat16 (first at {op.name}), which {lacking}: build it in float32, load the same "
                    "checkpoint and export that"
                )

    def check_ranges(self, runtime: str) -> None:
        """Raises ExportError if an activation has several ranges, for a runtime whose kernels know one."""
        for site in self.sites():
            if site.channel_axes and not site.is_weight:
                raise ExportError(
                    f"site {site.address}: {runtime} has one range for an activation, this site has {site.spec.granularity}: set "
                    "granularity: per_tensor there, or export to onnx"
                )

    def sites(self) -> list[Site]:
        """Enabled sites; none in mode `float`."""
        return [site for site in self.engine.plan.sites if site.enabled and self.mode == "quantized"]

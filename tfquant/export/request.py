"""Export request, as every target takes it."""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.captures import uncaptured
from tfquant.export.errors import ExportError
from tfquant.export.interface import Interface
from tfquant.graph.dataflow import parent
from tfquant.site import Site

_PRODUCTS = frozenset(
    (
        "MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Conv2D Conv3D DepthwiseConv2dNative"
    ).split()
)


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """A network of an engine in one mode.

    Attributes:
      engine: calibrated if `mode` is `quantized`.
      mode: of `tfquant.choices.MODES`.
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
        """Raise ExportError if the network computes in a type that runtimes lack: bfloat16, or
        products of float64.

        Args:
          lacking: end of a sentence about bfloat16, such as `LiteRT does not`.
        """
        for op in self.engine.inference.operations:
            double = op.type in _PRODUCTS and op.outputs[0].dtype == tf.float64
            if double or any(t.dtype == tf.bfloat16 for t in op.outputs):
                kind = f"float64 (first at {op.name}), which runtimes have few kernels of"
                raise ExportError(
                    "the network computes in"
                    f" {kind if double else f'bfloat16 (first at {op.name}), which {lacking}'}:"
                    " build it in float32, load the same checkpoint and export that"
                )

    def check_captures(self, target: str) -> None:
        """Raise ExportError if the network reads a captured tensor without values, such as the
        handle of a hash table.
        """
        result = uncaptured(self.engine.inference)
        if result is not None:
            op, kind = result
            raise ExportError(
                f"operation {op.type} in layer {parent(op.name)} reads a captured tensor of type"
                f" {kind}, for which {target} has no counterpart: move this layer out of the model,"
                " into what prepares its inputs"
            )

    def check_ranges(self, runtime: str) -> None:
        """Raise ExportError if an activation has several ranges, for a runtime whose kernels know
        one.
        """
        for site in self.sites():
            if site.channel_axes and not site.is_weight:
                raise ExportError(
                    f"site {site.address}: {runtime} has one range for an activation, this site has"
                    f" {site.spec.layout.granularity}: set granularity: per_tensor there, or export"
                    " to onnx"
                )

    def sites(self) -> list[Site]:
        """Enabled sites; none in mode `float`."""
        return [
            site for site in self.engine.plan.sites if site.enabled and self.mode == "quantized"
        ]

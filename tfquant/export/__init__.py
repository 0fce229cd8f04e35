"""Export: a quantized model as a file that an integer runtime takes, checked against the simulation."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.calibration import check_batches, engine_of
from tfquant.engine import MODES, Engine
from tfquant.export import onnx_file
from tfquant.export.check import Agreement, compared, onnx_runner
from tfquant.export.errors import ExportError, MismatchError
from tfquant.export.marked import MarkedNetwork, marked
from tfquant.export.onnx_regions import GELU_OPSET
from tfquant.export.regions import find_regions
from tfquant.model import QuantizedFunction, QuantizedModel

__all__ = ["Agreement", "ExportError", "Exported", "MismatchError", "export"]

TARGETS = ("onnx",)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      path: of the file.
      size: its bytes.
      parameters: bytes of all parameters in float32.
      sites: how many activations are rounded and how many parameters are stored as integers.
      agreement: with the simulation; None where there was nothing to compare on.
    """

    path: str
    size: int
    parameters: int
    sites: tuple[int, int]
    agreement: Agreement | None

    def __str__(self) -> str:
        checked = str(self.agreement) if self.agreement else "not checked: no check_data"
        return (
            f"{self.path}: {self.size / 2**20:.2f} MiB (parameters in float32 {self.parameters / 2**20:.2f} MiB), "
            f"{self.sites[0]} activations and {self.sites[1]} parameters in integers; {checked}"
        )


def export(
    model: QuantizedModel | QuantizedFunction,
    path: str | os.PathLike,
    *,
    target: str = "onnx",
    mode: str = "quantized",
    check_data: Iterable[Any] | None = None,
    opset: int = 17,
    tolerance: float = 0.01,
) -> Exported:
    """Writes a quantized model as a file and compares what the file answers with the simulation.

    Args:
      model: from `tfquant.quantize` or `tfquant.load`, calibrated.
      path: of the file; it is there only if everything went well.
      target: `onnx`: QuantizeLinear and DequantizeLinear at every site, parameters stored as integers.
      mode: `float` writes the network without any quantizer, as what the other is measured against.
      check_data: batches like those of calibration; both networks answer them. Without it nothing is checked.
      opset: of ONNX, from 17; from 21 on 4-bit parameters take half a byte and 16-bit sites are possible.
      tolerance: largest share of rows whose largest output may be at another place.

    Returns:
      Sizes and the agreement; `print` it.

    Raises:
      UncalibratedError: a site has no range.
      MismatchError: more rows differ than `tolerance` allows. Nothing is written then.
      ExportError: something of the model has no counterpart in the target; the message names it.
      ValueError: unknown target or opset, or a batch that does not fit.
      TypeError: `model` is not quantized.
      ModuleNotFoundError: a package that export needs is missing; the message says how to install it.
    """
    engine = engine_of(model)
    if target not in TARGETS:
        raise ValueError(f"target={target!r}: must be one of {', '.join(TARGETS)}")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if opset < 17:
        raise ValueError(f"opset={opset}: must be at least 17")
    if not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance={tolerance}: is a share of rows, from 0 to 1")
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if check_data is not None:
        check_batches(check_data)
    if mode == "quantized":
        engine.check_calibrated()
    # The approximate GELU has no form that runtimes recognise before it has an operation.
    regions = [r for r in find_regions(engine, mode) if opset >= GELU_OPSET or r.attributes.get("approximate") != "tanh"]
    network = marked(engine, regions, mode)
    model_proto = onnx_file.build(engine, network, opset)
    agreement = None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = os.path.join(folder, path.name)
        onnx_file.save(model_proto, temporary)
        if check_data is not None:
            agreement = _agreement(engine, network, temporary, check_data, mode)
            if 1.0 - agreement.same > tolerance:
                raise MismatchError(f"{path} was not written, as it answers otherwise than the simulation: {agreement}")
        os.replace(temporary, path)
    stored = sum(1 for site in network.sites.values() if site.is_weight)
    floats = sum(int(np.prod(v.shape)) * 4 for v in engine.inference.variables.values())
    return Exported(str(path), path.stat().st_size, floats, (len(network.sites) - stored, stored), agreement)


def _agreement(engine: Engine, network: MarkedNetwork, path: str, batches: Iterable[Any], mode: str) -> Agreement:
    """Of a mode of the simulation and an ONNX file, on inputs or (inputs, targets) pairs."""
    simulation = engine.function(mode)
    run = onnx_runner(path, [spec.name for spec in network.signature])

    def simulated(flat: list[tf.Tensor]) -> dict[str, np.ndarray]:
        return dict(zip(network.outputs, (out.numpy() for out in simulation(*flat)), strict=True))

    return compared(simulated, run, (engine.flatten_inputs(engine.inputs_of(batch)) for batch in batches))

"""Site-by-site comparison of an exported file with the simulation.

The activations that reach every site, compared in order.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fileio.staging import staging
from tfquant.export.onnx import external_data, writer
from tfquant.export.onnx.qdq import site_inputs
from tfquant.export.request import ExportRequest
from tfquant.runtimes import open_file

# Sites whose input differs by more, as a share of how much it varies, are worth a look: a step of
# int8 is about 1 % of that.
SHARE = 0.02
ONNX_READERS = ("onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference at a site, before it rounds.

    Attributes:
      site: address.
      mean: absolute difference between file and simulation, as a share of `spread`.
      spread: mean absolute value of the simulation's values about their mean.
    """

    site: str
    mean: float
    spread: float

    def __str__(self) -> str:
        return (
            f"{self.site} (what reaches it differs by {100 * self.mean:.2g} % of how much it"
            " varies)"
        )


def differences(
    request: ExportRequest, runtime: str, batch: Any, **options: bool
) -> list[Difference]:
    """Return the differences at every site of activations, in the order of computation.

    Args:
      request: of the network.
      runtime: that reads ONNX files.
      batch: of inputs, or of (inputs, targets).
      options: of `writer.build`; what is within a fused attention is not seen.
    """
    import onnx

    engine = request.engine
    flat = engine.inputs.flatten_batch(batch)
    model = writer.build(request, **options)
    sources = site_inputs(model)
    sites = [site for site in request.sites() if site.address in sources]
    known = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(sources.values()) if name not in known]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in added
    )
    with staging(tempfile.gettempdir()) as folder:
        path = str(folder / "model.onnx")
        external_data.save(model, path)
        result = open_file(path, runtime)(
            request.interface.named_inputs([value.numpy() for value in flat])
        )
    simulated = _simulated(request, flat, [site.members[0] for site in sites])
    reached = [result[sources[site.address]] for site in sites]
    pairs = [
        (site, _arranged(one, other.shape), other)
        for site, one, other in zip(sites, simulated, reached, strict=True)
    ]
    return [
        _difference(site.address, one, other)
        for site, one, other in pairs
        if one.shape == other.shape
    ]


def where(
    request: ExportRequest,
    runtime: str,
    batch: Any,
    path: str | os.PathLike | None = None,
    *,
    existing: bool = False,
) -> str:
    """Return the first site that receives other values, for an error message; empty where none is
    known.

    Args:
      request, runtime, batch: as for `differences`.
      path: of the file in question, of which the operations of ONNX Runtime are taken over.
      existing: the file was not written just now, and may be that of another network.
    """
    if request.mode != "quantized" or runtime not in ONNX_READERS:
        return ""
    options: dict[str, bool] = {}
    if path is not None and os.path.splitext(path)[1] == ".onnx":
        options = writer.options_of(os.fspath(path))
    found = differences(request, runtime, batch, **options)
    first = next((one for one in found if one.mean > SHARE), None)
    if first:
        return f"; they part at site {first}"
    if existing:
        end = "this one is of other weights, or they part behind the last one"
        return f"; in a newly written file what reaches the sites is the same: {end}"
    return "; what reaches the sites is the same, they part behind the last one"


def _simulated(
    request: ExportRequest, flat: Sequence[tf.Tensor], edges: Sequence[str]
) -> list[np.ndarray]:
    answers = tf.nest.flatten(request.engine.function(request.mode, taps=tuple(edges))(*flat))
    return [tensor.numpy() for tensor in answers[len(request.interface.outputs) :]]


def _arranged(simulated: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A context [B, N, S, D] as a site behind a fused attention has it, [B, S, N * D] or [B, S, N,
    D]; all else as it is.
    """
    if simulated.ndim == 4 and simulated.shape != shape and simulated.size == np.prod(shape):
        return simulated.transpose(0, 2, 1, 3).reshape(shape)
    return simulated


def _difference(site: str, simulated: np.ndarray, found: np.ndarray) -> Difference:
    spread = float(np.abs(simulated - simulated.mean()).mean())
    return Difference(
        site,
        float(np.abs(simulated - found).mean()) / max(spread, float(np.finfo(np.float32).tiny)),
        spread,
    )

"""Where an exported network and its simulation part company: the activations that reach every site, compared in order."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.export import onnx_file, onnx_values
from tfquant.export.onnx_qdq import site_inputs
from tfquant.export.order import Order
from tfquant.runtimes import open_file

# Sites whose input differs by more, as a share of how much it varies, are worth a look: a step of int8 is about 1 % of that.
SHARE = 0.02
ONNX_READERS = ("onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True)
class Difference:
    """At a site, before it rounds.

    Attributes:
      site: address.
      mean: absolute difference between file and simulation, as a share of `spread`.
      spread: mean absolute value of the simulation's values about their mean.
    """

    site: str
    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.site} (what reaches it differs by {100 * self.mean:.2g} % of how much it varies)"


def differences(order: Order, runtime: str, batch: Any) -> list[Difference]:
    """At every site of activations, in the order of computation.

    Args:
      order: of the network.
      runtime: that reads ONNX files.
      batch: of inputs, or of (inputs, targets).
    """
    import onnx

    engine = order.engine
    flat = engine.flatten_inputs(engine.inputs_of(batch))
    model = onnx_file.build(order)
    sources = site_inputs(model)
    sites = [site for site in order.sites() if site.address in sources]
    known = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(sources.values()) if name not in known]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in added)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        onnx_values.save(model, path)
        found = open_file(path, runtime)(order.interface.named_inputs([value.numpy() for value in flat]))
    simulated = _simulated(order, flat, [site.members[0] for site in sites])
    return [
        _difference(site.address, one, found[sources[site.address]])
        for site, one in zip(sites, simulated, strict=True)
        if one.shape == found[sources[site.address]].shape
    ]


def where(order: Order, runtime: str, batch: Any) -> str:
    """For an error message: the first site that is reached by other values; empty where nothing is known."""
    if order.mode != "quantized" or runtime not in ONNX_READERS:
        return ""
    first = next((one for one in differences(order, runtime, batch) if one.mean > SHARE), None)
    return f"; they part at site {first}" if first else "; what reaches the sites is the same, they part behind the last one"


def _simulated(order: Order, flat: Sequence[tf.Tensor], edges: Sequence[str]) -> list[np.ndarray]:
    answers = tf.nest.flatten(order.engine.function(order.mode, taps=tuple(edges))(*flat))
    return [tensor.numpy() for tensor in answers[len(order.interface.outputs) :]]


def _difference(site: str, simulated: np.ndarray, found: np.ndarray) -> Difference:
    spread = float(np.abs(simulated - simulated.mean()).mean())
    return Difference(site, float(np.abs(simulated - found).mean()) / max(spread, np.finfo(np.float32).tiny), spread)

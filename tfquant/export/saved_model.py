"""SavedModel folders: the network with its simulated quantizers, to be served by TensorFlow."""

from __future__ import annotations

import pathlib
from typing import Any

import tensorflow as tf

from tfquant import blocks, elastic, fitted, qdq
from tfquant.export.captures import as_constants
from tfquant.export.request import ExportRequest
from tfquant.quantizer import Quantizer
from tfquant.runtimes.saved_model import SIGNATURE
from tfquant.site import Site


def write(request: ExportRequest, path: str) -> None:
    """Write a folder with one signature, `serving_default`: named inputs to named outputs."""
    engine, interface = request.engine, request.interface
    request.check_captures("a SavedModel")
    enabled = {site.address for site in request.sites()}
    quantizers = {a: quantizer for a, quantizer in engine.quantizers.items() if a in enabled}
    # Copies, as a SavedModel cannot hold names with colons. No constants: folding them rounds
    # otherwise than the simulation.
    ends = {
        address: [
            tf.Variable(end, trainable=False, name=f"range_{index}/{name}")
            for name, end in zip(("lower", "upper"), _stored(quantizer), strict=True)
        ]
        for index, (address, quantizer) in enumerate(quantizers.items())
    }

    def quantized(site: Site, tensor: tf.Tensor) -> tf.Tensor:
        if site.address not in enabled:
            return tensor
        if site.spec.fitted:
            return fitted.quantize_dequantize(tensor, site)
        if site.block_axis is not None:
            return blocks.quantize_dequantize(tensor, site.spec, site.block_axis, compiled=False)
        lower, upper = ends[site.address]
        if site.spec.update == "elastic":
            return elastic.binarized(tensor, lower, upper, unsigned=site.spec.codebook.unsigned)
        return qdq.quantize_dequantize(
            tensor, lower, upper, site.spec.codebook, site.channel_axes, compiled=False
        )

    @tf.function(autograph=False, input_signature=[interface.named_inputs(interface.inputs)])
    def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        flat = [inputs[name] for name in interface.input_names]
        return interface.named_outputs(
            engine.inference.emit(
                flat, engine.edits(quantized), given=as_constants(engine.inference)
            )
        )

    module: Any = tf.Module()
    # What the function reads has to be owned by what is saved.
    module.weights = list(engine.inference.variables.values())
    module.ranges = list(ends.values())
    module.serve = serve
    tf.saved_model.save(module, path, signatures={SIGNATURE: serve})


def _stored(quantizer: Quantizer) -> tuple[Any, Any]:
    """Ends of a range; of elastic values scale and shift."""
    learned = quantizer.learned
    if learned is not None and learned.shift is not None:
        return learned.value, learned.shift
    return quantizer.range()


def may_be_replaced(path: pathlib.Path) -> bool:
    """Whether it is a SavedModel or an empty folder."""
    return (path / "saved_model.pb").is_file() or (path.is_dir() and not any(path.iterdir()))

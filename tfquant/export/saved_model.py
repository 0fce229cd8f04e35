"""SavedModel folders: the network with its simulated quantizers, to be served by TensorFlow."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from tfquant import qdq
from tfquant.export.captures import as_constants
from tfquant.export.request import ExportRequest
from tfquant.quantizer import Quantizer
from tfquant.runtimes.saved_model import SIGNATURE
from tfquant.site import Site


def write(request: ExportRequest, path: str) -> None:
    """Write a folder with one signature, `serving_default`: named inputs to named outputs."""
    engine, interface = request.engine, request.interface
    request.check_captures("a SavedModel")
    quantizers = {site.address: engine.quantizers[site.address] for site in request.sites()}
    # Copies, as a SavedModel cannot hold names with colons. No constants: folding them rounds
    # otherwise than the simulation.
    ends = {
        address: [
            tf.Variable(np.asarray(end), trainable=False, name=f"range_{index}/{name}")
            for name, end in _ends(quantizer)
        ]
        for index, (address, quantizer) in enumerate(quantizers.items())
    }

    def quantized(site: Site, tensor: tf.Tensor) -> tf.Tensor:
        if site.address not in ends:
            return tensor
        codebook, axes = site.spec.codebook, site.channel_axes
        return qdq.quantize_dequantize(tensor, *ends[site.address], codebook, axes, compiled=False)

    @tf.function(autograph=False, input_signature=[{spec.name: spec for spec in interface.inputs}])
    def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        flat = [inputs[spec.name] for spec in interface.inputs]
        return interface.named_outputs(
            engine.inference.emit(
                flat, engine.edits(quantized), given=as_constants(engine.inference)
            )
        )

    module = tf.Module()
    module.weights = list(
        engine.inference.variables.values()
    )  # what the function reads has to be owned by what is saved
    module.ranges = list(ends.values())
    module.serve = serve
    tf.saved_model.save(module, path, signatures={SIGNATURE: serve})


def _ends(quantizer: Quantizer) -> tuple[tuple[str, tf.Variable | tf.Tensor], ...]:
    return tuple(zip(("lower", "upper"), quantizer.range(), strict=True))


def may_be_replaced(path: pathlib.Path) -> bool:
    """Whether it is a SavedModel or an empty folder."""
    return (path / "saved_model.pb").is_file() or (path.is_dir() and not any(path.iterdir()))

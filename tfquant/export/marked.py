"""The network as a function in which every site is one marker operation that a converter carries over like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.spec import Site

# An identity with a text attribute. TensorFlow says of it that it has effects, so that nobody folds it, not even on a constant.
MARKER = "CheckNumericsV2"
ATTRIBUTE = "message"


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedNetwork:
    """The inference network of a quantized model, with markers in place of its quantizers.

    Attributes:
      function: flat inputs -> mapping of output names to tensors.
      signature: of the inputs, named.
      outputs: names of the outputs, in the order of `tf.nest.flatten`.
      sites: text of a marker -> the site it stands for.
    """

    function: Any
    signature: tuple[tf.TensorSpec, ...]
    outputs: tuple[str, ...]
    sites: Mapping[str, Site]


def marked(engine: Engine) -> MarkedNetwork:
    """The float network of `engine` with a marker at every site that quantizes."""
    trace, sites = engine.inference, {site.address: site for site in engine.plan.sites if site.enabled}

    def mark(site: Site, tensor: tf.Tensor) -> tf.Tensor:
        if not site.enabled:
            return tensor
        return tf.raw_ops.CheckNumericsV2(tensor=tensor, message=site.address)

    names = _output_names(trace.output_structure)
    signature = tuple(
        tf.TensorSpec(spec.shape, spec.dtype, name=name) for spec, name in zip(trace.input_specs, trace.input_names, strict=True)
    )

    def network(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, trace.emit(list(flat), engine.edits(mark)), strict=True))

    return MarkedNetwork(tf.function(network, autograph=False, input_signature=signature), signature, names, sites)


def _output_names(structure: Any) -> tuple[str, ...]:
    """Keys of a mapping; else `output`, or `output_0` and so on."""
    if isinstance(structure, Mapping) and all(isinstance(leaf, tf.TensorSpec) for leaf in structure.values()):
        return tuple(sorted(structure))  # the order of tf.nest.flatten
    leaves = [leaf for leaf in tf.nest.flatten(structure) if isinstance(leaf, tf.TensorSpec)]
    return ("output",) if len(leaves) == 1 else tuple(f"output_{index}" for index in range(len(leaves)))

"""Interface of an exported network: names, types and order of its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfquant.graph.trace import Trace


@dataclasses.dataclass(frozen=True)
class Interface:
    """Signature of a network as a function of flat inputs.

    Attributes:
      input_names: in the order of `tf.nest.flatten`.
      inputs: signature, likewise, with these names.
      outputs: names, in that order too; none is that of an input, as formats such as ONNX have one
        name for one tensor.
    """

    input_names: tuple[str, ...]
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace) -> Interface:
        specs = zip(trace.input_specs, trace.input_names, strict=True)
        inputs = tuple(tf.TensorSpec(spec.shape, spec.dtype, name=name) for spec, name in specs)
        outputs = tuple(_unlike(trace.input_names, _names(trace.output_structure)))
        return cls(trace.input_names, inputs, outputs)

    def named_inputs(self, flat: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.input_names, flat, strict=True))

    def named_outputs(self, flat: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.outputs, flat, strict=True))


def _names(structure: Any) -> tuple[str, ...]:
    """Keys of a mapping; else `output`, or `output_0` and so on."""
    if isinstance(structure, Mapping) and all(
        isinstance(leaf, tf.TensorSpec) for leaf in structure.values()
    ):
        return tuple(sorted(structure))  # the order of tf.nest.flatten
    leaves = [leaf for leaf in tf.nest.flatten(structure) if isinstance(leaf, tf.TensorSpec)]
    return (
        ("output",)
        if len(leaves) == 1
        else tuple(f"output_{index}" for index in range(len(leaves)))
    )


def _unlike(inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    """Names of outputs, those that an input has with `_output` behind."""
    taken = {*inputs, *outputs}
    for name in outputs:
        if name in inputs:
            name += "_output"
            while name in taken:
                name += "_"
            taken.add(name)
        yield name

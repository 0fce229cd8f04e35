"""Layer samples: inputs and target outputs of the layers of one group, over all batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.ptq.adaround.layer_function import Form
from tfquant.ptq.buffers import Rows, Space
from tfquant.ptq.layers import Layer
from tfquant.ptq.paired_forward import PairedForward


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and target outputs of one use of a layer.

    Attributes:
      form: of the use.
      inputs: what comes in, in the network that is quantized so far.
      targets: what the float network makes of its own input, float32 [rows, outputs].
      parameters: values of the form's parameters.
    """

    form: Form
    inputs: Rows
    targets: Rows
    parameters: tuple[tf.Tensor, ...]


class Outputs:
    """Compiled output functions for samples, shared by layers of the same form."""

    def __init__(self, engine: Engine):
        self._variables = engine.inference.variables
        self._functions: dict[tuple, tf.types.experimental.ConcreteFunction] = {}

    def parameters(self, form: Form) -> tuple[tf.Tensor, ...]:
        """Current values of the parameters of a form besides the weight."""
        return tuple(
            tf.convert_to_tensor(self._variables[handle]) for handle in form.parameter_handles
        )

    def __call__(
        self, layer: Layer, form: Form, rows: np.ndarray, weight: tf.Tensor | None = None
    ) -> np.ndarray:
        """Layer outputs, float32 [rows, outputs]; with the float weight by default."""
        weight = tf.cast(self._variables[layer.handle], tf.float32) if weight is None else weight
        key = (form.key, weight.shape)
        if key not in self._functions:
            signature = [
                form.signature(0)[0],
                tf.TensorSpec(weight.shape, tf.float32),
                form.parameter_specs,
            ]
            self._functions[key] = tf.function(
                lambda x, w, p: form(x, w, p), autograph=False, input_signature=signature
            ).get_concrete_function()
        return self._functions[key](tf.constant(rows), weight, list(self.parameters(form))).numpy()


def collect(
    walk: PairedForward,
    number: int,
    uses: Sequence[tuple[Layer, Form]],
    wanted: Mapping[str, object],
    outputs: Outputs,
    space: Space,
    substitutes: Mapping[str, tf.Variable],
) -> dict[str, list[Samples]]:
    """Collect samples of the layers of one group; an input that several layers share is stored
    once.

    Args:
      walk: over both networks.
      number: of the stop.
      uses: (layer, form) of each use there.
      wanted: addresses of the layers whose samples are needed.
      outputs: of the float layers.
      space: where the samples are kept.
      substitutes: see `PairedForward.visit`.

    Returns:
      Address -> samples of each use.

    Raises:
      ValueError: no real token goes into a layer.
    """
    inputs: dict[tuple, Rows] = {}
    targets = [Rows(space) for _ in uses]
    keys: list[tuple] = [()] * len(uses)
    for seen in walk.visit(number, substitutes):
        stored = set()
        for index, ((layer, form), what) in enumerate(zip(uses, seen, strict=True)):
            if layer.address not in wanted:
                continue
            keys[index] = key = (what.source, form.layout)
            if key not in stored:
                stored.add(key)
                inputs.setdefault(key, Rows(space)).append(form.rows(what.quantized, what.valid))
            targets[index].append(outputs(layer, form, form.rows(what.exact, what.valid)))
    result: dict[str, list[Samples]] = {}
    for (layer, form), key, target in zip(uses, keys, targets, strict=True):
        if layer.address in wanted:
            if target.count == 0:
                raise ValueError(
                    f"no real token goes into {layer.address} in any batch: check the mask input"
                )
            result.setdefault(layer.address, []).append(
                Samples(form, inputs[key], target, outputs.parameters(form))
            )
    return result

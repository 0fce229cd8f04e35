"""Intermediate outputs: tensors from inside a model in addition to its outputs, from one forward
pass, without a change to the model's code.

tapped = tap(model)
outputs, found = tapped(inputs, [block.output for block in tapped.blocks], training=True)
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tfquant.engine import Engine
from tfquant.graph.model_adapter import source_of
from tfquant.graph.padding import Padding
from tfquant.graph.side_outputs import replace_losses
from tfquant.graph.structure import Block
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.recipes.qualcomm import find_letters
from tfquant.rules import Recipe, Rule

_FLOAT = Recipe((Rule(None, optional=True),), "float")


class Tapped:
    """Function that returns intermediate outputs; result of `tap`.

    Attributes:
      differentiable: whether gradients reach the variables of the model.
    """

    def __init__(self, engine: Engine, differentiable: bool, model: keras.Layer | None = None):
        self._engine, self._model = engine, model
        self.differentiable = differentiable

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Addresses of each block's output hidden state and attention probabilities, first block
        first.
        """
        return self._engine.inference.analysis.blocks

    @functools.cached_property
    def letters(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the tensors of `tfquant.recipes.qualcomm` by letter, such as `y3`."""
        return find_letters(self._engine.inference.analysis.roles.edges)

    @property
    def graph(self) -> tf.Graph:
        """Flat graph of one inference pass in the model's current mode, including quantizers.

        Raises:
          UncalibratedError: the model is quantized and has no ranges.
        """
        self._engine.check_ready()
        return self._engine.function(self._engine.mode).graph

    def shape(self, address: str) -> tuple[int | None, ...]:
        """Static shape of the tensor at an address.

        Raises:
          ValueError: the model has no such edge.
        """
        return tuple(self._edge(address).tensor.shape)

    def validity(
        self, address: str, mask: str | Sequence[str] | None = "auto"
    ) -> Callable[[Any], tf.Tensor | None]:
        """Return a function from the model's inputs to the mask of real elements at an address, see
        `tfquant.graph.padding.Validity.of`.
        """
        engine, tensor = self._engine, self._edge(address).tensor
        padding = Padding(engine.inference, [(address, tensor)], mask, "tensors")
        return lambda inputs: padding.values(engine.inputs.flatten(inputs)).of(tensor)

    def __call__(
        self, inputs: Any, addresses: Sequence[str] = (), training: bool = False
    ) -> tuple[Any, dict[str, tf.Tensor]]:
        """Run the model once, in its current mode.

        Args:
          inputs: as the model takes them.
          addresses: `role:path:port` of edges, as plans print them; of a tensor that is quantized
            for all its consumers the quantized values are returned, of one that some consumers
            quantize for themselves those before.
          training: as for the model.

        Returns:
          The model's outputs, and address -> tensor.

        Raises:
          ValueError: the model has no such edge, or the inputs do not fit.
          UncalibratedError: the model is quantized and has no ranges.
        """
        engine, taps = self._engine, tuple(addresses)
        for address in taps:
            self._edge(address)
        engine.check_ready()
        if self.differentiable:
            outputs, result, losses = engine.run(inputs, training, taps)
        else:
            # else a tape around would have the intermediate values kept and a backward pass built
            with record.stop_recording():
                outputs, result, losses = engine.run(inputs, training, taps)
        if self._model is not None:
            replace_losses(self._model, losses)
        return outputs, dict(zip(taps, result, strict=True))

    def _edge(self, address: str):
        edges = self._engine.placements().edges
        if address not in edges:
            near = difflib.get_close_matches(address, edges, n=3, cutoff=0.0)
            raise ValueError(
                f"the model has no edge {address!r}; the nearest are {', '.join(near) or 'none'}"
            )
        return edges[address]


def any_engine_of(model: Any, inputs: Any = None, signature: Any = None) -> Engine:
    """Return the engine of a quantized model, or one that quantizes nothing over another model.

    Args:
      model, inputs, signature: as for `tap`.
    """
    if isinstance(model, (QuantizedModel, QuantizedFunction)):
        return engine_of(model)
    return Engine(source_of(model, inputs, signature), _FLOAT)


def tap(
    model: Any, *, differentiable: bool = True, inputs: Any = None, signature: Any = None
) -> Tapped:
    """Return a function that computes intermediate outputs of a model.

    Args:
      model: a Keras model, or what `tfquant.quantize` returned, whose quantizers then work in it as
        they do in the model.
      differentiable: False for a model that is only looked at, such as a teacher.
      inputs, signature: as for `tfquant.quantize`, for models that do not say what they take.

    Returns:
      A callable over the model's own variables: (inputs, addresses, training) -> (outputs, tensors
      by address).

    Raises:
      TraceError: the model could not be traced or its inputs are not known.
    """
    engine = any_engine_of(model, inputs, signature)
    # Who trains it counts the losses that its layers add.
    return Tapped(
        engine, differentiable, model if isinstance(model, keras.Layer) and differentiable else None
    )

"""Masks that Keras attaches to tensors while a model is traced.

Masks of `Embedding(mask_zero=True)`, `Masking` and `mask=`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import tensorflow as tf
from keras.src.backend.common import masking


class AttachedMasks:
    """Pairs of a tensor and its mask, in the order in which they were attached."""

    def __init__(self):
        self._pairs: list[tuple[tf.Tensor, tf.Tensor]] = []

    def add(self, tensor: tf.Tensor, mask: tf.Tensor) -> None:
        self._pairs.append((tensor, mask))

    def replayed(self, body: tf.Graph, known: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Masks in a graph that `body` was replayed into.

        Args:
          body: the graph of the traced model.
          known: name of a tensor of it -> the replayed one.

        Returns:
          Name of a replayed tensor -> its replayed mask.
        """
        # tf-keras sets the attribute alone. `hasattr` takes 30 times as long as `vars`.
        tensors = [
            t for op in body.get_operations() for t in op.outputs if "_keras_mask" in vars(t)
        ]
        left = [(t, t._keras_mask) for t in tensors]
        result = {}
        for tensor, mask in [*self._pairs, *left]:
            if all(getattr(t, "graph", None) is body and t.name in known for t in (tensor, mask)):
                result[known[tensor.name].name] = known[mask.name]
        return result


@contextlib.contextmanager
def attached_masks() -> Iterator[AttachedMasks]:
    """Record all masks that Keras attaches.

    Attention takes them off its inputs again, so they cannot be read afterwards.
    """
    result, attach = AttachedMasks(), masking.set_tensor_attr

    def recorded(tensor, attribute, value):
        if attribute == "_keras_mask" and value is not None:
            result.add(tensor, value)
        attach(tensor, attribute, value)

    masking.set_tensor_attr = recorded
    try:
        yield result
    finally:
        masking.set_tensor_attr = attach

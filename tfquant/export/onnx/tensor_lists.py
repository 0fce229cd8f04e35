"""Tensor lists (`tf.TensorArray`) outside of loops, replaced by the tensors that they hold.

ONNX has no lists of tensors that TensorFlow's operations map to, except in loops of a few forms. A
list that a Python loop fills at known indices needs none: what it holds is known while the network
is emitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

_CREATED_BY = ("TensorListReserve", "TensorListFromTensor")
_READ_BY = ("TensorListGetItem", "TensorListGather", "TensorListStack")
_WRITTEN_BY = "TensorListSetItem"


class TensorLists:
    """Replacements of the operations on the lists of a graph whose sizes and written indices are
    constants.

    Attributes:
      operations: names of the operations that are replaced.
    """

    def __init__(self, graph_operations: list[tf.Operation]):
        self._of_name = {}
        for op in graph_operations:
            if op.type in _CREATED_BY and (users := _users(op)) is not None:
                self._of_name.update({user.name: user for user in (op, *users)})
        self.operations = frozenset(self._of_name)
        # id of the scalar that stands for a list -> the scalar, which keeps the id, and the items
        self._items: dict[int, tuple[tf.Tensor, list[tf.Tensor | None]]] = {}

    def emit(self, name: str, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return the output of an operation.

        Args:
          name: of the operation.
          inputs: its new inputs; in place of lists, outputs of this method.
        """
        op = self._of_name[name]
        if op.type == "TensorListReserve":
            return self._standing_for([None] * _index(op.inputs[1]))
        if op.type == "TensorListFromTensor":
            return self._standing_for(tf.unstack(inputs[0], op.inputs[0].shape[0]))
        items = self._items[id(inputs[0])][1]
        if op.type == _WRITTEN_BY:
            index = _index(op.inputs[1])
            return self._standing_for([*items[:index], inputs[2], *items[index + 1 :]])
        items = _filled(items)
        index = _constant(op.inputs[1]) if op.type == "TensorListGetItem" else None
        if index is not None and 0 <= index < len(items):
            return items[index]
        stacked = tf.stack(items)
        return stacked if op.type == "TensorListStack" else tf.gather(stacked, inputs[1])

    def _standing_for(self, items: list[tf.Tensor | None]) -> tf.Tensor:
        scalar = tf.zeros([])
        self._items[id(scalar)] = scalar, items
        return scalar


def _users(creator: tf.Operation) -> list[tf.Operation] | None:
    """Operations on a list and on the lists made from it; None if one of them cannot be
    replaced.
    """
    if creator.type == "TensorListFromTensor":
        size = creator.inputs[0].shape[0] if creator.inputs[0].shape.rank else None
    else:
        size = _constant(creator.inputs[1])
    result = list(_reached(creator))
    return result if size and all(_is_replaceable(op, size) for op in result) else None


def _is_replaceable(op: tf.Operation, size: int) -> bool:
    """Whether an operation on a list of `size` items can be replaced."""
    if op.type not in (*_READ_BY, _WRITTEN_BY) or op.get_attr("element_dtype") == tf.variant:
        return False
    if op.type != _WRITTEN_BY:
        return (
            op.inputs[0].op.type != "TensorListReserve"
        )  # nothing was written: the shape of an item is unknown
    index = _constant(op.inputs[1])
    return index is not None and 0 <= index < size  # beyond its size a list may grow


def _reached(creator: tf.Operation) -> Iterator[tf.Operation]:
    """Operations that read the list of `creator` or one that was made from it by writing."""
    pending, seen = [creator], set()
    while pending:
        for op in pending.pop().outputs[0].consumers():
            if op.name not in seen:
                seen.add(op.name)
                yield op
                if op.type == _WRITTEN_BY:
                    pending.append(op)


def _constant(tensor: tf.Tensor) -> int | None:
    """The value of a scalar, None if it is not known."""
    value = tf.get_static_value(tensor)
    return None if value is None or np.ndim(value) else int(value)


def _index(tensor: tf.Tensor) -> int:
    """The value of a scalar that `_is_replaceable` or `_users` found to be known."""
    value = _constant(tensor)
    if value is None:
        raise ValueError(f"{tensor.name} is not constant")
    return value


def _filled(items: list[tf.Tensor | None]) -> list[tf.Tensor]:
    """Items with zeros for those that were never written, as TensorFlow has them."""
    like = next(item for item in items if item is not None)
    return [tf.zeros_like(like) if item is None else item for item in items]

"""Axis of a tensor that a product sums over, seen through the views in front of the product."""

from __future__ import annotations

import math

import tensorflow as tf

from tfquant.graph.contractions import product_equation
from tfquant.graph.dataflow import VIEW_OPS, Dataflow
from tfquant.graph.edge import Edge


def summed_axis(flow: Dataflow, edge: Edge) -> int:
    """Return the axis of an edge's tensor that the product behind it sums over.

    Where a product sums over several, the last of them; the last axis of the tensor where no
    product follows, or the axis cannot be followed.
    """
    last = len(edge.shape) - 1
    if edge.consumer is None or edge.tensor.shape.rank is None:
        return last
    op, index = flow.trace.graph.get_operation_by_name(edge.consumer[0]), edge.consumer[1]
    views = []
    while op.type in VIEW_OPS or flow.undropped(op) is not None:
        views.append((op, index))
        consumers = flow.value_consumers(op.outputs[0])
        if len(consumers) != 1:
            return last
        op, index = consumers[0]
    terms = product_equation(op)
    if terms is None or index >= len(terms[0]):
        return last
    summed = [a for a, label in enumerate(terms[0][index]) if label not in terms[1]]
    axis: int | None = summed[-1] if summed else None
    for view, operand in reversed(views):
        if axis is not None:
            axis = _before(view, operand, axis)
    return last if axis is None else axis


def _before(view: tf.Operation, operand: int, axis: int) -> int | None:
    """Axis of the input of a view that is `axis` of its result; None where no single one is."""
    if view.type == "Transpose":
        order = tf.get_static_value(view.inputs[1])
        return None if order is None else int(order[axis])
    before, after = view.inputs[operand].shape, view.outputs[0].shape
    if before.rank is None or after.rank is None:
        return None
    if before.rank == after.rank:
        return axis
    behind = _size(after[axis + 1 :])
    for place in reversed(range(before.rank)):
        if behind is not None and _size(before[place + 1 :]) == behind and before[place] != 1:
            return place
    return None


def _size(shape: tf.TensorShape) -> int | None:
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes) if len(sizes) == shape.rank else None

"""Custom gradients: the gradient function of one operation (`tf.custom_gradient`), as a separate
graph.

TensorFlow registers such a function by name. It is a Python closure over tensors of the user's
graph, so a copy of the operation cannot use it. Here it is called once, on placeholders, in a graph
that captures every tensor it refers to; replay then creates that graph's operations wherever the
gradient is needed, with the tensors of the new graph in place of the captured ones.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph as tf_func_graph
from tensorflow.python.framework import ops

ATTRIBUTE = "_gradient_op_type"  # of an operation: the name of its registered gradient function


class GradientError(ValueError):
    """A custom gradient of the model cannot be used in the graph of the quantized model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Backward:
    """Traced gradient function.

    Attributes:
      graph: holds the operations; its captures are the tensors that the function refers to.
      output_gradients: placeholders for the gradients of the outputs; None for an output that has
        no gradient (integers).
      input_gradients: one for each input of the operation: None, a tensor or `tf.IndexedSlices`.
    """

    graph: tf_func_graph.FuncGraph
    output_gradients: list[tf.Tensor | None]
    input_gradients: list[Any]


class CustomGradient:
    """Gradient function of one operation, traced on first use."""

    def __init__(self, operation: tf.Operation, name: str):
        self.operation, self._name = operation, name

    @functools.cached_property
    def num_results(self) -> int:
        """Number of inputs of the operation that are results of the differentiated function.

        They come first; the others are arguments of the function and the variables it reads. 0
        where that is not known.
        """
        return _nonlocals(_registered(self._name)).get("flat_result_len", 0)

    @functools.cached_property
    def backward(self) -> Backward:
        """Gradient function as a graph.

        Raises:
          GradientError: the function is not registered, or raised.
        """
        with self.operation.graph.as_default():
            graph = tf_func_graph.FuncGraph(f"{self.operation.name}_gradient")

        def inside(value: tf.Tensor) -> Any:
            # A function may return a tensor of the forward pass as it is.
            return graph.capture(tf.convert_to_tensor(value))

        with graph.as_default():
            placeholders = [_placeholder(output) for output in self.operation.outputs]
            try:
                gradients = ops.gradient_registry.lookup(self._name)(self.operation, *placeholders)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise GradientError(
                    f"the custom gradient of operation {self.operation.name!r} cannot be traced, so"
                    f" the model cannot be trained: {type(error).__name__}: {reason}"
                ) from error
            gradients = gradients if isinstance(gradients, (list, tuple)) else [gradients]
            return Backward(
                graph, placeholders, [with_tensors(gradient, inside) for gradient in gradients]
            )


def custom_gradient_of(operation: tf.Operation, attrs: Any) -> CustomGradient | None:
    """Custom gradient of an operation with the attributes `attrs`; None if it uses the gradient of
    its type.
    """
    return CustomGradient(operation, attrs[ATTRIBUTE].s.decode()) if ATTRIBUTE in attrs else None


def is_recomputation(attrs: Any) -> bool:
    """Return whether the gradient of an operation with the attributes `attrs` is that of
    `tf.recompute_grad` or `keras.remat`.

    It runs the user's function again in the backward pass to save memory, without the quantizers
    that stand inside it. The gradient of the operations of that function is the same number, and
    passes through the quantizers.
    """
    if ATTRIBUTE not in attrs:
        return False
    function = _nonlocals(_registered(attrs[ATTRIBUTE].s.decode())).get("grad_fn")
    return getattr(function, "__code__", None) in _recomputing_code()


def _registered(name: str) -> Callable | None:
    """Registered gradient function; None for one of another process, which a SavedModel names but
    does not contain.
    """
    try:
        return ops.gradient_registry.lookup(name)
    except LookupError:
        return None


def _nonlocals(function: Callable | None) -> dict[str, Any]:
    """Variables that the closure of `tf.custom_gradient` holds (`grad_fn`.

    The user's function); empty for other functions.
    """
    inner = (
        inspect.getclosurevars(function).nonlocals.get("tape_grad_fn")
        if inspect.isfunction(function)
        else None
    )
    return dict(inspect.getclosurevars(inner).nonlocals) if inspect.isfunction(inner) else {}


@functools.cache
def _recomputing_code() -> frozenset[CodeType]:
    """Code objects of all functions that `tf.recompute_grad` defines, including its gradient
    function.
    """
    result, pending = set(), [tf.recompute_grad.__code__]
    while pending:
        inner = [constant for constant in pending.pop().co_consts if isinstance(constant, CodeType)]
        result.update(inner)
        pending += inner
    return frozenset(result)


def _placeholder(output: tf.Tensor) -> tf.Tensor | None:
    if not (output.dtype.is_floating or output.dtype.is_complex):
        return None
    return tf.compat.v1.placeholder(output.dtype, output.shape)


def with_tensors(gradient: Any, tensor_of: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """Replace the tensors of a gradient (None, a tensor or `tf.IndexedSlices`)."""
    if isinstance(gradient, tf.IndexedSlices):
        shape = gradient.dense_shape
        return tf.IndexedSlices(
            tensor_of(gradient.values),
            tensor_of(gradient.indices),
            None if shape is None else tensor_of(shape),
        )
    return None if gradient is None else tensor_of(gradient)

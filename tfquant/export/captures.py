"""Tensors that a traced network holds beside its variables, such as position tables made in
`build`: constants of a file.
"""

from __future__ import annotations

import tensorflow as tf

from tfquant.graph.trace import Trace


def captured_constants(trace: Trace) -> dict[str, tf.Tensor]:
    """Return the eager tensors that a trace captured.

    Args:
      trace: of the network.

    Returns:
      Name of the placeholder inside -> the eager tensor outside.
    """
    return {
        inside.name: outside
        for outside, inside in trace.captures
        if inside.name not in trace.variables and hasattr(outside, "numpy") and _has_values(outside)
    }


def as_constants(trace: Trace) -> dict[str, tf.Tensor]:
    """Create, in the current graph, a constant for each eager tensor that a trace captured.

    Converters and SavedModel would make inputs or untracked resources of captured tensors.

    Args:
      trace: of the network.

    Returns:
      What `Trace.emit` takes as `given`.
    """
    return {
        name: tf.constant(value.numpy(), value.dtype)
        for name, value in captured_constants(trace).items()
    }


def uncaptured(trace: Trace) -> tuple[tf.Operation, str] | None:
    """Find a captured tensor that has no values, such as the handle of a hash table.

    Args:
      trace: of the network.

    Returns:
      The first operation that reads one, and the type of the tensor; None if there is none that an
      output depends on.
    """
    constants, needed = (
        captured_constants(trace),
        {op.name for op in trace.ancestors(list(trace.outputs))},
    )
    for _, inside in trace.captures:
        if inside.name in trace.variables or inside.name in constants:
            continue
        readers = [op for op in inside.consumers() if op.name in needed]
        if readers:
            return readers[0], inside.dtype.name
    return None


def _has_values(tensor: tf.Tensor) -> bool:
    return tensor.dtype not in (tf.resource, tf.variant)

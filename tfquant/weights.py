"""Weights of a traced model: variables by unique path, values of quantized parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

import calib
from tfquant.engine import Engine
from tfquant.graph.edge import Edge
from tfquant.graph.trace import free_path


def named_weights(engine: Engine) -> dict[str, tf.Variable]:
    """Map path -> variable without ranges, in the order of the model.

    States of random generators (dropout) are excluded. Layers of one name are told apart: `dense`,
    `dense_1`, ... in the order data flows through them, then those that inference does not use in
    the order of the model.
    """
    trace = engine.inference
    traced = {id(variable): trace.paths[handle] for handle, variable in trace.variables.items()}
    named: dict[str, tf.Variable] = {}
    seen: set[int] = set()
    for variable, path in [
        *engine.source.named_variables,
        *((variable, "") for variable in trace.variables.values()),
    ]:
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        path = traced.get(id(variable)) or free_path(path, {*traced.values(), *named})
        if path.rpartition("/")[2] != "seed_generator_state":
            named[path] = variable
    return named


def parameter_values(
    engine: Engine, edges: Mapping[str, Edge] | None = None
) -> dict[str, np.ndarray]:
    """Current values of the parameters that sites quantize, as they reach the site.

    Args:
      engine: of the quantized model.
      edges: name -> where a parameter is quantized; by default one edge of every parameter site, by
        the address of the site.

    Returns:
      Name -> values, of tables all rows.

    Raises:
      calib.NonFiniteError: a weight is NaN or infinite; the message names the site.
    """
    edges, trace = _parameter_edges(engine) if edges is None else edges, engine.inference
    values = {
        name: trace.variables[edge.table].numpy()
        for name, edge in edges.items()
        if edge.table is not None
    }
    targets = {name: edge.tensor for name, edge in edges.items() if edge.table is None}
    if targets:
        emit = tf.function(lambda: trace.emit([], targets=list(targets.values())), autograph=False)
        # A concrete function, as TensorFlow warns of functions that are made and called again and
        # again.
        values.update(
            zip(targets, [t.numpy() for t in emit.get_concrete_function()()], strict=True)
        )
    for address, value in values.items():
        if not np.isfinite(value).all():
            raise calib.NonFiniteError(
                f"site {address}: the weight holds {int((~np.isfinite(value)).sum())} NaN or"
                " infinite values; check the checkpoint"
            )
    return values


def _parameter_edges(engine: Engine) -> dict[str, Edge]:
    """Map address of each parameter site -> one of its edges, a product in preference to a
    look-up.
    """
    edges: dict[str, Edge] = {}
    for site, edge in engine.placements():
        if edge.parameter and (
            site.address not in edges or (edges[site.address].table and not edge.table)
        ):
            edges[site.address] = edge
    return edges

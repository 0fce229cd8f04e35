"""Alignment of the inference and the training trace: corresponding edges of both.

Both come from the same Python code, so that most edges have the same address in both. They differ
where code reads `training`: dropout makes a constant product dynamic (relative positions), drops
whole branches, or a layer is called once more. Then the operations of both traces are aligned like
the lines of two texts in a diff, and edges follow their contraction.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

import tensorflow as tf

from tfquant.graph.edge import Edge
from tfquant.graph.trace import Trace


def aligned_edges(inference: Trace, training: Trace) -> dict[str, list[Edge]]:
    """Edges of the training trace by their address in the inference trace.

    An address has no edge where the training trace does not compute it. It has several where the
    training trace uses a quantized parameter once more, in a contraction that the inference trace
    lacks.

    Args:
      inference: the trace that sites are planned on.
      training: another trace of the same model.
    """
    edges = training.analysis.roles.edges
    known = {edge.address for edge in inference.analysis.roles.edges}
    if known == {edge.address for edge in edges}:
        return {edge.address: [edge] for edge in edges}
    return _Alignment(inference, training).edges(known)


class _Alignment:
    """Corresponding operations, contractions and edges where the traces differ."""

    def __init__(self, inference: Trace, training: Trace):
        self._first, self._second = inference, training
        self._planned, self._roles = inference.analysis.roles, training.analysis.roles
        self._of_first = _aligned_operations(self._first, self._second)
        self._of_second = {second: first for first, second in self._of_first.items()}

    def edges(self, known: set[str]) -> dict[str, list[Edge]]:
        """Aligned edges, see `aligned_edges`."""
        renamed, more = self._contractions()
        result: dict[str, list[Edge]] = {}
        for edge in self._roles.edges:
            address = renamed.get(edge.address)
            if address is None and edge.path in self._paths:
                path = self._paths[edge.path]
                address = None if path is None else dataclasses.replace(edge, path=path).address
            elif address is None:
                address = edge.address
            if address in known:
                result.setdefault(address, [self._weights.get(address, edge)])
        for address, edge in self._by_operation(known - result.keys()):
            result[address] = [edge]
        for address, edge in more:
            if address in result:
                result[address].append(edge)
        return result

    def _contractions(self) -> tuple[dict[str, str], list[tuple[str, Edge]]]:
        """(address in training -> address in inference, parameters that only training uses) of the
        inputs of contractions.

        Leaves in `_paths` the path of each contraction of the training trace in the inference
        trace, None where it has none, and in `_weights` the edges of weights that are activations
        in training.
        """
        planned, roles = self._planned.contraction_edges, self._roles.contraction_edges
        by_path = {path: op for op, (path, _) in planned.items() if op not in self._of_first}
        edges = {edge.address: edge for edge in self._roles.edges}
        weights = {edge.address: edge for edge in self._planned.edges if edge.parameter}
        self._paths: dict[str, str | None] = {}
        self._weights: dict[str, Edge] = {}
        renamed: dict[str, str] = {}
        more: list[tuple[str, Edge]] = []
        for op, (path, addresses) in roles.items():
            counterpart = self._of_second.get(op)
            if counterpart is None:
                counterpart = by_path.get(path)
                if counterpart is None:
                    more += _used_again(edges[a] for a in addresses)
            if counterpart not in planned:
                self._paths.setdefault(path, None)
                continue
            other, others = planned[counterpart]
            self._paths[path] = other
            if len(addresses) != len(others):
                continue
            others = self._in_order(counterpart, others, of=edges[addresses[0]])
            renamed.update(zip(addresses, others, strict=True))
            for index, (own, address) in enumerate(zip(addresses, others, strict=True)):
                if address in weights and not edges[own].parameter:
                    self._weights[address] = self._before_dropout(weights[address], op, index)
        return renamed, more

    def _in_order(self, contraction: str, addresses: tuple[str, ...], of: Edge) -> tuple[str, ...]:
        """Addresses of the operands of an inference contraction in the operand order of its
        counterpart.

        A linear has its input before its weight, whichever comes first; without a fixed weight, as
        with dropout on it, the counterpart is a product of two activations, whose operands stand as
        they come.
        """
        if of.role != "matmul_input" or any(":matmul_input:" in address for address in addresses):
            return addresses
        weight_first = self._first.analysis.flow.is_fixed(
            self._first.graph.get_operation_by_name(contraction).inputs[0]
        )
        return tuple(reversed(addresses)) if weight_first else addresses

    def _before_dropout(self, weight: Edge, contraction: str, index: int) -> Edge:
        """Match a weight that is an activation in training.

        Before dropout but behind views, as its channels lie where they were.
        """
        flow = self._second.analysis.flow
        op = self._second.graph.get_operation_by_name(contraction)
        while True:
            source = op.inputs[index]
            kept = flow.undropped(source.op)
            if kept is None or len(flow.value_consumers(source)) > 1:
                return dataclasses.replace(weight, tensor=source, consumer=(op.name, index))
            op, index = source.op, kept

    def _by_operation(self, missing: set[str]):
        """(address, edge) of edges whose operation is in both traces, although only one trace has
        their role.
        """
        wanted = [
            edge
            for edge in self._planned.edges
            if edge.address in missing and edge.table is None and not edge.parameter
        ]
        if not wanted:
            return
        structure = self._second.analysis.structure
        for edge in wanted:
            name = self._of_first.get(
                edge.tensor.op.name if edge.consumer is None else edge.consumer[0]
            )
            if name is None:
                continue
            op = self._second.graph.get_operation_by_name(name)
            if edge.consumer is None:
                tensor = op.outputs[edge.tensor.value_index]
                yield edge.address, dataclasses.replace(edge, tensor=tensor)
            else:
                op, index = structure.lifted(op, edge.consumer[1])
                yield (
                    edge.address,
                    dataclasses.replace(edge, tensor=op.inputs[index], consumer=(op.name, index)),
                )


def _used_again(edges) -> list[tuple[str, Edge]]:
    """Match parameters of a repeated call of a layer to the address of the first call."""
    calls = [
        (dataclasses.replace(edge, path=edge.path.partition("#")[0]), edge)
        for edge in edges
        if edge.parameter
    ]
    return [(first.address, edge) for first, edge in calls]


def _aligned_operations(first: Trace, second: Trace) -> dict[str, str]:
    """Map name of an operation of `first` -> name of its counterpart in `second`.

    Operations that compute the same from the inputs belong together, in the order in which they
    come; of the others those whose names follow each other in the same order.
    """
    result: dict[str, str] = {}
    waiting: dict[int, list[str]] = {}
    for name, signature in _signatures(second).items():
        waiting.setdefault(signature, []).append(name)
    for name, signature in _signatures(first).items():
        if waiting.get(signature):
            result[name] = waiting[signature].pop(0)
    taken = set(result.values())
    left = [op for op in first.operations if op.name not in result]
    right = [op for op in second.operations if op.name not in taken]
    keys = [[_key(op) for op in operations] for operations in (left, right)]
    for start, other, count in difflib.SequenceMatcher(
        None, *keys, autojunk=False
    ).get_matching_blocks():
        result.update((left[start + i].name, right[other + i].name) for i in range(count))
    return result


def _signatures(trace: Trace) -> dict[str, int]:
    """Map name of an operation -> number that is equal for operations of equal computation,
    ignoring dropout.
    """
    flow, result = trace.analysis.flow, {}
    for op in trace.operations:
        parts = [op.type, tuple(t.dtype.as_datatype_enum for t in op.outputs)]
        if op.type == "Placeholder":
            parts.append(trace.paths.get(op.outputs[0].name, op.name))
        elif op.type == "Const":
            parts.append(op.node_def.attr["value"].SerializeToString())
        for tensor in map(flow.through_dropout, op.inputs):
            parts.append((result[tensor.op.name], tensor.value_index))
        result[op.name] = hash(tuple(parts))
    return result


def _key(op: tf.Operation) -> tuple[str, str]:
    """Type and name without its uniquifying number.

    What is inserted before shifts such numbers.
    """
    return op.type, re.sub(r"_\d+$", "", op.name)

"""Detection of attention masks by structure: the tensors of [batch, tokens] that determine which
keys a Softmax excludes.

A mask that a model passes on itself, as `attention_mask=` or as another argument, is neither known
by name nor a Keras mask. It is visible in the graph: scores are replaced or lowered by something
that is computed from inputs without any variable. Which tensor behind it marks tokens, and whether
it marks the real ones or the padding, is found by evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfquant.graph.axes import Axes
from tfquant.graph.dataflow import ELEMENTWISE_OPS, SHAPES_ALONE, VIEW_OPS
from tfquant.graph.trace import Trace

_SELECTIONS = ("Select", "SelectV2")
_SUMS = ("Add", "AddV2", "Sub")
# Scores that are lowered by more than this are left out: masks add -10000, -1e9 and the like.
_LEFT_OUT = -50.0
_CANDIDATES = 8  # tried out for one mask, the nearest first


@dataclasses.dataclass(frozen=True)
class TokenMask:
    """Token mask tensor of [batch, tokens].

    Attributes:
      tensor: of the trace.
      marks_padding: whether it is nonzero for padding; else for real tokens.
    """

    tensor: tf.Tensor
    marks_padding: bool


@dataclasses.dataclass(frozen=True)
class _Operand:
    """Operand that masks the scores before a Softmax: a condition, or a term of a sum.

    Attributes:
      op: selects or adds.
      tensor: the condition or the term.
      sign: 1 if scores stay where a condition is True, or of a term that is added; -1 for the
        opposite.
    """

    op: tf.Operation
    tensor: tf.Tensor
    sign: int

    def allowed(self, value: np.ndarray) -> np.ndarray:
        """Scores that remain for a value of the tensor."""
        if value.dtype == bool:
            return value if self.sign > 0 else ~value
        return self.sign * value.astype(np.float64) > _LEFT_OUT


def find_token_masks(
    trace: Trace, known: Collection[tf.Tensor]
) -> tuple[list[TokenMask], dict[str, list[str]]]:
    """Find the token masks behind the attention masks of a graph, and the attention masks that none
    explains.

    Args:
      trace: the graph.
      known: masks that were found otherwise; attention masks that are computed from one of them are
        explained.

    Returns:
      The masks; and name of the operation that applies a mask -> names of the inputs that it is
      computed from.
    """
    from_inputs, mixed = _origins(trace)
    result: list[TokenMask] = []
    unexplained: dict[str, list[str]] = {}
    names = {mask.name for mask in known}
    in_vain: set[tuple[str, int]] = (
        set()
    )  # layers often share one attention mask, and each trial is a trace
    inputs = dict(zip((tensor.name for tensor in trace.inputs), trace.input_names, strict=True))
    for operand in _operands(trace, from_inputs, mixed):
        behind = [t for op in trace.ancestors([operand.tensor]) for t in op.outputs]
        if any(tensor.name in names for tensor in behind):
            continue
        tried = operand.tensor.name, operand.sign
        mask = None
        if tried not in in_vain:
            mask = _tried_out(trace, operand, _candidates(operand.tensor, from_inputs))
        if mask is None:
            in_vain.add(tried)
            unexplained[operand.op.name] = [inputs[t.name] for t in behind if t.name in inputs]
        else:
            result.append(mask)
            names.add(mask.tensor.name)
    return result, unexplained


def _origins(trace: Trace) -> tuple[set[str], set[str]]:
    """Names of tensors computed from values of inputs alone, and of those computed from variables
    or random numbers.
    """
    from_inputs, mixed = {tensor.name for tensor in trace.inputs}, set(trace.variables)
    for op in trace.operations:
        if op.type in SHAPES_ALONE:
            continue
        if "Random" in op.type or any(t.name in mixed for t in op.inputs):
            mixed.update(t.name for t in op.outputs)
        elif any(t.name in from_inputs for t in op.inputs):
            from_inputs.update(t.name for t in op.outputs)
    return from_inputs, mixed


def _operands(
    trace: Trace, from_inputs: Collection[str], mixed: Collection[str]
) -> Iterator[_Operand]:
    """Yield the operands that change scores between their product and a Softmax."""
    seen: set[str] = set()
    for softmax in (op for op in trace.operations if op.type == "Softmax"):
        pending = [softmax.inputs[0]]
        while pending:
            tensor = pending.pop()
            op = tensor.op
            if (
                op.name in seen
                or tensor.name not in mixed
                or op.type not in ELEMENTWISE_OPS | VIEW_OPS
            ):
                continue
            seen.add(op.name)
            pending += op.inputs
            scores = [index for index, t in enumerate(op.inputs) if t.name in mixed]
            if op.type in _SELECTIONS and op.inputs[0].name in from_inputs and len(scores) == 1:
                yield _Operand(op, op.inputs[0], 1 if scores[0] == 1 else -1)
            elif (
                op.type in _SUMS
                and len(scores) == 1
                and op.inputs[1 - scores[0]].name in from_inputs
            ):
                yield _Operand(
                    op, op.inputs[1 - scores[0]], -1 if op.type == "Sub" and scores[0] == 0 else 1
                )


def _candidates(tensor: tf.Tensor, from_inputs: Collection[str]) -> list[tf.Tensor]:
    """Tensors of two axes that `tensor` is computed from, nearest first."""
    result, pending, seen = [], [tensor], {tensor.name}
    while pending and len(result) < _CANDIDATES:
        here = pending.pop(0)
        if (
            here.shape.rank == 2
            and here.shape[1] != 1
            and (here.dtype.is_bool or here.dtype.is_integer or here.dtype.is_floating)
        ):
            result.append(here)
        for behind in here.op.inputs if here.op.type not in SHAPES_ALONE else ():
            if behind.name in from_inputs and behind.name not in seen:
                seen.add(behind.name)
                pending.append(behind)
    return result


def _tried_out(trace: Trace, operand: _Operand, candidates: list[tf.Tensor]) -> TokenMask | None:
    """First of some tensors whose value masks single keys; None if there is none."""
    if not candidates:
        return None
    try:
        shapes = Axes(trace, [operand.tensor, *candidates]).input_shapes
        specs = [
            tf.TensorSpec(shape, tensor.dtype)
            for shape, tensor in zip(shapes, trace.inputs, strict=True)
        ]
        zeros = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
        for candidate in candidates:
            allowed = _allowed(trace, operand, candidate, specs, zeros)
            for marks_padding in (False, True):
                if _decides(allowed, marks_padding):
                    return TokenMask(candidate, marks_padding)
    except Exception:  # the graph takes no such sizes, or no zeros
        return None
    return None


def _allowed(
    trace: Trace,
    operand: _Operand,
    candidate: tf.Tensor,
    specs: list[tf.TensorSpec],
    zeros: list[tf.Tensor],
) -> Mapping[tuple[int, int], np.ndarray]:
    """Map (value of all tokens, value of the second) -> which scores remain, [..., keys]."""
    values = [(0, 0), (1, 1), (0, 1), (1, 0)] + (
        [] if candidate.dtype.is_bool else [(2, 2), (0, 2), (2, 0)]
    )

    def run(*flat: tf.Tensor) -> list[tf.Tensor]:
        (own,) = trace.emit(list(flat), targets=[candidate])
        second = tf.equal(tf.range(tf.shape(own)[1]), 1)
        results = []
        for rest, chosen in values:
            specified = tf.broadcast_to(
                tf.cast(tf.where(second, chosen, rest), own.dtype), tf.shape(own)
            )
            results += trace.emit(
                list(flat), targets=[operand.tensor], given={candidate.name: specified}
            )
        return [tf.shape(own), *results]

    function = tf.function(run, autograph=False, jit_compile=False, input_signature=specs)
    shape, *results = function.get_concrete_function()(*zeros)
    if any(result.shape.rank < 1 or result.shape[-1] != shape[1] for result in results):
        return {}
    return {
        pair: operand.allowed(result.numpy()) for pair, result in zip(values, results, strict=True)
    }


def _decides(allowed: Mapping[tuple[int, int], np.ndarray], marks_padding: bool) -> bool:
    """Return whether the value of a key masks it, nonzero for padding or for real tokens."""
    nonzero = sorted({value for pair in allowed for value in pair} - {0})
    pairs = [
        (0, value) if marks_padding else (value, 0) for value in nonzero
    ]  # all real, but the second
    return bool(pairs) and all(
        allowed[rest, rest][..., 1].any()
        and not allowed[rest, chosen][..., 1].any()
        and np.delete(allowed[rest, chosen], 1, -1).any()
        and not (allowed[rest, chosen] & ~allowed[rest, rest]).any()
        for rest, chosen in pairs
    )

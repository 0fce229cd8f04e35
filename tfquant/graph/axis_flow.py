"""Propagation of axis labels through operations, for axes that sizes alone do not distinguish.

The size of an axis is a product of factors, the outermost first: the size of one input's axis,
which has a label, or another number. Reshapes regroup factors and transposes order them; an
operation that is not known here makes all of its outputs unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfquant.graph.axis_sizes import BATCH
from tfquant.graph.replay import LOOP_OPS

# (label or None, size)
Factor = tuple[int | None, Any]  # (label, size); an int where the shape is known
Factors = tuple[tuple[Factor, ...], ...]
# Label of an axis that holds some of the elements along an input's axis, or these and others: a
# slice, a concatenation, a pooling.
PART = 1 << 30


def flow(graph: tf.Graph, inputs: Mapping[str, Sequence[int | None]]) -> dict[str, Factors]:
    """Compute the label factors of the axes of all tensors of a graph of known shapes.

    Args:
      graph: holds the operations.
      inputs: name of a placeholder -> the label of each axis.

    Returns:
      Name of a tensor -> factors of each axis; without those that cannot be told.
    """
    result: dict[str, Factors] = {}
    for op in graph.get_operations():
        for output in op.outputs:
            if output.shape.rank is None or None in tuple(output.shape):
                continue
            if output.name in inputs:
                labels = inputs[output.name]
                result[output.name] = tuple(
                    ((label, size),) for label, size in zip(labels, output.shape, strict=True)
                )
                continue
            factors = _of_output(op, output, result)
            if factors is not None:
                result[output.name] = factors
    return result


def _of_output(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    shape = tuple(output.shape)
    if not op.inputs or op.type == "ReadVariableOp":
        return _unlabelled(shape)
    if op.type in LOOP_OPS or any(
        t.dtype == tf.variant for t in op.inputs
    ):  # loops, and lists that they fill
        return None
    factors = _RULES.get(op.type, _elementwise)(op, output, found)
    if factors is None or len(factors) != len(shape):
        return None
    return tuple(_fitted(axis, size) for axis, size in zip(factors, shape, strict=True))


def _fitted(axis: tuple[Factor, ...], size: Any) -> tuple[Factor, ...]:
    if _size(axis) == size:
        return axis
    return ((PART if _labels_in(axis) and size != 1 else None, size),)


def _unlabelled(shape: Sequence[Any]) -> Factors:
    return tuple(((None, size),) for size in shape)


def _size(factors: Sequence[Factor]) -> int:
    size = 1
    for _, factor in factors:
        size *= factor
    return size


def _of(tensor: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    return found.get(tensor.name)


def _elementwise(
    op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]
) -> Factors | None:
    """Labels of broadcast operands; None where they do not broadcast."""
    shape = tuple(output.shape)
    operands = []
    for tensor in op.inputs:
        if tensor.shape.rank == 0:
            continue
        factors = _of(tensor, found)
        if factors is None or len(factors) > len(shape):
            return None
        if any(
            _size(axis) not in (1, size)
            for axis, size in zip(reversed(factors), reversed(shape), strict=False)
        ):
            return None
        operands.append(factors)
    return _broadcast(operands, shape)


def _broadcast(operands: Sequence[Factors], shape: Sequence[Any]) -> Factors:
    """Factors of each axis, from the operand that has all of them, one with labels first."""
    result = []
    for offset in range(len(shape), 0, -1):
        axes = [factors[-offset] for factors in operands if len(factors) >= offset]
        axes = [axis for axis in axes if _size(axis) == shape[-offset]]
        result.append(max(axes, key=_labels_in, default=((None, shape[-offset]),)))
    return tuple(result)


def _labels_in(axis: Sequence[Factor]) -> int:
    return sum(label is not None for label, _ in axis)


def _regrouped(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors = _of(op.inputs[0], found)
    if factors is None:
        return None
    left = [factor for axis in factors for factor in axis if factor[1] != 1]
    result = []
    sizes: Any = output.shape
    for size in sizes:
        axis: list[Factor] = []
        while _size(axis) < size:
            if not left:
                return None
            label, factor = left.pop(0)
            wanted = size // _size(axis)
            if (
                factor > wanted
                and label is None
                and factor % wanted == 0
                and size % _size(axis) == 0
            ):
                left.insert(0, (None, factor // wanted))
                factor = wanted
            axis.append((label, factor))
        if _size(axis) != size:
            return None
        result.append(tuple(axis) or ((None, 1),))
    return tuple(result)


def _transposed(
    op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]
) -> Factors | None:
    factors, order = _of(op.inputs[0], found), tf.get_static_value(op.inputs[1])
    return None if factors is None or order is None else tuple(factors[axis] for axis in order)


def _reduced(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors, axes = _of(op.inputs[0], found), tf.get_static_value(op.inputs[1])
    if factors is None or axes is None:
        return None
    gone = {int(axis) % len(factors) for axis in axes.ravel()}
    if op.get_attr("keep_dims"):
        return tuple(((None, 1),) if i in gone else axis for i, axis in enumerate(factors))
    return tuple(axis for i, axis in enumerate(factors) if i not in gone)


def _matmul(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    first, second = (_of(tensor, found) for tensor in op.inputs[:2])
    if first is None or second is None:
        return None
    names = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    rows = first[-1 if op.get_attr(names[0]) else -2]
    columns = second[-2 if op.get_attr(names[1]) else -1]
    return (*_broadcast([first[:-2], second[:-2]], tuple(output.shape)[:-2]), rows, columns)


def _einsum(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    left, _, right = op.get_attr("equation").decode().replace(" ", "").partition("->")
    known: dict[str, tuple[Factor, ...]] = {}
    for term, tensor in zip(left.split(","), op.inputs, strict=True):
        factors = _of(tensor, found)
        if factors is None:
            return None
        for letter, axis in zip(_letters(term, len(factors)), factors, strict=True):
            if letter not in known or (_labels_in(axis), _size(axis)) > (
                _labels_in(known[letter]),
                _size(known[letter]),
            ):
                known[letter] = axis
    letters = _letters(right, output.shape.rank)
    return tuple(known[letter] for letter in letters) if set(letters) <= known.keys() else None


def _letters(term: str, rank: int) -> list[str]:
    """Unique name for each axis; those of an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    count = rank - len(before) - len(after)
    return [*before, *(f".{i}" for i in range(count, 0, -1)), *after] if dots else list(term)


def _gathered(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    params, indices = (_of(tensor, found) for tensor in op.inputs[:2])
    axis = tf.get_static_value(op.inputs[2]) if op.type == "GatherV2" else 0
    if indices is not None and op.type == "ResourceGather":
        params = ((None, 0),), *_unlabelled(tuple(output.shape)[len(indices) :])
    if params is None or indices is None or axis is None or op.get_attr("batch_dims"):
        return None
    axis = int(axis) % len(params)
    return (*params[:axis], *indices, *params[axis + 1 :])


def _sliced(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    """Labels of a slice: axes of unchanged size keep theirs."""
    factors = _of(op.inputs[0], found)
    if factors is None or op.type != "StridedSlice":
        return factors
    bits = {name: op.get_attr(f"{name}_mask") for name in ("ellipsis", "new_axis", "shrink_axis")}
    count = op.inputs[1].shape[0]
    if count is None:
        return None
    marks = [
        next((name for name, mask in bits.items() if mask >> i & 1), "keep") for i in range(count)
    ]
    used = sum(mark in ("keep", "shrink_axis") for mark in marks)
    rest = len(factors) - used
    begin = tf.get_static_value(op.inputs[1])
    result, position, between = [], 0, ()
    for index, mark in enumerate(marks if "ellipsis" in marks else [*marks, "ellipsis"]):
        if mark == "new_axis":
            result.append(((None, 1),))
        elif mark == "ellipsis":
            result += factors[position : position + rest]
            position += rest
        else:
            if mark == "keep":
                result.append(factors[position])
            elif begin is None or begin[index] not in (0, -1):
                between = (*between, *factors[position])  # neither the first token nor the last
            position += 1
    return _at_one_position(tuple(result), between)


def _first_operand(
    op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]
) -> Factors | None:
    """Labels of the first operand, for axes of unchanged size.

    Of concatenations, splits, pads, convolutions and pools.
    """
    values = [
        t
        for t in op.inputs
        if t.shape.rank == output.shape.rank and not (t.dtype.is_integer and t.shape.rank == 1)
    ]
    factors = [f for t in values if (f := _of(t, found)) is not None]
    return factors[0] if factors else None


def _packed(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors = _of(op.inputs[0], found)
    if factors is None:
        return None
    axis = op.get_attr("axis") % output.shape.rank
    return (*factors[:axis], ((None, len(op.inputs)),), *factors[axis:])


def _unpacked(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors = _of(op.inputs[0], found)
    if factors is None:
        return None
    axis = op.get_attr("axis") % len(factors)
    return _at_one_position((*factors[:axis], *factors[axis + 1 :]), factors[axis])


def _at_one_position(rest: Factors, axis: tuple[Factor, ...]) -> Factors:
    """Labels of a tensor at one index of an axis.

    One token of every row, which is padding in some of them.
    """
    rows = next((i for i, other in enumerate(rest) if (BATCH, _size(other)) in other), None)
    if rows is None or not _labels_in(axis):
        return rest
    return (*rest[:rows], ((PART, _size(rest[rows])),), *rest[rows + 1 :])


def _convolved(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    """Labels of a convolution, whose last output axis are features."""
    factors = _of(op.inputs[0], found)
    if factors is None or op.get_attr("data_format") not in (b"NHWC", b"NDHWC"):
        return None
    return (*factors[:-1], ((None, output.shape[-1]),))


def _one_hot(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors = _of(op.inputs[0], found)
    if factors is None:
        return None
    axis = op.get_attr("axis") % output.shape.rank
    return (*factors[:axis], ((None, output.shape[axis]),), *factors[axis:])


def _widened(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    factors = _of(op.inputs[0], found)
    return None if factors is None else _broadcast([factors], tuple(output.shape))


def _shapeless(op: tf.Operation, output: tf.Tensor, found: Mapping[str, Factors]) -> Factors | None:
    """Labels of tensors made of sizes or random numbers: none.

    No axis is that of an input by itself, what it is joined with tells.
    """
    return _unlabelled(tuple(output.shape))


_Rule = Callable[[tf.Operation, tf.Tensor, Mapping[str, Factors]], Factors | None]
_RULES: dict[str, _Rule] = {
    name: rule
    for names, rule in (
        ("Transpose", _transposed),
        ("Reshape ExpandDims Squeeze", _regrouped),
        ("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3", _matmul),
        ("Einsum", _einsum),
        ("GatherV2 ResourceGather", _gathered),
        ("OneHot", _one_hot),
        ("StridedSlice Slice", _sliced),
        ("ConcatV2 Split SplitV Pad PadV2 MirrorPad Tile MaxPool AvgPool", _first_operand),
        ("Pack", _packed),
        ("Unpack", _unpacked),
        ("Conv2D Conv3D DepthwiseConv2dNative", _convolved),
        ("BroadcastTo", _widened),
        ("Mean Sum Max Min Prod Any All EuclideanNorm", _reduced),
        (
            (
                "Shape ShapeN Size Rank Fill Range RandomUniform RandomStandardNormal"
                " StatelessRandomUniformV2"
            ),
            _shapeless,
        ),
    )
    for name in names.split()
}

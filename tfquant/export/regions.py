"""Regions: parts of a network that ONNX has one operation for, where a trace has many.

A region is taken only if it was seen to compute what the operation computes: layer normalisations and GELU on numbers, shapes on
two inputs of different sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.graph.contractions import equation, find_contractions
from tfquant.graph.dataflow import ELEMENTWISE_OPS, Dataflow
from tfquant.graph.layernorm import find_layernorms
from tfquant.graph.part import Part

EdgeKey = tuple[str, int]  # operation name, input index

_PARTS_OF_ACTIVATIONS = ELEMENTWISE_OPS | {"Const", "Identity", "Cast", "Reshape", "ReadVariableOp", "Placeholder"}
_CLOSE = 1e-5  # relative to the largest value: float32 in another order of operations


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """What one operation can stand for.

    Attributes:
      kind: of the operation, as ONNX calls it.
      entry: edge on which the input comes in; every other one carries the same values.
      target: the output.
      kernel: edge with the second operand of a MatMul.
      parameters: further operands by their name in ONNX; of a MatMul the shapes to give `source`, `kernel` and `target`, if any.
      attributes: of the operation.
    """

    kind: str
    entry: EdgeKey
    target: tf.Tensor
    kernel: EdgeKey | None = None
    parameters: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def find_regions(engine: Engine, mode: str = "quantized") -> list[Region]:
    """Regions of the inference network without a site inside; in mode `float` there is none."""
    flow = Dataflow(engine.inference)
    sites = _Sites(engine if mode == "quantized" else None)
    return [*_layernorms(flow, sites), *_gelus(flow, sites), *_linears_and_reshapes(flow, sites), *_einsums(flow)]


class _Sites:
    """Where enabled sites stand."""

    def __init__(self, engine: Engine | None):
        edges = [edge for site, edge in engine.placements() if site.enabled] if engine else []
        self.edges = {edge.consumer for edge in edges if edge.consumer is not None}
        self.tensors = {edge.tensor.name for edge in edges if edge.consumer is None}

    def inside(self, operations: Sequence[tf.Operation], target: tf.Tensor) -> bool:
        """Whether a site changes what `operations` read, or what they make other than `target`."""
        reads = any((op.name, index) in self.edges for op in operations for index in range(len(op.inputs)))
        return reads or any(t.name in self.tensors for op in operations for t in op.outputs if t.name != target.name)


def _entry(flow: Dataflow, source: tf.Tensor, part: Part) -> EdgeKey:
    return next((op.name, index) for op, index in flow.consumers[source.name] if op.name in part.names)


# Layer normalisation.


def _layernorms(flow: Dataflow, sites: _Sites) -> Iterator[Region]:
    for norm in find_layernorms(flow):
        size = norm.input.shape[-1]
        if norm.input.dtype != tf.float32 or norm.output.dtype != tf.float32 or size is None or size < 3:
            continue
        part = Part.find(flow.trace, norm.input, norm.output)
        if part is None or sites.inside(part.operations, norm.output):
            continue
        found = _normalisation(part, _sample_shape(norm.input))
        if found is not None:
            scale, bias, epsilon = found
            parameters, attributes = {"scale": scale, "bias": bias}, {"axis": -1, "epsilon": epsilon}
            yield Region("LayerNormalization", _entry(flow, norm.input, part), norm.output, None, parameters, attributes)


def _normalisation(part: Part, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(scale, bias, epsilon) if the part normalises the last axis: read off its answers to three inputs, held against a fourth."""
    size = shape[-1]
    bias = part(np.zeros(shape, np.float32))
    waves = np.where(np.arange(size) % 2, 1.0, -1.0)
    normalised = (waves - waves.mean()) / waves.std()
    if bias.shape != shape:
        return None
    bias = bias.reshape(-1, size)[0].astype(np.float64)
    large, small = 1e4, 1e-3  # large enough for epsilon to vanish, small enough for it to show
    scale = (part(np.broadcast_to(large * waves, shape)).reshape(-1, size)[0] - bias) / normalised
    answer = part(np.broadcast_to(small * waves, shape)).reshape(-1, size)[0] - bias
    if not scale.any():
        return None
    share = float(answer @ (scale * normalised) / np.square(scale * normalised).sum())
    if not 0.0 < share <= 1.001:
        return None
    estimate = (small * waves.std()) ** 2 * (1.0 / share**2 - 1.0)
    epsilon = min(_small_constants(part), key=lambda value: abs(value - estimate), default=None)
    if epsilon is None:
        return None
    sizes = np.geomspace(1e-3, 1.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    sample = np.random.default_rng(0).normal(0.3, 2.0, shape) * sizes
    deviation = sample - sample.mean(-1, keepdims=True)
    expected = deviation / np.sqrt(np.square(deviation).mean(-1, keepdims=True) + epsilon) * scale + bias
    if not _same(part(sample), expected):
        return None
    return scale.astype(np.float32), bias.astype(np.float32), epsilon


def _small_constants(part: Part) -> list[float]:
    """Scalars that may be the epsilon of a normalisation."""
    values = [tf.get_static_value(op.outputs[0]) for op in part.operations if op.type == "Const"]
    found = [float(v) for v in values if v is not None and np.size(v) == 1 and np.asarray(v).dtype.kind == "f" and 0 <= v < 0.1]
    return found + [op.get_attr("epsilon") for op in part.operations if op.type.startswith("FusedBatchNorm")]


# GELU.


def _gelus(flow: Dataflow, sites: _Sites) -> Iterator[Region]:
    for op in flow.operations:
        if op.type in ("Erf", "Erfc", "Tanh") and op.name in flow.used and op.outputs[0].dtype == tf.float32:
            region = _gelu_around(flow, sites, op)
            if region is not None:
                yield region


def _gelu_around(flow: Dataflow, sites: _Sites, core: tf.Operation) -> Region | None:
    """The nearest tensors before and after `core` of which one is the GELU of the other."""
    behind = flow.walk_back(core.outputs[0], lambda op: op.type in _PARTS_OF_ACTIVATIONS)
    sources = [t for op in behind for t in op.inputs if flow.is_dynamic(t) and t.dtype == tf.float32]
    following = flow.walk_forward(core.outputs, lambda op: op.type in ELEMENTWISE_OPS)
    targets = [op.outputs[0] for op in following if op.type == "Mul"]
    for source in list({t.name: t for t in sources}.values())[:8]:
        for target in targets[:4]:
            part = Part.find(flow.trace, source, target)
            if part is None or not all(op.type in _PARTS_OF_ACTIVATIONS for op in part.operations):
                continue
            if sites.inside(part.operations, target):
                continue
            approximate = _gelu_kind(part, _sample_shape(source))
            if approximate is not None:
                return Region("Gelu", _entry(flow, source, part), target, attributes={"approximate": approximate})
    return None


def _gelu_kind(part: Part, shape: tuple[int, ...]) -> str | None:
    """`none` for the exact function, `tanh` for its approximation, None for another function."""
    x = np.random.default_rng(0).normal(0.0, 3.0, shape)
    answer = part(x)
    exact = 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))
    tanh = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return next((name for name, value in (("none", exact), ("tanh", tanh)) if _same(answer, value)), None)


def _same(answer: np.ndarray, expected: np.ndarray) -> bool:
    return answer.shape == expected.shape and bool(np.abs(answer - expected).max() <= _CLOSE * max(1.0, np.abs(expected).max()))


def _sample_shape(tensor: tf.Tensor) -> tuple[int, ...]:
    """Of a small input; open sizes are 4."""
    return tuple(size or 4 for size in tensor.shape)


# Products of more than two axes and other reshapes: what they look like depends on sizes that are computed while the network runs.


def _linears_and_reshapes(flow: Dataflow, sites: _Sites) -> Iterator[Region]:
    reshapes = [op for op in flow.operations if _is_open_reshape(flow, op)]
    shapes = _probed(flow, [t for op in reshapes for t in (op.inputs[0], op.outputs[0])])
    if shapes is None:
        return
    inside = set()
    for product in flow.operations:
        region = _linear(flow, sites, product, shapes)
        if region is not None:
            inside |= {product.inputs[0].op.name, region.target.op.name}
            yield region
    for op in reshapes:
        if op.name not in inside:
            shape = _onnx_shape(op.inputs[0], op.outputs[0], shapes)
            if shape is not None:
                yield Region("Reshape", (op.name, 0), op.outputs[0], parameters={"shape": np.array(shape, np.int64)})


def _is_open_reshape(flow: Dataflow, op: tf.Operation) -> bool:
    source = op.inputs[0] if op.type == "Reshape" else None
    return (
        source is not None
        and source.dtype == tf.float32
        and op.name in flow.used
        and flow.is_dynamic(source)
        and source.shape.rank is not None
        and op.outputs[0].shape.rank is not None
    )


def _probed(flow: Dataflow, tensors: Sequence[tf.Tensor]) -> dict[str, list[tuple[int, ...]]] | None:
    """Tensor name -> its shape for two inputs of different sizes; None where the network takes no such inputs."""
    trace, tensors = flow.trace, list({t.name: t for t in tensors}.values())
    if not tensors:
        return None
    emit = tf.function(
        lambda *flat: [tf.shape(t) for t in trace.emit(list(flat), targets=tensors)], autograph=False,
        input_signature=trace.input_specs,
    ).get_concrete_function()
    found: dict[str, list[tuple[int, ...]]] = {t.name: [] for t in tensors}
    for batch, length in ((2, 3), (3, 5)):
        flat = []
        for spec in trace.input_specs:
            if spec.shape.rank is None:
                return None
            sizes = [size if size is not None else (length if axis else batch) for axis, size in enumerate(spec.shape)]
            flat.append(tf.zeros(sizes, spec.dtype))
        try:
            answers = emit(*flat)
        except tf.errors.OpError:
            return None
        for tensor, shape in zip(tensors, answers, strict=True):
            found[tensor.name].append(tuple(shape.numpy().tolist()))
    return found


def _linear(flow: Dataflow, sites: _Sites, product: tf.Operation, shapes: Mapping[str, list[tuple[int, ...]]]) -> Region | None:
    """Flattened to a matrix, multiplied, and given its axes back."""
    if product.type != "MatMul" or product.get_attr("transpose_a") or product.get_attr("transpose_b"):
        return None
    before, after = product.inputs[0].op, flow.value_consumers(product.outputs[0])
    if before.type != "Reshape" or len(after) != 1 or after[0][0].type != "Reshape" or after[0][1] != 0:
        return None
    source, target = before.inputs[0], after[0][0].outputs[0]
    if source.name not in shapes or target.name not in shapes or (product.name, 0) in sites.edges:
        return None
    if (after[0][0].name, 0) in sites.edges or product.outputs[0].name in sites.tensors or product.inputs[0].name in sites.tensors:
        return None
    inner, outer = product.inputs[1].shape
    for taken, given in zip(shapes[source.name], shapes[target.name], strict=True):
        if taken[-1] != inner or given != (*taken[:-1], outer):
            return None
    return Region("MatMul", (before.name, 0), target, (product.name, 1))


def _einsums(flow: Dataflow) -> Iterator[Region]:
    """Products with a parameter that sum over the last axes of the input and put new ones in their place."""
    for contraction in find_contractions(flow)[0]:
        op = contraction.op
        if op.type != "Einsum" or contraction.weight_index != 1 or op.outputs[0].dtype != tf.float32:
            continue
        (taken, kernel), result = equation(op)
        sizes = dict(zip(kernel, op.inputs[1].shape, strict=True))
        summed = "".join(label for label in kernel if label not in result)
        kept, made = taken.removesuffix(summed), kernel.removeprefix(summed)
        if not summed or taken != kept + summed or kernel != summed + made or result != kept + made or None in sizes.values():
            continue
        inner, outer, open_sizes = math.prod(map(sizes.get, summed)), math.prod(map(sizes.get, made)), [0] * len(kept)
        shapes = {"kernel": [inner, outer]} if len(kernel) > 2 else {}
        shapes |= {"source": [*open_sizes, inner]} if len(summed) > 1 else {}
        shapes |= {"target": [*open_sizes, *(sizes[c] for c in made)]} if len(made) != 1 else {}
        parameters = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
        yield Region("MatMul", (op.name, 0), op.outputs[0], (op.name, 1), parameters)


def _onnx_shape(source: tf.Tensor, target: tf.Tensor, shapes: Mapping[str, list[tuple[int, ...]]]) -> list[int] | None:
    """Constant operand of ONNX' Reshape, in which 0 takes over a size of the input; None where there is none."""
    shape = []
    for axis, size in enumerate(target.shape):
        taken = [s[axis] if axis < len(s) else None for s in shapes[source.name]]
        if size is not None:
            shape.append(size)
        elif taken == [s[axis] for s in shapes[target.name]]:
            shape.append(0)
        else:
            return None
    return shape

"""Regions: parts of a network that there is one operation for in ONNX files, where a trace has
many.

A region is taken only if it was seen to compute what the operation computes: layer normalisations,
GELU and attention on numbers, shapes on two inputs of different sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.onnx.fused_attention import find_fused_attention
from tfquant.export.onnx.fused_region import EdgeKey, Region, Sites, answers_of_two_sizes, same
from tfquant.graph.contractions import equation
from tfquant.graph.dataflow import ELEMENTWISE_OPS, Dataflow
from tfquant.graph.subgraph import Part
from tfquant.layout import static_shape

_PARTS_OF_ACTIVATIONS = ELEMENTWISE_OPS | {
    "Const",
    "Identity",
    "Cast",
    "Reshape",
    "ReadVariableOp",
    "Placeholder",
}


def find_regions(
    engine: Engine, mode: str = "quantized", *, attention: bool = False
) -> list[Region]:
    """Regions of the inference network without a site inside; in mode `float` there is none.

    Args:
      engine: of the network.
      mode: of the network.
      attention: take attentions too, as ONNX Runtime's own MultiHeadAttention; ONNX has none that
        older opsets know.
    """
    flow = engine.inference.analysis.flow
    sites = Sites(engine if mode == "quantized" else None)
    attentions = find_fused_attention(flow, sites) if attention else []
    within = frozenset(name for result in attentions for name in result.inside)
    return [
        *(result.region for result in attentions),
        *_layernorms(flow, sites),
        *_gelus(flow, sites),
        *_linears_and_reshapes(flow, sites, within),
        *_einsums(flow),
    ]


def _entry(flow: Dataflow, source: tf.Tensor, part: Part) -> EdgeKey:
    return next(
        (op.name, index) for op, index in flow.consumers[source.name] if op.name in part.names
    )


# Layer normalisation.


def _layernorms(flow: Dataflow, sites: Sites) -> Iterator[Region]:
    for norm in flow.trace.analysis.structure.layernorms:
        size = norm.input.shape[-1]
        if (
            norm.input.dtype != tf.float32
            or norm.output.dtype != tf.float32
            or size is None
            or size < 3
        ):
            continue
        part = Part.find(flow.trace, norm.input, norm.output)
        if part is None or sites.inside(part.operations, norm.output):
            continue
        result = _normalisation(part, _sample_shape(norm.input))
        if result is not None:
            scale, bias, epsilon = result
            parameters, attributes = (
                {"scale": scale, "bias": bias},
                {"axis": -1, "epsilon": epsilon},
            )
            yield Region(
                "LayerNormalization",
                (_entry(flow, norm.input, part),),
                norm.output,
                parameters,
                attributes,
            )


def _normalisation(
    part: Part, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(scale, bias, epsilon) if the part normalises the last axis.

    Read off its answers to three inputs, held against a fourth.
    """
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
    expected = (
        deviation / np.sqrt(np.square(deviation).mean(-1, keepdims=True) + epsilon) * scale + bias
    )
    if not same(part(sample), expected):
        return None
    return scale.astype(np.float32), bias.astype(np.float32), epsilon


def _small_constants(part: Part) -> list[float]:
    """Scalars that may be the epsilon of a normalisation."""
    values = [tf.get_static_value(op.outputs[0]) for op in part.operations if op.type == "Const"]
    result = [
        float(v)
        for v in values
        if v is not None and np.size(v) == 1 and np.asarray(v).dtype.kind == "f" and 0 <= v < 0.1
    ]
    return result + [
        op.get_attr("epsilon") for op in part.operations if op.type.startswith("FusedBatchNorm")
    ]


# GELU.


def _gelus(flow: Dataflow, sites: Sites) -> Iterator[Region]:
    for op in flow.operations:
        if (
            op.type in ("Erf", "Erfc", "Tanh")
            and op.name in flow.used
            and op.outputs[0].dtype == tf.float32
        ):
            region = _gelu_around(flow, sites, op)
            if region is not None:
                yield region


def _gelu_around(flow: Dataflow, sites: Sites, core: tf.Operation) -> Region | None:
    """The nearest tensors before and after `core` of which one is the GELU of the other."""
    behind = flow.walk_back(core.outputs[0], lambda op: op.type in _PARTS_OF_ACTIVATIONS)
    sources = [
        t for op in behind for t in op.inputs if flow.is_dynamic(t) and t.dtype == tf.float32
    ]
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
                return Region(
                    "Gelu",
                    (_entry(flow, source, part),),
                    target,
                    attributes={"approximate": approximate},
                )
    return None


def _gelu_kind(part: Part, shape: tuple[int, ...]) -> str | None:
    """`none` for the exact function, `tanh` for its approximation, None for another function."""
    x = np.random.default_rng(0).normal(0.0, 3.0, shape)
    answer = part(x)
    exact = 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))
    tanh = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return next(
        (name for name, value in (("none", exact), ("tanh", tanh)) if same(answer, value)), None
    )


def _sample_shape(tensor: tf.Tensor) -> tuple[int, ...]:
    """Return the shape of a small input; open sizes are 4."""
    return tuple(size or 4 for size in tensor.shape)


# Products of more than two axes and other reshapes: what they look like depends on sizes that are
# computed while the network runs.


def _linears_and_reshapes(flow: Dataflow, sites: Sites, within: frozenset[str]) -> Iterator[Region]:
    """Yield linear layers and reshapes that are not `within` other regions, as operation names."""
    reshapes = [
        op for op in flow.operations if op.name not in within and _is_open_reshape(flow, op)
    ]
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
                yield Region(
                    "Reshape", ((op.name, 0),), op.outputs[0], {"shape": np.array(shape, np.int64)}
                )


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


def _probed(
    flow: Dataflow, tensors: Sequence[tf.Tensor]
) -> dict[str, list[tuple[int, ...]]] | None:
    """Tensor name -> its shape for two inputs of different sizes; None where the network takes no
    such inputs.
    """
    trace, tensors = flow.trace, list({t.name: t for t in tensors}.values())
    if not tensors:
        return None
    answers = answers_of_two_sizes(
        trace, lambda flat: [tf.shape(t) for t in trace.emit(flat, targets=tensors)]
    )
    if answers is None:
        return None
    return {
        tensor.name: [tuple(shape.tolist()) for shape in shapes]
        for tensor, *shapes in zip(tensors, *answers, strict=True)
    }


def _linear(
    flow: Dataflow, sites: Sites, product: tf.Operation, shapes: Mapping[str, list[tuple[int, ...]]]
) -> Region | None:
    """Return the region of a linear layer: reshape to a matrix, product, and reshape back."""
    if (
        product.type != "MatMul"
        or product.get_attr("transpose_a")
        or product.get_attr("transpose_b")
    ):
        return None
    before, after = product.inputs[0].op, flow.value_consumers(product.outputs[0])
    if (
        before.type != "Reshape"
        or len(after) != 1
        or after[0][0].type != "Reshape"
        or after[0][1] != 0
    ):
        return None
    source, target = before.inputs[0], after[0][0].outputs[0]
    if source.name not in shapes or target.name not in shapes or (product.name, 0) in sites.edges:
        return None
    if (
        (after[0][0].name, 0) in sites.edges
        or product.outputs[0].name in sites.tensors
        or product.inputs[0].name in sites.tensors
    ):
        return None
    inner, outer = product.inputs[1].shape
    for taken, specified in zip(shapes[source.name], shapes[target.name], strict=True):
        if taken[-1] != inner or specified != (*taken[:-1], outer):
            return None
    return Region("MatMul", ((before.name, 0), (product.name, 1)), target)


def _einsums(flow: Dataflow) -> Iterator[Region]:
    """Products with a parameter that sum over the last axes of the input and put new ones in their
    place.
    """
    for contraction in flow.trace.analysis.contractions:
        op = contraction.op
        if (
            op.type != "Einsum"
            or contraction.weight_index != 1
            or op.outputs[0].dtype != tf.float32
            or not op.inputs[1].shape.is_fully_defined()
        ):
            continue
        (taken, kernel), result = equation(op)
        sizes = dict(zip(kernel, static_shape(op.inputs[1].shape), strict=True))
        summed = "".join(label for label in kernel if label not in result)
        kept, made = taken.removesuffix(summed), kernel.removeprefix(summed)
        if not summed or taken != kept + summed or kernel != summed + made or result != kept + made:
            continue
        inner, outer = (math.prod(sizes[c] for c in labels) for labels in (summed, made))
        open_sizes = [0] * len(kept)
        shapes = {"kernel": [inner, outer]} if len(kernel) > 2 else {}
        shapes |= {"source": [*open_sizes, inner]} if len(summed) > 1 else {}
        shapes |= {"target": [*open_sizes, *(sizes[c] for c in made)]} if len(made) != 1 else {}
        parameters = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
        yield Region("MatMul", ((op.name, 0), (op.name, 1)), op.outputs[0], parameters)


def _onnx_shape(
    source: tf.Tensor, target: tf.Tensor, shapes: Mapping[str, list[tuple[int, ...]]]
) -> list[int] | None:
    """Constant operand of ONNX' Reshape, in which 0 takes over a size of the input; None where
    there is none.
    """
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

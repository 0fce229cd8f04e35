"""A network written so that TensorFlow's converter makes of it what is meant.

Linear layers become one product of matrices with its bias, so that a range behind the bias is that
of the product. Constants that meet quantized values are hidden, since the converter estimates
ranges for them: eight bits for a bias, and of the large negative number that stands for a mask it
leaves the smallest code. New axes are made by ExpandDims, as slices that make them have no
counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.onnx.fused_region import Region
from tfquant.export.onnx.fusion import find_regions
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.replay import NO_EDITS, Edit, Edits
from tfquant.layout import static_shape

_ARITHMETIC = frozenset("Add AddV2 BiasAdd Sub Mul RealDiv SquaredDifference".split())
_SELECTION = frozenset(
    "Select SelectV2 Maximum Minimum".split()
)  # operands and result have one scale in LiteRT


def hiding_one(flat: list[tf.Tensor]) -> tf.Tensor | None:
    """A one that depends on the inputs, so that the converter does not see through products with
    it; None if it cannot depend.
    """
    batched = next((tensor for tensor in flat if tensor.shape.rank), None)
    return None if batched is None else tf.cast(tf.minimum(tf.shape(batched)[0], 1), tf.float32)


class Rewriting:
    """Adds to the edits of the sites what the module describes.

    Args:
      engine: of the network.
      mode: `float` or `quantized`.
    """

    def __init__(self, engine: Engine, mode: str):
        self._flow = engine.inference.analysis.flow
        self._quantized = mode == "quantized"
        sites = engine.edits(lambda _, tensor: tensor) if self._quantized else NO_EDITS
        regions = [region for region in find_regions(engine, mode) if region.kind == "MatMul"]
        additions = [_addition(self._flow, sites, region) for region in regions]
        biases = _values(engine, [op.inputs[1 - index] for op, index in filter(None, additions)])
        self._linears = [
            _Linear(r, a, None if a is None else next(biases))
            for r, a in zip(regions, additions, strict=True)
        ]
        self._folded = {addition[0].name for addition in additions if addition is not None}

    def __call__(
        self, sites: Edits, one: tf.Tensor | None, matrices: Mapping[int, tf.Tensor]
    ) -> Edits:
        """Return all edits.

        Args:
          sites: edits of the sites.
          one: from `hiding_one`.
          matrices: id of a kernel -> a matrix to be used in its place.
        """
        behind: dict[tuple[str, int], Edit] = {}  # what is done to an edge after its sites
        before: dict[str, Edit] = {}  # and to a tensor before its sites
        for op in self._flow.operations:
            axes = _new_axes(op)
            if axes:
                _replace(op, axes, behind, before)
        if self._quantized and one is not None:
            behind |= self._hidden(sites, one)
        for linear in self._linears:
            linear.place(behind, before, matrices)
        edges = {
            key: _then(sites.edges.get(key), behind.get(key))
            for key in sites.edges.keys() | behind.keys()
        }
        tensors = {
            name: _then(before.get(name), sites.tensors.get(name))
            for name in sites.tensors.keys() | before.keys()
        }
        return Edits(edges, tensors)

    def _hidden(self, sites: Edits, one: tf.Tensor) -> dict[tuple[str, int], Edit]:
        """Hides constants that the converter would give a range."""
        result: dict[tuple[str, int], Edit] = {}
        for op in self._flow.operations:
            if op.name in self._folded or op.type not in _ARITHMETIC | _SELECTION:
                continue
            constants = [
                i
                for i, t in enumerate(op.inputs)
                if t.dtype == tf.float32 and self._flow.is_parameter(t)
            ]
            if len(constants) < len(op.inputs) and (
                op.type in _SELECTION
                or self._reads_quantized(op, sites)
                or self._scales_depthwise(op)
            ):
                result.update(
                    {(op.name, index): lambda tensor: tensor * one for index in constants}
                )
        return result

    def _scales_depthwise(self, op: tf.Operation) -> bool:
        """Whether the result of a depthwise convolution is multiplied, such as by a batch
        normalization.

        The converter would multiply the kernel instead, and fails where that is quantized.
        """
        if op.type not in ("Mul", "RealDiv"):
            return False
        for tensor in op.inputs:
            source = self._flow.root(tensor).op
            if source.type in ("BiasAdd", "Add", "AddV2") and self._flow.is_parameter(
                source.inputs[1]
            ):
                source = self._flow.root(source.inputs[0]).op
            if source.type == "DepthwiseConv2dNative":
                return True
        return False

    def _reads_quantized(self, op: tf.Operation, sites: Edits) -> bool:
        return any(
            (op.name, i) in sites.edges or self._flow.root(t).name in sites.tensors
            for i, t in enumerate(op.inputs)
        )


def _values(engine: Engine, tensors: list[tf.Tensor]):
    """Iterates over the values of parameters."""
    if not tensors:
        return iter(())
    emit = tf.function(lambda: engine.inference.emit([], targets=tensors), autograph=False)
    return (tensor.numpy() for tensor in emit.get_concrete_function()())


def _then(first: Edit | None, second: Edit | None) -> Edit:
    """Compose the edits that are not None."""

    def edit(tensor: tf.Tensor) -> tf.Tensor:
        for part in (first, second):
            tensor = tensor if part is None else part(tensor)
        return tensor

    return edit


# Linear layers.


class _Linear:
    """A product with a parameter.

    Args:
      region: of kind MatMul.
      addition: operation that adds a bias to the result and index of the result in it, None if
        there is none.
      bias: its values.
    """

    def __init__(
        self, region: Region, addition: tuple[tf.Operation, int] | None, bias: np.ndarray | None
    ):
        self._region, self._addition, self._bias = region, addition, bias
        self._seen: dict[str, tf.Tensor] = {}

    def place(
        self,
        behind: dict[tuple[str, int], Edit],
        before: dict[str, Edit],
        matrices: Mapping[int, tf.Tensor],
    ) -> None:
        source, kernel = self._region.inputs
        behind[source] = _then(behind.get(source), self._see("source"))
        behind[kernel] = self._see("kernel")
        before[self._region.target.name] = lambda _: self._product(matrices)
        if self._addition is not None:
            op, index = self._addition
            behind[(op.name, index)] = self._see("sum")
            before[op.outputs[0].name] = lambda _: self._seen["sum"]

    def _see(self, name: str) -> Edit:
        def edit(tensor: tf.Tensor) -> tf.Tensor:
            self._seen[name] = tensor
            return tensor

        return edit

    def _product(self, matrices: Mapping[int, tf.Tensor]) -> tf.Tensor:
        source, kernel, shapes = self._seen["source"], self._seen["kernel"], self._region.parameters
        kept = (len(shapes["source"]) if "source" in shapes else source.shape.rank) - 1
        made = static_shape(self._region.target.shape[kept:])
        kernel = matrices.get(id(kernel), kernel)
        if kernel.shape.rank != 2:
            kernel = tf.reshape(kernel, [-1, math.prod(made)])
        product = tf.matmul(tf.reshape(source, [-1, kernel.shape[0]]), kernel)
        if self._bias is not None:
            product = product + self._bias.reshape(-1)
        return tf.reshape(product, tf.concat([tf.shape(source)[:kept], tf.constant(made)], 0))


def _addition(flow: Dataflow, sites: Edits, region: Region) -> tuple[tf.Operation, int] | None:
    """The addition of a bias to the result of a region, if it is all that becomes of it and no site
    is on the way.
    """
    target, consumers = region.target, flow.value_consumers(region.target)
    if len(consumers) != 1 or target.name in sites.tensors or target.name in flow.output_names:
        return None
    op, index = consumers[0]
    if (
        op.type not in ("Add", "AddV2", "BiasAdd")
        or {(op.name, 0), (op.name, 1)} & sites.edges.keys()
    ):
        return None
    bias = op.inputs[1 - index]
    if not flow.is_parameter(bias) or not bias.shape.rank or bias.shape.rank >= target.shape.rank:
        return None
    return (
        (op, index) if bias.shape.as_list() == target.shape.as_list()[-bias.shape.rank :] else None
    )


# New axes.


def _replace(
    op: tf.Operation, axes: list[int], behind: dict[tuple[str, int], Edit], before: dict[str, Edit]
) -> None:
    """Has the axes of a slice made by ExpandDims."""
    seen: list[tf.Tensor] = []

    def see(tensor: tf.Tensor) -> tf.Tensor:
        seen.append(tensor)
        return tensor

    def expanded(_: tf.Tensor) -> tf.Tensor:
        tensor = seen[-1]
        for axis in axes:
            tensor = tf.expand_dims(tensor, axis)
        return tensor

    behind[(op.name, 0)], before[op.outputs[0].name] = see, expanded


def _new_axes(op: tf.Operation) -> list[int]:
    """Axes of the result that a slice makes, if that is all it does."""
    if (
        op.type != "StridedSlice"
        or not op.get_attr("new_axis_mask")
        or op.inputs[0].shape.rank is None
    ):
        return []
    strides = tf.get_static_value(op.inputs[3])
    if strides is None or op.get_attr("shrink_axis_mask"):
        return []
    new, begin, end, rest = (
        op.get_attr(f"{name}_mask") for name in ("new_axis", "begin", "end", "ellipsis")
    )
    named = sum(not (new | rest) >> i & 1 for i in range(len(strides)))
    axes, axis = [], 0
    for i, stride in enumerate(strides):
        if rest >> i & 1:
            axis += op.inputs[0].shape.rank - named
            continue
        if new >> i & 1:
            axes.append(axis)
        elif not (begin >> i & 1 and end >> i & 1 and stride == 1):
            return []
        axis += 1
    return axes

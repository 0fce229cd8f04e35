"""A product of a layer as a product of matrices: inputs [rows, K] and weight [K, outputs]."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfquant.engine import Engine
from tfquant.graph.contractions import CONVOLUTION_OPS, MATMUL_OPS, equation, matmul_equation
from tfquant.layout import static_shape
from tfquant.ptq.adaround.layer_function import Form
from tfquant.ptq.layers import Layer, LayerFinder, Unsuitable, Use
from tfquant.ptq.operand_view import OperandView, called


class Product:
    """One use of a layer's weight, as `matrices` independent products [rows, K] @ [K, outputs].

    Several matrices: the weight has an axis in common with both input and output.

    Attributes:
      form: of the use, which cuts inputs into samples.
      shape: (M, K, N), the shape of the weight as an array [matrices, inputs, outputs].
      in_float32: whether the weight is read as float32.

    Raises:
      Unsuitable: the use is no such product.
    """

    def __init__(self, engine: Engine, finder: LayerFinder, layer: Layer, use: Use):
        if use.lookup:
            raise Unsuitable("rows of it are looked up, so that nearest is the best rounding")
        if use.op.type in CONVOLUTION_OPS:
            raise Unsuitable(
                f"{use.op.type} {use.op.name} is a convolution, whose inputs overlap: round it with"
                " AdaRound"
            )
        self.form = Form(finder.flow, layer, use, include_activation=False)
        operand = use.op.inputs[1 - use.input_index]
        shape = static_shape(operand.shape)
        self._find_axes(use, shape)
        reads = {read.name for read in layer.reads}
        self._view = OperandView(
            engine.inference, layer.reads, None if operand.name in reads else operand
        )
        self._operand_shape = shape
        self.in_float32 = operand.dtype == tf.float32

    def _find_axes(self, use: Use, shape: tuple[int, ...]) -> None:
        """Order the axes of weight and input as [M, K, N] and [rows, M, K]."""
        terms, result = matmul_equation(use.op) if use.op.type in MATMUL_OPS else equation(use.op)
        own, other = terms[1 - use.input_index], terms[use.input_index]
        features = [label for axis, label in enumerate(other) if axis not in use.row_axes]
        # Axes of size 1 that belong to nothing ("?") are outputs of one element.
        shared = [label for label in own if label in other and label != "?"]
        kept = [label for label in shared if label in result]
        summed = [label for label in shared if label not in result]
        outputs = [axis for axis, label in enumerate(own) if label not in shared]
        sizes = dict(zip(own, shape, strict=True))
        fits = (
            sorted(features) == sorted(shared)
            and [sizes[label] for label in features] == list(use.features)
            and all(shape[axis] == 1 or own[axis] in result for axis in outputs)
            and len(set(shared)) == len(shared)
        )
        if not fits or not summed:
            raise Unsuitable(f"{use.op.type} {use.op.name} is no product of matrices")
        self._weight_axes = (*(own.index(label) for label in kept + summed), *outputs)
        self._feature_axes = tuple(features.index(label) for label in kept + summed)
        self.shape = (
            math.prod(sizes[label] for label in kept),
            math.prod(sizes[label] for label in summed),
            math.prod(shape[axis] for axis in outputs),
        )

    @property
    def layout(self) -> tuple:
        """Equal for products that cut one input into the same samples."""
        return (self.form.layout, self._feature_axes, self.shape[:2])

    def rows(self, value: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
        """Inputs of real samples, float32 [M, rows, K]; arguments as for `Form.rows`."""
        rows = self.form.rows(value, valid)
        rows = np.transpose(rows, (0, *(1 + axis for axis in self._feature_axes)))
        return np.swapaxes(rows.reshape(len(rows), *self.shape[:2]), 0, 1)

    def matrix(self, value: np.ndarray) -> np.ndarray:
        """Values in the layout of the variable as float32 [M, K, N]."""
        operand = called(self._view.forward, value)
        return np.transpose(operand, self._weight_axes).reshape(self.shape)

    def variable(self, matrix: np.ndarray) -> np.ndarray:
        """Inverse of `matrix`, float32."""
        moved = matrix.reshape([self._operand_shape[axis] for axis in self._weight_axes])
        operand = np.transpose(moved, np.argsort(self._weight_axes)).astype(np.float32)
        return self._view.to_variable(operand)


def products(engine: Engine, finder: LayerFinder, layer: Layer) -> list[Product]:
    """Products of all uses of a layer, which read its weight in one layout.

    Raises:
      Unsuitable: GPTQ cannot round the weight.
    """
    first, *others = [Product(engine, finder, layer, use) for use in layer.uses]
    # Random numbers, as numbers of places are not exact in float32 for large weights.
    probe = np.random.default_rng(0).random(first.shape if others else (), np.float32)
    for other in others:
        same = other.shape == first.shape
        if not same or not np.array_equal(other.matrix(first.variable(probe)), probe):
            raise Unsuitable("its products read it in different layouts")
    return [first, *others]

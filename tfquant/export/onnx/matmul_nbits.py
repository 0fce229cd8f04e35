"""Products with packed weights: ONNX Runtime's own operation `com.microsoft.MatMulNBits`.

    Y = A @ W,    W as in `tfquant.export.onnx.packed_matrix`

Where A is rounded to int8 in blocks of b along K, `accuracy_level=4` lets the kernel do that, with
the scales of the simulation (largest magnitude / 127), and multiply integers; else A stays float32.

Source: docs/ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfquant import formats
from tfquant.export.errors import ExportError
from tfquant.export.onnx.conversion import address_of, is_site, type_of
from tfquant.export.onnx.graph import Graph, attribute, carried_to
from tfquant.export.onnx.packed_matrix import SMALLEST_BLOCK, Levels, PackedMatrix
from tfquant.export.onnx.substitution import RUNTIMES_DOMAIN, WANTED_SHAPE, declare_runtimes_domain
from tfquant.export.request import ExportRequest
from tfquant.quantized_array import FittedArray, QuantizedArray
from tfquant.site import Site

OPERATION = "MatMulNBits"
# Blocks of 2-bit weights with which ONNX Runtime 1.32 rounds activations at accuracy level 4.
_TWO_BIT_BLOCKS = (32, 64, 128)
_ROUNDS_ACTIVATIONS = 4  # accuracy level
_VIEWS = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze")


def check(request: ExportRequest) -> None:
    """Raise ExportError, naming the site, for formats and layouts that the operation lacks."""
    tables = {site.address for site, edge in request.engine.placements() if edge.table is not None}
    for site in request.sites():
        if not site.is_weight:
            _check_activation(site)
        elif site.spec.stateless and site.address in tables:
            raise ExportError(
                f"site {site.address}: rows of a table are looked up, not multiplied: set format:"
                " int8 and granularity: per_tensor there, or leave it in float"
            )
        elif site.spec.layout.per_block:
            _check_block(site)


def _check_activation(site: Site) -> None:
    spec = site.spec
    if formats.get(spec.format).kind != "uniform":
        raise ExportError(
            f"site {site.address}: {spec.format} is a format of weights in this target: set format:"
            " int8 there, or export to saved_model"
        )
    if not spec.layout.per_block:
        return
    codebook = spec.codebook
    if (codebook.num_codes, codebook.quant_max) != (255, 127) or spec.scale.rounds_scale:
        raise ExportError(
            f"site {site.address}: the kernel rounds activations to int8 with float32 scales, got"
            f" {spec.describe()}: set format: int8 and scale_format: float32"
        )
    _check_block(site)


def _check_block(site: Site) -> None:
    size = site.spec.layout.block_size or 0
    if size < SMALLEST_BLOCK or size & (size - 1):
        raise ExportError(
            f"site {site.address}: blocks of {size}, {OPERATION} has powers of two from"
            f" {SMALLEST_BLOCK} on: set block_size: 32"
        )


def pack_products(
    model: Any,
    sites: Mapping[str, Site],
    shapes: Mapping[str, tuple[int, ...]],
    quantized: Callable[[str], QuantizedArray | FittedArray | None],
) -> set[str]:
    """Replace, in place, products with weights of few bits, and drop the markers of what they
    round themselves.

    Args:
      model: with markers in place of sites.
      sites: text of a marker -> its site.
      shapes: text of a marker on a parameter -> shape of that.
      quantized: text of a marker on a parameter -> its codes; None if they are not those of the
        simulation.

    Returns:
      Texts of the markers that need no DequantizeLinear.

    Raises:
      ExportError: a site with blocks, or with fitted values, is not at a product of matrices.
    """
    packing = _Packing(model, sites, shapes)
    for marker in packing.weights():
        name = address_of(marker)
        if packing.is_packable(name, marker):
            packing.pack(name, marker, quantized(name))
    packing.drop_rounded_inputs()
    packing.check_left()
    return packing.done


class _Packing:
    """Replacement of products in a graph of markers."""

    def __init__(
        self, model: Any, sites: Mapping[str, Site], shapes: Mapping[str, tuple[int, ...]]
    ):
        import onnx

        self._onnx, self._model, self._sites, self._shapes = onnx, model, sites, shapes
        self._graph = Graph(model)
        self._index = {node.output[0]: i for i, node in enumerate(model.graph.node)}
        self._rounding: set[int] = set()  # id of products at accuracy level 4
        self._products: dict[int, list[Any]] = {}  # index of a node -> what replaces it
        self.done: set[str] = set()

    def weights(self) -> list[Any]:
        return [
            node
            for node in self._model.graph.node
            if is_site(node) and address_of(node) in self._shapes
        ]

    def is_packable(self, name: str, marker: Any) -> bool:
        """Whether all that reads a weight are products of an activation with a matrix, and packing
        serves them.
        """
        codebook = self._sites[name].spec.codebook
        in_float32 = type_of(marker) == self._onnx.TensorProto.FLOAT
        if not in_float32 or (codebook.uniform and codebook.num_codes > 256):
            return False
        readers = list(self._readers(marker))
        matrices = readers and all(
            index == 1 and positions.ndim == 2 and _is_plain_product(node)
            for node, index, positions in readers
        )
        if not matrices or marker.output[0] in self._graph.outputs:
            return False
        # Bytes beside bytes with a stored range are what integer kernels multiply.
        wide = codebook.uniform and codebook.num_codes > 16
        return not (wide and all(self._is_in_bytes(node.input[0]) for node, *_ in readers))

    def _readers(self, marker: Any) -> Iterator[tuple[Any, int, np.ndarray]]:
        """(operation, index of its input, position of each element in the parameter)."""
        shape = self._shapes[address_of(marker)]
        positions = np.arange(math.prod(shape)).reshape(shape)
        wanted = attribute(marker, WANTED_SHAPE, None)
        if wanted is not None:
            positions = positions.reshape(wanted)
        return carried_to(self._graph, marker.output[0], positions)

    def _is_in_bytes(self, name: str) -> bool:
        site = self._site_of(name)
        if site is None or site.is_weight or site.channel_axes or site.spec.layout.per_block:
            return False
        return site.spec.codebook.uniform and site.spec.codebook.num_codes <= 256

    def _site_of(self, name: str) -> Site | None:
        """The site that an operand comes from, seen in another shape at most."""
        maker = self._graph.makers.get(name)
        while maker is not None and maker.op_type in _VIEWS and _keeps_last_axis(maker):
            maker = self._graph.makers.get(maker.input[0])
        return self._sites[address_of(maker)] if maker is not None and is_site(maker) else None

    def pack(self, name: str, marker: Any, array: QuantizedArray | FittedArray | None) -> None:
        """Replace the products that read a weight."""
        site = self._sites[name]
        if array is None:
            raise ExportError(
                f"site {site.address}: its codes do not give the values of the simulation: leave it"
                " out of the recipe, or export to saved_model"
            )
        levels = Levels.of(array)
        for product, _, positions in self._readers(marker):
            matrix = levels.arranged(positions)
            block = self._block_of(product, site, matrix)
            self._replace(product, name, matrix.packed(block), matrix.codes.shape)
        self.done.add(name)

    def _block_of(self, product: Any, weight: Site, matrix: Levels) -> int:
        """Size of the blocks of a product: that of its activation where that has one."""
        source = self._site_of(product.input[0])
        if source is None or not source.spec.layout.per_block:
            block = matrix.largest_block(weight.spec.layout.block_size)
            if block is None:
                raise ExportError(
                    f"site {weight.address}: its scales, {weight.spec.layout.describe()}, differ"
                    f" within {SMALLEST_BLOCK} weights that are summed, the smallest block of"
                    f" {OPERATION}: set granularity: per_channel there"
                )
            return block
        block = source.spec.layout.block_size or 0
        if not matrix.fit_blocks(block):
            raise ExportError(
                f"site {weight.address}: its {weight.spec.layout.describe()} are not those of its"
                f" activation, {source.spec.layout.describe()}: set the same block_size for both"
            )
        if matrix.bits == 2 and block not in _TWO_BIT_BLOCKS:
            raise ExportError(
                f"site {source.address}: ONNX Runtime rounds activations beside weights of 2 bits"
                f" in blocks of {', '.join(map(str, _TWO_BIT_BLOCKS))}, got {block}: set"
                " block_size: 128"
            )
        summed, last = len(matrix.codes), source.shape[-1]
        merged = last is not None and last % block == 0 and summed % block == 0
        if source.block_axis != -1 or not (merged or last in (None, summed)):
            raise ExportError(
                f"site {source.address}: its {source.spec.layout.describe()} do not lie along the"
                f" {summed} inputs of the product: leave out block_axis, set a block_size that"
                f" divides {last}, or leave the activation in float"
            )
        self._rounding.add(self._index[product.output[0]])
        return block

    def _replace(
        self, product: Any, name: str, matrix: PackedMatrix, shape: tuple[int, ...]
    ) -> None:
        make, inputs = self._onnx.helper.make_node, [product.input[0]]
        parts = {"packed": matrix.codes, "scales": matrix.scales, "zero_points": matrix.zeros}
        for part, values in parts.items():
            if values is not None:
                inputs.append(self._initializer(f"{name}/{part}", values))
        index, output = self._index[product.output[0]], product.output[0]
        level = _ROUNDS_ACTIVATIONS if index in self._rounding else 0
        attributes = {"bits": matrix.bits, "block_size": matrix.block, "accuracy_level": level}
        biased = product.op_type == "Gemm" and len(product.input) > 2
        result = f"{output}/product" if biased else output
        nodes = [
            make(
                OPERATION,
                inputs,
                [result],
                name=product.name,
                domain=RUNTIMES_DOMAIN,
                K=shape[0],
                N=shape[1],
                **attributes,
            )
        ]
        if biased:
            nodes.append(make("Add", [result, product.input[2]], [output], name=f"{output}/bias"))
        self._products[index] = nodes
        # Nobody but ONNX Runtime could infer it.
        self._model.graph.value_info.append(
            self._onnx.helper.make_tensor_value_info(result, self._onnx.TensorProto.FLOAT, None)
        )
        declare_runtimes_domain(self._model)

    def _initializer(self, name: str, values: np.ndarray) -> str:
        """Name of an initializer; one weight may be packed in several blocks."""
        known = {tensor.name for tensor in self._model.graph.initializer}
        while name in known:
            name += "#"
        self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def drop_rounded_inputs(self) -> None:
        """Replace products, and let them read activations before the rounding that they do
        themselves.
        """
        sources = {}
        for node in self._model.graph.node:
            if is_site(node) and self._is_rounded_in_blocks(node):
                readers = list(self._graph.ahead(node.output[0]))
                rounding = [
                    reader is not None and self._index[reader.output[0]] in self._rounding
                    for reader in readers
                ]
                if readers and all(rounding):
                    sources[node.output[0]] = node.input[0]
                    self.done.add(address_of(node))
        nodes = []
        for index, node in enumerate(self._model.graph.node):
            if node.output[0] not in sources:
                nodes += self._products.get(index, [node])
        for node in nodes:
            for position, name in enumerate(node.input):
                node.input[position] = sources.get(name, name)
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)

    def _is_rounded_in_blocks(self, marker: Any) -> bool:
        site = self._sites[address_of(marker)]
        return not site.is_weight and site.spec.layout.per_block

    def check_left(self) -> None:
        """Raise ExportError for a site that neither a product nor a DequantizeLinear can hold."""
        for node in self._model.graph.node:
            if not is_site(node):
                continue
            name = address_of(node)
            site = self._sites[name]
            if name in self.done or not site.spec.stateless:
                continue
            if site.is_weight:
                raise ExportError(
                    f"site {site.address}: {site.spec.describe()} is for float32 products of an"
                    " activation with a kernel: set format: int8 there, or export to packed or"
                    " saved_model"
                )
            raise ExportError(
                f"site {site.address}: {site.spec.layout.describe()} are rounded by products with"
                " packed weights alone, and another operation reads them too: add role weight"
                " there, or leave the activation in float"
            )


def _keeps_last_axis(view: Any) -> bool:
    """Whether a view other than a Transpose, or one that leaves the last axis at its place."""
    order = list(attribute(view, "perm", []))
    return view.op_type != "Transpose" or (bool(order) and order[-1] == len(order) - 1)


def _is_plain_product(node: Any) -> bool:
    """Whether a node is A @ W, or A @ W + bias."""
    if node.op_type == "MatMul":
        return node.domain == ""
    defaults = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    return node.op_type == "Gemm" and all(
        attribute(node, name, default) == default for name, default in defaults.items()
    )

"""Quantizers in an ONNX graph.

Nodes `Site` become QuantizeLinear and DequantizeLinear, parameters are stored as integers.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from calib.codebook import UniformCodebook
from tfquant.export.errors import ExportError
from tfquant.export.onnx.conversion import DOMAIN, address_of, is_site, type_of
from tfquant.export.onnx.graph import read_by
from tfquant.export.onnx.integer_kernels import VIEWS, Kernels, Values
from tfquant.export.onnx.parameters import Joined, of_matrix, unsigned
from tfquant.export.onnx.substitution import WANTED_SHAPE
from tfquant.quantized_array import QuantParams

# First opset in which DequantizeLinear takes the type.
INT4_OPSET, INT16_OPSET = 21, 21
# Number format -> ONNX type, whose codes are the format's.
FLOAT8_TYPES = {"e4m3": "FLOAT8E4M3FN", "e5m2": "FLOAT8E5M2"}


def insert(
    model: Any,
    params: Mapping[str, QuantParams],
    parameters: Mapping[str, np.ndarray],
    tables: Mapping[str, np.ndarray],
    value: Values,
    *,
    signed: bool = False,
) -> None:
    """Replace every node `Site` of `model`, in place.

    Args:
      model: from `onnx_float.converted`.
      params: site address -> its quantization parameters.
      parameters: site address -> the values of a parameter, which are stored as codes behind a
        DequantizeLinear.
      tables: site address -> the values of a table whose rows are looked up: stored as codes,
        dequantized row by row.
      value: name of a tensor -> its values if it is constant.
      signed: keep signed bytes where they would be written as unsigned ones, the same values.

    Raises:
      ExportError: a site's format does not exist in the model's opset.
    """
    # Signed bytes are for runtimes with rules of their own, which an operation between a pair and
    # its product breaks.
    ranks = {address: values.ndim for address, values in {**parameters, **tables}.items()}
    kernels = Kernels(model, {} if signed else params, ranks, value)
    writer = _Writer(model, signed)
    nodes = list(model.graph.node)
    markers = {node.output[0]: address_of(node) for node in nodes if is_site(node)}
    uses = collections.Counter(
        markers[name] for node in nodes for name in node.input if name in markers
    )
    moved = {
        markers[node.input[0]]
        for node in nodes
        if node.op_type in VIEWS and node.input[0] in markers
    }
    makers = {output: node for node in nodes for output in node.output}
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        for position in [
            position for position in range(len(node.input)) if (index, position) in kernels.apart
        ]:
            node.input[position] = writer.unrecognised(node.input[position])
        if not is_site(node):
            model.graph.node.append(node)
            continue
        address = address_of(node)
        source, target = writer.in_float(node)
        if address in parameters:
            values, own = parameters[address], params[address]
            wanted = next((tuple(a.ints) for a in node.attribute if a.name == WANTED_SHAPE), None)
            if wanted is not None:
                values, own = values.reshape(wanted), of_matrix(own, values.shape, wanted)
            shared = uses[address] > 1 or (address in moved and writer.opset >= INT16_OPSET)
            writer.stored(address, target, own, values, shared, kept=node.output[0] in kernels.kept)
        elif (
            address in tables
            and (lookup := makers.get(node.input[0])) is not None
            and lookup.op_type == "Gather"
        ):
            writer.looked_up(address, lookup, target, params[address], tables[address])
        else:
            writer.rounded(address, source, target, params[address])
        writer.cast_back(node, target)
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    prune(model)


class _Writer:
    """Adds nodes and initializers to a graph, each scale and each stored parameter once."""

    def __init__(self, model: Any, signed: bool):
        import onnx

        self._onnx, self._graph, self._signed = onnx, model.graph, signed
        self.opset = next(
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        )
        self._known: dict[str, tuple[int | None, tuple[int, ...]]] = {}
        self._uses: dict[str, int] = {}

    def in_float(self, marker: Any) -> tuple[str, str]:
        """Return the tensors that a pair is to read and to make, in float32 as those of the
        simulation; others are cast.
        """
        source, target = marker.input[0], marker.output[0]
        if type_of(marker) == self._onnx.TensorProto.FLOAT:
            return source, target
        self._node("Cast", [source], f"{target}/float", to=self._onnx.TensorProto.FLOAT)
        return f"{target}/float", f"{target}/rounded"

    def cast_back(self, marker: Any, made: str) -> None:
        """Cast what a pair made to the type of the tensor that `marker` stands at."""
        if made != marker.output[0]:
            self._node("Cast", [made], marker.output[0], to=type_of(marker))

    def rounded(self, address: str, source: str, target: str, params: QuantParams) -> None:
        """Q and DQ of an activation; codes that its integer type has but its grid has not are cut
        off before. Ranges along an axis lie along the last one.

        Signed bytes are written as unsigned ones, the same values: that is what ONNX Runtime's
        kernels multiply with signed weights (and from opset 21 on it fails where it rewrites signed
        ones by itself).
        """
        name = self._unique(address)
        params = self._in_bytes(params)
        kind = self._type(address, params, fewest_bits=8)
        scale, zero = self._scale(address, params, kind)
        ends = [
            params.scale * (code - params.zero).astype(np.float32)
            for code in params.codebook.extremes
        ]
        if params.axes:
            self._rounded_along(name, source, target, scale, zero, ends)
            return
        if params.codebook.uniform and not _fills(params.integers, kind):
            limits = [
                self._initializer(f"{name}/{end}", value)
                for end, value in zip(("lower", "upper"), ends, strict=True)
            ]
            self._node("Clip", [source, *limits], f"{name}/clipped")
            source = f"{name}/clipped"
        elif not params.codebook.uniform:
            # ONNX Runtime 1.32 drops a Relu in front of QuantizeLinear where the zero point is 0,
            # which is the smallest code of unsigned integers, but not of float8.
            source = self.unrecognised(source)
        self._node("QuantizeLinear", [source, scale, zero], f"{name}/codes")
        self._node(
            "DequantizeLinear", [f"{name}/codes", scale, zero], target, name=f"{name}/dequantized"
        )

    def _rounded_along(
        self, name: str, source: str, target: str, scale: str, zero: str, ends: list[np.ndarray]
    ) -> None:
        """Q and DQ with one scale for each index of the last axis.

        The ends cut off what the grid has not; and beside operations that compute in integers ONNX
        Runtime 1.32 takes such a pair for one with a single scale and fails, but not where an
        operation lies between.
        """
        lower, upper = (
            self._initializer(f"{name}/{end}", value)
            for end, value in zip(("lower", "upper"), ends, strict=True)
        )
        self._node("Max", [source, lower], f"{name}/clipped")
        self._node("QuantizeLinear", [f"{name}/clipped", scale, zero], f"{name}/codes", axis=-1)
        self._node(
            "DequantizeLinear", [f"{name}/codes", scale, zero], f"{name}/dequantized", axis=-1
        )
        self._node("Min", [f"{name}/dequantized", upper], target, name=f"{name}/cut")

    def stored(
        self,
        address: str,
        target: str,
        params: QuantParams,
        values: np.ndarray,
        shared: bool,
        kept: bool = False,
    ) -> None:
        """A parameter as codes and a DQ; several channel axes are one while it is scaled.

        Where it is `kept` in float an operation without effect follows, see `onnx_kernels`.

        Bytes that several products share are unsigned: ONNX Runtime 1.32 fails where it rewrites
        shared signed ones for processors without VNNI, and from opset 21 on those that are seen in
        another shape, too.
        """
        if shared or (len(params.axes) > 1 and self.opset >= INT16_OPSET):
            params = self._in_bytes(params)
        kind, name = self._type(address, params), self._unique(address)
        result, target = target, f"{name}/kept" if kept else target
        codes, axis = params.quantize(values).codes, params.axes[0] if params.axes else None
        joined = Joined(params.axes, values.shape) if len(params.axes) > 1 else None
        if joined is not None:
            codes, axis = joined.join(codes), joined.axis
        scale, zero = self._scale(address, params, kind)
        integers = self._initializer(f"{address}/codes", codes, kind)
        dequantized = target if joined is None else f"{name}/flat"
        attributes = {} if axis is None else {"axis": axis}
        self._node(
            "DequantizeLinear",
            [integers, scale, zero],
            dequantized,
            name=f"{name}/dequantized",
            **attributes,
        )
        if joined is not None:
            shape = self._initializer(f"{address}/shape", np.array(joined.apart, np.int64))
            split = target if joined.back is None else f"{name}/apart"
            self._node("Reshape", [dequantized, shape], split)
            if joined.back is not None:
                self._node("Transpose", [split], target, perm=joined.back)
        if kept:
            self._node("Max", [target, self._lowest()], result, name=f"{name}/float")

    def unrecognised(self, source: str) -> str:
        """Return `source` behind an operation without effect, for one reader."""
        target = self._unique(f"{source}/float")
        self._node("Max", [source, self._lowest()], target)
        return target

    def _lowest(self) -> str:
        return self._initializer("lowest float", np.array(np.finfo(np.float32).min, np.float32))

    def looked_up(
        self, address: str, lookup: Any, target: str, params: QuantParams, values: np.ndarray
    ) -> None:
        """Rows of a table of codes, and their DQ, in place of rows of the float table."""
        # Gather takes no types of 4 bits.
        kind, name = self._type(address, params, fewest_bits=8), self._unique(address)
        scale, zero = self._scale(address, params, kind)
        table = self._initializer(f"{address}/codes", params.quantize(values).codes, kind)
        if not params.codebook.uniform:  # nor float8
            self._node(
                "DequantizeLinear",
                [table, scale, zero],
                f"{name}/table",
                name=f"{name}/dequantized",
            )
            self._node("Gather", [f"{name}/table", lookup.input[1]], target, axis=0)
            return
        self._node("Gather", [table, lookup.input[1]], f"{name}/rows", axis=0)
        self._node(
            "DequantizeLinear", [f"{name}/rows", scale, zero], target, name=f"{name}/dequantized"
        )

    def _in_bytes(self, params: QuantParams) -> QuantParams:
        """Signed bytes as unsigned ones, unless they are to stay."""
        if not params.codebook.uniform or self._signed:
            return params
        codes = params.integers
        return unsigned(params) if codes.qmin < 0 and codes.qmax <= 127 else params

    def _type(self, address: str, params: QuantParams, fewest_bits: int = 4) -> int:
        """The smallest ONNX type of at least `fewest_bits` that holds the codes."""
        tensor = self._onnx.TensorProto
        if not params.codebook.uniform:
            return getattr(tensor, FLOAT8_TYPES[params.format.name])
        codebook = params.integers
        kinds = [tensor.INT8, tensor.UINT8, tensor.INT16, tensor.UINT16]
        if self.opset >= INT4_OPSET and fewest_bits <= 4:
            kinds = [tensor.INT4, tensor.UINT4, *kinds]
        if codebook.qmin >= 0 and not self._signed:
            kinds = [kind for kind in kinds if _limits(kind)[0] == 0]
        fitting = [
            kind
            for kind in kinds
            if _limits(kind)[0] <= codebook.qmin and codebook.qmax <= _limits(kind)[1]
        ]
        if not fitting or (
            fitting[0] in (tensor.INT16, tensor.UINT16) and self.opset < INT16_OPSET
        ):
            raise ExportError(
                f"site {address}: codes {codebook} have no integer type in opset {self.opset}: use"
                f" a format of at most 8 bits (16 from opset {INT16_OPSET} on)"
            )
        return fitting[0]

    def _scale(self, address: str, params: QuantParams, kind: int) -> tuple[str, str]:
        shape = (-1,) if params.axes else ()
        scale = self._initializer(f"{address}/scale", params.scale.reshape(shape))
        return scale, self._initializer(f"{address}/zero", params.zero.reshape(shape), kind)

    def _initializer(self, name: str, values: np.ndarray, kind: int | None = None) -> str:
        values, onnx = np.asarray(values), self._onnx
        what = (kind, values.shape)
        while (
            self._known.get(name, what) != what
        ):  # another use of a site may want another shape or type
            name += "#"
        if name in self._known:
            return name
        self._known[name] = what
        if kind in [
            getattr(onnx.TensorProto, name) for name in FLOAT8_TYPES.values()
        ]:  # values are codes
            tensor = onnx.helper.make_tensor(
                name, kind, values.shape, values.astype(np.uint8).tobytes(), raw=True
            )
        elif kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):  # NumPy has no such type
            tensor = onnx.helper.make_tensor(name, kind, values.shape, values.ravel().tolist())
        else:
            dtype = values.dtype if kind is None else onnx.helper.tensor_dtype_to_np_dtype(kind)
            tensor = onnx.numpy_helper.from_array(values.astype(dtype), name)
        self._graph.initializer.append(tensor)
        return name

    def _node(
        self, kind: str, inputs: list[str], output: str, name: str = "", **attributes: Any
    ) -> None:
        self._graph.node.append(
            self._onnx.helper.make_node(kind, inputs, [output], name=name or output, **attributes)
        )

    def _unique(self, address: str) -> str:
        """A site may stand at several tensors: one name a use."""
        count = self._uses[address] = self._uses.get(address, 0) + 1
        return address if count == 1 else f"{address}#{count}"


def _fills(codebook: UniformCodebook, kind: int) -> bool:
    """Whether a codebook has all codes of an integer type, or all but one.

    Cutting that off would cost a node at every site.
    """
    low, high = _limits(kind)
    return codebook.qmax == high and codebook.qmin <= low + 1


def _limits(kind: int) -> tuple[int, int]:
    """Smallest and largest value of an ONNX integer type."""
    import onnx

    tensor = onnx.TensorProto
    signed_bits: dict[int, int] = {tensor.INT4: 4, tensor.INT8: 8, tensor.INT16: 16}
    unsigned_bits: dict[int, int] = {tensor.UINT4: 4, tensor.UINT8: 8, tensor.UINT16: 16}
    if kind in unsigned_bits:
        return 0, 2 ** unsigned_bits[kind] - 1
    half = 2 ** (signed_bits[kind] - 1)
    return -half, half - 1


def prune(model: Any) -> None:
    """Drop nodes and initializers that no output needs.

    Float parameters that only sites used, and what was made of them.
    """
    needed = {out.name for out in model.graph.output}
    kept = []
    for node in reversed(
        model.graph.node
    ):  # in order of computation, so that consumers come first here
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= set(read_by(node))
    kept.reverse()
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    for field, values in ((model.graph.node, kept), (model.graph.initializer, initializers)):
        del field[:]
        field.extend(values)


def check_sites(model: Any, addresses: Iterable[str]) -> None:
    """Raise ExportError unless each site has a DequantizeLinear with its scale in the graph.

    Args:
      model: an ONNX model after `insert`.
      addresses: of the sites that the plan quantizes.
    """
    result = {
        node.input[1].rstrip("#") for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    missing = [address for address in addresses if f"{address}/scale" not in result]
    if missing:
        raise ExportError(
            f"site {missing[0]} is not in the ONNX graph ({len(missing)} sites are missing): the"
            " converter dropped it; leave it out of the recipe"
        )


def site_inputs(model: Any) -> dict[str, str]:
    """Address of a site -> name of the tensor that it rounds; the first one where it stands at
    several.
    """
    result: dict[str, str] = {}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        address = node.output[0].removesuffix("/codes")
        if node.op_type == "QuantizeLinear" and address != node.output[0]:
            source, maker = node.input[0], makers.get(node.input[0])
            if maker is not None and source == f"{address}/clipped":
                source = maker.input[0]
            result.setdefault(address.partition("#")[0], source)
    return result

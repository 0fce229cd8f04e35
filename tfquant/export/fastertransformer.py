"""FasterTransformer checkpoints: encoder kernels as bytes in the order of cuBLASLt's tiles, and
each layer's ranges as one list.

Layout after NVIDIA's `ckpt_quantization.py` and `weight_quantize_op.cc`, of FasterTransformer 3.0
(`ROUNDED`: products stay int32) and of 3.1 to 5.3 (`QUANTIZED`, which also has the ranges of
products). Ranges are not cut off after six digits as 3.0 does.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

import numpy as np

from tfquant import checkpoint
from tfquant.engine import Engine
from tfquant.export.errors import ExportError
from tfquant.export.request import ExportRequest
from tfquant.layout import static_shape
from tfquant.quantized_array import QuantParams
from tfquant.quantizer import Quantizer
from tfquant.scale import SMALLEST_AMAX
from tfquant.weights import named_weights

NAME = "model.ckpt"  # of the checkpoint in the folder
SMALLEST_SM, AMPERE = 75, 80
TILE = 32
_KERNELS = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)
_KERNEL_SITES = frozenset(f"{dense}:weight:kernel" for dense in _KERNELS)
_INPUT = "attention/self/query:linear_input:input"
_OPERANDS = tuple(
    f"attention/self:matmul_input:{port}" for port in ("q", "k", "v", "probabilities")
)
_Q, _K, _V, _PROBABILITIES = _OPERANDS
_SCORES = "attention/self:attention_scores:output"
_PROJECTION, _FC1, _FC2 = (f"{dense}:linear_input:input" for dense in _KERNELS[3:])
_PRODUCTS = tuple(f"{dense}:linear_output:output" for dense in _KERNELS)
# What a skip is quantized with has to be the range of the product that reads the same tensor.
_SKIPS = {"attention/output/dense:residual:skip": _INPUT, "output/dense:residual:skip": _FC1}
_MEND = "quantize with recipe 'ft1', 'ft2' or 'ft3', or 'int8_residual' for FasterTransformer 3.0"


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Order of a layer's ranges in one version of the engine.

    Attributes:
      activations: addresses below a layer, four numbers each; the input of the next layer follows.
      kernels: where the ranges of kernels begin.
      factors: of products that come out as int8: (input, kernel or right operand, output).
    """

    activations: tuple[str, ...]
    kernels: int
    factors: tuple[tuple[str, str, str], ...] = ()


ROUNDED = _Layout((_INPUT, *_OPERANDS, _PROJECTION, _FC1, _FC2), 80)
QUANTIZED = _Layout(
    (
        *(_INPUT, _PRODUCTS[0], _Q, _PRODUCTS[1], _K, _PRODUCTS[2], _V, _SCORES, _PROBABILITIES),
        *(_PROJECTION, _PRODUCTS[3], _FC1, _PRODUCTS[4], _FC2, _PRODUCTS[5]),
    ),
    72,
    (
        *((_INPUT, _KERNELS[i], _PRODUCTS[i]) for i in range(3)),
        (_Q, _K, _SCORES),
        (_PROBABILITIES, _V, _PROJECTION),
        *((f"{_KERNELS[i]}:linear_input:input", _KERNELS[i], _PRODUCTS[i]) for i in range(3, 6)),
    ),
)
_RESERVED = 21


def check(request: ExportRequest) -> None:
    """Raise ExportError for the float network, which has no codes, and for networks of other
    names.
    """
    if request.mode != "quantized":
        raise ExportError(
            f"target fastertransformer holds codes, of which mode {request.mode!r} has none: export"
            " mode 'quantized'"
        )
    _layers(request.engine)


def write(request: ExportRequest, path: str) -> None:
    """Write a folder with one checkpoint.

    Raises:
      ExportError: the network is no BERT of `modeling.py`, or not quantized as the engine computes;
        the message names the site.
      CheckpointError: the folder could not be written.
    """
    check(request)
    layers = _layers(request.engine)
    layout = QUANTIZED if any(_SCORES in layer.sites for layer in layers) else ROUNDED
    if layout is ROUNDED and request.sm >= AMPERE:
        raise ExportError(
            f"recipe {request.engine.plan.recipe.name!r} has the sites of FasterTransformer 3.0,"
            f" which ends before sm={request.sm}: pass sm=75, or quantize with"
            " recipe 'ft1', 'ft2' or 'ft3'"
        )
    tensors = {
        name: np.asarray(variable.numpy())
        for name, variable in named_weights(request.engine).items()
    }
    tiles = ampere_tiles if request.sm >= AMPERE else turing_tiles
    for number, layer in enumerate(layers):
        after = (
            layers[number + 1].amax(_INPUT)
            if number + 1 < len(layers)
            else _after_the_last(request.engine, layout)
        )
        tensors[f"{layer.scope}/amaxList"] = layer.ranges(layout, after)
        for dense in _KERNELS:
            name = f"{layer.scope}/{dense}/kernel"
            inputs, outputs = tensors[name].shape
            if inputs % TILE or outputs % TILE:
                raise ExportError(
                    f"{name}: has shape {[inputs, outputs]}, FasterTransformer wants multiples of"
                    f" {TILE}"
                )
            tensors[name] = in_float_buffer(layer.codes(dense, tensors[name]), tiles)
    checkpoint.write(pathlib.Path(path, NAME), tensors)


class _Layer:
    """A layer of the encoder.

    Attributes:
      scope: what its names begin with.
      sites: address below the scope -> state.
    """

    def __init__(self, scope: str, sites: dict[str, Quantizer]):
        self.scope, self.sites = scope, sites
        one_range = {f"{dense}:linear_input:input": _INPUT for dense in _KERNELS[1:3]}
        one_range |= {
            skip: other
            for skip, other in _SKIPS.items()
            if skip in sites and sites[skip].site.enabled
        }
        for address, other in one_range.items():
            one, two = self.amax(address), self.amax(other)
            if one != two:
                raise ExportError(
                    f"sites {scope}/{address} and {scope}/{other}: FasterTransformer has one range"
                    f" for both, theirs end at {one:g} and {two:g}; train with ranges frozen, or"
                    " with a recipe that shares them"
                )
        for address in (*ROUNDED.activations, *sorted(_KERNEL_SITES)):
            if not self._site(address).site.enabled:
                raise ExportError(
                    f"site {scope}/{address}: is disabled, while FasterTransformer quantizes it;"
                    f" {_MEND}"
                )
        for address in sorted(
            sites.keys() - set(QUANTIZED.activations) - set(one_range) - _KERNEL_SITES
        ):
            site = sites[address].site
            if site.enabled and site.role != "model_output":
                raise ExportError(
                    f"site {scope}/{address}: is quantized, while FasterTransformer leaves it in"
                    f" float; {_MEND}"
                )

    def amax(self, address: str) -> np.float32:
        """The larger end of the one range of a tensor.

        Raises:
          ExportError: there is no such site, or the engine has no such codes.
        """
        return _amax(self._site(address))

    def ranges(self, layout: _Layout, after: np.float32) -> np.ndarray:
        """The `amaxList`; `after` is the larger end of the range of what the layer returns."""
        ends = [self.amax(address) for address in layout.activations] + [after]
        kernels = {dense: self._kernel_amaxes(dense) for dense in _KERNELS}
        result = [factor for end in ends for factor in (end, end / 127, end / 127 / 127, 127 / end)]
        result += [0.0] * (layout.kernels - len(result))
        result += np.concatenate(list(kernels.values())).tolist()
        if layout.factors:
            right = {dense: amaxes[0] for dense, amaxes in kernels.items()} | {
                address: self.amax(address) for address in (_K, _V)
            }
            result += [
                self.amax(left) * right[by] / (127 * self.amax(to))
                for left, by, to in layout.factors
            ]
            result += [
                max(self.amax(operand) for operand in (_Q, _K, _V)),
                self.amax(_PROBABILITIES),
                self.amax(_PROJECTION),
            ]
            result += [0.0] * _RESERVED
        return np.asarray(result, np.float32)

    def codes(self, dense: str, kernel: np.ndarray) -> np.ndarray:
        """int8 [inputs, outputs]."""
        quantizer = self._site(f"{dense}:weight:kernel")
        return QuantParams.of(quantizer.site, quantizer).quantize(kernel).codes.astype(np.int8)

    def _kernel_amaxes(self, dense: str) -> np.ndarray:
        """Return the amax of each output of a kernel."""
        quantizer = self._site(f"{dense}:weight:kernel")
        amaxes, (outputs,) = _amaxes(quantizer), static_shape(quantizer.site.shape[-1:])
        if amaxes.size not in (1, outputs):
            raise ExportError(
                f"site {quantizer.site.address}: has {amaxes.size} ranges for {outputs} outputs;"
                f" {_MEND}"
            )
        return np.broadcast_to(amaxes.reshape(-1), outputs)

    def _site(self, address: str) -> Quantizer:
        if address not in self.sites:
            raise ExportError(
                f"FasterTransformer wants a range of {self.scope}/{address}, which is no site:"
                f" {_MEND}"
            )
        return self.sites[address]


def _layers(engine: Engine) -> list[_Layer]:
    """Return all layers in their order, with every site, enabled or not."""
    layers: dict[int, dict[str, Quantizer]] = {}
    for quantizer in engine.quantizers.values():
        for address in quantizer.site.members:
            match = re.fullmatch(r"bert/encoder/layer_(\d+)/(.+)", address)
            if match:
                layers.setdefault(int(match[1]), {})[match[2]] = quantizer
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ExportError(
            "target fastertransformer finds BERT's layers by their names,"
            " bert/encoder/layer_0/attention/self/query and so on, as modeling.py has them: this"
            " network has none"
        )
    return [_Layer(f"bert/encoder/layer_{number}", layers[number]) for number in range(len(layers))]


def _after_the_last(engine: Engine, layout: _Layout) -> np.float32:
    """Larger end of the range of the encoder's output; later engines do not use it."""
    if layout is QUANTIZED:
        return np.float32(1.0)
    result = [
        quantizer
        for quantizer in engine.quantizers.values()
        if quantizer.site.role == "model_output"
    ]
    if not result:
        raise ExportError(
            f"FasterTransformer wants a range of the encoder's output, which is no site: {_MEND}"
        )
    return _amax(result[0])


def _amax(quantizer: Quantizer) -> np.float32:
    ends = _amaxes(quantizer)
    if ends.size != 1:
        raise ExportError(
            f"site {quantizer.site.address}: has {ends.size} ranges where FasterTransformer has"
            f" one; {_MEND}"
        )
    return np.float32(ends.reshape(()))


def _amaxes(quantizer: Quantizer) -> np.ndarray:
    """The larger end of each range of a site."""
    site = quantizer.site
    codebook = site.spec.codebook
    if not (codebook.uniform and codebook.symmetric and codebook.quant_max == 127):
        raise ExportError(
            f"site {site.address}: FasterTransformer has symmetric codes up to 127, this site has"
            f" {site.spec.describe()}; {_MEND}"
        )
    ends = np.maximum(np.abs(quantizer.lower), np.abs(quantizer.upper))
    return np.maximum(np.asarray(ends, np.float32), np.float32(SMALLEST_AMAX))


Tiles = Callable[[np.ndarray, np.ndarray], np.ndarray]


def turing_tiles(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the positions of elements in `CUBLASLT_ORDER_COL4_4R2_8C`, within 32 inputs.

    Tiles of 8 outputs by 32 inputs, even outputs first.
    """
    tile = (outputs // 8 * 8 + outputs % 2 * 4 + inputs % 32 // 8) * 32
    return tile + (inputs % 8 // 4 * 4 + outputs % 8 // 2) * 4 + inputs % 4


def ampere_tiles(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the positions of elements in `CUBLASLT_ORDER_COL32_2R_4R4`, within 32 inputs.

    Tiles of 32 outputs by 32 inputs, outputs in pairs.
    """
    row = (outputs % 8 // 2 * 4 + outputs % 32 // 8) * 2 + outputs % 2
    return outputs // 32 * 1024 + row * 32 + inputs % 32


def in_float_buffer(codes: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Codes int8 [inputs, outputs], multiples of `TILE`, in an engine's order at the front of a
    float32 array of that shape.
    """
    rows, columns = np.arange(codes.shape[0])[:, np.newaxis], np.arange(codes.shape[1])
    buffer = np.zeros(codes.size * 4, np.int8)
    buffer[rows // TILE * TILE * codes.shape[1] + tiles(rows, columns)] = codes
    return buffer.view(np.float32).reshape(codes.shape)


def may_be_replaced(path: pathlib.Path) -> bool:
    """Whether it holds nothing but such a checkpoint."""
    own = {checkpoint.STATE, NAME + checkpoint.INDEX, NAME + checkpoint.DATA}
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= own

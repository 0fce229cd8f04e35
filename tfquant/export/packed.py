"""Packed storage: a quantized network in one safetensors file, parameters as codes of 1 to 16 bits.

What is in the file, for readers without tfquant. Its metadata, all of them texts:

    format     `tfquant.packed`
    version    `1`
    variables  JSON, in the order of the model: [{"path", "shape", "dtype"}, ...]; with "bits",
               "qmin" and "axes" where packed, or "format", the name of a number format, in place
               of "qmin" where codes are no integers
    recipe     JSON, see `tfquant.Recipe`
    sites      JSON: [[address, shape of its range], ...]
    sha256     of all tensors and texts, see `tfquant.bitpacking`

A variable without "bits" is the tensor `<path>`, in its own type (bfloat16 as float32, which holds
it). A packed one is

    <path>/codes  uint8 of one axis: code - qmin of every value in row-major order, "bits" bits
                  each, one right behind the other; the lowest bit of a code comes first, into the
                  lowest free bit of a byte; the rest of the last byte is 0
    <path>/scale  float32, one value, or one for each index along "axes": the shape of the variable
                  without its other axes
    <path>/zero   integers like scale; missing where it is 0

Where "blocks" is there, [axis, b], each b consecutive elements along that axis share a scale: scale
has one in place of each block, and of type uint8 it stands for 2**(scale - 127).

A packed variable
holds scale · (code - zero), a product of two float32. One with a format that is fitted to the
tensor (`binary`, `ternary`) has in place of scale and zero, and of "axes",

    <path>/levels float32: the values that the codes 0, 1, ... stand for, along the last axis; the
                  others are those of the variable, of size 1 along axes that share values

Its recipe has no `transform`: the codes are those of transformed values. In NumPy, with n values of
b bits:

    bits = np.unpackbits(codes, count=n * b, bitorder="little").reshape(n, b)
    codes = (bits @ (1 << np.arange(b)) + qmin).reshape(shape)

Ranges are `tfquant/ranges/<site address>/<name>`: `lower` (missing where it is -upper) and `upper`,
or what is learned in place of them; and `group_of`, the group of each embedding dimension, where
such share a range.

A variable is packed if sites alone read it, and if their simulation makes of the values above, bit
for bit, what it makes of the variable (the sign of zeros aside). This is tried out for every one;
what fails stays in float, and the report says why.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from fileio.messages import printable
from tfquant import blocks, fitted, formats
from tfquant.bitpacking import pack_array, read_file, unpack_array, write_file
from tfquant.checkpoint import CheckpointError
from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError
from tfquant.export.request import ExportRequest
from tfquant.formats.contract import Levels
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.model_adapter import source_of
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of, wrap
from tfquant.quantized_array import FittedArray, QuantizedArray, QuantParams
from tfquant.quantizer import GROUP_OF, Quantizer
from tfquant.rules import Recipe
from tfquant.scale import placed, scale_and_zero
from tfquant.site import Site
from tfquant.sizes import SizeReport, VariableSize
from tfquant.store import (
    WEIGHTS,
    engine_as_saved,
    estimate_parted,
    fingerprint,
    matching_weights,
    range_name,
    stored_names,
)
from tfquant.transforms import transformed
from tfquant.variables import is_finite
from tfquant.weights import named_weights

MARKS = {"format": "tfquant.packed", "version": "1"}
_COPIES = ("ReadVariableOp", "Identity", "StopGradient")
_LOOKUPS = ("ResourceGather", "GatherV2", "Gather")


def check(request: ExportRequest) -> None:
    """Raise ExportError for the float network, which has no codes."""
    if request.mode != "quantized":
        raise ExportError(
            f"a packed file holds codes, of which mode {request.mode!r} has none: export with mode"
            " 'quantized'"
        )


def write(request: ExportRequest, path: str) -> None:
    """Write a network as one file.

    Raises:
      ExportError: the request is for the float network, or two tensors would have one name
        (ValueError: two variables).
      UncalibratedError: a site has no range.
      CheckpointError: the file could not be written.
    """
    engine = request.engine
    check(request)
    engine.quantizers.check_calibrated()
    stored = _stored(engine)
    _check_transforms(engine, stored)
    pairs = [pair for variable in stored for pair in variable.tensors.items()] + list(
        _ranges(engine).items()
    )
    if len(dict(pairs)) != len(pairs):
        raise ExportError(
            "two tensors would have one name: give the layers of the model other names"
        )
    texts = {
        "variables": [variable.entry for variable in stored],
        "recipe": _without_transforms(engine.plan.recipe).to_dict(),
        "sites": [fingerprint(site) for site in engine.plan.sites],
    }
    write_file(
        path,
        dict(pairs),
        {
            **MARKS,
            **{name: json.dumps(value, separators=(",", ":")) for name, value in texts.items()},
        },
    )


def _check_transforms(engine: Engine, stored: list[_Stored]) -> None:
    """Raise ExportError if a parameter that is transformed before rounding is not packed, as the
    recipe of the file transforms nothing.
    """
    packed = {address for variable in stored if variable.packed for address in variable.sites}
    for site in engine.plan.sites:
        if site.enabled and site.spec.transform != "none" and site.address not in packed:
            raise ExportError(
                f"site {site.address}: its values are transformed ({site.spec.transform}) and"
                " cannot be stored as codes, as others read them in float or in another layout:"
                " leave out transform there, or export to saved_model"
            )


def _without_transforms(recipe: Recipe) -> Recipe:
    """Recipe for parameters that are transformed already."""
    rules = tuple(
        rule
        if rule.spec is None or rule.spec.transform == "none"
        else dataclasses.replace(rule, spec=dataclasses.replace(rule.spec, transform="none"))
        for rule in recipe.rules
    )
    return dataclasses.replace(recipe, rules=rules)


def load(
    path: str | os.PathLike, model: Any, *, inputs: Any = None, signature: Any = None
) -> QuantizedModel | QuantizedFunction:
    """Read a packed file into a fresh model.

    Args:
      path: of the file.
      model: built like the packed one; its weights are overwritten, those that were packed with the
        values of their codes.
      inputs, signature: as for `tfquant.quantize`.

    Returns:
      The quantized model, which computes what the packed one did.

    Raises:
      FileNotFoundError: no such file.
      CheckpointError: it is damaged.
      ValueError: it is no packed file, weights or sites differ from those of `model`, all
        differences are listed, or a variable is NaN or infinite. The weights of `model` are as
        before then.
    """
    file = _File(path)
    engine = engine_as_saved(source_of(model, inputs, signature), file.recipe, file.sites)
    quantized = wrap(model, engine)
    paths, renamed = stored_names(quantized, file, file.sites, str(path))
    variables = named_weights(engine)
    try:
        values = matching_weights(variables, paths, file, str(path))
        _restore_ranges(engine, file, renamed)  # whose variables are not yet the user's
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if str(path) in str(error):
            raise
        # Entries and tensors that do not go together.
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__} {one_line(error, 200)}"
        ) from error
    result = [(name, np.asarray(values[name]), variable) for name, variable in variables.items()]
    for what, of in (("types", lambda a: a.dtype.name), ("shapes", lambda a: list(a.shape))):
        wrong = [
            f"{name}: {of(value)} in the file, {of(variable)} in the model"
            for name, value, variable in result
            if of(value) != of(variable)
        ]
        if wrong:
            raise ValueError(f"{path}: {what} differ from the model's: {'; '.join(wrong)}")
    broken = [name for name, value, _ in result if not is_finite(value)]
    if broken:
        raise ValueError(
            f"{path}: variable {printable(broken[0])} holds NaN or Inf; load another file"
        )
    for _, value, variable in result:
        variable.assign(value)
    estimate_parted(engine, renamed)
    return quantized


def _restore_ranges(engine: Engine, file: _File, renamed: dict[str, str]) -> None:
    """The state of every site."""
    for address, quantizer in engine.quantizers.items():
        if address not in renamed:
            continue
        saved = {
            name: file.tensors[key]
            for name in quantizer.variables
            if (key := range_name(renamed[address], name)) in file.tensors
        }
        if "upper" in quantizer.variables:
            upper = saved["upper"]
            quantizer.set_range(saved.get("lower", -upper), upper, saved.get(GROUP_OF))
        else:
            for name, variable in quantizer.variables.items():
                variable.assign(saved[name])


def size_report(
    model: QuantizedModel | QuantizedFunction, path: str | os.PathLike | None = None
) -> SizeReport:
    """Return the size of the variables of a calibrated model, in float and packed.

    Args:
      model: from `tfquant.quantize` or `tfquant.load`.
      path: of the file that was written of it, to have its size in the report.

    Raises:
      UncalibratedError: a site has no range.
    """
    engine = engine_of(model)
    engine.quantizers.check_calibrated()
    sizes = []
    for variable in _stored(engine):
        value, used = variable.value, sum(tensor.nbytes for tensor in variable.tensors.values())
        bits = value.itemsize * 8 if variable.packed is None else variable.packed[1]["bits"]
        sizes.append(
            VariableSize(variable.path, value.shape, bits, value.nbytes, used, variable.note)
        )
    ranges = sum(value.nbytes for value in _ranges(engine).values())
    return SizeReport(tuple(sizes), ranges, None if path is None else os.path.getsize(path))


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored:
    """A variable as it is in the file; `value` in float, `packed` of `pack_array`, `note` as in
    `VariableSize`.
    """

    path: str
    dtype: str
    value: np.ndarray
    packed: tuple[dict[str, np.ndarray], dict[str, Any]] | None
    note: str
    sites: list[str]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        if self.packed is None:
            return {self.path: self.value}
        return {f"{self.path}/{name}": value for name, value in self.packed[0].items()}

    @property
    def entry(self) -> dict[str, Any]:
        entry = {"path": self.path, "shape": self.value.shape, "dtype": self.dtype}
        return entry if self.packed is None else entry | self.packed[1]


def _stored(engine: Engine) -> list[_Stored]:
    """Return all variables, in the order of the model."""
    flow = engine.inference.analysis.flow
    readers = _readers(engine, flow)
    behind = {
        edge.table or flow.variable_behind(edge.tensor)
        for _, edge in engine.placements()
        if edge.parameter
    }
    sited = {
        id(variable) for handle, variable in engine.inference.variables.items() if handle in behind
    }
    result = []
    for path, variable in named_weights(engine).items():
        value, packed, note = np.asarray(variable.numpy()), None, ""
        sites, other = readers.get(id(variable), ([], ""))
        if sites and not other:
            array = _quantized(engine, value, sites)
            packed = None if array is None else pack_array(array)
            reason = (
                "its sites have different ranges"
                if len(sites) > 1
                else f"site {sites[0]} rounds its codes to other values"
            )
            note = "" if packed else reason
        elif sites or id(variable) in sited:
            note = f"{other} reads it in float"
        value = value.astype(np.float32) if variable.dtype == tf.bfloat16 else value
        result.append(_Stored(path, variable.dtype.name, value, packed, note, sites))
    return result


def _readers(engine: Engine, flow: Dataflow) -> dict[int, tuple[list[str], str]]:
    """id of a variable -> addresses of the sites that quantize its plain values, and an operation
    that takes them in float.
    """
    edges: dict[tuple[str, int], list[str]] = {}
    tensors: dict[str, list[str]] = {}
    for site, edge in engine.placements():
        if not site.enabled:
            continue
        if edge.consumer is None:
            tensors.setdefault(edge.tensor.name, []).append(site.address)
        else:
            edges.setdefault(edge.consumer, []).append(site.address)
    hits: dict[int, tuple[list[str], str]] = {}
    for handle, variable in engine.inference.variables.items():
        sites, other = hits.get(id(variable), ([], ""))
        pending = list(flow.consumers.get(handle, ()))
        while pending:
            op, index = pending.pop()
            result = op.outputs[0].name if op.outputs else ""
            if (op.name, index) in edges:
                sites += edges[op.name, index]
            elif result in tensors and (op.type in _COPIES or (op.type in _LOOKUPS and index == 0)):
                sites += tensors[result]  # before all consumers
            elif op.type in _COPIES and result not in flow.output_names:
                pending += flow.value_consumers(op.outputs[0])
            else:
                other = other or op.name
        hits[id(variable)] = (list(dict.fromkeys(sites)), other)
    return hits


def _quantized(
    engine: Engine, value: np.ndarray, addresses: list[str]
) -> QuantizedArray | FittedArray | None:
    """`value` as codes; None if one of the sites would make something else of them."""
    if not np.isfinite(value).all():
        return None
    if any(address not in engine.quantizers for address in addresses):
        sites = [engine.plan.site(address) for address in addresses]
        return _fitted(value, sites) if sites[0].spec.fitted else _in_blocks(value, sites)
    quantizers = [engine.quantizers[address] for address in addresses]
    site, simulations = (
        quantizers[0].site,
        [_simulation(quantizer, value) for quantizer in quantizers],
    )
    before = [simulation(value) for simulation in simulations]
    rounded, lower, width = before[0]
    params = QuantParams(
        *scale_and_zero(lower, width, site.spec.codebook), site.spec.codebook, site.channel_axes
    )
    array = params.quantize(rounded)
    after = [simulation(array.values().astype(value.dtype)) for simulation in simulations]
    return (
        array
        if all(np.array_equal(old[0], new[0]) for old, new in zip(before, after, strict=True))
        else None
    )


def _fitted(value: np.ndarray, sites: list[Site]) -> FittedArray | None:
    """`value` as codes of fitted levels; None if one of the sites would make something else of
    them, or fits levels of blocks.
    """
    site, format = sites[0], formats.fitted_format(sites[0].spec.format)
    layout = (site.spec, site.channel_axes)
    if format is None or site.block_axis is not None:
        return None
    if any((other.spec, other.channel_axes) != layout for other in sites):
        return None
    axes, plain = fitted.axes_of(site, value.ndim), dataclasses.replace(site.spec, transform="none")

    def levels_of(x: tf.Tensor) -> Levels:
        x = transformed(tf.cast(x, tf.float32), site.spec.transform, axes)
        return fitted.levels_of(x, site, axes)

    def run(function: Callable[[tf.Tensor], Any], x: np.ndarray) -> Any:
        spec = tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
        graph = tf.function(function, autograph=False, input_signature=[spec])
        return tf.nest.map_structure(
            lambda t: tf.cast(t, tf.float32).numpy(),
            graph.get_concrete_function()(tf.constant(x.astype(value.dtype))),
        )

    rounded = run(lambda x: fitted.quantize_dequantize(x, site), value)
    levels = run(levels_of, value).values.astype(value.dtype).astype(np.float32)
    codes = (levels[..., :-1] < rounded[..., np.newaxis]).sum(-1, dtype=np.int32)
    array = FittedArray(codes, levels, format.name, format.bits)
    loaded = dataclasses.replace(site, spec=plain)
    again = run(lambda x: fitted.quantize_dequantize(x, loaded), array.values())
    same = np.array_equal(array.values(), rounded) and np.array_equal(again, rounded)
    return array if same else None


def _in_blocks(value: np.ndarray, sites: list[Site]) -> QuantizedArray | None:
    """`value` as codes of blocks; None if one of the sites would make something else of them."""
    spec, axis = sites[0].spec, sites[0].block_axis
    if axis is None or any((site.spec, site.block_axis) != (spec, axis) for site in sites):
        return None
    axis %= value.ndim

    def simulated(x: np.ndarray) -> np.ndarray:
        tensor = tf.constant(x.astype(value.dtype))
        return tf.cast(blocks.quantize_dequantize(tensor, spec, axis), tf.float32).numpy()

    size = spec.layout.block_size or 0
    _, scale = blocks.scaled_blocks(tf.constant(value.astype(np.float32)), spec, axis)
    scale = np.squeeze(scale.numpy(), axis + 1)
    params = QuantParams(
        scale,
        np.zeros(scale.shape, np.int32),
        spec.codebook,
        tuple(range(value.ndim)),
        (axis, size),
    )
    rounded = simulated(value)
    array = params.quantize(rounded)
    return array if np.array_equal(rounded, simulated(array.values())) else None


def _simulation(
    quantizer: Quantizer, value: np.ndarray
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Values -> what the network makes of them, lower end and width of the range; float32.

    In a graph: there TensorFlow divides by constants through a product with their reciprocal, which
    moves a step by its last bit, and the zero point that follows from it by one where it lies
    between two codes.
    """
    grid = quantizer.site.spec.codebook

    def simulate(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tf.cast(quantizer(x), tf.float32), *placed(quantizer.lower, quantizer.upper, grid)

    spec = tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
    function = tf.function(
        simulate, autograph=False, input_signature=[spec]
    ).get_concrete_function()
    return lambda x: [result.numpy() for result in function(tf.constant(x))]


def _ranges(engine: Engine) -> dict[str, np.ndarray]:
    """Name -> the state of every site, as in checkpoints."""
    result = {}
    for address, quantizer in engine.quantizers.items():
        values = {
            name: np.asarray(variable.numpy()) for name, variable in quantizer.variables.items()
        }
        if "lower" in values and np.array_equal(values["lower"], -values["upper"]):
            del values["lower"]
        result |= {range_name(address, name): value for name, value in values.items()}
    return result


class _File:
    """A packed file; variables and their shapes by name, as `store` takes them of a checkpoint."""

    def __init__(self, path: str | os.PathLike):
        self.tensors, texts = read_file(path, MARKS)
        try:
            self.recipe, self.sites = Recipe.from_json(texts["recipe"]), json.loads(texts["sites"])
            self._entries = {entry["path"]: entry for entry in json.loads(texts["variables"])}
            self.shapes = {name: tuple(entry["shape"]) for name, entry in self._entries.items()}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged: {type(error).__name__} {one_line(error, 200)}"
            ) from error

    def __getitem__(self, name: str) -> np.ndarray | str:
        """The values of a variable in its own type."""
        if name == WEIGHTS:
            return json.dumps(list(self._entries))
        entry = self._entries[name]
        if "bits" not in entry:
            value = self.tensors[name]
        else:
            parts = {part: f"{name}/{part}" for part in ("codes", "scale", "zero", "levels")}
            tensors = {
                part: self.tensors[key] for part, key in parts.items() if key in self.tensors
            }
            value = unpack_array(tensors, entry, self.shapes[name]).values()
        return value.astype(tf.as_dtype(entry["dtype"]).as_numpy_dtype)

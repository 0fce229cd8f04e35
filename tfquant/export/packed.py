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

Where "view" is there, codes, axes and blocks are those of the variable reshaped to it.

A packed variable holds scale · (code - zero), a product of two float32. One with a format that is
fitted to the tensor (`binary`, `ternary`) has in place of scale and zero, and of "axes",

    <path>/levels float32: the values that the codes 0, 1, ... stand for, along the last axis; the
                  others are those of the variable, of size 1 along axes that share values

or, with multi-bit codes (`mb<k>`) whose values are sums of k numbers,

    <path>/coefficients float32: a_1, ..., a_k along the last axis, descending. A code stands for
                  +-a_1 +- ... +-a_k, added from the left in float32; bit i - 1 of it is set where
                  a_i is added

Its recipe has no `transform`: the codes are those of transformed values. In NumPy, with n values of
b bits:

    bits = np.unpackbits(codes, count=n * b, bitorder="little").reshape(n, b)
    codes = (bits @ (1 << np.arange(b)) + qmin).reshape(shape)

Ranges are `tfquant/ranges/<site address>/<name>`: `lower` (missing where it is -upper) and `upper`,
or what is learned in place of them; and `group_of`, the group of each embedding dimension, where
such share a range.

A variable is packed if sites alone read it, as it is or all reshaped alike, and if their simulation
makes of the values above, bit for bit, what it makes of the variable (the sign of zeros aside).
This is tried out for every one; what fails stays in float, and the report says why.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from fileio.messages import printable
from tfquant.bitpacking import pack_array, read_file, unpack_array, write_file
from tfquant.checkpoint import CheckpointError
from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError
from tfquant.export.parameter_codes import quantized_parameter
from tfquant.export.request import ExportRequest
from tfquant.graph.dataflow import Dataflow
from tfquant.graph.model_adapter import source_of
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of, wrap
from tfquant.quantizer import GROUP_OF
from tfquant.rules import Recipe
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
from tfquant.variables import is_finite
from tfquant.weights import named_weights

MARKS = {"format": "tfquant.packed", "version": "1"}
_PARTS = ("codes", "scale", "zero", "levels", "coefficients")  # of a packed variable
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
        found = readers.get(id(variable), _Readers())
        sites = list(found.sites)
        views = {view or value.shape for view in found.sites.values()}
        if sites and not found.other and len(views) == 1:
            (view,) = views
            array = quantized_parameter(engine, value.reshape(view), sites)
            packed = None if array is None else pack_array(array)
            if packed is not None and view != value.shape:
                packed[1]["view"] = view
            reason = (
                "its sites have different ranges"
                if len(sites) > 1
                else f"site {sites[0]} rounds its codes to other values"
            )
            note = "" if packed else reason
        elif sites or id(variable) in sited:
            note = (
                f"{found.other} reads it in float"
                if found.other
                else f"its sites see it in {len(views)} shapes"
            )
        value = value.astype(np.float32) if variable.dtype == tf.bfloat16 else value
        result.append(_Stored(path, variable.dtype.name, value, packed, note, sites))
    return result


@dataclasses.dataclass
class _Readers:
    """What reads a variable.

    Attributes:
      sites: address of a site that quantizes its plain values -> the shape that it sees them in,
        None for the variable's own.
      other: an operation that takes them in float; empty if there is none.
    """

    sites: dict[str, tuple[int, ...] | None] = dataclasses.field(default_factory=dict)
    other: str = ""


def _readers(engine: Engine, flow: Dataflow) -> dict[int, _Readers]:
    """id of a variable -> what reads it."""
    edges: dict[tuple[str, int], list[str]] = {}
    tensors: dict[str, list[str]] = {}
    for site, edge in engine.placements():
        if not site.enabled:
            continue
        if edge.consumer is None:
            tensors.setdefault(edge.tensor.name, []).append(site.address)
        else:
            edges.setdefault(edge.consumer, []).append(site.address)
    hits: dict[int, _Readers] = {}
    for handle, variable in engine.inference.variables.items():
        found = hits.setdefault(id(variable), _Readers())
        pending = [(*consumer, None) for consumer in flow.consumers.get(handle, ())]
        while pending:
            op, index, view = pending.pop()
            result = op.outputs[0].name if op.outputs else ""
            seen = _static_shape(op.outputs[0]) if op.type == "Reshape" and index == 0 else None
            copies = op.type in _COPIES or seen is not None
            behind = seen or view
            if (op.name, index) in edges:
                found.sites |= dict.fromkeys(edges[op.name, index], view)
            elif result in tensors and (copies or (op.type in _LOOKUPS and index == 0)):
                found.sites |= dict.fromkeys(tensors[result], behind)  # before all consumers
            elif copies and result not in flow.output_names:
                pending += [(*consumer, behind) for consumer in flow.value_consumers(op.outputs[0])]
            else:
                found.other = found.other or op.name
    return hits


def _static_shape(tensor: Any) -> tuple[int, ...] | None:
    """Shape of a tensor if all of it is known."""
    return tuple(tensor.shape) if tensor.shape.is_fully_defined() else None


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
            parts = {part: f"{name}/{part}" for part in _PARTS}
            tensors = {
                part: self.tensors[key] for part, key in parts.items() if key in self.tensors
            }
            shape = self.shapes[name]
            value = unpack_array(tensors, entry, tuple(entry.get("view", shape))).values()
            value = value.reshape(shape)
        return value.astype(tf.as_dtype(entry["dtype"]).as_numpy_dtype)

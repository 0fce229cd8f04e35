"""The network as a function in which sites and regions are marker operations that a converter carries over like any other.

Large parameters are inputs of it: a converter that has them as constants copies them with every pass over its graph.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.interface import Interface
from tfquant.export.region import Region
from tfquant.graph.replay import Edit, Edits
from tfquant.graph.trace import Trace
from tfquant.site import Site

# An identity with a text attribute. TensorFlow says of it that it has effects, so that nobody folds it, not even on a constant.
MARKER = "CheckNumericsV2"
ATTRIBUTE = "message"
_LARGE = 2**16  # bytes
_READS = ("ReadVariableOp", "ResourceGather")


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedRegion:
    """A region and the texts of the markers on its ends."""

    region: Region
    inputs: tuple[str, ...]
    target: str


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedNetwork:
    """The inference network of a quantized model, with markers in place of its quantizers.

    Attributes:
      function: flat inputs, then large parameters -> mapping of output names to tensors.
      interface: names of both, without the parameters.
      parameters: name of an input -> the variable it stands for.
      sites: text of a marker -> the site it stands for.
      regions: what single operations can stand for.
    """

    function: Any
    interface: Interface
    parameters: Mapping[str, tf.Variable]
    sites: Mapping[str, Site]
    regions: tuple[MarkedRegion, ...]


def marked(engine: Engine, regions: Iterable[Region] = (), mode: str = "quantized") -> MarkedNetwork:
    """The float network with markers at the ends of `regions` and, in mode `quantized`, at every site that quantizes."""
    trace = engine.inference
    apart = _large_parameters(trace)
    sites = {site.address: site for site in engine.plan.sites if site.enabled and mode == "quantized"}
    named = tuple(
        MarkedRegion(region, tuple(f"region {index} input {i}" for i in range(len(region.inputs))), f"region {index} target")
        for index, region in enumerate(regions)
    )

    def mark(site: Site, tensor: tf.Tensor) -> tf.Tensor:
        return _marker(site.address)(tensor) if site.address in sites else tensor

    interface = Interface.of(trace)

    def network(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, given = flat[: len(interface.inputs)], dict(zip(apart, flat[len(interface.inputs) :], strict=True))
        for handle, variable in trace.variables.items():  # a converter freezes what the graph watches
            if handle not in given:
                tf.compat.v1.get_default_graph().watch_variable(variable)
        edits = dataclasses.replace(_with_regions(engine.edits(mark), named), operations=_reads(trace, given))
        return interface.named_outputs(trace.emit(list(inputs), edits))

    parameters = dict(zip(_names(trace, apart, interface), (trace.variables[handle] for handle in apart), strict=True))
    specs = [tf.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in parameters.items()]
    function = tf.function(network, autograph=False, input_signature=[*interface.inputs, *specs])
    return MarkedNetwork(function, interface, parameters, sites, named)


def _large_parameters(trace: Trace) -> list[str]:
    """Handles of large variables that are read in plain sight, in no loop or branch."""
    return [
        handle
        for handle, variable in trace.variables.items()
        if variable.shape.num_elements() * variable.dtype.size >= _LARGE
        and all(op.type in _READS for op in trace.graph.get_tensor_by_name(handle).consumers())
    ]


def _reads(trace: Trace, given: Mapping[str, tf.Tensor]) -> dict[str, Callable[[list[tf.Tensor]], tf.Tensor]]:
    """Operations that read a parameter -> what they become where the parameter is an input."""
    found = {}
    for handle, value in given.items():
        for op in trace.graph.get_tensor_by_name(handle).consumers():
            found[op.name] = functools.partial(_read, op, value)
    return found


def _read(op: tf.Operation, value: tf.Tensor, inputs: list[tf.Tensor]) -> tf.Tensor:
    return value if op.type == "ReadVariableOp" else tf.gather(value, inputs[1], batch_dims=op.get_attr("batch_dims"))


def _names(trace: Trace, handles: Iterable[str], interface: Interface) -> list[str]:
    """Names of inputs for variables: their paths, as far as TensorFlow takes them."""
    taken, names = {spec.name for spec in interface.inputs} | set(interface.outputs), []
    for handle in handles:
        name = re.sub(r"[^A-Za-z0-9_./-]", "_", trace.paths[handle]).lstrip("_/-") or "parameter"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def _marker(text: str) -> Edit:
    return lambda tensor: tf.raw_ops.CheckNumericsV2(tensor=tensor, message=text)


def _with_regions(edits: Edits, regions: Iterable[MarkedRegion]) -> Edits:
    """What comes in is marked behind the sites on its edge, what goes out before those on it."""
    edges, tensors = dict(edits.edges), dict(edits.tensors)
    for entry in regions:
        region, name = entry.region, entry.region.target.name
        for edge, text in zip(region.inputs, entry.inputs, strict=True):
            edges[edge] = _then(edges.get(edge), _marker(text))
        moved = edges.pop(region.moved, None) if region.moved else None
        tensors[name] = _then(_marker(entry.target), _then(moved, tensors.get(name)))
    return Edits(edges, tensors)


def _then(first: Edit | None, second: Edit | None) -> Edit:
    present = [edit for edit in (first, second) if edit is not None]

    def apply(tensor: tf.Tensor) -> tf.Tensor:
        for edit in present:
            tensor = edit(tensor)
        return tensor

    return apply

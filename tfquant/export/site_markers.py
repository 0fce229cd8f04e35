"""The network as a function in which sites and regions are marker operations that a converter
carries over like any other.

Large parameters are inputs of it: a converter that has them as constants copies them with every
pass over its graph.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.captures import as_constants, captured_constants
from tfquant.export.interface import Interface
from tfquant.export.layouts import find_layouts
from tfquant.export.onnx.fused_region import Region
from tfquant.export.onnx.rewrites import rewrites
from tfquant.graph.edge import Edge
from tfquant.graph.replay import Edit, Edits
from tfquant.graph.trace import Trace
from tfquant.site import Site

# An identity with a text attribute. What it prints is an input of the network, so that nobody folds
# it, not even on a constant.
MARKER = "Print"
ATTRIBUTE = "message"
PREFIX = "tfquant "  # of the texts of markers; others are operations of the network
_LARGE = 2**16  # bytes
_HANDLES = (tf.resource, tf.variant)
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
      function: flat inputs, then large parameters, then a scalar that markers read -> mapping of
        output names to tensors.
      interface: names of inputs and outputs, without the parameters.
      parameters: name of an input -> the variable or captured tensor it stands for.
      anchor: name of the scalar that markers read; nothing else does.
      sites: text of a marker -> the site it stands for; the text is its address, or that of an edge
        in another layout.
      edges: text of a marker on a parameter -> an edge that it stands for.
      regions: what single operations can stand for.
    """

    function: Any
    interface: Interface
    parameters: Mapping[str, tf.Variable | tf.Tensor]
    anchor: str
    sites: Mapping[str, Site]
    edges: Mapping[str, Edge]
    regions: tuple[MarkedRegion, ...]


def marked(
    engine: Engine, regions: Iterable[Region] = (), mode: str = "quantized"
) -> MarkedNetwork:
    """The float network with markers at the ends of `regions` and, in mode `quantized`, at every
    site that quantizes.
    """
    trace, interface = engine.inference, Interface.of(engine.inference)
    variables, constants = _large_parameters(trace), captured_constants(trace)
    large = {name: value for name, value in constants.items() if value.numpy().nbytes >= _LARGE}
    apart = [*(trace.variables[handle] for handle in variables), *large.values()]
    layouts = find_layouts(engine)
    sites = {
        name: site for name, site in layouts.sites.items() if site.enabled and mode == "quantized"
    }
    named = tuple(
        MarkedRegion(
            region,
            tuple(f"region {index} input {i}" for i in range(len(region.inputs))),
            f"region {index} target",
        )
        for index, region in enumerate(regions)
    )
    replaced = rewrites(trace)
    *names, anchor = _names(
        [*(trace.paths[handle] for handle in variables), *large, "anchor"], interface
    )

    def network(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, flat = flat[: len(interface.inputs)], flat[len(interface.inputs) :]
        read, specified = (
            dict(zip(variables, flat, strict=False)),
            dict(zip(large, flat[len(variables) :], strict=False)),
        )
        mark = _Marker(flat[-1])
        for (
            handle,
            variable,
        ) in trace.variables.items():  # a converter freezes what the graph watches
            if handle not in read:
                tf.compat.v1.get_default_graph().watch_variable(variable)

        def mark_site(_: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
            name = layouts.names[edge.address]
            return mark(name, tensor) if name in sites else tensor

        edits = engine.placements().edits(mark_site)
        edits = dataclasses.replace(
            _with_regions(edits, named, mark),
            operations=_reads(trace, read) | replaced,
            in_bodies={"ReadVariableOp": _with_shape, "Placeholder": _with_shape},
        )
        return interface.named_outputs(
            trace.emit(list(inputs), edits, given=as_constants(trace) | specified)
        )

    specs = [
        tf.TensorSpec(value.shape, value.dtype, name=name)
        for name, value in zip(names, apart, strict=True)
    ]
    signature = [*interface.inputs, *specs, tf.TensorSpec([], tf.float32, name=anchor)]
    function = tf.function(network, autograph=False, input_signature=signature)
    edges = {name: edge for name, edge in layouts.parameters.items() if name in sites}
    return MarkedNetwork(
        function, interface, dict(zip(names, apart, strict=True)), anchor, sites, edges, named
    )


def _large_parameters(trace: Trace) -> list[str]:
    """Handles of large variables that are read in plain sight, in no loop or branch."""
    return [
        handle
        for handle, variable in trace.variables.items()
        if variable.shape.num_elements() * variable.dtype.size >= _LARGE
        and all(op.type in _READS for op in trace.graph.get_tensor_by_name(handle).consumers())
    ]


def _reads(
    trace: Trace, given: Mapping[str, tf.Tensor]
) -> dict[str, Callable[[list[tf.Tensor]], tf.Tensor]]:
    """Operations that read a parameter -> what they become where the parameter is an input."""
    result = {}
    for handle, value in given.items():
        for op in trace.graph.get_tensor_by_name(handle).consumers():
            result[op.name] = functools.partial(_read, op, value)
    return result


def _read(op: tf.Operation, value: tf.Tensor, inputs: list[tf.Tensor]) -> tf.Tensor:
    return (
        value
        if op.type == "ReadVariableOp"
        else tf.gather(value, inputs[1], batch_dims=op.get_attr("batch_dims"))
    )


def _with_shape(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor with its shape written down.

    Functions, which bodies become, keep none of inputs and frozen variables.
    """
    return (
        tensor
        if tensor.dtype in _HANDLES or tensor.shape.rank is None
        else tf.ensure_shape(tensor, tensor.shape)
    )


def _names(wanted: Iterable[str], interface: Interface) -> list[str]:
    """Names of further inputs: those that are wanted, as far as TensorFlow takes them."""
    taken, names = {*interface.input_names, *interface.outputs}, []
    for path in wanted:
        name = re.sub(r"[^A-Za-z0-9_./-]", "_", path).lstrip("_/-") or "parameter"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


@dataclasses.dataclass(frozen=True, eq=False)
class _Marker:
    """Marks tensors, by operations that read a scalar input of the network."""

    anchor: tf.Tensor

    def __call__(self, text: str, tensor: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.Print(input=tensor, data=[self.anchor], message=f"{PREFIX}{text}")


def _with_regions(edits: Edits, regions: Iterable[MarkedRegion], mark: _Marker) -> Edits:
    """Add the markers of regions: inputs behind the sites on their edge, outputs before."""
    edges, tensors = dict(edits.edges), dict(edits.tensors)
    for entry in regions:
        region, name = entry.region, entry.region.target.name
        for edge, text in zip(region.inputs, entry.inputs, strict=True):
            edges[edge] = _then(edges.get(edge), functools.partial(mark, text))
        moved = edges.pop(region.moved, None) if region.moved else None
        tensors[name] = _then(
            functools.partial(mark, entry.target), _then(moved, tensors.get(name))
        )
    return Edits(edges, tensors)


def _then(first: Edit | None, second: Edit | None) -> Edit:
    present = [edit for edit in (first, second) if edit is not None]

    def apply(tensor: tf.Tensor) -> tf.Tensor:
        for edit in present:
            tensor = edit(tensor)
        return tensor

    return apply

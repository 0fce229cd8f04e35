"""The network as a function in which sites and regions are marker operations that a converter carries over like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfquant.engine import Engine
from tfquant.export.interface import Interface
from tfquant.export.regions import Region
from tfquant.graph.replay import Edit, Edits
from tfquant.spec import Site

# An identity with a text attribute. TensorFlow says of it that it has effects, so that nobody folds it, not even on a constant.
MARKER = "CheckNumericsV2"
ATTRIBUTE = "message"


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedRegion:
    """A region and the texts of the markers on its ends; `kernel` is empty where it has none."""

    region: Region
    entry: str
    target: str
    kernel: str


@dataclasses.dataclass(frozen=True, eq=False)
class MarkedNetwork:
    """The inference network of a quantized model, with markers in place of its quantizers.

    Attributes:
      function: flat inputs -> mapping of output names to tensors.
      interface: names of both.
      sites: text of a marker -> the site it stands for.
      regions: what single operations can stand for.
    """

    function: Any
    interface: Interface
    sites: Mapping[str, Site]
    regions: tuple[MarkedRegion, ...]


def marked(engine: Engine, regions: Iterable[Region] = (), mode: str = "quantized") -> MarkedNetwork:
    """The float network with markers at the ends of `regions` and, in mode `quantized`, at every site that quantizes."""
    trace = engine.inference
    sites = {site.address: site for site in engine.plan.sites if site.enabled and mode == "quantized"}
    named = tuple(
        MarkedRegion(region, f"region {index} entry", f"region {index} target", f"region {index} kernel" if region.kernel else "")
        for index, region in enumerate(regions)
    )

    def mark(site: Site, tensor: tf.Tensor) -> tf.Tensor:
        return _marker(site.address)(tensor) if site.address in sites else tensor

    interface = Interface.of(trace)

    def network(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        for variable in trace.variables.values():  # a converter freezes what the graph watches
            tf.compat.v1.get_default_graph().watch_variable(variable)
        edits = _with_regions(engine.edits(mark), named)
        return interface.named_outputs(trace.emit(list(flat), edits))

    function = tf.function(network, autograph=False, input_signature=interface.inputs)
    return MarkedNetwork(function, interface, sites, named)


def _marker(text: str) -> Edit:
    return lambda tensor: tf.raw_ops.CheckNumericsV2(tensor=tensor, message=text)


def _with_regions(edits: Edits, regions: Iterable[MarkedRegion]) -> Edits:
    """What comes in is marked behind the sites on its edge, what goes out before those on it."""
    edges, tensors = dict(edits.edges), dict(edits.tensors)
    for entry in regions:
        edges[entry.region.entry] = _then(edges.get(entry.region.entry), _marker(entry.entry))
        if entry.region.kernel:
            edges[entry.region.kernel] = _then(edges.get(entry.region.kernel), _marker(entry.kernel))
        name = entry.region.target.name
        tensors[name] = _then(_marker(entry.target), tensors.get(name))
    return Edits(edges, tensors)


def _then(first: Edit | None, second: Edit | None) -> Edit:
    present = [edit for edit in (first, second) if edit is not None]

    def apply(tensor: tf.Tensor) -> tf.Tensor:
        for edit in present:
            tensor = edit(tensor)
        return tensor

    return apply

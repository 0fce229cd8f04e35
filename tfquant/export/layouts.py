"""Layouts: the forms in which operations take the values of one site.

One range for a whole parameter does not depend on how the parameter is laid out, so that a site may
quantize a variable, its transpose and rows that are looked up in it. A file that stores codes
stores them in each of these forms.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from tfquant.engine import Engine
from tfquant.graph.edge import Edge
from tfquant.graph.expression import Expressions
from tfquant.site import Site


@dataclasses.dataclass(frozen=True, eq=False)
class Layouts:
    """The layouts of all sites of the inference network.

    Attributes:
      names: address of an edge -> name of its layout: the address of its site or, for further
        layouts of that, of one of its edges.
      sites: name -> the site.
      parameters: name -> an edge where a parameter has that layout; without activations, and
        without rows of a table that is cut by sizes of the inputs before.
    """

    names: Mapping[str, str]
    sites: Mapping[str, Site]
    parameters: Mapping[str, Edge]


def find_layouts(engine: Engine) -> Layouts:
    """Return the layouts of a network's sites."""
    expressions = engine.inference.analysis.expressions
    groups: dict[tuple[str, str], list[tuple[Site, Edge]]] = collections.defaultdict(list)
    for site, edge in engine.placements():
        form = ""
        if edge.table is None and edge.parameter:
            form = expressions.key(edge.tensor)
        elif edge.table is not None and _picks_from_variable(expressions, edge):
            form = "rows"
        groups[site.address, form].append((site, edge))
    names, sites, parameters = {}, {}, {}
    for (address, form), members in groups.items():
        addresses = sorted(edge.address for _, edge in members)
        name = address if address in addresses else addresses[0]
        names.update(dict.fromkeys(addresses, name))
        sites[name] = members[0][0]
        if form:
            parameters[name] = members[0][1]
    return Layouts(names, sites, parameters)


def _picks_from_variable(expressions: Expressions, edge: Edge) -> bool:
    op = edge.tensor.op
    return op.type not in ("GatherV2", "Gather") or expressions.is_plain(op.inputs[0])

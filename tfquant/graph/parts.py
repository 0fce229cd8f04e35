"""Parts of an encoder (query, feed-forward output, head, ...), its blocks, and the edges of each.

Found from attention, residual additions and heads, never from names.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from tfquant.site import PARAMETER_ROLES

if TYPE_CHECKING:
    from tfquant.graph.edge import Edge
    from tfquant.graph.residual import Residual
    from tfquant.graph.structure import Structure

_PROJECTIONS = {"q": "query", "k": "key", "v": "value"}
_HEADS = {"pooler": "pooler", "logits": "head"}
_OUTSIDE_BLOCKS = ("embedding", "pooler", "head")
_EMBEDDING_ROLES = ("embedding", "position_embedding", "embedding_sum")
_LINEAR_ROLES = (
    *PARAMETER_ROLES,
    "linear_input",
    "linear_output",
    "layer_output",
    "activation_output",
    "activation_input",
    "pooler",
    "logits",
)


def with_parts(structure: Structure, edges: Iterable[Edge]) -> Iterator[Edge]:
    """Yield edges annotated with their part of the encoder and the number of their block.

    The edges of a residual addition and of the layer norm behind it belong to the part whose output
    is added; query, key and value as operands of the attention belong to their projections.

    Args:
      structure: patterns of the graph.
      edges: edges of the same graph, before repeated ones are numbered.
    """
    additions = _additions(structure)
    linears = _linears(structure, additions)
    sums = {residual.path: additions.get(residual.op.name) for residual in structure.residuals}
    normed = _normed_residuals(structure, additions)
    attention = {result.path for result in structure.attention}
    block_of = _block_finder(structure, normed)
    for edge in edges:
        if edge.role in _EMBEDDING_ROLES:
            part = "embedding"
        elif edge.role == "matmul_input" and edge.path in attention:
            part = _PROJECTIONS.get(edge.port)
        elif edge.role.startswith("residual"):
            part = sums.get(edge.path)
        elif edge.role.startswith("layernorm"):
            part = additions[normed[edge.path].op.name] if edge.path in normed else None
        else:
            part = linears.get(edge.path) if edge.role in _LINEAR_ROLES else None
        block = None if part in _OUTSIDE_BLOCKS else block_of(edge)
        known = part is not None or block is not None
        yield edge if not known else dataclasses.replace(edge, part=part, block=block)


def _block_finder(
    structure: Structure, normed: dict[str, Residual]
) -> Callable[[Edge], int | None]:
    """Return a function from an edge to the number of its block, None before the first block.

    Blocks begin at the attention whose result a residual addition takes. Its projections, its
    scores, that addition and the layer norm behind it belong to the block; other edges belong to
    the last attention before them.
    """
    position, entries = structure.flow.index, structure.entry_residuals
    begins = [position[attention.context.op.name] for attention, _ in entries]
    by_path: dict[str, int] = {}
    for number, (attention, residual) in enumerate(entries):
        for path in (attention.path, *attention.projections.values(), residual.path):
            by_path.setdefault(path, number)

    def block_of(edge: Edge) -> int | None:
        operation = edge.consumer[0] if edge.consumer else edge.tensor.op.name
        path = edge.path
        if edge.role.startswith("layernorm") and path in normed:
            path, operation = normed[path].path, normed[path].op.name
        number = by_path.get(path, bisect.bisect(begins, position[operation]) - 1)
        return None if number < 0 else number

    return block_of


def _additions(structure: Structure) -> dict[str, str]:
    """Map operation name of a residual addition -> `attention_output` or `ffn_out`."""
    after_attention = {residual.op.name for _, residual in structure.entry_residuals}
    begins = [structure.flow.index[a.context.op.name] for a, _ in structure.entry_residuals]
    result = {}
    for residual in structure.residuals:
        if residual.op.name in after_attention:
            result[residual.op.name] = "attention_output"
        elif begins and structure.flow.index[residual.op.name] > begins[0]:
            result[residual.op.name] = "ffn_out"
    return result


def _linears(structure: Structure, additions: dict[str, str]) -> dict[str, str]:
    """Map layer path of a linear -> its part; the first one found where a layer has several."""
    by_path = {structure.paths[c.op.name]: c for c in structure.contractions if c.kind == "linear"}
    result = {path: _HEADS[zone] for path, zone in structure.head_paths.items()}
    for attention in structure.attention:
        for port, path in attention.projections.items():
            result.setdefault(path, _PROJECTIONS[port])
    for residual in structure.residuals:
        part = additions.get(residual.op.name)
        if part is None or residual.layer not in by_path:
            continue
        result.setdefault(residual.layer, part)
        if part == "ffn_out":
            for path in _linears_between(structure, residual):
                result.setdefault(path, "ffn_in")
    return result


def _linears_between(structure: Structure, residual: Residual) -> list[str]:
    """Layer paths of the linears inside a feed-forward network, except the last one."""
    products = {c.op.name for c in structure.contractions if c.kind == "linear"}
    operations = structure.flow.walk_back(
        residual.op.inputs[residual.other_index],
        lambda op: op.name != residual.source.op.name,
        not_before=structure.flow.index[residual.source.op.name],
    )
    paths = [structure.paths[op.name] for op in operations if op.name in products]
    return [path for path in paths if path != residual.layer]


def _normed_residuals(structure: Structure, additions: dict[str, str]) -> dict[str, Residual]:
    """Map path of a layer norm -> residual addition that it normalizes."""
    root = structure.flow.root
    sums = {
        root(residual.op.outputs[0]).name: residual
        for residual in structure.residuals
        if residual.op.name in additions
    }
    named = ((norm.path, sums.get(root(norm.input).name)) for norm in structure.layernorms)
    return {path: residual for path, residual in named if residual is not None}

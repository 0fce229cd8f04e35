"""Tensors of an encoder by the letters of Qualcomm's `--quant-dict` (Bondarenko et al., 2021).

    e   sums of embeddings        s  attention scores
    Et  token table               p  attention probabilities
    P   pooler, output            c  result of the attention
    C   classifier, output        g  output of the layer behind the attention
    wP  kernel of the pooler      u  its sum with the input of the block
    wC  kernel of the classifier  x  layer norm of that: input of the feed-forward network
                                  h  output of the feed-forward network
    L   all of a block            y  its sum with x
                                  z  layer norm of that

They are found by structure. The letters from `s` on may have the number of a block behind them,
counted from 0. Blocks with several feed-forward networks have several tensors at `h`, `y` and `z`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tfquant.graph.residual import Residual
from tfquant.graph.roles import Structure
from tfquant.site import address

OF_BLOCK = ("s", "p", "c", "g", "u", "x", "h", "y", "z", "L")
OF_MODEL = ("e", "Et", "P", "C", "wP", "wC")


def find_letters(structure: Structure) -> dict[str, tuple[str, ...]]:
    """Map letter, with the number of the block where it has one -> addresses of its edges; letters
    without edges are omitted.
    """
    found: dict[str, list[str]] = {}
    for letter, where in (*_of_model(structure), *_of_blocks(structure)):
        found.setdefault(letter, []).append(where)
    return {letter: tuple(dict.fromkeys(addresses)) for letter, addresses in found.items()}


def _of_model(structure: Structure) -> Iterator[tuple[str, str]]:
    embeddings = list(structure.edges_of_embeddings())
    if embeddings:  # the token table is the largest
        yield (
            "Et",
            max(
                (e for e in embeddings if e.role == "embedding"), key=lambda e: e.shape[0] or 0
            ).address,
        )
    yield from (("e", edge.address) for edge in embeddings if edge.role == "embedding_sum")
    heads = [path for path in structure.layer_outputs if path in structure.head_paths]
    for path in heads:
        letter = "C" if path == heads[-1] else "P"
        yield letter, address("layer_output", path, "output")
        yield f"w{letter}", address(structure.head_paths[path], path, "kernel")


def _of_blocks(structure: Structure) -> Iterator[tuple[str, str]]:
    flow = structure.flow
    entries = structure.entries
    begins = [flow.index[attention.context.op.name] for attention, _ in entries]
    norms = {flow.root(norm.input).name: norm.path for norm in structure.layernorms}
    for number, (attention, _) in enumerate(entries):
        end = begins[number + 1] if number + 1 < len(begins) else len(flow.operations)
        residuals = [r for r in structure.residuals if begins[number] < flow.index[r.op.name] < end]
        found = [
            ("s", address("attention_scores", attention.path, "output")),
            ("p", address("softmax_output", attention.path, "output")),
            ("c", address("attention_output", attention.path, "output")),
        ]
        for letters, residual in zip(("gux", *["hyz"] * len(residuals)), residuals, strict=False):
            found += zip(
                letters,
                _around(residual, norms.get(flow.root(residual.op.outputs[0]).name)),
                strict=False,
            )
        yield from ((f"{letter}{number}", where) for letter, where in found)
        yield from ((f"L{number}", where) for _, where in found)
        yield from ((f"L{number}", where) for where in _other_layers(structure, number, end))


def _around(residual: Residual, norm: str | None) -> list[str]:
    """Addresses of the layer output in a residual addition, of the sum, and of its layer norm."""
    found = [
        address("layer_output", residual.path, "output"),
        address("residual_sum", residual.path, "output"),
    ]
    return found if norm is None else [*found, address("layernorm_output", norm, "output")]


def _other_layers(structure: Structure, number: int, end: int) -> Iterator[str]:
    """Outputs of the other layers of a block.

    Projections, and what is inside of the feed-forward network.
    """
    attention = structure.entries[number][0]
    yield from (address("layer_output", path, "output") for path in attention.projections.values())
    context = structure.flow.index[attention.context.op.name]
    following = {
        path
        for a, _ in structure.entries[number + 1 : number + 2]
        for path in a.projections.values()
    }
    for contraction in structure.contractions:
        path = structure.paths[contraction.op.name]
        inside = context < structure.flow.index[contraction.op.name] < end
        if (
            contraction.kind == "linear"
            and inside
            and path not in structure.head_paths
            and path not in following
        ):
            yield address("layer_output", path, "output")

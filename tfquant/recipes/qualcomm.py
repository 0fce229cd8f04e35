"""Letters of Qualcomm's `--quant-dict` (Bondarenko et al., 2021) as a table over role and part.

    e   sums of embeddings        s  attention scores
    Et  token table               p  attention probabilities
    P   pooler, output            c  result of the attention
    C   classifier, output        g  output of the layer behind the attention
    wP  kernel of the pooler      u  its sum with the input of the block
    wC  kernel of the classifier  x  layer norm of that: input of the feed-forward network
                                  h  output of the feed-forward network
    L   all of a block            y  its sum with x
                                  z  layer norm of that

The letters from `s` on may have the number of a block behind them, counted from 0. Blocks with
several feed-forward networks have several tensors at `h`, `y` and `z`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tfquant.graph.edge import Edge

_ATTENTION = {"attention_scores": "s", "softmax_output": "p", "attention_output": "c"}
_AROUND_LAYERS: dict[tuple[str, str | None], str] = {
    ("layer_output", "attention_output"): "g",
    ("residual_sum", "attention_output"): "u",
    ("layernorm_output", "attention_output"): "x",
    ("layer_output", "ffn_out"): "h",
    ("residual_sum", "ffn_out"): "y",
    ("layernorm_output", "ffn_out"): "z",
}
_HEADS = ("pooler", "head")
OF_BLOCK = (*_ATTENTION.values(), *_AROUND_LAYERS.values(), "L")
OF_MODEL = ("e", "Et", "P", "C", "wP", "wC")


def find_letters(edges: Iterable[Edge]) -> dict[str, tuple[str, ...]]:
    """Map letter, with the number of the block where it has one -> addresses of its edges.

    Args:
      edges: all edges of a trace, in graph order.

    Returns:
      Addresses by letter, without letters that have no edge.
    """
    edges = list(edges)
    result: dict[str, list[str]] = {}
    heads = [e for e in edges if e.role == "layer_output" and e.part in _HEADS]
    kernels = {e.path: e for e in edges if e.port == "kernel"}
    tables = [e for e in edges if e.role == "embedding"]
    if tables:  # the token table is the largest
        result["Et"] = [max(tables, key=lambda edge: edge.shape[0] or 0).address]
    for head in heads:
        letter = "C" if head is heads[-1] else "P"
        result.setdefault(letter, []).append(head.address)
        result.setdefault(f"w{letter}", []).append(kernels[head.path].address)
    others = []  # layers inside of a block that have no letter of their own
    for edge in edges:
        letter = _ATTENTION.get(edge.role) or _AROUND_LAYERS.get((edge.role, edge.part))
        if edge.role == "embedding_sum":
            result.setdefault("e", []).append(edge.address)
        elif edge.block is not None and letter is not None:
            result.setdefault(f"{letter}{edge.block}", []).append(edge.address)
            result.setdefault(f"L{edge.block}", []).append(edge.address)
        elif edge.block is not None and edge.role == "layer_output":
            others.append(edge)
    for edge in others:
        result.setdefault(f"L{edge.block}", []).append(edge.address)
    return {letter: tuple(addresses) for letter, addresses in result.items()}

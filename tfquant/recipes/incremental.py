"""Recipes of incremental quantization: formats of weights by mode and bits."""

from __future__ import annotations

from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

MODES = ("lin", "p2", "mb")
# Mode -> (format, fewest and most bits, granularity if none is chosen).
_FORMATS = {
    "lin": ("int", 2, 8, "row"),
    "lin_fixed": ("fixed_", 2, 8, "tensor"),
    "p2": ("inq_", 2, 8, "tensor"),
    "mb": ("mb", 1, 4, "row"),
}
GRANULARITIES = {"row": "per_channel", "tensor": "per_tensor"}


def format_of(mode: str, bits: int) -> str:
    """Return the number format of a mode.

    Args:
      mode: one of `MODES`, or `lin_fixed`, the grid in -1 ... 1 that the code of INQ-pytorch
        computes.
      bits: of a weight.

    Raises:
      ValueError: there is no such mode, or it has no such number of bits.
    """
    if mode not in _FORMATS:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(_FORMATS)}")
    prefix, fewest, most, _ = _FORMATS[mode]
    if not fewest <= bits <= most:
        raise ValueError(f"{mode} has {fewest} to {most} bits, got {bits}")
    return f"{prefix}{bits}"


def recipe_of(
    mode: str,
    bits: int,
    granularity: str | None = None,
    *,
    embeddings: bool = True,
    biases: bool = False,
    layer_norms: bool = False,
    head: bool = False,
) -> Recipe:
    """Return the recipe of the weights that incremental quantization freezes.

    Args:
      mode: see `format_of`.
      bits: of a weight.
      granularity: `row`, levels for each output of a kernel, or `tensor`; None for that of the
        mode. Other parameters than kernels have levels per tensor.
      embeddings: whether tables are quantized.
      biases: whether biases of linear layers are.
      layer_norms: whether scales of normalizations are.
      head: whether the last layer is, behind the pooler.

    Raises:
      ValueError: there is no such mode, number of bits, or granularity.
    """
    format = format_of(mode, bits)
    granularity = granularity or _FORMATS[mode][3]
    if granularity not in GRANULARITIES:
        raise ValueError(f"unknown granularity {granularity!r}; known: {', '.join(GRANULARITIES)}")
    if mode == "lin_fixed" and granularity == "row":
        raise ValueError("lin_fixed has one grid for all weights: leave out granularity row")
    kernel = QuantSpec(format, GRANULARITIES[granularity])
    other = QuantSpec(format)
    # Levels that are fitted to what is looked up in a table are those of its rows.
    table = QuantSpec(format, "per_token") if other.fitted else other
    rules = [
        Rule(kernel, role="weight", name="kernels"),
        Rule(kernel, role="pooler", port="kernel", optional=True, name="kernel of the pooler"),
    ]
    if head:
        rules.append(Rule(kernel, role="logits", port="kernel", name="kernel of the head"))
    if embeddings:
        rules.append(Rule(other, role="position_embedding", optional=True, name="positions"))
        rules.append(Rule(table, role="embedding", name="embedding tables"))
    if biases:
        rules.append(Rule(other, role="bias", name="biases"))
    if layer_norms:
        rules.append(Rule(other, role="layernorm_weight", name="scales of normalizations"))
    return Recipe(tuple(rules), name=f"inq_{mode}_{bits}")

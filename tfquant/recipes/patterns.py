"""Patterns: named sets of the linear layers of an encoder, for rules by `part`.

`part: ALL_QK` in a rule stands for the parts listed here. In `ALL` and its variants, query, key and
value may be left out singly; the output projection of the attention is always with them. `CLS` is
the classifier: the pooler and the final layer.

Names are those of the project "Transformer-Quantization" (COMS6998, Columbia University, 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfquant.rules import Recipe, Rule
    from tfquant.spec import QuantSpec

FINAL = "head"  # part of the final layer
_FFN, _CLS = ("ffn_in", "ffn_out"), ("pooler", FINAL)
PATTERNS: dict[str, tuple[str, ...]] = {
    "MHA": ("query", "key", "value", "attention_output"),
    "MHA_QK": ("query", "key", "attention_output"),
    "FFN": _FFN,
    "CLS": _CLS,
    "ALL": ("query", "key", "value", "attention_output", *_FFN, *_CLS),
    "ALL_QK": ("query", "key", "attention_output", *_FFN, *_CLS),
    "ALL_QV": ("query", "value", "attention_output", *_FFN, *_CLS),
    "ALL_KV": ("key", "value", "attention_output", *_FFN, *_CLS),
}
_HEADS = ("pooler", "logits")  # roles whose edges are told apart by their port


def parts_of(pattern: str, *, keep_final: bool = False) -> tuple[str, ...]:
    """Return the parts of a pattern.

    Args:
      pattern: a name of `PATTERNS`.
      keep_final: leave out the final layer.

    Raises:
      ValueError: unknown pattern; the message lists the valid ones.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"unknown pattern {pattern!r}; known: {', '.join(PATTERNS)}")
    return tuple(part for part in PATTERNS[pattern] if not keep_final or part != FINAL)


def rules_of(
    pattern: str,
    weight: QuantSpec | None,
    activation: QuantSpec | None = None,
    *,
    keep_final: bool = True,
) -> tuple[Rule, ...]:
    """Return the rules that quantize the linear layers of a pattern.

    Args:
      pattern: a name of `PATTERNS`.
      weight: spec of their kernels; None leaves these in float.
      activation: spec of their inputs; None leaves these in float.
      keep_final: leave the final layer, whose outputs are the logits, in float.

    Raises:
      ValueError: unknown pattern, or neither spec.
    """
    from tfquant.rules import Rule

    parts = parts_of(pattern, keep_final=keep_final)
    specs = (
        ("weights", weight, "weight", "kernel"),
        ("inputs", activation, "linear_input", "input"),
    )
    rules = tuple(
        Rule(spec, (role, *_HEADS), port=port, part=parts, name=f"{pattern} {name}")
        for name, spec, role, port in specs
        if spec is not None
    )
    if not rules:
        raise ValueError(f"pattern {pattern!r} quantizes nothing: give a spec of weights or inputs")
    return rules


def recipe_of(
    pattern: str,
    weight: QuantSpec | None,
    activation: QuantSpec | None = None,
    *,
    keep_final: bool = True,
) -> Recipe:
    """Return a recipe of `rules_of`, named after the pattern; see there for arguments."""
    from tfquant.rules import Recipe

    rules = rules_of(pattern, weight, activation, keep_final=keep_final)
    return Recipe(rules, name=pattern if not keep_final else f"{pattern} but the final layer")

"""Groups of operations whose inputs are quantized, and recipes over them.

A group that is left out counts as fused with the product before it: its inputs stay in float.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from typing import Any

from tfquant.rules import Recipe, Rule, Softmax
from tfquant.spec import QuantSpec

# Group -> roles of its inputs. The heads are part of `gemm` too, by their ports.
ROLES_OF_GROUPS: dict[str, tuple[str, ...]] = {
    "gemm": ("linear_input", "matmul_input"),
    "residual": ("residual", "residual_other"),
    "norm": ("layernorm_input",),
    "act": ("activation_input", "softmax_input"),
    "attn_scaling": ("scaling_input",),
}
# Group -> roles whose gradients are quantized. That of a result is quantized before the backward
# pass of its operation, so that both products behind a contraction read rounded numbers. The result
# of the attention scaling has no role of its own: its gradient is rounded behind the scaling.
GRADIENTS_OF_GROUPS: dict[str, tuple[str, ...]] = {
    "gemm": ("linear_output", "attention_scores", "matmul_output"),
    "residual": ("residual_sum", "residual", "residual_other"),
    "norm": ("layernorm_output",),
    "act": ("activation_output", "softmax_output"),
    "attn_scaling": ("scaling_input",),
}
# Parts of an encoder whose linears share their input with others: the gradients of these inputs are
# rounded before they are summed, as part of `residual`.
_FAN_IN = ("query", "key", "value", "ffn_in")
# Other name of a group -> the group.
ALIASES = {"activation": "act", "layernorm": "norm", "scaling": "attn_scaling"}
# Name of a column of the paper's Table 1 -> groups whose inputs are quantized.
FUSION_LEVELS: dict[str, tuple[str, ...]] = {
    "no fusion": ("gemm", "residual", "norm", "act", "attn_scaling"),
    "gemm + attention scaling": ("gemm", "residual", "norm", "act"),
    "+ activation fusion": ("gemm", "residual", "norm"),
    "+ layernorm fusion": ("gemm", "residual"),
    "+ residual fusion": ("gemm",),
}
_HEADS = ("pooler", "logits")
_NAMES_OF_HEAD = ("classifier", "qa_outputs")  # in Hugging Face's models, of which the source is
_OTHER_PARAMETERS = ("embedding", "position_embedding", "layernorm_weight")


def parse_groups(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the groups of a list of names, in the order of `ROLES_OF_GROUPS`, each once.

    Args:
      names: groups or their other names; a string holds them with commas between.

    Raises:
      ValueError: unknown name; the message lists the valid ones.
    """
    listed = names.split(",") if isinstance(names, str) else names
    groups = set()
    for name in filter(None, map(str.strip, listed)):
        group = ALIASES.get(name, name)
        if group not in ROLES_OF_GROUPS:
            other = {group: alias for alias, group in ALIASES.items()}
            known = (f"{g} ({other[g]})" if g in other else g for g in ROLES_OF_GROUPS)
            raise ValueError(f"unknown op group {name!r}; known: {', '.join(known)}")
        groups.add(group)
    return tuple(group for group in ROLES_OF_GROUPS if group in groups)


def recipe_of(
    activation: QuantSpec | None,
    weight: QuantSpec | None,
    groups: str | Iterable[str] = ("gemm",),
    *,
    error: QuantSpec | None = None,
    error_groups: str | Iterable[str] = ("gemm",),
    op_fusion: str | Iterable[str] = (),
    softmax: Softmax | str = "exact",
    other_parameters: QuantSpec | None = None,
    name: str = "op groups",
) -> Recipe:
    """Return the recipe that quantizes the inputs of groups of operations, and gradients.

    Args:
      activation: spec of activations; None leaves them in float.
      weight: spec of the kernels of products; None leaves them in float.
      groups: whose inputs are quantized, see `parse_groups`.
      error: spec of gradients of activations in training; None leaves them in float.
      error_groups: groups whose gradients are quantized.
      op_fusion: parts of layer paths; layers whose path contains one get no quantizer of
        activations and gradients. `classifier` and `qa_outputs` stand for the last layer, whatever
        its name. A string holds them with commas between.
      softmax: approximations in the softmax of attention.
      other_parameters: spec of embedding tables and scales of normalizations, which stay in float
        with None.
      name: of the recipe.

    Raises:
      ValueError: unknown group, or nothing is specified.
    """
    groups, error_groups = parse_groups(groups), parse_groups(error_groups)
    softmax = Softmax(softmax) if isinstance(softmax, str) else softmax
    specs = (activation, weight, error, other_parameters)
    if all(spec is None for spec in specs) and softmax.exact:
        raise ValueError(
            "nothing to quantize: specify activation, weight, error, other_parameters or softmax"
        )
    rules: list[Rule] = []
    if weight is not None:
        rules += [
            Rule(weight, role="weight", name="weights"),
            Rule(weight, role=_HEADS, port="kernel", optional=True, name="weights of heads"),
        ]
    if other_parameters is not None:
        rules.append(Rule(other_parameters, role=_OTHER_PARAMETERS, name="other parameters"))
    if activation is not None:
        rules += _rules(activation, groups, op_fusion, "forward")
    if error is not None:
        rules += _rules(error, error_groups, op_fusion, "backward")
    return Recipe(tuple(rules), name=name, softmax=softmax)


def _rules(
    spec: QuantSpec, groups: tuple[str, ...], op_fusion: str | Iterable[str], direction: str
) -> list[Rule]:
    """Return the rules for the inputs or gradients of groups and the exceptions from them."""
    forward = direction == "forward"
    table = ROLES_OF_GROUPS if forward else GRADIENTS_OF_GROUPS
    prefix = "" if forward else "gradients of "

    def rule(name: str, roles: tuple[str, ...], **options: Any) -> Rule:
        options = {"optional": True, "direction": direction} | options
        return Rule(spec, role=roles, name=prefix + name, **options)

    rules = [rule(group, table[group], optional=group != "gemm") for group in groups]
    if "gemm" in groups:
        port = "input" if forward else "output"
        rules.append(rule("gemm of heads", _HEADS, port=port))
    if "residual" in groups and not forward:
        rules.append(rule("summed inputs", ("linear_input",), part=_FAN_IN))
    every = (*(role for roles in table.values() for role in roles), "linear_input", *_HEADS)
    listed = op_fusion.split(",") if isinstance(op_fusion, str) else op_fusion
    for part in dict.fromkeys(filter(None, map(str.strip, listed))):
        head = part in _NAMES_OF_HEAD
        known = part in ROLES_OF_GROUPS or part in ALIASES
        hint = " (names layers; a group is fused by leaving it out of the groups)" if known else ""
        rules.append(
            Rule(
                None,
                role="logits" if head else tuple(dict.fromkeys(every)),
                path="*" if head else f"*{glob.escape(part)}*",
                port="re:^(?!kernel$)",
                direction=direction,
                name=f"{prefix}op_fusion {part}{hint}",
            )
        )
    return rules

"""Groups of operations whose inputs are quantized, and recipes over them.

A group that is left out counts as fused with the product before it: its inputs stay in float.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

import glob
from collections.abc import Iterable

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
    op_fusion: str | Iterable[str] = (),
    softmax: Softmax | str = "exact",
    other_parameters: QuantSpec | None = None,
    name: str = "op groups",
) -> Recipe:
    """Return the recipe that quantizes the inputs of groups of operations.

    Args:
      activation: spec of activations; None leaves them in float.
      weight: spec of the kernels of products; None leaves them in float.
      groups: whose inputs are quantized, see `parse_groups`.
      op_fusion: parts of layer paths; layers whose path contains one get no quantizer of
        activations. A string holds them with commas between.
      softmax: approximations in the softmax of attention.
      other_parameters: spec of embedding tables and scales of normalizations, which stay in float
        with None.
      name: of the recipe.

    Raises:
      ValueError: unknown group, or nothing is specified.
    """
    groups = parse_groups(groups)
    softmax = Softmax(softmax) if isinstance(softmax, str) else softmax
    if activation is None and weight is None and other_parameters is None and softmax.exact:
        raise ValueError(
            "nothing to quantize: specify activation, weight, other_parameters or softmax"
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
        rules += input_rules(activation, groups, op_fusion)
    return Recipe(tuple(rules), name=name, softmax=softmax)


def input_rules(
    spec: QuantSpec,
    groups: Iterable[str],
    op_fusion: str | Iterable[str] = (),
    direction: str = "forward",
) -> list[Rule]:
    """Return the rules for the inputs of groups and the exceptions from them.

    Args:
      spec: how they are quantized.
      groups: keys of `ROLES_OF_GROUPS`.
      op_fusion: see `recipe_of`.
      direction: `forward` for values, `backward` for gradients.
    """
    prefix = "" if direction == "forward" else f"{direction} "
    rules = []
    for group in groups:
        rules.append(
            Rule(
                spec,
                role=ROLES_OF_GROUPS[group],
                optional=group != "gemm",
                direction=direction,
                name=f"{prefix}{group}",
            )
        )
    if "gemm" in groups:
        rules.append(
            Rule(
                spec,
                role=_HEADS,
                port="input",
                optional=True,
                direction=direction,
                name=f"{prefix}gemm of heads",
            )
        )
    every = tuple(role for roles in ROLES_OF_GROUPS.values() for role in roles)
    listed = op_fusion.split(",") if isinstance(op_fusion, str) else op_fusion
    for part in dict.fromkeys(filter(None, map(str.strip, listed))):
        rules.append(
            Rule(
                None,
                role=(*every, *_HEADS),
                path=f"*{glob.escape(part)}*",
                port="re:^(?!kernel$)",
                direction=direction,
                name=f"{prefix}op_fusion {part}",
            )
        )
    return rules

"""Recipes with other specs for single edges, each named by its exact role, layer path and port."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tfquant.graph.edge import Edge
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec


def with_specs(
    recipe: Recipe,
    specs: Mapping[str, QuantSpec | None],
    edges: Mapping[str, Edge],
    label: str,
    *,
    name: str | None = None,
) -> Recipe:
    """The recipe with one more rule for all edges of a role and port that get one spec.

    Args:
      recipe: what holds for other edges.
      specs: address of an edge -> its spec, None to leave it in float.
      edges: address -> edge.
      label: how the names of the new rules begin.
      name: of the new recipe; that of `recipe` if none is given.
    """
    alike: dict[tuple, list[str]] = {}
    for address, spec in specs.items():
        edge = edges[address]
        alike.setdefault((edge.role, edge.port, spec), []).append(edge.path)
    earlier = sum(
        rule.name.startswith(f"{label} ") for rule in recipe.rules
    )  # two rules must not have one name
    rules = [
        Rule(
            spec,
            role=role,
            port=port,
            path=f"re:^({'|'.join(re.escape(path) for path in paths)})$",
            name=f"{label} {number}: {'float' if spec is None else spec.describe()}",
        )
        for number, ((role, port, spec), paths) in enumerate(alike.items(), start=earlier + 1)
    ]
    return recipe.with_rules(*rules, name=name)

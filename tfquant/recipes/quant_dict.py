"""Changes of a recipe by letters, as `--quant-dict` of Bondarenko et al.

(2021) has them: `{'x': 16, 'y3': 'fp32', 'Et': 2}`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import calib
from tfquant.graph.edge import Edge
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError, deciding_spec
from tfquant.graph.trace import trace
from tfquant.recipes.exact import with_specs
from tfquant.recipes.qualcomm import OF_BLOCK, OF_MODEL, find_letters
from tfquant.rules import Recipe
from tfquant.site import PARAMETER_ROLES
from tfquant.spec import QuantSpec

_GROUPS = re.compile(r"ng(p?)(\d+)")
# Beside the letters: hidden states, [batch, tokens, embedding], of the whole model.
HIDDEN = "hidden"
_HIDDEN_ROLES = (
    "layer_output",
    "attention_output",
    "embedding_sum",
    "residual_sum",
    "layernorm_output",
)

Change = Callable[[QuantSpec], QuantSpec | None]


def parse_quant_dict(text: str) -> dict[str, Any]:
    """The mapping that a command line spells as a Python literal.

    Raises:
      ValueError: it is none.
    """
    shown = repr(text if len(text) <= 200 else f"{text[:200]}...")
    try:
        result = ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ) as error:  # a list as a key, thousands of brackets
        raise ValueError(
            f"quant dict {shown} is not a Python literal such as {{'x': 16, 'y3': 'fp32'}}"
        ) from error
    if not isinstance(result, dict):
        raise ValueError(
            f"quant dict {shown}: a mapping from letters to values is wanted, got"
            f" {type(result).__name__}"
        )
    for letter, value in result.items():
        if not isinstance(letter, str) or not letter:
            raise ValueError(
                f"quant dict {shown}: {letter!r} is no letter; keys are strings such as 'x' or 'y3'"
            )
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(
                f"quant dict {shown}: {letter!r} must be a number of bits or a string, got"
                f" {type(value).__name__}"
            )
    return result


def with_quant_dict(
    model: Any,
    recipe: Recipe,
    choices: Mapping[str, Any],
    *,
    shared_order: bool = False,
    inputs: Any = None,
    signature: Any = None,
) -> Recipe:
    """The recipe with other specs for tensors that are named by letters (see
    `tfquant.recipes.qualcomm`).

    Where several letters name one tensor all of them take effect, the more general first: all
    blocks (`L`), a letter in all of them (`x`), one block (`L3`), a letter in one (`x3`).

    Args:
      model: what will be quantized; `inputs` and `signature` as for `tfquant.plan`.
      recipe: decides what is not said here.
      choices: letter -> number of bits, 'fp32' to leave the tensor in float, or for activations
        'per_embd' (a range for each embedding dimension), 'ng<K>' (for each of K groups of
        neighbouring ones), 'ngp<K>' (of such as have like ranges) or 'per_token' (a dynamic range
        for each token). Beside the letters `hidden` names all hidden states.
      shared_order: 'ngp<K>' groups dimensions alike in a whole block, by the ranges of `h`.

    Raises:
      RecipeError: a letter or value that is not known, or names what the model does not have or the
        recipe does not quantize.
    """
    analysis = trace(source_of(model, inputs, signature)).analysis
    edges = {edge.address: edge for edge in analysis.roles.edges}
    embedding = analysis.embedding
    letters = find_letters(analysis.roles.edges) | {HIDDEN: tuple(_hidden(edges.values()))}
    base = {address: deciding_spec(recipe, edge) for address, edge in edges.items()}
    specs: dict[str, QuantSpec | None] = {}
    problems = []
    for letter in sorted(choices, key=_specificity):
        value = choices[letter]
        try:
            for address in _named(letters, letter):
                before = specs[address] if address in specs else base[address]
                if before is not None:
                    along = not embedding.refusal(edges[address])
                    specs[address] = _changed(letter, value, edges[address], shared_order, along)(
                        before
                    )
                elif value != "fp32":
                    left, never = (
                        "was left in float by another letter",
                        f"is not quantized by recipe {recipe.name!r}",
                    )
                    by = left if address in specs else never
                    raise RecipeError(
                        f"quant dict, {letter!r}: {address} {by}: leave the letter out"
                    )
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("; ".join(problems))
    return (
        with_specs(recipe, specs, edges, "quant dict", name=f"{recipe.name} + {dict(choices)}")
        if specs
        else recipe
    )


def _specificity(letter: str) -> tuple[int, str]:
    numbered = letter[-1:].isdigit()
    return 2 * numbered + (letter.rstrip("0123456789") not in ("L", HIDDEN)), letter


def _named(letters: Mapping[str, tuple[str, ...]], letter: str) -> list[str]:
    """Addresses that a letter stands for."""
    known = (*OF_MODEL, *OF_BLOCK, HIDDEN)
    stem = letter.rstrip("0123456789")
    if letter not in known and stem not in OF_BLOCK:
        raise RecipeError(
            f"quant dict: unknown letter {letter!r}; known: {', '.join(known)}, x0, x1, ..."
        )
    numbered = [name for name in letters if name.rstrip("0123456789") == letter]
    result = [address for name in numbered for address in letters[name]]
    if letter in letters and letter not in numbered:
        result += letters[letter]
    if not result:
        there = sorted({name.rstrip("0123456789") for name in letters if letters[name]})
        blocks = len([name for name in letters if re.fullmatch(r"L\d+", name)])
        raise RecipeError(
            f"quant dict: {letter!r} is nothing in this model of {blocks} blocks; there are"
            f" {', '.join(there)}"
        )
    return list(dict.fromkeys(result))


def _changed(letter: str, value: Any, edge: Edge, shared_order: bool, along: bool) -> Change:
    """What a value does to a spec; `along` says whether the last axis is an embedding's."""
    where = f"quant dict, {letter!r}: {value!r}"
    if value == "fp32":
        return lambda spec: None
    if isinstance(value, int) and not isinstance(value, bool):
        changes: dict[str, Any] = {"format": f"int{value}"}
        if letter == "Et":  # few bits cannot hold a whole range
            changes["method"] = calib.Method.parse("mse")
    elif (
        isinstance(value, str)
        and edge.role not in PARAMETER_ROLES
        and edge.port not in ("kernel", "table")
    ):
        groups = _GROUPS.fullmatch(value)
        if value not in ("per_embd", "per_token") and not groups:
            raise RecipeError(
                f"{where} must be a number of bits, 'fp32', 'per_embd', 'per_token', 'ng<K>' or"
                " 'ngp<K>'"
            )
        if not along:
            raise RecipeError(
                f"{where}: {edge.address} has no embedding axis: give a number of bits or 'fp32'"
            )
        changes = {
            "granularity": "per_embedding",
            "method": calib.Method.parse("max"),
        }  # extremes are all that is kept of each
        if value == "per_token":
            changes |= {"granularity": "per_token", "dynamic": True}
        if groups:
            width = edge.shape[-1] if edge.shape else None
            if width and int(groups[2]) and width % int(groups[2]):
                raise RecipeError(
                    f"{where}: {groups[2]} groups do not divide the {width} dimensions of"
                    f" {edge.address}"
                )
            order = ("shared" if shared_order else "own") if groups[1] else "none"
            changes |= {
                "granularity": "per_embedding_group",
                "groups": int(groups[2]),
                "permute": order,
            }
    else:
        raise RecipeError(f"{where} must be a number of bits or 'fp32'")

    def change(spec: QuantSpec) -> QuantSpec:
        try:
            return dataclasses.replace(spec, **changes)
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error

    return change


def _hidden(edges: Iterable[Edge]) -> list[str]:
    """Addresses of the activations that are as wide as what residual connections carry."""
    edges = list(edges)
    width = next(
        (edge.shape[-1] for edge in edges if edge.role == "residual_sum" and edge.shape), None
    )
    return [
        e.address
        for e in edges
        if e.role in _HIDDEN_ROLES and len(e.shape) > 2 and e.shape[-1] == width
    ]

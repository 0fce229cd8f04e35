"""Patterns of linear layers: which kernels and inputs each one takes, in Python and in files."""

import pytest

import modeling
import tfquant
from tests.core.conftest import two_dense_layers
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError, make_plan
from tfquant.graph.trace import trace
from tfquant.recipes.patterns import PATTERNS, parts_of, recipe_of
from tfquant.rules import Recipe, Rule

SIGN = tfquant.QuantSpec("binary", source="none")
Q, K, V = (f"attention/self/{name}" for name in ("query", "key", "value"))
OUTPUT, FFN = "attention/output/dense", ["intermediate/dense", "output/dense"]
LAYERS = {
    "MHA": [Q, K, V, OUTPUT],
    "MHA_QK": [Q, K, OUTPUT],
    "FFN": FFN,
    "CLS": [],
    "ALL": [Q, K, V, OUTPUT, *FFN],
    "ALL_QK": [Q, K, OUTPUT, *FFN],
    "ALL_QV": [Q, V, OUTPUT, *FFN],
    "ALL_KV": [K, V, OUTPUT, *FFN],
}


@pytest.fixture(scope="module")
def graph():
    return trace(source_of(modeling.build_classifier(models.bert_config(2), 2)))


def paths(graph, recipe, port="kernel"):
    return {site.path for site in make_plan(graph, recipe).sites if site.port == port}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_takes_its_layers_and_the_final_one_only_where_asked(graph, pattern):
    expected = {f"bert/encoder/layer_{n}/{layer}" for n in range(2) for layer in LAYERS[pattern]}
    heads = pattern == "CLS" or pattern.startswith("ALL")
    expected |= {"bert/pooler/dense"} if heads else set()
    assert paths(graph, recipe_of(pattern, SIGN)) == expected
    final = paths(graph, recipe_of(pattern, SIGN, keep_final=False)) - expected
    assert len(final) == heads  # the layer of the logits
    in_file = Rule(SIGN, ("weight", "pooler", "logits"), port="kernel", part=pattern)
    assert paths(graph, Recipe((in_file,))) == expected | final
    assert Recipe.from_yaml(Recipe((in_file,)).to_yaml()).rules == (in_file,)


def test_inputs_of_the_layers_may_be_quantized_too(graph):
    recipe = recipe_of("FFN", SIGN, tfquant.QuantSpec("int8"))
    assert [rule.name for rule in recipe.rules] == ["FFN weights", "FFN inputs"]
    assert paths(graph, recipe, "input") == paths(graph, recipe)
    assert paths(graph, recipe_of("CLS", None, tfquant.QuantSpec("int8")), "kernel") == set()


def test_unknown_patterns_and_those_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="unknown pattern 'QKV'; known: MHA, MHA_QK, FFN, CLS"):
        parts_of("QKV")
    with pytest.raises(ValueError, match="'FFN' quantizes nothing: give a spec of weights or"):
        recipe_of("FFN", None)
    with pytest.raises(ValueError, match="unknown part 'QKV'; known: query, .*, ALL_KV"):
        Rule(SIGN, part="QKV")
    with pytest.raises(RecipeError, match="rule 'MHA weights' matches nothing"):
        tfquant.plan(two_dense_layers(), recipe_of("MHA", SIGN))
    assert Rule(SIGN, part=["MHA_QK", "key"]).parts == ("query", "key", "attention_output")

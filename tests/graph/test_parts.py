"""Part of an encoder on every edge, rules that match by it, and addresses as named tuples."""

import pytest

import modeling
import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError, make_plan
from tfquant.graph.trace import trace
from tfquant.rules import Recipe, Rule
from tfquant.site import Address

INT8 = tfquant.QuantSpec("int8")


@pytest.fixture(scope="module")
def graph():
    return trace(source_of(modeling.build_classifier(models.bert_config(2), 2)))


def kernels(graph, part):
    rule = Rule(INT8, role=("weight", "pooler", "logits"), port="kernel", part=part)
    return [site.path for site in make_plan(graph, Recipe((rule,))).sites]


@pytest.mark.parametrize(
    ("part", "layers"),
    [
        ("query", ["attention/self/query"]),
        ("key", ["attention/self/key"]),
        ("value", ["attention/self/value"]),
        ("attention_output", ["attention/output/dense"]),
        ("ffn_in", ["intermediate/dense"]),
        ("ffn_out", ["output/dense"]),
    ],
)
def test_a_rule_matches_the_kernels_of_a_part(graph, part, layers):
    blocks = [f"bert/encoder/layer_{number}" for number in range(2)]
    assert kernels(graph, part) == [f"{block}/{layer}" for block in blocks for layer in layers]


def test_heads_and_pooler_are_parts(graph):
    assert kernels(graph, "pooler") == ["bert/pooler/dense"]
    assert len(kernels(graph, "head")) == 1


def test_sums_and_layer_norms_belong_to_the_layer_before(graph):
    parts = {(e.role, e.part) for e in graph.analysis.roles.edges}
    for role in ("residual_sum", "layernorm_output"):
        assert {(role, "attention_output"), (role, "ffn_out")} <= parts
    assert ("embedding", "embedding") in parts
    assert {part for role, part in parts if role == "softmax_output"} == {None}


def test_parts_are_written_read_and_checked():
    rule = Rule(INT8, role="weight", part=["query", "key"])
    assert rule.name == "weight in query/key"
    assert Recipe.from_yaml(Recipe((rule,)).to_yaml()).rules == (rule,)
    assert "part" not in Rule(INT8).to_dict() and "direction" not in Rule(INT8).to_dict()
    with pytest.raises(ValueError, match="unknown part 'ffn'; known: query"):
        Rule(INT8, part="ffn")
    with pytest.raises(ValueError, match="direction must be forward or backward, got 'up'"):
        Rule(INT8, direction="up")


def test_a_rule_for_gradients_matches_no_forward_edge(graph):
    spec = tfquant.QuantSpec("e5m2", source="none")
    plan = make_plan(graph, Recipe((Rule(spec, role="linear_output", direction="backward"),)))
    assert not plan.sites and {site.direction for site in plan.gradients} == {"backward"}
    with pytest.raises(RecipeError, match="source: stored, but calibration sees no gradients"):
        make_plan(graph, Recipe((Rule(INT8, role="linear_output", direction="backward"),)))
    with pytest.raises(RecipeError, match="matches nothing"):  # parameters have no gradient sites
        make_plan(graph, Recipe((Rule(spec, role="weight", direction="backward"),)))


def test_an_address_is_a_named_tuple_with_a_string_form(graph):
    edge = graph.analysis.roles.edges[0]
    assert str(edge.location) == edge.address
    assert Address.parse("a:b/c:weight:kernel") == Address("a:b/c", "weight", "kernel", "forward")
    with pytest.raises(ValueError, match="write path:role:port"):
        Address.parse("kernel")

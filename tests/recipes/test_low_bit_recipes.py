"""Places of Q8BERT and of incremental quantization in an encoder."""

import collections

import pytest

import modeling
import tfquant
from tests.core.conftest import TINY
from tfquant.recipes.incremental import recipe_of


@pytest.fixture(scope="module")
def model():
    return modeling.build_classifier(TINY, 2, seed=0)


def test_q8bert_quantizes_the_layers_of_the_paper(model):
    sites = tfquant.plan(model, "q8bert").sites
    counts = collections.Counter(site.role for site in sites)
    # 6 kernels and the inputs of 4 tensors in a block; query and key are quantized again.
    assert counts == {
        **{"weight": 6, "linear_input": 4, "layer_output": 2, "pooler": 2, "logits": 2},
        **{"embedding": 1, "position_embedding": 1},
    }
    outputs = {site.path.rpartition("/")[2] for site in sites if site.role == "layer_output"}
    assert outputs == {"query", "key"}
    for site in sites:
        spec = site.spec
        assert spec.format == "int8" and spec.symmetric and spec.granularity == "per_tensor"
        assert spec.update == "moving_average" and spec.ste == "identity"
        assert spec.decay == (0.0 if site.is_weight else 0.9999)


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"weight": 6, "pooler": 1, "embedding": 2, "position_embedding": 1}),
        ({"embeddings": False, "head": True}, {"weight": 6, "pooler": 1, "logits": 1}),
        (
            {"embeddings": False, "biases": True, "layer_norms": True},
            {"weight": 6, "pooler": 1, "bias": 8, "layernorm_weight": 3},
        ),
    ],
)
def test_incremental_quantization_is_of_the_weights_that_are_asked_for(model, options, roles):
    sites = tfquant.plan(model, recipe_of("lin", 4, **options)).sites
    found = collections.Counter(site.role for site in sites)
    assert {role: found[role] for role in roles} == roles
    assert set(found) <= set(roles) | {"bias"} and all(site.is_weight for site in sites)
    granularity = {site.role: site.spec.granularity for site in sites}
    assert granularity["weight"] == granularity["pooler"] == "per_channel"


def test_multi_bit_levels_of_tables_are_those_of_their_rows(model):
    sites = tfquant.plan(model, recipe_of("mb", 2)).sites
    found = {(s.role, s.spec.granularity) for s in sites if "embedding" in s.role}
    assert found == {("embedding", "per_token"), ("position_embedding", "per_tensor")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("p2", 5, "block"), "unknown granularity 'block'; known: row, tensor"),
        (("lin_fixed", 5, "row"), "lin_fixed has one grid for all weights"),
    ],
)
def test_granularities_that_a_mode_lacks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(*arguments)

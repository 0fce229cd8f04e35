"""Op groups and fusion levels: roles, exceptions by path, and the numbers of a network."""

import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError, make_plan
from tfquant.graph.trace import trace
from tfquant.recipes.op_groups import FUSION_LEVELS, ROLES_OF_GROUPS, parse_groups, recipe_of
from tfquant.rules import Recipe

E4M3, INT4 = tfquant.QuantSpec("e4m3"), tfquant.QuantSpec("int4")
LAYER = "bert/encoder/layer_0"


@pytest.fixture(scope="module")
def graph():
    return trace(source_of(modeling.build_classifier(models.bert_config(1), 2, sequence_length=8)))


def addresses(graph, **options) -> set[str]:
    """Addresses of all edges that a site quantizes."""
    plan = make_plan(graph, recipe_of(E4M3, INT4, **options))
    return {member for site in plan.sites for member in site.members}


def test_groups_have_two_names_and_an_unknown_one_lists_them():
    assert parse_groups("scaling, gemm,layernorm,norm") == ("gemm", "norm", "attn_scaling")
    assert parse_groups(["activation"]) == parse_groups("act") == ("act",)
    with pytest.raises(ValueError) as error:
        parse_groups("gemm,softmax")
    assert str(error.value) == (
        "unknown op group 'softmax'; known: gemm, residual, norm (layernorm), act (activation),"
        " attn_scaling (scaling)"
    )
    with pytest.raises(ValueError, match="nothing to quantize: specify activation, weight"):
        recipe_of(None, None)


def test_each_level_fuses_one_more_group(graph):
    levels = list(FUSION_LEVELS.values())
    assert set(levels[0]) == set(ROLES_OF_GROUPS) and levels[-1] == ("gemm",)
    sites = [addresses(graph, groups=level) for level in levels]
    fused = [finer - coarser for finer, coarser in zip(sites, sites[1:], strict=False)]
    assert not any(coarser - finer for finer, coarser in zip(sites, sites[1:], strict=False))
    attention = f"{LAYER}/attention/self"
    assert fused[0] == {f"{attention}:scaling_input:input"}
    assert fused[1] == {
        f"{attention}:softmax_input:input",
        f"{LAYER}/intermediate/dense:activation_input:input",
        "bert/pooler/dense:activation_input:input",
    }
    assert fused[2] == {
        "bert/embeddings/LayerNorm:layernorm_input:input",
        f"{LAYER}/attention/output/LayerNorm:layernorm_input:input",
        f"{LAYER}/output/LayerNorm:layernorm_input:input",
    }
    assert fused[3] == {
        f"{LAYER}/{layer}:{role}"
        for layer in ("attention/output/dense", "output/dense")
        for role in ("residual:skip", "residual_other:other")
    }


def test_gemm_is_both_operands_of_every_product_heads_included(graph):
    linears = [f"{LAYER}/{name}" for name in models.BERT_LINEARS]
    expected = {f"{path}:weight:kernel" for path in linears}
    expected |= {f"{path}:linear_input:input" for path in linears}
    operands = ("q", "k", "v", "probabilities")
    expected |= {f"{LAYER}/attention/self:matmul_input:{port}" for port in operands}
    expected |= {f"bert/pooler/dense:pooler:{port}" for port in ("input", "kernel")}
    found = addresses(graph)
    assert {address for address in found if ":logits:" not in address} == expected
    heads = {a.rpartition(":")[2] for a in found - expected}
    assert heads == {"input", "kernel"}


def test_layers_of_op_fusion_keep_their_weights_alone(graph):
    groups = FUSION_LEVELS["no fusion"]
    without = addresses(graph, groups=groups) - addresses(
        graph, groups=groups, op_fusion="pooler, output/dense"
    )
    assert without == {
        "bert/pooler/dense:pooler:input",
        "bert/pooler/dense:activation_input:input",
        *(
            f"{LAYER}/{layer}:{role}"
            for layer in ("attention/output/dense", "output/dense")
            for role in ("linear_input:input", "residual:skip", "residual_other:other")
        ),
    }
    with pytest.raises(RecipeError, match="rule 'op_fusion head' matches nothing"):
        addresses(graph, op_fusion=["head"])
    with pytest.raises(RecipeError, match="op_fusion norm .*leaving it out of the groups"):
        addresses(graph, op_fusion="norm", groups="gemm")


def test_parameters_beside_kernels_are_quantized_where_asked(graph):
    found = addresses(graph, other_parameters=E4M3) - addresses(graph)
    assert {address.split(":")[1] for address in found} == {
        "embedding",
        "position_embedding",
        "layernorm_weight",
    }


def test_activations_alone_or_weights_alone(graph):
    weights = make_plan(graph, recipe_of(None, INT4, "gemm,act"))
    assert {site.port for site in weights.sites} == {"kernel"}
    activations = make_plan(graph, recipe_of(E4M3, None))
    assert "kernel" not in {site.port for site in activations.sites}


def test_recipes_of_groups_are_written_and_read():
    recipe = recipe_of(E4M3, INT4, "gemm,act", op_fusion="a*b", softmax="posit_exp")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert [rule.name for rule in recipe.rules] == [
        *("weights", "weights of heads", "gemm", "act", "gemm of heads", "op_fusion a*b"),
    ]


def test_the_numbers_of_two_layers_are_those_of_numpy():
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(6, 6)).astype(np.float32) for _ in range(2)]
    first, second = (
        tf.Variable(kernel, name=f"{name}/kernel")
        for name, kernel in zip(("first", "second"), kernels, strict=True)
    )
    x = rng.normal(size=(20, 6)).astype(np.float32)
    signature = tf.TensorSpec([None, 6])

    def network(x):
        return tf.nn.relu(x @ first) @ second

    def rounded(values, original):
        scale = np.abs(original).max() / np.float32(7)
        return np.clip(np.round(values / scale), -7, 7) * scale

    hidden = x @ kernels[0]
    for groups in ("gemm", "gemm,act", "act"):
        recipe = recipe_of(INT4, INT4, groups)
        if groups == "act":  # weights are operands of gemm, whatever the groups
            recipe = recipe_of(INT4, None, groups)
        quantized = tfquant.quantize(network, recipe, [x], signature=signature, progress=False)
        gemm = "gemm" in groups
        a = rounded(x, x) if gemm else x
        w = [rounded(k, k) if gemm else k for k in kernels]
        h = a @ w[0]
        h = rounded(h, hidden) if "act" in groups else h
        h = np.maximum(h, 0)
        h = rounded(h, np.maximum(hidden, 0)) if gemm else h
        np.testing.assert_allclose(quantized(x), h @ w[1], rtol=1e-4, atol=1e-4)

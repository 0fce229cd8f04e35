"""Placement at the source of each tensor, and changes of it by letters."""

import numpy as np
import pytest

import modeling
import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError
from tfquant.graph.trace import trace
from tfquant.recipes.qualcomm import find_letters
from tfquant.recipes.quant_dict import parse_quant_dict, with_quant_dict


@pytest.fixture(scope="module")
def bert():
    return modeling.build_classifier(models.bert_config(2), 2)


@pytest.fixture(scope="module")
def bert_base():
    """As deep as BERT-base."""
    return modeling.build_classifier(models.bert_config(12), 2)


@pytest.fixture(scope="module")
def base():
    return tfquant.recipe("int8_outputs")


def specs(model, recipe) -> dict[str, tfquant.QuantSpec]:
    return {site.address: site.spec for site in tfquant.plan(model, recipe).sites}


def test_the_placement_has_the_counts_of_the_paper(bert_base, base):
    sites = tfquant.plan(bert_base, base).sites
    weights = sum(site.is_weight for site in sites)
    assert (weights, len(sites) - weights) == (102, 161)


def test_sites_are_the_same_in_training(bert):
    inference, training = (
        trace(source_of(bert), training=training).analysis.roles.edges for training in (False, True)
    )
    assert find_letters(inference) == find_letters(training)


def test_no_product_counts_as_skipped_where_its_operands_are_quantized_at_their_source(bert, base):
    assert not tfquant.plan(bert, base).skipped


def test_letters_name_the_tensors_of_a_block(bert):
    found = find_letters(trace(source_of(bert)).analysis.roles.edges)
    layer = "bert/encoder/layer_1"
    assert found["h1"] == (f"{layer}/output/dense:layer_output:output",)
    assert found["y1"] == (f"{layer}/output/dense:residual_sum:output",)
    assert found["x1"] == (f"{layer}/attention/output/LayerNorm:layernorm_output:output",)
    assert found["z1"] == (f"{layer}/output/LayerNorm:layernorm_output:output",)
    assert found["g1"] == (f"{layer}/attention/output/dense:layer_output:output",)
    assert found["c1"] == (f"{layer}/attention/self:attention_output:output",)
    assert found["P"] == ("bert/pooler/dense:layer_output:output",)
    assert found["wC"] == ("output_weights:logits:kernel",)
    assert found["Et"] == ("bert/embeddings:embedding:word_embeddings",)
    assert len(found["e"]) == 2
    assert len(found["L0"]) == len(found["L1"]) == 13


def test_a_letter_changes_every_block_and_one_with_a_number_wins_in_its_own(bert, base):
    before = specs(bert, base)
    after = specs(bert, with_quant_dict(bert, base, {"y": 16, "y1": 4, "Et": 2}))
    changed = {
        address: after[address].format for address in before if before[address] != after[address]
    }
    assert changed == {
        "bert/encoder/layer_0/output/dense:residual_sum:output": "int16",
        "bert/encoder/layer_1/output/dense:residual_sum:output": "int4",
        "bert/embeddings:embedding:word_embeddings": "int2",
    }


@pytest.mark.long
def test_16_bits_at_x_h_and_y_of_bert_base_touch_36_sites(bert_base, base):
    after = specs(bert_base, with_quant_dict(bert_base, base, {"x": 16, "h": 16, "y": 16}))
    assert sum(spec.format == "int16" for spec in after.values()) == 36


def test_fp32_leaves_a_tensor_in_float_and_L_names_a_whole_block(bert, base):
    after = specs(bert, with_quant_dict(bert, base, {"L0": "fp32", "P": "fp32"}))
    assert len(after) == len(specs(bert, base)) - 13 - 1
    assert not [
        a
        for a in after
        if a.startswith("bert/encoder/layer_0") and ":weight:" not in a and "weight:scale" not in a
    ]


def test_effects_of_several_letters_add_up(bert, base):
    after = specs(bert, with_quant_dict(bert, base, {"L": 6, "x0": 16}))
    assert (
        after["bert/encoder/layer_0/attention/output/LayerNorm:layernorm_output:output"].format
        == "int16"
    )
    assert after["bert/encoder/layer_0/attention/self:attention_scores:output"].format == "int6"


@pytest.mark.representatives("choices0-*", "choices2-*", "choices4-*", "choices6-*")
@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"q": 8}, "unknown letter 'q'"),
        ({"x7": 8}, "'x7' is nothing in this model of 2 blocks"),
        ({"x": "ngq4"}, "'x': 'ngq4' must be a number of bits"),
        ({"Et": "per_embd"}, "'Et': 'per_embd' must be a number of bits or 'fp32'"),
        ({"x": True}, "'x': True must be a number of bits"),
        ({"x": 1}, "'x': 1: number format 'int1'"),
        ({"L0": "fp32", "x0": 8}, "was left in float by another letter"),
    ],
)
def test_what_cannot_be_followed_is_named(bert, base, choices, message):
    with pytest.raises(RecipeError, match=message):
        with_quant_dict(bert, base, choices)


def test_letters_of_what_the_recipe_leaves_in_float_are_refused(bert):
    with pytest.raises(RecipeError, match="is not quantized by recipe 'int8_residual'"):
        with_quant_dict(bert, tfquant.recipe("int8_residual"), {"y": 16})


def test_the_literal_of_a_command_line_is_read_and_nothing_else_is_run():
    assert parse_quant_dict("{'y': 16, 'x': 'ngp6'}") == {"y": 16, "x": "ngp6"}
    for text in ("{'y': __import__('os')}", "[1]", "{'y'"):
        with pytest.raises(ValueError, match="quant dict"):
            parse_quant_dict(text)


# tests/compatibility compares networks at 16 bits.
@pytest.mark.long
def test_16_bits_everywhere_answer_as_float_does(bert, base):
    wide = base.with_spec(roles=["*"], format="int16").with_method("max", roles=["*"])
    batch = models.own_bert(2).batches[0]
    batch = {name: np.asarray(batch[name]) for name in ("input_ids", "input_mask", "segment_ids")}
    quantized = tfquant.quantize(bert, wide, calibration=[batch])
    np.testing.assert_allclose(quantized(batch)["logits"], bert(batch)["logits"], atol=2e-3)

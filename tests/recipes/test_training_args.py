"""Arguments of 8-bit inference and training, as in the quick start of the source."""

import argparse

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant.recipes.spec_strings import parse_spec
from tfquant.training_args import add_training_args, recipe_of_args


def parsed(*arguments):
    return add_training_args().parse_args(arguments)


@pytest.fixture(scope="module")
def model():
    import modeling

    config = modeling.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    return modeling.build_squad_model(config)


def test_the_quick_start_of_the_source(make_batch, model):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_id", type=str, required=True)
    tfquant.add_training_args(parser)
    args = parser.parse_args(
        ["--model_id", "bert", "--activation", "posit8_1", "--weight", "posit8_1"]
    )
    quantized = tfquant.quantize(model, args)
    outputs = quantized(make_batch())
    assert quantized.plan.count("weight", "logits") and all(
        np.isfinite(t).all() for t in outputs.values()
    )
    spec = parse_spec("posit8_1")
    assert {site.spec for site in quantized.plan.sites} == {spec}


@pytest.fixture(scope="module")
def make_batch():
    def make():
        ids = np.random.default_rng(0).integers(1, 30, (2, 6)).astype(np.int32)
        return {
            "input_ids": ids,
            "input_mask": np.ones_like(ids),
            "segment_ids": np.zeros_like(ids),
        }

    return make


def test_gradients_of_all_groups_are_quantized_in_training(make_batch, model):
    error = "fp8_e5m2,qs=per_tensor_symmetric,qmax=57344,ahl=10"
    groups = "gemm,residual,layernorm,activation,scaling"
    args = parsed(
        *("--activation=fp8_e4m3", "--weight=fp8_e4m3", f"--error={error}"),
        *(f"--quantize_forward={groups}", f"--quantize_backprop={groups}"),
        "--op_fusion=squad",
    )
    quantized = tfquant.quantize(model, args)
    roles = {site.role for site in quantized.plan.gradients}
    assert roles >= {"linear_output", "attention_scores", "matmul_output", "residual_sum"}
    assert roles >= {"residual", "residual_other", "linear_input", "layernorm_output"}
    assert roles >= {"activation_output", "softmax_output", "scaling_input"}
    assert not any("squad" in site.path for site in quantized.plan.gradients)
    for _ in range(4):  # with a scale of 1 at first, small gradients are rounded to zero
        with tf.GradientTape() as tape:
            outputs = quantized(make_batch(), training=True)
            loss = tf.add_n([tf.reduce_sum(t**2) for t in outputs.values()])
        tape.gradient(loss, [v.value for v in quantized.trainable_variables])
        quantized.update_scales()
    silent = [
        address
        for address, quantizer in quantized._engine.gradients.items()
        if not quantizer.state.known
    ]
    assert not silent


def test_the_older_form_means_the_same():
    newer = parsed(
        *("--weight=e4m3", "--activation=e4m3", "--quantize_forward=gemm,residual"),
        *("--error=e5m2", "--quantize_backprop=gemm"),
    )
    older = parsed(
        *("--dtype=FP8", "--quantize_weights", "--quantize_fwd", "gemm,residual"),
        "--quantize_bwd",
    )
    assert recipe_of_args(older) == recipe_of_args(newer)
    scaled = recipe_of_args(parsed("--dtype=posit8_1", "--quantize-bwd", "--scaling-bwd"))
    (spec,) = {rule.spec for rule in scaled.rules}
    assert (spec.history, spec.quant_max, spec.scale_format) == (10, 64.0, "power_of_two")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "nothing to quantize: give --activation"),
        (["--activation=fp9"], "--activation: .*unknown number format 'fp9'"),
        (["--weight=int8,bits=3"], "--weight: .*unknown key 'bits'"),
        (["--activation=int8", "--quantize_forward=gem"], "unknown op group 'gem'; known: gemm"),
        (
            ["--weight=int8", "--quantize_forward=norm"],
            "--quantize_forward has no effect without --activation",
        ),
        (
            ["--weight=int8", "--quantize_backprop=norm"],
            "--quantize_backprop has no effect without --error",
        ),
        (["--weight=int8", "--quantize_weight"], "--weight and --quantize_weight exclude"),
        (["--error=e5m2,qs=per_tensor_symmetric,ahl=0"], "--error: .*at least 1 step"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        recipe_of_args(parsed(*arguments))
    assert "\n" not in str(error.value)


def test_gradients_alone_are_no_reason_to_warn(make_batch, model, recwarn):
    quantized = tfquant.quantize(model, parsed("--error=e5m2"))
    assert quantized.plan.gradients and not quantized.plan.sites
    assert not [one for one in recwarn if "nothing is quantized" in str(one.message)]


def test_a_number_format_in_place_of_a_recipe_is_told_where_it_goes():
    with pytest.raises(ValueError, match="'posit8_1', which is a number format: .*recipe_of"):
        tfquant.recipe("posit8_1")


def test_softmax_alone_is_a_recipe(make_batch, model):
    args = parsed("--posit_exp_shifted", "--posit_reciprocal")
    exact = model(make_batch())
    approximated = tfquant.quantize(model, args)(make_batch())
    difference = [np.abs(approximated[name] - exact[name]).max() for name in exact]
    assert 0 < max(difference)

"""Biases take up the mean error of quantization."""

import keras
import numpy as np

import tfquant
from tests.graph import models
from tests.ptq import problems
from tfquant.ptq import correct_bias


def test_the_mean_of_each_output_is_that_of_the_float_network_afterwards():
    x = problems.correlated(256, 8)
    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, "relu", name="first")(inputs)
    model = keras.Model(
        inputs,
        keras.layers.Dense(3, name="second")(
            keras.layers.Dense(4, use_bias=False, name="bare")(hidden)
        ),
    )
    recipe = problems.recipe("int3").with_rules(
        tfquant.Rule(tfquant.QuantSpec(format="int4"), role="linear_input")
    )
    exact = model(x).numpy()
    quantized = tfquant.quantize(model, recipe, calibration=[x], progress=False)
    before = quantized(x).numpy()
    report = correct_bias(quantized, [x[:100], x[100:]], progress=False)
    np.testing.assert_allclose(quantized(x).numpy().mean(0), exact.mean(0), atol=1e-4)
    assert np.abs(before.mean(0) - exact.mean(0)).max() > 1e-2
    assert [s.path for s in report.shifts] == ["first", "second"] and report.skipped == (
        ("bare", "it has no bias"),
    )
    heading, *lines = str(report).splitlines()
    assert heading.split()[0] == "layer"
    assert [line.split()[0] for line in lines[:2]] == ["first", "second"] and lines[2:] == [
        "unchanged: bare: it has no bias"
    ]


def test_padding_does_not_count_and_heads_have_biases_of_their_own():
    case = models.functional()
    quantized = tfquant.quantize(
        case.model, problems.recipe("int3"), calibration=case.batches, progress=False
    )
    kernel = case.model.get_layer("mha").query_dense.kernel.numpy()
    scale = quantized.ranges()["mha/query:weight:kernel"][1] / 3
    error = kernel - np.clip(np.round(kernel / scale), -3, 3) * scale
    rows = np.concatenate([x[mask] for x, mask in case.batches])
    expected = case.model.get_layer("mha").query_dense.bias.numpy() + np.einsum(
        "rd,dnh->nh", rows, error
    ) / len(rows)
    correct_bias(quantized, case.batches, progress=False)
    np.testing.assert_allclose(case.model.get_layer("mha").query_dense.bias, expected, atol=1e-5)


def test_a_shared_layer_keeps_its_bias():
    case = models.called_twice()
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    report = correct_bias(quantized, case.batches, progress=False)
    assert report.shifts == () and report.skipped == (
        ("shared", "its weight is used in several places"),
    )

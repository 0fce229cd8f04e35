"""GPTQ gives the codes of a slow reference, lowers the error of layers, and leaves values that
their quantizers find again bit for bit.
"""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.export.test_matmul_nbits import products, unpacked
from tests.few import few
from tests.graph import models
from tests.ptq import problems
from tfquant import blocks, ptq
from tfquant.block_scales import anchor_codes, gives_back, stable_scales
from tfquant.export import packed
from tfquant.ptq import GPTQReport, gptq
from tfquant.ptq.gptq import gptq as module
from tfquant.ptq.gptq.columns import round_columns

WIDTH, OUTPUTS = 40, 5


def in_blocks(size: int, format: str = "int4", **fields) -> dict:
    return dict(format=format, granularity="per_block", block_size=size, dynamic=True, **fields)


def inputs_and_model(rows=300, width=WIDTH, outputs=OUTPUTS, seed=0):
    return problems.correlated(rows, width, seed), problems.linear(width, outputs, seed)


def quantized_linear(seed=0, width=WIDTH, outputs=OUTPUTS, **spec):
    x, model = inputs_and_model(width=width, outputs=outputs, seed=seed)
    recipe = problems.recipe(**spec)
    calibrated = dict(inputs=x) if spec.get("dynamic") else dict(calibration=[x], progress=False)
    return x, model, tfquant.quantize(model, recipe, **calibrated)


def kernel_of(model):
    return model.get_layer("d").kernel.numpy()


def reference(w, x, scale, largest, *, percdamp=0.01, order=None, block=None):
    """Codes of "optimal brain quantization" in the order of GPTQ, float64: the inverse Hessian is
    updated after every input, without a Cholesky factor and without spans of inputs.

    With `block`, scales are those of the largest magnitudes when a block begins, or of the original
    weights with an `order`; the largest one keeps the largest code.
    """
    w, x = w.astype(np.float64), x.astype(np.float64)
    hessian = 2 * x.T @ x
    hessian += percdamp * np.mean(np.diag(hessian)) * np.eye(len(w))
    inverse = np.linalg.inv(hessian)
    codes, anchors = np.zeros(w.shape), np.zeros(w.shape)
    scale = np.broadcast_to(scale, w.shape).copy()

    def choose(first):
        part = w[first : first + block]
        scale[first : first + block] = np.abs(part).max(0) / largest
        rows, columns = np.abs(part).argmax(0), np.arange(w.shape[1])
        anchors[first + rows, columns] = np.sign(part[rows, columns])

    if block and order is not None:
        for first in range(0, len(w), block):
            choose(first)
    for row in range(len(w)) if order is None else order:
        if block and order is None and row % block == 0:
            choose(row)
        code = np.clip(np.round(w[row] / scale[row]), -largest, largest)
        codes[row] = np.where(anchors[row] != 0, anchors[row] * largest, code)
        error = (w[row] - codes[row] * scale[row]) / inverse[row, row]
        w -= np.outer(inverse[row], error)
        inverse -= np.outer(inverse[row], inverse[row]) / inverse[row, row]
    return codes, scale


@pytest.mark.parametrize("columns", [7, 128])
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_of_channels_are_those_of_the_slow_reference(act_order, columns):
    x, model, quantized = quantized_linear()
    w = kernel_of(model)
    gptq(quantized, [x[:128], x[128:]], act_order=act_order, block_columns=columns, progress=False)
    scale = np.abs(w).max(0) / 3
    order = np.argsort(-np.square(x.astype(np.float64)).sum(0)) if act_order else None
    codes, _ = reference(w, x, scale, 3, order=order)
    np.testing.assert_array_equal(np.round(kernel_of(model) / scale), codes)
    assert (codes != np.clip(np.round(w / scale), -3, 3)).any(0).all()


@pytest.mark.parametrize("act_order", [False, True])
def test_codes_of_blocks_are_those_of_the_slow_reference(act_order):
    x, model, quantized = quantized_linear(**in_blocks(16))  # 40 inputs: a last block of 8
    w = kernel_of(model)
    options = dict(act_order=act_order, search_scales=False, block_columns=20)
    (result,) = gptq(quantized, [x], progress=False, **options).layers
    assert not result.kept_nearest
    order = np.argsort(-np.square(x.astype(np.float64)).sum(0)) if act_order else None
    codes, scale = reference(w, x, 1.0, 7, order=order, block=16)
    np.testing.assert_allclose(kernel_of(model), codes * scale, rtol=1e-5, atol=1e-12)


SPECS = {
    "int3": dict(format="int3"),
    "int2 per tensor": dict(format="int2", granularity="per_tensor"),
    "int8": dict(format="int8"),
    "int4 with zero points": dict(format="int4", symmetric=False),
    "int3 full": dict(format="int3", narrow_range=False),
    "e2m1": dict(format="e2m1"),
    "int4 blocks of 32": in_blocks(32),
    "int8 blocks of 32": in_blocks(32, "int8"),
    "int2 blocks of 64": in_blocks(64, "int2"),
    "int5 blocks of 128": in_blocks(128, "int5"),
    "int4 full blocks of 16": in_blocks(16, narrow_range=False),
    "int4 blocks of 32, scales powers of two": in_blocks(32, scale_format="e8m0"),
    "int4 blocks of outputs": in_blocks(8, block_axis=-1),
    "mxfp4": in_blocks(32, "e2m1", scale_format="e8m0"),
}


@pytest.mark.parametrize(
    "name",
    few(SPECS, kept=("int4 with zero points", "int4 blocks of 32", "int4 blocks of outputs")),
)
def test_the_output_is_closer_than_with_rounding_to_nearest_and_the_report_says_how(name):
    x, model, quantized = quantized_linear(width=100, outputs=24, **SPECS[name])
    exact, nearest = model(x).numpy(), quantized(x).numpy()
    (result,) = gptq(quantized, [x], progress=False).layers
    before, after = (np.mean((y - exact) ** 2) for y in (nearest, quantized(x).numpy()))
    assert after < 0.95 * before
    np.testing.assert_allclose([result.mse_nearest, result.mse_gptq], [before, after], rtol=5e-3)
    assert not result.kept_nearest and result.changed > 0.05 and result.rows == len(x)
    # The quantizer is the identity on what was written.
    np.testing.assert_allclose(quantized(x), model(x), atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("format", few([f"int{bits}" for bits in range(2, 9)], kept=("int4",)))
def test_blocks_are_rounded_again_to_the_same_bits_however_tensorflow_computes(format):
    x, model, quantized = quantized_linear(width=256, outputs=96, **in_blocks(32, format))
    gptq(quantized, [x], progress=False, percdamp=0.1)
    w = kernel_of(model)
    (site,) = quantized.plan.sites
    for compiled in (True, False):  # 24,576 values: enough for the compiled kernel
        again = functools.partial(
            blocks.quantize_dequantize, spec=site.spec, axis=site.block_axis, compiled=compiled
        )
        for function in (again, tf.function(again)):
            np.testing.assert_array_equal(function(tf.constant(w)), w)


def test_files_hold_the_values_of_blocks_bit_for_bit(tmp_path):
    x, model, quantized = quantized_linear(width=256, outputs=96, **in_blocks(32))
    gptq(quantized, [x], progress=False)
    w, expected = kernel_of(model), quantized(x).numpy()
    tfquant.save(quantized, tmp_path / "model.ckpt")
    tfquant.export(quantized, tmp_path / "model.safetensors", target="packed")
    assert (tmp_path / "model.safetensors").stat().st_size < w.nbytes / 4
    for path, load in (("model.ckpt", tfquant.load), ("model.safetensors", packed.load)):
        other = problems.linear(256, 96, seed=3)
        again = load(tmp_path / path, other)
        np.testing.assert_array_equal(kernel_of(other), w)
        np.testing.assert_array_equal(again(x), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_stable_scales_are_near_and_follow_from_their_largest_value(bits):
    spec = tfquant.QuantSpec(**in_blocks(32, f"int{bits}"))
    scale = np.exp(np.random.default_rng(bits).uniform(-60, 20, 20000)).astype(np.float32)
    stable = stable_scales(scale, spec)
    np.testing.assert_allclose(stable, scale, rtol=1e-5)
    assert gives_back(stable, spec.codebook).all()
    largest = float(spec.codebook.quant_max)
    assert anchor_codes(spec) == (largest, largest)
    amax = tf.constant(stable * np.float32(largest))
    for wrap in (lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)):
        np.testing.assert_array_equal(wrap(lambda a: blocks.scales_of(a, spec))(amax), stable)


def test_without_compensation_weights_are_rounded_to_nearest_with_the_least_squared_error():
    x, model, quantized = quantized_linear(**in_blocks(WIDTH, "int3"))
    w = kernel_of(model)
    gptq(quantized, [x], compensate=False, progress=False)
    rounded, squares = kernel_of(model), np.square(x.astype(np.float64)).mean(0)

    def error(scale):
        return squares @ (np.clip(np.round(w / scale), -3, 3) * scale - w) ** 2

    scale = np.abs(rounded).max(0) / 3
    np.testing.assert_allclose(np.clip(np.round(w / scale), -3, 3) * scale, rounded, rtol=1e-5)
    shares = np.linspace(0.6, 1.06, 24)[:, np.newaxis]  # every second hundredth
    least = np.min([error(np.abs(w).max(0) * share / 3) for share in shares], 0)
    np.testing.assert_allclose(error(scale), least, rtol=1e-4)


def test_searched_scales_are_better_than_those_of_the_largest_magnitudes():
    errors = []
    for search in (False, True):
        x, _, quantized = quantized_linear(**in_blocks(32, "int3"))
        errors.append(gptq(quantized, [x], search_scales=search, progress=False).layers[0].mse)
    assert errors[1] < 0.9 * errors[0]


def test_an_input_that_is_always_zero_is_rounded_to_nearest():
    x, model, quantized = quantized_linear()
    x[:, 3] = 0.0
    w = kernel_of(model)
    gptq(quantized, [x], progress=False)
    scale = np.abs(w).max(0) / 3
    np.testing.assert_array_equal(
        np.round(kernel_of(model)[3] / scale), np.clip(np.round(w[3] / scale), -3, 3)
    )


def test_a_layer_whose_error_grew_keeps_its_weights(monkeypatch):
    monkeypatch.setattr(module, "round_columns", lambda weight, *_: np.zeros(weight.shape))
    x, model, quantized = quantized_linear()
    w, expected = kernel_of(model), quantized(x).numpy()
    (result,) = gptq(quantized, [x], progress=False).layers
    assert result.kept_nearest == "error grew" and result.mse == result.mse_nearest
    assert result.changed == 0.0 and result.mse_gptq > result.mse_nearest
    np.testing.assert_array_equal(kernel_of(model), w)
    np.testing.assert_array_equal(quantized(x), expected)


def test_kernels_of_einsum_with_several_axes_are_rounded():
    inputs = keras.Input((5, 32), name="x")
    heads = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 16), name="heads")
    merge = keras.layers.EinsumDense("abde,def->abf", (None, 8), name="merge")
    model = keras.Model(inputs, merge(heads(inputs)))
    x = problems.correlated(320, 32).reshape(64, 5, 32)
    quantized = tfquant.quantize(model, problems.recipe(**in_blocks(8, "int3")), inputs=x)
    exact, nearest = model(x).numpy(), quantized(x).numpy()
    report = gptq(quantized, [x[:32], x[32:]], progress=False)
    assert [r.shape for r in report.layers] == [(32, 2, 16), (2, 16, 8)]
    assert not any(r.kept_nearest for r in report.layers)
    assert np.mean((quantized(x) - exact) ** 2) < 0.8 * np.mean((nearest - exact) ** 2)


def test_products_by_head_have_hessians_of_their_own():
    inputs = keras.Input((3, 24), name="x")
    by_head = keras.layers.EinsumDense("bhd,hde->bhe", (3, 6), name="d")
    model = keras.Model(inputs, by_head(inputs))
    x = np.stack([problems.correlated(300, 24, seed) for seed in range(3)], 1)
    quantized = tfquant.quantize(model, problems.recipe(), calibration=[x], progress=False)
    w = kernel_of(model)
    ((_, upper),) = quantized.ranges().values()
    scale = np.broadcast_to(upper.reshape(3, 1, 6) / 3, w.shape)
    (result,) = gptq(quantized, [x], act_order=False, progress=False).layers
    assert not result.kept_nearest
    for head in range(3):
        codes, _ = reference(w[head], x[:, head], scale[head], 3)
        np.testing.assert_array_equal(np.round(kernel_of(model)[head] / scale[head]), codes)


@pytest.mark.parametrize(
    "name",
    few(
        ("functional", "tf_keras_functional", "convolutional", "mixed_bfloat16"),
        kept=("convolutional",),
    ),
)
def test_weights_of_models_of_every_kind_are_rounded_or_listed_with_the_reason(name, tmp_path):
    case = models.build(name, str(tmp_path))
    quantized = tfquant.quantize(
        case.model, "int8_residual_float", calibration=case.batches, progress=False
    )
    kernels = [site.address for site in quantized.plan.sites if site.port == "kernel"]
    report = gptq(quantized, case.batches, progress=False)
    assert sorted([r.address for r in report.layers] + [a for a, _ in report.skipped]) == sorted(
        kernels
    )
    assert all("is a convolution" in reason for _, reason in report.skipped)
    assert bool(report.skipped) == (name == "convolutional")
    # Sites in bfloat16 move rounded values by more than a last bit: the layer keeps its weights,
    # and the report says so.
    kept = ["changes" in r.kept_nearest for r in report.layers]
    assert any(kept) == (name == "mixed_bfloat16")


def test_one_kernel_used_twice_is_rounded_for_both_uses():
    case = models.called_twice()
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    (result,) = gptq(quantized, case.batches, progress=False).layers
    assert result.rows == 2 * sum(len(b) for b in case.batches)


def test_padding_does_not_count_and_logits_of_bert_get_closer():
    batches = models.tokens(
        ("input_ids", "input_mask"), *[(8, 12)] * 6, (5, 9), segments="segment_ids"
    )
    case = models.Case(models.own_bert(1).model, batches)
    exact = [{k: v.numpy() for k, v in case.model(b).items()} for b in batches]

    def error(network):
        return sum(
            np.mean((np.asarray(network(b)[k]) - v)[b["input_mask"] > 0] ** 2)
            for b, outputs in zip(batches, exact, strict=True)
            for k, v in outputs.items()
        )

    recipe = problems.recipe(**in_blocks(8, "int3"))
    quantized = tfquant.quantize(case.model, recipe, inputs=batches[0])
    before = error(quantized)
    report = gptq(quantized, batches, progress=False)
    assert {r.rows for r in report.layers} == {sum(int(b["input_mask"].sum()) for b in batches)}
    assert len(report.layers) == 6 and error(quantized) < 0.8 * before


def two_layers() -> keras.Model:
    initializer = keras.initializers.GlorotUniform(seed=0)
    inputs = keras.Input((WIDTH,), name="x")
    first = keras.layers.Dense(20, name="first", kernel_initializer=initializer)
    second = keras.layers.Dense(3, name="second", kernel_initializer=initializer)
    return keras.Model(inputs, second(first(inputs)))


def test_inputs_of_a_later_layer_come_from_the_network_as_it_is_rounded():
    x, model = problems.correlated(128, WIDTH), two_layers()
    start = model.get_weights()
    for asymmetric in (True, False):
        model.set_weights(start)
        quantized = tfquant.quantize(model, problems.recipe(), calibration=[x], progress=False)
        scale = quantized.ranges()["second:weight:kernel"][1] / 3
        nearest = np.clip(np.round(start[2] / scale), -3, 3) * scale
        report = gptq(quantized, [x], asymmetric=asymmetric, progress=False)
        assert not report.layer("first:weight:kernel").kept_nearest
        first = model.get_layer("first").kernel.numpy() if asymmetric else start[0]
        expected = np.mean((x @ first @ (nearest - start[2])) ** 2)
        np.testing.assert_allclose(
            report.layer("second:weight:kernel").mse_nearest, expected, rtol=1e-3
        )


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    x, model = problems.correlated(128, WIDTH), two_layers()
    start, recipe = model.get_weights(), problems.recipe(**in_blocks(8, "int3"))

    def fresh():
        model.set_weights(start)
        return tfquant.quantize(model, recipe, inputs=x)

    gptq(fresh(), [x], progress=False)
    whole = model.get_weights()

    from tfquant.resume import Results

    put, saved = Results.put, []

    def dying(self, name, result):
        if saved:
            raise KeyboardInterrupt
        saved.append(name)
        put(self, name, result)

    monkeypatch.setattr(Results, "put", dying)
    quantized = fresh()
    with pytest.raises(KeyboardInterrupt):
        gptq(quantized, [x], folder=tmp_path, progress=False)
    for value, expected in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(value, expected)  # nothing half done
    monkeypatch.setattr(Results, "put", put)
    rounded = []
    monkeypatch.setattr(
        module, "round_columns", lambda *args: rounded.append(1) or round_columns(*args)
    )
    report = gptq(quantized, [x], folder=tmp_path, memory_limit=0, progress=False)
    assert len(report.layers) == 2 and len(rounded) == 1
    for value, expected in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(
        ValueError, match="holds another GPTQ run: .*weights differs.*option percdamp was 0.01"
    ):
        gptq(quantized, [x], folder=tmp_path, percdamp=0.02, progress=False)


def test_the_report_is_written_as_table_and_json():
    x, _, quantized = quantized_linear()
    report = gptq(quantized, [x], progress=False)
    assert "GPTQ: 1 weights" in report.table() and "d:weight:kernel" in report.table()
    assert GPTQReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["layers"][0]["shape"] == [WIDTH, OUTPUTS]
    with pytest.raises(KeyError, match="x was not rounded with GPTQ; d:weight:kernel, ... were"):
        report.layer("x")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(sites="nothing/*"), "'nothing/\\*' matches no quantized weight; there are d:weight"),
        (dict(iterations=3), "GPTQ call: unknown key 'iterations'; known: .*percdamp"),
        (dict(percdamp=0), "percdamp is 0; it must be above 0 and finite"),
        (dict(percdamp=True), "percdamp is True; it must be above 0 and finite"),
        (dict(block_columns=0), "block_columns is 0; it must be a whole number from 1"),
        (dict(act_order="yes"), "act_order is 'yes'; it must be True or False"),
        (dict(asymmetric=False, quantize_activations=True), "needs asymmetric=True"),
        (dict(mask="absent"), "mask='absent' is no input of the model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    x, _, quantized = quantized_linear()
    with pytest.raises(ValueError, match=message) as caught:
        gptq(quantized, [x], progress=False, **change)
    assert "\n" not in str(caught.value)


def test_bad_data_and_models_without_quantized_weights_are_refused_and_nothing_changes():
    x, model, quantized = quantized_linear()
    before = kernel_of(model)
    bad = x.copy()
    bad[3, 2] = np.nan
    for batches, message in (
        ([x, bad], "batch 1: NaN or infinity"),
        ([], "no batch"),
        (x, "takes an iterable of batches"),
    ):
        with pytest.raises(ValueError, match=message):
            gptq(quantized, batches, progress=False)
    constant = np.tile(1e6 * x[:1], (4, 1))
    with pytest.raises(ValueError, match="site d:weight:kernel: the Hessian .* raise percdamp"):
        gptq(quantized, [constant], percdamp=1e-30, progress=False)
    np.testing.assert_array_equal(kernel_of(model), before)
    raw = tfquant.quantize(problems.linear(6, 1), problems.recipe())
    with pytest.raises(tfquant.UncalibratedError):
        gptq(raw, [x], progress=False)
    recipe = problems.recipe("int8", role="linear_input", granularity="per_tensor")
    activations = tfquant.quantize(model, recipe, calibration=[x], progress=False)
    with pytest.raises(ValueError, match="none: the recipe quantizes no weight"):
        gptq(activations, [x], progress=False)


def test_adaround_leaves_blocks_to_gptq():
    x, _, quantized = quantized_linear(**in_blocks(8))
    with pytest.raises(ValueError, match="scales of its blocks .* round it with tfquant.ptq.gptq"):
        ptq.adaround(quantized, [x], progress=False)


def test_packed_products_of_onnx_runtime_hold_the_values_of_blocks_bit_for_bit(tmp_path):
    x, model, quantized = quantized_linear(width=96, outputs=16, **in_blocks(32))
    gptq(quantized, [x], progress=False)
    path = tmp_path / "model.onnx"
    tfquant.export(quantized, path, target="matmul_nbits", check_data=[x])
    ((numbers, operands),) = products(path)
    np.testing.assert_array_equal(unpacked(numbers, operands), kernel_of(model))

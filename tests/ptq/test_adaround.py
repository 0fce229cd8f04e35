"""AdaRound beats rounding to nearest, finds what trying all roundings finds, and leaves a model
that works as before.
"""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.few import few
from tests.graph import models
from tests.ptq import problems
from tfquant.ptq import AdaRoundReport
from tfquant.ptq.adaround.adaround import adaround

FAST = dict(iterations=400, learning_rate=3e-2, regularization=0.03, batch_rows=128, progress=False)


def quantized_linear(width=6, outputs=1, seed=0, rows=256, **spec):
    x = problems.correlated(rows, width, seed)
    model = problems.linear(width, outputs, seed)
    return (
        x,
        model,
        tfquant.quantize(model, problems.recipe(**spec), calibration=[x], progress=False),
    )


def all_roundings(x, w, scale, qmin, qmax, zero=0):
    """The least mean squared error that any choice of up and down gives for one output."""
    choices = np.array(list(itertools.product((0, 1), repeat=len(w))), np.float64)
    codes = np.clip(np.floor(w / scale) + choices + zero, qmin, qmax) - zero
    return np.min(np.mean((x.astype(np.float64) @ (codes * scale - w).T) ** 2, 0))


@pytest.mark.parametrize("seed", range(3))
def test_a_tiny_layer_is_rounded_nearly_as_well_as_trying_all_roundings_does(seed):
    x, model, quantized = quantized_linear(seed=seed)
    w = model.get_layer("d").kernel.numpy()[:, 0].astype(np.float64)
    best = all_roundings(x, w, np.abs(w).max() / 3, -3, 3)
    (result,) = adaround(quantized, [x], **FAST).layers
    assert result.mse >= best * (1 - 1e-5)
    assert result.mse - best <= 0.5 * (result.mse_nearest - best) + 1e-6


def test_outputs_of_a_linear_are_much_closer_than_with_rounding_to_nearest():
    rng = np.random.default_rng(0)
    x = (
        rng.normal(size=(1024, 4)) @ rng.normal(size=(4, 32)) + 0.1 * rng.normal(size=(1024, 32))
    ).astype(np.float32)
    model = problems.linear(32, 16)
    quantized = tfquant.quantize(model, problems.recipe(), calibration=[x], progress=False)
    exact, nearest = model(x).numpy(), quantized(x).numpy()
    report = adaround(quantized, [x], **{**FAST, "iterations": 800, "regularization": 0.1})
    before, after = (np.mean((y - exact) ** 2) for y in (nearest, quantized(x).numpy()))
    assert after < 0.5 * before
    np.testing.assert_allclose(
        [report.layers[0].mse_nearest, report.layers[0].mse_hard], [before, after], rtol=1e-3
    )
    assert report.layers[0].changed > 0.05


@pytest.mark.representatives("e4m3-per_channel", "e5m2-per_tensor")
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_weights_of_floating_point_formats_end_on_one_of_the_two_values_around_them(
    format, granularity
):
    x, model, quantized = quantized_linear(8, 4, format=format, granularity=granularity)
    w = model.get_layer("d").kernel.numpy()
    (result,) = adaround(quantized, [x], **{**FAST, "iterations": 200}).layers
    assert result.mse < result.mse_nearest and result.changed > 0
    rounded = model.get_layer("d").kernel.numpy()
    codebook = quantized.plan.sites[0].spec.codebook
    ((lower, upper),) = quantized.ranges().values()
    scale = np.maximum(np.abs(lower), np.abs(upper)) / codebook.quant_max
    levels, units = np.asarray(codebook.levels), rounded / scale
    nearest = np.abs(units[..., np.newaxis] - levels).argmin(-1)
    np.testing.assert_allclose(units, levels[nearest], rtol=1e-5)
    below = np.clip(
        np.searchsorted(levels, w / scale * (1 + 1e-6), side="right") - 1, 0, len(levels) - 2
    )
    assert ((nearest >= below - 1) & (nearest <= below + 1)).all()
    np.testing.assert_allclose(
        quantized(x), model(x), atol=1e-4 * np.abs(model(x)).max()
    )  # quantized once


@pytest.mark.representatives("spec0", "spec2", "spec4")
@pytest.mark.parametrize(
    "spec",
    [
        dict(),
        dict(granularity="per_tensor"),
        dict(symmetric=False),
        dict(symmetric=False, granularity="per_tensor"),
        dict(narrow_range=False),
    ],
)
def test_weights_end_one_code_above_or_below_on_the_grid_of_their_quantizer(spec):
    x, model, quantized = quantized_linear(8, 4, **spec)
    w = model.get_layer("d").kernel.numpy()
    adaround(quantized, [x], **{**FAST, "iterations": 60})
    rounded = model.get_layer("d").kernel.numpy()
    ((lower, upper),) = quantized.ranges().values()
    steps = 3 if spec.get("symmetric", True) else 7
    scale = (
        np.maximum(abs(lower), abs(upper)) / steps
        if steps == 3
        else (np.maximum(upper, 0) - np.minimum(lower, 0)) / steps
    )
    np.testing.assert_allclose(rounded / scale, np.round(rounded / scale), atol=1e-3)
    assert (np.abs(rounded - w) < 1.001 * scale + (0.5 * scale if steps == 7 else 0)).all()
    quantized.set_mode("float")
    exact = quantized(x).numpy()
    quantized.set_mode("quantized")
    np.testing.assert_allclose(
        quantized(x), exact, atol=1e-5
    )  # the quantizer is the identity on them


def logits_error(case, quantized, exact):
    return sum(
        np.mean((np.asarray(quantized(batch)[name]) - reference)[batch["input_mask"] > 0] ** 2)
        for batch, outputs in zip(case.batches, exact, strict=True)
        for name, reference in outputs.items()
    )


@pytest.fixture
def bert():
    case = models.own_bert(2)
    batches = models.tokens(
        ("input_ids", "input_mask"), *[(8, 12)] * 6, (5, 9), segments="segment_ids"
    )
    case = models.Case(case.model, batches)
    return case, [{k: v.numpy() for k, v in case.model(b).items()} for b in batches]


BERT = dict(iterations=150, learning_rate=2e-2, regularization=1e-3, progress=False)


def test_logits_of_bert_at_3_bits_get_closer_and_survive_saving(bert, tmp_path):
    case, exact = bert
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    kept = {
        v.path: v.numpy()
        for v in case.model.variables
        if not v.path.endswith("kernel") or "squad" in v.path
    }
    before = logits_error(case, quantized, exact)
    report = adaround(quantized, case.batches, **BERT)
    after = logits_error(case, quantized, exact)
    assert after < 0.8 * before
    assert len(report.layers) == 12 and {r.compared for r in report.layers} == {
        "product",
        "activation",
    }
    for variable in case.model.variables:  # embeddings, biases, norms and the float head
        if variable.path in kept:
            np.testing.assert_array_equal(variable, kept[variable.path])
    expected = quantized(case.batches[0])
    tfquant.save(quantized, tmp_path / "model.ckpt")
    again = tfquant.load(tmp_path / "model.ckpt", models.own_bert(2).model)
    for name, value in again(case.batches[0]).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights_and_disk_equals_memory(
    tmp_path, monkeypatch
):
    case = models.own_bert(1)
    start = case.model.get_weights()
    options = {**BERT, "iterations": 20}

    def fresh():
        case.model.set_weights(start)
        return tfquant.quantize(
            case.model, problems.recipe(), calibration=case.batches, progress=False
        )

    adaround(fresh(), case.batches, **options)
    whole = case.model.get_weights()

    from tfquant.resume import Results

    put, saved = Results.put, []

    def dying(self, name, result):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(name)
        put(self, name, result)

    monkeypatch.setattr(Results, "put", dying)
    quantized = fresh()
    with pytest.raises(KeyboardInterrupt):
        adaround(quantized, case.batches, folder=tmp_path, **options)
    for value, expected in zip(case.model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(value, expected)  # nothing half done
    monkeypatch.setattr(Results, "put", put)
    report = adaround(quantized, case.batches, folder=tmp_path, memory_limit=0, **options)
    assert len(report.layers) == 6
    for value, expected in zip(case.model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(
        ValueError,
        match="holds another AdaRound run: .*weights differs.*option iterations was 20 and is 21",
    ):
        adaround(quantized, case.batches, folder=tmp_path, **{**options, "iterations": 21})


def einsum_model():
    inputs = keras.Input((5, 6), name="x")
    layer = keras.layers.EinsumDense(
        "abc,cde->abde", (None, 2, 4), bias_axes="de", activation="gelu", name="heads"
    )
    merge = keras.layers.EinsumDense("abde,def->abf", (None, 3), name="merge")
    return keras.Model(inputs, merge(layer(inputs)))


def test_kernels_of_einsum_with_several_axes_are_rounded():
    model = einsum_model()
    x = problems.correlated(160, 6).reshape(32, 5, 6)
    quantized = tfquant.quantize(model, problems.recipe(), calibration=[x], progress=False)
    exact, nearest = model(x).numpy(), quantized(x).numpy()
    report = adaround(quantized, [x[:16], x[16:]], **{**FAST, "regularization": 0.003})
    # Keras multiplies reshaped matrices; the bias of two axes is added behind another reshape, so
    # the product is compared.
    assert [(r.shape, r.compared) for r in report.layers] == [
        ((6, 2, 4), "product"),
        ((2, 4, 3), "product"),
    ]
    assert np.mean((quantized(x) - exact) ** 2) < 0.9 * np.mean((nearest - exact) ** 2)


KINDS = (
    "functional",
    "tf_keras_functional",
    "convolutional",
    "written_out_attention",
    "mixed_bfloat16",
)


@pytest.mark.parametrize("name", few(KINDS, kept=("convolutional",)))
def test_models_of_every_kind_are_rounded_where_they_are_quantized(name, tmp_path):
    case = models.build(name, str(tmp_path))
    quantized = tfquant.quantize(
        case.model, "int8_residual_float", calibration=case.batches, progress=False
    )
    kernels = [site.address for site in quantized.plan.sites if site.port == "kernel"]
    report = adaround(quantized, case.batches, iterations=3, progress=False)
    assert sorted(r.address for r in report.layers) == sorted(kernels)
    assert all(np.isfinite([r.mse_nearest, r.mse_soft, r.mse_hard]).all() for r in report.layers)


def test_rows_of_a_table_are_rounded_to_nearest_which_is_best_for_them():
    case = models.own_bert(1)
    quantized = tfquant.quantize(
        case.model,
        problems.recipe("int4", role="embedding", granularity="per_tensor"),
        calibration=case.batches,
        progress=False,
    )
    expected = {k: v.numpy() for k, v in quantized(case.batches[0]).items()}
    report = adaround(quantized, case.batches, sites="embeddings", progress=False)
    assert {r.kept_nearest for r in report.layers} == {"best for rows"} and len(report.layers) >= 2
    for name, value in quantized(case.batches[0]).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_one_kernel_used_twice_is_rounded_for_both_uses():
    case = models.called_twice()
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    (result,) = adaround(quantized, case.batches, **{**FAST, "iterations": 30}).layers
    assert result.rows == 2 * sum(len(b) for b in case.batches)


def test_a_table_that_the_output_layer_shares_in_float_is_refused():
    case = models.tied_embeddings()
    quantized = tfquant.quantize(
        case.model,
        problems.recipe(granularity="per_tensor", role=("weight", "logits")),
        calibration=case.batches,
        progress=False,
    )
    report = adaround(quantized, case.batches, iterations=2, progress=False)
    assert [r.address for r in report.layers] == ["body:weight:kernel"]
    ((address, reason),) = report.skipped
    assert address.startswith("embedding/embeddings") and "is used by GatherV2" in reason
    with pytest.raises(
        ValueError,
        match="embedding/embeddings.* cannot be rounded with AdaRound: its variable is used by"
        " GatherV2",
    ):
        adaround(quantized, case.batches, sites="embedding/*", iterations=2, progress=False)


def test_padding_does_not_count(bert):
    case, _ = bert
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    report = adaround(
        quantized, case.batches, sites="*layer_0/intermediate*", iterations=2, progress=False
    )
    assert report.layers[0].rows == sum(int(b["input_mask"].sum()) for b in case.batches)


def test_the_report_is_written_as_table_json_and_picture(tmp_path):
    x, _, quantized = quantized_linear()
    report = adaround(quantized, [x], **{**FAST, "iterations": 5})
    assert "d:weight:kernel" in report.table() and "MSE nearest" in report.table()
    assert AdaRoundReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["layers"][0]["shape"] == [6, 1]
    report.plot(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(sites="nothing/*"),
            "'nothing/\\*' matches no quantized weight; there are d:weight:kernel",
        ),
        (dict(iterationz=3), "AdaRound call: unknown key 'iterationz'; known: .*iterations"),
        (dict(mask="absent"), "mask='absent' is no input of the model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    x, _, quantized = quantized_linear()
    with pytest.raises(ValueError, match=message) as caught:
        adaround(quantized, [x], progress=False, **change)
    assert "\n" not in str(caught.value)


def test_bad_data_is_refused_and_nothing_changes():
    x, model, quantized = quantized_linear()
    before = model.get_weights()
    bad = x.copy()
    bad[3, 2] = np.nan
    for batches, message in (
        ([x, bad], "batch 1: NaN or infinity"),
        ([], "no batch"),
        (x, "takes an iterable of batches"),
    ):
        with pytest.raises(ValueError, match=message):
            adaround(quantized, batches, progress=False, iterations=2)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    raw = tfquant.quantize(problems.linear(6, 1), problems.recipe())
    with pytest.raises(tfquant.UncalibratedError):
        adaround(raw, [x], progress=False)


def test_inputs_of_a_later_layer_come_from_the_network_as_it_is_rounded():
    """Of two layers in a row, the second is compared on what the rounded first one gives, or on
    float inputs if so told.
    """
    x = problems.correlated(128, 6)
    inputs = keras.Input((6,), name="x")
    model = keras.Model(
        inputs, keras.layers.Dense(3, name="second")(keras.layers.Dense(5, name="first")(inputs))
    )
    start = model.get_weights()
    for asymmetric in (True, False):
        model.set_weights(start)
        quantized = tfquant.quantize(model, problems.recipe(), calibration=[x], progress=False)
        second = quantized.ranges()["second:weight:kernel"][1] / 3
        nearest = np.clip(np.round(start[2] / second), -3, 3) * second
        report = adaround(quantized, [x], asymmetric=asymmetric, **{**FAST, "iterations": 40})
        first = model.get_layer("first").kernel.numpy() if asymmetric else start[0]
        expected = np.mean((x @ first @ nearest - x @ start[0] @ start[2]) ** 2)
        np.testing.assert_allclose(
            report.layer("second:weight:kernel").mse_nearest, expected, rtol=1e-3
        )


# A matter of time alone.
@pytest.mark.long
def test_layers_of_one_form_share_compiled_steps(bert, monkeypatch):
    case, _ = bert
    from tfquant.ptq.adaround import reconstruction

    made = []
    steps = reconstruction.Reconstruction._steps
    monkeypatch.setattr(
        reconstruction.Reconstruction,
        "_steps",
        lambda self, *args: made.append(1) or steps(self, *args),
    )
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    adaround(quantized, case.batches, iterations=25, progress=False)
    assert len(made) == 3  # 16 x 16, 16 x 24 with GELU and 24 x 16: traced once each, for 12 layers


def test_functions_on_tensors_are_rounded_too():
    case = models.function_with_signature()
    quantized = tfquant.quantize(
        case.model, problems.recipe(), calibration=case.batches, progress=False
    )
    assert isinstance(quantized(case.batches[0]), tf.Tensor)
    assert len(adaround(quantized, case.batches, iterations=2, progress=False).layers) == 3

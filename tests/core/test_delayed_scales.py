"""Delayed scales, formats without a scale, and quantized gradients against formulas in NumPy."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.graph.plan import RecipeError
from tfquant.quantizer import UncalibratedError
from tfquant.training import BertAdamW, QuantizationSchedule, Trainer, TrainOptions

CODES = {"e4m3": (ml_dtypes.float8_e4m3fn, 448.0), "e5m2": (ml_dtypes.float8_e5m2, 57344.0)}
HISTORY = 3


def rounded(x, format, scale=1.0):
    dtype, limit = CODES[format]
    units = np.clip(np.asarray(x, np.float32) / np.float32(scale), -limit, limit)
    return units.astype(dtype).astype(np.float32) * np.float32(scale)


class Reference:
    """The rule of the source: the scale of a call is that of the calls before."""

    def __init__(self, format, quant_max):
        self.format, self.quant_max = format, quant_max
        self.history, self.scale = np.zeros(HISTORY, np.float32), np.float32(1)

    def __call__(self, x):
        result = rounded(x, self.format, self.scale)
        self.history = np.append(np.abs(x).max(), self.history[:-1]).astype(np.float32)
        if self.history.max() > 0:
            self.scale = np.float32(self.history.max() * np.float32(1 / self.quant_max))
        return result


def fp8(source="delayed", gradient_source="delayed", **options):
    history = {"history": HISTORY}
    forward = QuantSpec(
        "e4m3", ste="identity", source=source, **(history if source == "delayed" else {})
    )
    backward = QuantSpec(
        "e5m2",
        source=gradient_source,
        **(history if gradient_source == "delayed" else {}),
        **options,
    )
    return Recipe(
        (
            Rule(forward, role=("weight", "linear_input")),
            Rule(backward, role=("linear_output", "logits", "pooler"), direction="backward"),
        ),
        name="fp8",
    )


@pytest.fixture
def model(make_two_dense):
    return make_two_dense()


def batches(count=5):
    rng = np.random.default_rng(0)
    for step in range(count):
        x = rng.standard_normal((4, 6)).astype(np.float32) * 2.0 ** (step % 3)
        yield x, rng.standard_normal((4, 3)).astype(np.float32)


def kernels(model):
    return [model.get_layer(name).kernel.numpy() for name in ("first", "second")]


def test_a_training_step_computes_what_the_formulas_say(model):
    quantized = tfquant.quantize(model, fp8())
    sites = {key: Reference("e4m3", 448.0) for key in ("x", "w1", "h", "w2")}
    sites |= {key: Reference("e5m2", 57344.0) for key in ("d1", "d2")}
    (w1, w2), biases = kernels(model), [model.get_layer(n).bias for n in ("first", "second")]
    for x, target in batches():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantized(x, training=True) * target)
        found = tape.gradient(loss, [model.get_layer(n).kernel.value for n in ("first", "second")])
        quantized.update_scales()
        x_q, w1_q, w2_q = sites["x"](x), sites["w1"](w1), sites["w2"](w2)
        h = np.maximum(x_q @ w1_q + biases[0].numpy(), 0)
        h_q, d2 = sites["h"](h), sites["d2"](target)
        d1 = sites["d1"](d2 @ w2_q.T * (h > 0))
        for gradient, expected in zip(found, (x_q.T @ d1, h_q.T @ d2), strict=True):
            np.testing.assert_allclose(gradient.numpy(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("source", ["none", "dynamic"])
def test_gradients_without_a_stored_scale(model, source):
    quantized = tfquant.quantize(model, fp8("none", source))
    x, target = next(batches())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(x, training=True) * target)
    found = tape.gradient(loss, model.get_layer("second").kernel.value)
    w1, _ = kernels(model)
    hidden = np.maximum(rounded(x, "e4m3") @ rounded(w1, "e4m3"), 0)
    scale = 1.0 if source == "none" else np.abs(target).max() * np.float32(1 / 57344.0)
    expected = rounded(hidden, "e4m3").T @ rounded(target, "e5m2", scale)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-6)


def test_inference_reads_no_gradient_and_moves_no_history(model):
    quantized = tfquant.quantize(model, fp8("none"))
    x, target = next(batches())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(x) * target)
    found = tape.gradient(loss, model.get_layer("second").bias.value)
    quantized.update_scales()
    np.testing.assert_array_equal(found.numpy(), target.sum(0))
    states = [q.state for q in quantized._engine.gradients.values()]
    assert len(states) == 2 and not any(state.history.numpy().any() for state in states)


def histories(quantized):
    engine = quantized._engine
    return {
        address: quantizer.state.history.numpy()
        for address, quantizer in (*engine.quantizers.items(), *engine.gradients.items())
    }


def test_fit_moves_histories_once_a_step_as_a_loop_does(make_two_dense):
    first, second = (tfquant.quantize(make_two_dense(), fp8()) for _ in range(2))
    x, y = (np.concatenate(part) for part in zip(*batches(), strict=True))
    first.compile("sgd", "mse")
    first.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    optimizer = keras.optimizers.SGD()
    for step in range(5):
        part = slice(4 * step, 4 * step + 4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((second(x[part], training=True) - y[part]) ** 2)
        variables = [v.value for v in second.trainable_variables]
        optimizer.apply(tape.gradient(loss, variables), second.trainable_variables)
        second.update_scales()
    expected = histories(second)
    assert all(history.all() for history in expected.values())
    for address, history in histories(first).items():
        np.testing.assert_allclose(history, expected[address], rtol=1e-5, err_msg=address)


def test_a_forward_scale_is_wanted_before_inference_and_comes_from_calibration_or_training(model):
    quantized = tfquant.quantize(model, fp8())
    x, _ = next(batches())
    with pytest.raises(UncalibratedError, match="first:linear_input:input has no range"):
        quantized(x)
    quantized(x, training=True)
    tfquant.calibrate(quantized, [x], progress=False)
    w1, w2 = kernels(model)
    scale = [np.abs(v).max() * np.float32(1 / 448) for v in (x, w1, w2)]
    hidden = np.maximum(x @ w1, 0)
    of_hidden = np.abs(hidden).max() * np.float32(1 / 448)
    hidden = np.maximum(rounded(x, "e4m3", scale[0]) @ rounded(w1, "e4m3", scale[1]), 0)
    expected = rounded(hidden, "e4m3", of_hidden) @ rounded(w2, "e4m3", scale[2])
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_unscaled_values_need_no_calibration_and_saturate_at_the_largest_value(model):
    quantized = tfquant.quantize(model, Recipe((Rule("e2m1", role="linear_input"),)))
    x = np.float32([[0.2, 0.3, 5.5, 100.0, -1e9, np.inf]])
    w1, w2 = kernels(model)
    result = np.float32([[0.0, 0.5, 6.0, 6.0, -6.0, 6.0]])
    hidden = np.maximum(result @ w1, 0)
    expected = hidden.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) @ w2
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "e3m2", "e2m1", "posit8_1", "nf4", "int8"])
def test_a_rounded_scale_is_a_power_of_two_that_clips_nothing(format):
    quantized = tfquant.quantize(
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)]),
        Recipe((Rule(QuantSpec(format, scale_format="power_of_two"), role="linear_input"),)),
        [next(batches())[0]],
        progress=False,
    )
    (quantizer,) = quantized.quantizers.values()
    codebook = quantizer.site.spec.codebook
    scale, _ = tfquant.scale.scale_and_zero_of(quantizer.lower, quantizer.upper, codebook)
    largest = np.abs(next(batches())[0]).max()
    assert np.frexp(scale)[0] == 0.5
    assert scale / 2 < largest / codebook.quant_max <= scale


def test_overflowing_gradients_leave_the_history_and_its_scale(model):
    quantized = tfquant.quantize(model, fp8("none"))
    x, target = next(batches())
    for factor in (1.0, np.float32(np.inf)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantized(x, training=True) * target * factor)
        tape.gradient(loss, model.get_layer("second").kernel.value)
        quantized.update_scales()
        state = quantized._engine.gradients["second:linear_output:output:backward"].state
        history = state.history.numpy()
        assert history.tolist() == [np.abs(target).max(), 0, 0]
        assert state.amax.numpy() == np.abs(target).max()


def test_histories_survive_saving(model, make_two_dense, tmp_path):
    quantized = tfquant.quantize(model, fp8())
    for x, target in batches(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantized(x, training=True) * target)
        tape.gradient(loss, model.get_layer("second").kernel.value)
        quantized.update_scales()
    tfquant.save(quantized, tmp_path / "saved")
    loaded = tfquant.load(tmp_path / "saved", make_two_dense(seed=1))
    for address, history in histories(quantized).items():
        np.testing.assert_array_equal(histories(loaded)[address], history, err_msg=address)
    x, _ = next(batches())
    np.testing.assert_array_equal(loaded(x).numpy(), quantized(x).numpy())


@pytest.mark.parametrize(
    "spec, said",
    [
        (QuantSpec("e5m2"), "calibration sees no gradients: use delayed, dynamic or none"),
        (QuantSpec("int8", "per_channel", source="delayed"), "per_channel: use per_tensor"),
        (QuantSpec("int8", source="none", unsigned=True), "which have both signs around zero"),
    ],
)
def test_a_spec_that_gradients_cannot_have_is_refused(model, spec, said):
    recipe = Recipe((Rule(spec, role="linear_output", direction="backward"),))
    with pytest.raises(RecipeError, match=said):
        tfquant.plan(model, recipe)


def test_a_gradient_has_an_address_of_its_own(model):
    plan = tfquant.plan(model, fp8())
    assert [site.address for site in plan.gradients] == [
        "first:linear_output:output:backward",
        "second:linear_output:output:backward",
    ]
    for site in plan.gradients:
        assert str(tfquant.site.Address.parse(site.address)) == site.address
    assert "2 sites of gradients" in str(plan)


@pytest.mark.parametrize("start", [0, 2])
def test_the_trainer_moves_histories_as_a_loop_does_also_after_a_latent_start(
    make_two_dense, tmp_path, start
):
    trained, expected = (tfquant.quantize(make_two_dense(), fp8()) for _ in range(2))
    data = list(batches())
    optimizer = BertAdamW(1e-3)
    schedule = QuantizationSchedule(trained, optimizer, quant_start_step=start)
    trainer = Trainer(
        trained,
        lambda model, batch: tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2),
        optimizer,
        TrainOptions(str(tmp_path), len(data), checkpoint_every=0, progress=False),
        hooks=[schedule],
    )
    trainer.fit(lambda first: ({"x": x, "y": y} for x, y in data[first:]))
    optimizer, variables = BertAdamW(1e-3), expected.trainable_variables
    optimizer.build(variables)
    for step, (x, y) in enumerate(data):
        expected.set_mode("float" if step < start else "quantized")
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((expected(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, [v.value for v in variables])
        norm = tf.linalg.global_norm(gradients)
        optimizer.apply([g / tf.maximum(norm, 1.0) for g in gradients], variables)
        expected.update_scales()
    wanted = histories(expected)
    assert all(history[0] > 0 for history in wanted.values())
    for address, history in histories(trained).items():
        np.testing.assert_allclose(history, wanted[address], rtol=1e-4, err_msg=address)


@pytest.mark.parametrize("ste", ["inclusive", "strict", "identity"])
def test_a_dynamic_scale_is_rounded_with_every_gradient(model, ste):
    spec = QuantSpec("e4m3", dynamic=True, scale_format="power_of_two", ste=ste)
    quantized = tfquant.quantize(model, Recipe((Rule(spec, role="linear_input", path="first"),)))
    x, _ = next(batches())
    w1, w2 = kernels(model)
    scale = np.exp2(np.ceil(np.log2(np.abs(x).max() / 448)))
    expected = np.maximum(rounded(x, "e4m3", scale) @ w1, 0) @ w2
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-6)

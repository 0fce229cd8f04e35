"""The scale of layer norms moves into what reads them: exact in float, smaller errors in int8."""

import dataclasses

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError
from tfquant.graph.trace import trace
from tfquant.model import engine_of
from tfquant.rewrites.gamma_migration import SMALLEST_SHARE, migrated

RECIPE = dataclasses.replace(tfquant.recipe("int8_residual_asymmetric"), gamma_migration=True)
PLAIN = tfquant.recipe("int8_residual_asymmetric")
LAYERS = keras.layers
SIZE = 16


def with_outlying_gammas(model: keras.Model, seed: int = 0) -> keras.Model:
    """The model with gammas of both signs, one far larger than the others and one of 0."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.endswith("gamma"):
            gamma = rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1], variable.shape)
            gamma[1], gamma[3] = 0, 30
            variable.assign(gamma)
        elif variable.path.endswith("beta"):
            variable.assign(0.5 * rng.normal(size=variable.shape))
    return model


def encoder(pre_norm: bool = False, output_norm: bool = False, dropout: float = 0.0):
    """One block of an encoder, [batch, length, 16]."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((None, SIZE), name="x")
    attention = LAYERS.MultiHeadAttention(2, 8, name="attention")
    norms = [LAYERS.LayerNormalization(name=f"norm{i}") for i in range(2)]
    up, down = LAYERS.Dense(32, "gelu", name="up"), LAYERS.Dense(SIZE, name="down")
    if pre_norm:
        h = norms[0](x)
        x = x + attention(h, h)
        x = x + down(up(norms[1](x)))
    else:
        h = norms[0](LAYERS.Dropout(dropout)(x + attention(x, x)))
        x = norms[1](h + down(up(LAYERS.Dropout(dropout)(h))))
    if not output_norm:
        x = LAYERS.Dense(3, name="head")(x)
    return with_outlying_gammas(keras.Model(inputs, x))


def several_readers() -> keras.Model:
    """A norm that a linear, an activation, a pooling and the output read."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None, SIZE), name="x")
    h = LAYERS.LayerNormalization(name="norm")(inputs)
    pooled = LAYERS.GlobalAveragePooling1D()(h)
    outputs = [LAYERS.Dense(4, name="linear")(h), LAYERS.Activation("tanh")(h), pooled, h]
    return with_outlying_gammas(keras.Model(inputs, outputs))


def called_twice() -> keras.Model:
    """One norm and one linear, each called twice."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None, SIZE), name="x")
    norm, linear = LAYERS.LayerNormalization(name="norm"), LAYERS.Dense(SIZE, name="linear")
    x = inputs
    for _ in range(2):
        h = norm(x)
        x = h + linear(h)
    return with_outlying_gammas(keras.Model(inputs, x))


def batches(count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.normal(size=(4, 6, SIZE)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def moved():
    return tfquant.quantize(encoder(), RECIPE, calibration=batches(4), progress=False)


@pytest.fixture(scope="module")
def plain():
    return tfquant.quantize(encoder(), PLAIN, calibration=batches(4), progress=False)


def values(outputs) -> list[np.ndarray]:
    return [np.asarray(t, np.float64) for t in tf.nest.flatten(outputs)]


def differences(model, other, batch) -> list[float]:
    """Largest difference of each output, as a share of its spread."""
    pairs = zip(values(model(batch)), values(other(batch)), strict=True)
    return [float(np.abs(a - b).max() / np.ptp(a)) for a, b in pairs]


MODELS = {
    "post-norm": (encoder, 2),
    "pre-norm": (lambda: encoder(pre_norm=True), 2),
    "norm at the output": (lambda: encoder(output_norm=True), 1),
    "several readers": (several_readers, 1),
    "called twice": (called_twice, 2),
    "BERT": (lambda: with_outlying_gammas(models.own_bert(1).model), 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_float_outputs_stay_the_same(name):
    build, count = MODELS[name]
    model = build()
    quantized = tfquant.quantize(model, RECIPE)
    quantized.set_mode("float")
    batch = models.own_bert(1).batches[0] if name == "BERT" else batches()[0]
    assert max(differences(model, quantized, batch)) < 2e-6
    migration = quantized.migration
    assert len(migration.norms) == count
    if name == "norm at the output":
        assert migration.skipped == (
            ("norm1", "no linear layer takes its output along the normalized axis"),
        )


@pytest.mark.parametrize("name", ["post-norm", "pre-norm", "BERT"])
def test_sites_have_the_addresses_that_they_have_without(name):
    model = MODELS[name][0]()
    plain, moved = tfquant.plan(model, PLAIN), tfquant.plan(model, RECIPE)
    assert [s.address for s in plain.sites] == [s.address for s in moved.sites]
    assert [s.spec for s in plain.sites] == [s.spec for s in moved.sites]


def test_the_norm_computes_its_output_over_gamma_and_kernels_are_multiplied_by_it():
    model = encoder()
    result = migrated(trace(source_of(model)))
    norm = result.analysis.structure.layernorms[0]
    batch = batches()[0]
    kernel = next(e for e in result.analysis.roles.edges if e.address == "up:weight:kernel")

    @tf.function(autograph=False)
    def run(x):
        return result.emit([x], targets=[norm.output, kernel.tensor])

    found, weight = run(tf.constant(batch))
    layer = model.get_layer("norm0")
    attention = model.get_layer("attention")
    x = batch + np.asarray(attention(batch, batch))
    deviation = np.sqrt(x.var(-1, keepdims=True) + layer.epsilon)
    gamma, beta = np.asarray(layer.gamma), np.asarray(layer.beta)
    factors = np.where(np.abs(gamma) > SMALLEST_SHARE * np.abs(gamma).max(), gamma, 1)
    assert factors[1] == 1 and gamma[1] == 0 and (factors < 0).any()
    expected = ((x - x.mean(-1, keepdims=True)) / deviation * gamma + beta) / factors
    np.testing.assert_allclose(found, expected, atol=1e-5)
    expected = np.asarray(model.get_layer("up").kernel) * factors[:, np.newaxis]
    np.testing.assert_array_equal(weight, expected)


def test_errors_of_int8_become_smaller_where_gamma_has_outliers(moved, plain):
    model, errors = encoder(), []
    for quantized in (moved, plain):
        errors.append(
            np.mean([np.square(values(model(x))[0] - values(quantized(x))[0]) for x in batches(4)])
        )
    assert errors[0] < 0.5 * errors[1]


def test_quantizers_of_skip_operands_see_the_unscaled_tensor(moved, plain):
    widths = []
    for quantized in (moved, plain):
        site = quantized.plan.site("down:residual:skip")  # shared with the linear layer behind
        assert "up:linear_input:input" in site.members
        lower, upper = quantized.ranges()[site.address]
        widths.append(float(upper - lower))
    assert widths[0] < 12  # without outlying channels, a few standard deviations
    assert widths[1] > 60


def test_a_saved_model_loads_bit_for_bit(tmp_path, moved):
    expected = moved(batches()[1]).numpy()
    tfquant.save(moved, tmp_path / "model.ckpt")
    again = tfquant.load(tmp_path / "model.ckpt", encoder())
    assert again.recipe == RECIPE
    np.testing.assert_array_equal(again(batches()[1]), expected)


def test_training_reaches_gamma_and_equals_that_of_the_model_in_float():
    model = encoder(dropout=0.1)
    quantized = tfquant.quantize(model, RECIPE, calibration=batches(), progress=False)
    training = engine_of(quantized).training
    assert training.migration.norms == engine_of(quantized).inference.migration.norms
    x = tf.constant(batches()[0])
    weights = [v for v in model.trainable_variables if "norm" in v.path or "up" in v.path]
    gradients = []
    quantized.set_mode("float")
    for network in (model, quantized):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(network(x)))
        gradients.append(tape.gradient(loss, [v.value for v in weights]))
    for variable, one, other in zip(weights, *gradients, strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(other, one, atol=2e-5 * scale, err_msg=variable.path)
    quantized.set_mode("quantized")
    quantized.compile(keras.optimizers.Adam(1e-2), "mse")
    before = np.asarray(model.get_layer("norm0").gamma)
    target = np.zeros((4, 6, 3), np.float32)
    losses = quantized.fit(x, target, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert (np.asarray(model.get_layer("norm0").gamma) != before).mean() > 0.9


def test_onnx_has_one_norm_and_at_most_one_product_for_each(tmp_path, moved, plain):
    tfquant.export(moved, tmp_path / "model.onnx", check_data=batches())
    tfquant.export(plain, tmp_path / "plain.onnx", check_data=batches())
    counts = []
    for name in ("model", "plain"):
        nodes = [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
        counts.append({kind: nodes.count(kind) for kind in ("LayerNormalization", "Mul", "Div")})
    assert counts[0]["LayerNormalization"] == counts[1]["LayerNormalization"] == 2
    assert counts[0]["Mul"] == counts[1]["Mul"] + 1  # norm0 is the skip operand of one addition
    assert counts[0]["Div"] == counts[1]["Div"]


@pytest.mark.parametrize(
    ("target", "file"),
    [("saved_model", "model"), ("packed", "model.safetensors")],
)
def test_other_targets_compute_what_the_simulation_does(tmp_path, moved, target, file):
    # Export itself compares the file with the simulation and writes nothing where they differ.
    tfquant.export(moved, tmp_path / file, target=target, check_data=batches())
    assert (tmp_path / file).exists()


def test_a_model_without_such_a_norm_is_refused_in_one_line():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, LAYERS.Dense(3)(inputs))
    with pytest.raises(
        RecipeError,
        match=r"^recipe 'int8_residual_asymmetric': gamma_migration finds no layer norm whose scale"
        r" can be moved \(there is no layer norm\); leave it out$",
    ):
        tfquant.plan(model, RECIPE)
    h = LAYERS.LayerNormalization(scale=False, name="norm")(inputs)
    with pytest.raises(RecipeError, match=r"\(norm: it has no learned scale\)"):
        tfquant.plan(keras.Model(inputs, LAYERS.Dense(3)(h)), RECIPE)


def test_a_recipe_file_has_the_field_and_refuses_what_is_no_boolean():
    assert tfquant.Recipe.from_json(RECIPE.to_json()) == RECIPE
    assert "gamma_migration" not in PLAIN.to_dict()
    with pytest.raises(ValueError, match="gamma_migration must be true or false, got 'yes'"):
        dataclasses.replace(RECIPE, gamma_migration="yes")

"""Dynamic ranges: specs, numbers against NumPy, padding, training, files, and what refuses them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.core.test_qdq import formula
from tests.graph import models
from tfquant import ptq, qdq
from tfquant.dynamic_range import extremes
from tfquant.export.errors import ExportError
from tfquant.graph.plan import RecipeError
from tfquant.model import engine_of
from tfquant.rules import Fuse, Recipe, Rule
from tfquant.spec import QuantSpec

RNG = np.random.default_rng(0)
ASYMMETRIC = QuantSpec(symmetric=False, dynamic=True)
PER_TOKEN = dataclasses.replace(ASYMMETRIC, granularity="per_token")
KINDS = [
    ASYMMETRIC,
    QuantSpec(dynamic=True, format="int4"),
    PER_TOKEN,
    QuantSpec(dynamic=True, granularity="per_token", narrow_range=False),
    dataclasses.replace(ASYMMETRIC, granularity="per_embedding"),
]


def one_rule(spec: QuantSpec, role="linear_input", **rule) -> Recipe:
    return Recipe((Rule(spec, role, **rule),), name="one")


def identity(spec: QuantSpec, *signature: int | None) -> tfquant.QuantizedFunction:
    """A product with an identity matrix.

    What comes out is what the quantizer of its input made of it.
    """
    kernel = tf.Variable(np.eye(signature[-1], dtype=np.float32), name="kernel")
    return tfquant.quantize(
        lambda x: tf.matmul(x, kernel), one_rule(spec), signature=tf.TensorSpec(signature)
    )


def identity_of_each(spec: QuantSpec, x: np.ndarray) -> np.ndarray:
    """As `identity` on `x`, without a product that would spread what is no number over its row."""
    site = identity(spec, None, None, x.shape[-1]).plan.sites[0]

    @tf.function
    def quantize(x):
        return qdq.quantize_dequantize(x, *extremes(x, site), spec.grid, site.channel_axes)

    return quantize(x).numpy()


def by_numpy(x: np.ndarray, spec: QuantSpec, valid: np.ndarray | None = None) -> np.ndarray:
    """Rows one by one, dimensions one by one, or all of it at once, with the extremes of just that
    part.
    """
    if spec.granularity == "per_token":
        rows = [formula(row, row.min(), row.max(), spec.grid) for row in x.reshape(-1, x.shape[-1])]
        return np.stack(rows).reshape(x.shape)
    if spec.granularity == "per_embedding":
        columns = [
            formula(x[..., i], x[..., i].min(), x[..., i].max(), spec.grid)
            for i in range(x.shape[-1])
        ]
        return np.stack(columns, -1)
    real = x if valid is None else x[valid]
    return formula(x, real.min(), real.max(), spec.grid)


# Specs


@pytest.mark.parametrize("spec", KINDS)
def test_dynamic_specs_survive_json_and_yaml_and_others_do_not_mention_it(spec):
    recipe = one_rule(spec)
    assert Recipe.from_json(recipe.to_json()) == Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "dynamic" in spec.describe()
    assert "dynamic" not in QuantSpec().to_dict()


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"granularity": "per_token"},
            "per_token ranges exist only while a batch is there: set dynamic: true",
        ),
        (
            {"dynamic": True, "granularity": "per_channel"},
            "is per_tensor, per_token, per_embedding or per_block, got per_channel",
        ),
        (
            {"dynamic": True, "granularity": "per_embedding_group", "groups": 2},
            "groups are found in calibration",
        ),
        ({"dynamic": True, "method": "percentile"}, "its method must be max, got percentile"),
        ({"dynamic": True, "update": "lsq"}, "training cannot move it: leave out update 'lsq'"),
        ({"dynamic": "yes"}, "dynamic must be true or false, got 'yes'"),
    ],
)
def test_what_does_not_go_with_a_dynamic_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        QuantSpec(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "recipe, message",
    [
        (
            one_rule(ASYMMETRIC, "weight"),
            "asks for a dynamic range at .*:weight:kernel, which is a parameter",
        ),
        (
            one_rule(PER_TOKEN, "softmax_output"),
            "asks for per_token at .*, whose last axis runs over tokens",
        ),
        (
            Recipe((Rule(ASYMMETRIC, "matmul_input"),), fuse=(Fuse("matmul_input"),)),
            "fused site .* has a dynamic range",
        ),
    ],
)
def test_plans_refuse_dynamic_ranges_where_there_are_none(recipe, message):
    with pytest.raises(RecipeError, match=message):
        tfquant.plan(models.own_bert().model, recipe)


# Numbers


@pytest.mark.parametrize("spec", KINDS)
@pytest.mark.parametrize("shape", [(3, 5, 8), (7, 8)])
def test_each_call_quantizes_with_the_extremes_of_its_own_tensor(spec, shape):
    model = identity(spec, *[None] * (len(shape) - 1), shape[-1])
    for width in (1.0, 30.0):  # nothing of the first call is left in the second
        x = (width * RNG.normal(size=shape)).astype(np.float32)
        np.testing.assert_allclose(
            model(x).numpy(), by_numpy(x, spec), rtol=1e-6, atol=1e-6 * np.abs(x).max()
        )


def test_golden_per_tensor_and_per_token():
    x = np.array([[[-1.0, 0.0, 0.3, 2.0], [10.0, 5.1, 0.0, 0.0]]], np.float32)
    whole, token = (identity(spec, None, None, 4)(x).numpy() for spec in (ASYMMETRIC, PER_TOKEN))
    step = 11.0 / 255
    np.testing.assert_allclose(whole[0, 0], [-23 * step, 0, 7 * step, 46 * step], rtol=1e-5)
    np.testing.assert_allclose(
        token[0, 0], [-85 * 3 / 255, 0, 26 * 3 / 255, 170 * 3 / 255], rtol=1e-5
    )
    np.testing.assert_allclose(token[0, 1], [10.0, 130 * 10 / 255, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("spec", KINDS)
def test_zeros_empty_batches_and_one_sided_values_are_quantized(spec):
    model = identity(spec, None, None, 4)
    np.testing.assert_array_equal(model(np.zeros([2, 3, 4], np.float32)), np.zeros([2, 3, 4]))
    assert model(np.zeros([0, 3, 4], np.float32)).shape == (0, 3, 4)
    above = RNG.uniform(3.0, 4.0, [2, 3, 4]).astype(np.float32)
    step = 4.0 / spec.grid.quant_max if spec.symmetric else 4.0 / 255
    assert np.abs(model(above).numpy() - above).max() <= 0.51 * step


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("spec", KINDS)
def test_values_that_are_no_numbers_show_in_what_shares_their_range(spec, bad):
    x = np.ones([2, 3, 4], np.float32)
    x[0, 1, 2] = bad
    shared = np.zeros(x.shape, bool)
    shared[{"per_token": (0, 1), "per_embedding": (..., 2)}.get(spec.granularity, ...)] = True
    found = identity_of_each(spec, x)
    assert np.isnan(found[shared]).all()
    np.testing.assert_allclose(found[~shared], 1.0, rtol=1e-6)


def test_a_token_depends_on_itself_alone():
    model = identity(PER_TOKEN, None, None, 8)
    x = RNG.normal(size=(4, 6, 8)).astype(np.float32)
    alone = np.concatenate([model(row[np.newaxis]).numpy() for row in x])
    np.testing.assert_array_equal(model(x), alone)
    assert not np.array_equal(
        identity(ASYMMETRIC, None, None, 8)(x)[:1], identity(ASYMMETRIC, None, None, 8)(x[:1])
    )


def everywhere(**changes) -> Recipe:
    """All activations dynamic, weights with ranges that stay."""
    spec = dataclasses.replace(ASYMMETRIC, **changes)
    return tfquant.recipe("int8_outputs").with_spec(
        roles=(
            "layer_output",
            "embedding_sum",
            "attention_scores",
            "softmax_output",
            "attention_output",
            "residual_sum",
            "layernorm_output",
        ),
        **{
            field: getattr(spec, field)
            for field in ("symmetric", "dynamic", "method", "granularity")
        },
    )


@pytest.fixture(scope="module")
def bert() -> models.Case:
    return models.own_bert(2)


@pytest.fixture(scope="module")
def dynamic(bert):
    """No data at all is needed to quantize."""
    return tfquant.quantize(bert.model, everywhere(), [], inputs=bert.batches[0], progress=False)


def test_quantizing_needs_ranges_of_weights_alone(bert, dynamic):
    assert dynamic.calibrated
    assert set(dynamic.ranges()) == {site.address for site in dynamic.plan.sites if site.is_weight}
    assert any(site.spec.dynamic for site in dynamic.plan.sites)
    outputs = [
        np.concatenate([t.numpy().ravel() for t in bert.run(m, bert.batches[0])])
        for m in (bert.model, dynamic)
    ]
    assert 0.0 < np.abs(outputs[0] - outputs[1]).max() < 0.2 * np.abs(outputs[0]).max()


def test_padding_does_not_count(bert, dynamic):
    batch = {name: value.copy() for name, value in bert.batches[0].items()}
    batch["input_mask"][:, 4:] = 0
    other = {name: value.copy() for name, value in batch.items()}
    other["input_ids"][:, 4:] = (batch["input_ids"][:, 4:] + 7) % models.VOCAB
    one, two = (
        np.stack([t.numpy()[:, :4] for t in tf.nest.flatten(dynamic(b))]) for b in (batch, other)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    everything = batch | {"input_mask": np.ones_like(batch["input_mask"])}
    counted = np.stack([t.numpy()[:, :4] for t in tf.nest.flatten(dynamic(everything))])
    assert np.abs(counted - one).max() > 1e-4


def test_the_range_of_real_tokens_is_the_one_numpy_finds(bert):
    model = tfquant.quantize(
        bert.model, one_rule(ASYMMETRIC, "residual_sum", path="*/layer_0/output/dense")
    )
    address = model.plan.sites[0].address
    batch = {name: value.copy() for name, value in bert.batches[0].items()}
    batch["input_mask"][:, 4:] = 0
    engine = engine_of(model)
    flat = engine.inputs.flatten(batch)
    exact = engine.function("float", taps=(address,))(*flat)[-1].numpy()
    found = engine.function("quantized", taps=(address,))(*flat)[-1].numpy()
    np.testing.assert_allclose(
        found, by_numpy(exact, ASYMMETRIC, batch["input_mask"] > 0), rtol=1e-5, atol=1e-6
    )


# The rest of the library


def test_static_and_dynamic_sites_calibrate_together_in_both_orders(bert):
    static = QuantSpec(symmetric=False)
    recipe = Recipe(
        (Rule(static, ("weight", "linear_input")), Rule(ASYMMETRIC, "matmul_input")), name="both"
    )
    ranges = {}
    for order in ("parallel", "sequential"):
        model = tfquant.quantize(bert.model, recipe, bert.batches, order=order, progress=False)
        assert set(model.ranges()) == {
            site.address for site in model.plan.sites if site.role != "matmul_input"
        }
        ranges[order] = model.ranges()
    last = "bert/encoder/layer_1/output/dense:linear_input:input"
    assert not np.array_equal(ranges["parallel"][last], ranges["sequential"][last])


def test_a_saved_model_has_its_dynamic_recipe_and_answers_alike(bert, dynamic, tmp_path):
    tfquant.save(dynamic, tmp_path / "model.ckpt")
    fresh = models.own_bert(2).model
    loaded = tfquant.load(tmp_path / "model.ckpt", fresh)
    assert loaded.recipe == dynamic.recipe
    for one, two in zip(
        *(tf.nest.flatten(m(bert.batches[1])) for m in (dynamic, loaded)), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
def test_gradients_pass_unchanged(granularity):
    model = identity(dataclasses.replace(ASYMMETRIC, granularity=granularity), None, None, 8)
    x = tf.constant(RNG.normal(size=(2, 3, 8)), tf.float32)
    weights = tf.constant(RNG.normal(size=(2, 3, 8)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(model(x) * weights)
    np.testing.assert_allclose(tape.gradient(loss, x), weights, rtol=1e-6)


def test_training_moves_the_weights(bert, dynamic):
    before = [v.numpy() for v in dynamic.trainable_variables]
    with tf.GradientTape() as tape:
        loss = sum(
            tf.reduce_mean(t**2) for t in tf.nest.flatten(dynamic(bert.batches[0], training=True))
        )
    gradients = tape.gradient(loss, [v.value for v in dynamic.trainable_variables])
    assert all(g is not None for g in gradients) and len(before) == len(gradients)
    assert max(float(tf.reduce_max(tf.abs(tf.convert_to_tensor(g)))) for g in gradients) > 0


@pytest.mark.long
def test_adaround_and_bias_correction_run_on_dynamic_activations():
    case = models.own_bert(1)
    model = tfquant.quantize(case.model, everywhere(), [], inputs=case.batches[0], progress=False)
    report = ptq.adaround(model, case.batches, iterations=3, progress=False)
    assert report.layers
    assert ptq.correct_bias(model, case.batches, progress=False).shifts


def test_what_needs_ranges_that_stay_names_the_site(bert, dynamic, tmp_path):
    for target, name in (
        ("onnx", "x.onnx"),
        ("litert", "x.tflite"),
        ("saved_model", "x"),
        ("packed", "x.safetensors"),
    ):
        with pytest.raises(
            ExportError, match="site .* has a dynamic range .*: a file needs ranges that stay"
        ) as error:
            tfquant.export(dynamic, tmp_path / name, target=target)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ValueError,
        match="site .* has a dynamic range .*: sensitivity analysis needs ranges that stay",
    ):
        tfquant.sensitivity(dynamic, bert.batches)
    with pytest.raises(ValueError, match="site .* has a dynamic range"):
        tfquant.mixed_precision(
            dynamic, bert.batches, formats=["int4"], target="onnx", max_loss=1.0
        )
    with pytest.raises(ValueError, match="training cannot move it"):
        dynamic.recipe.with_spec(roles=["layer_output"], update="tqt")

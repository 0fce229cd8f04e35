"""Approximated softmax inside networks: inference, training, beside sites, files and refusals."""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.export import ExportError
from tfquant.export.targets import TARGETS
from tfquant.graph.plan import RecipeError
from tfquant.model import engine_of
from tfquant.rewrites import posit_softmax
from tfquant.rules import Recipe, Rule, Softmax

SHIFTED = Softmax("posit_exp_shifted", posit_reciprocal=True)
INT8 = tfquant.QuantSpec("int8")
WIDTH, LENGTH = 8, 5
RNG = np.random.default_rng(0)
KERNELS = {
    name: tf.Variable(
        RNG.normal(0, 0.7, (WIDTH, WIDTH)).astype(np.float32), name=f"self/{name}/kernel"
    )
    for name in ("query", "key", "value")
}
X = RNG.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
SIGNATURE = tf.TensorSpec([None, None, WIDTH])


def attention(x, softmax=tf.nn.softmax, values=lambda tensor, name: tensor):
    """Attention of one head; `values` may change tensors beside the softmax."""
    q, k, v = (x @ kernel for kernel in KERNELS.values())
    scores = tf.matmul(q, k, transpose_b=True) / WIDTH**0.5
    mask = tf.linalg.band_part(tf.ones([tf.shape(x)[1]] * 2), -1, 0)
    scores = values(scores - 1e9 * (1.0 - mask), "softmax_input")
    return tf.matmul(values(softmax(scores), "softmax_output"), v)


def quantized(network, recipe, batches=(X,), **options):
    return tfquant.quantize(network, recipe, list(batches), progress=False, **options)


def gradients(network, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.sin(network(x)))
    return tape.gradient(loss, [x, *KERNELS.values()])


@pytest.mark.parametrize(
    "softmax", [Softmax("posit_exp"), SHIFTED, Softmax(posit_reciprocal=True)], ids=str
)
def test_outputs_and_gradients_are_those_of_a_network_that_calls_the_approximation(softmax):
    def expected(x):
        return attention(
            x,
            lambda scores: posit_softmax.softmax(
                scores, softmax.exponential, softmax.posit_reciprocal
            ),
        )

    model = quantized(attention, Recipe((), softmax=softmax), signature=SIGNATURE)
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-5, atol=1e-6)
    assert np.abs(model(X) - attention(X)).max() > 0.01
    # In training the quantized network may also be one branch of a conditional.
    for latent in (False, True):
        engine_of(model).latent = latent
        for found, wanted in zip(gradients(model, X), gradients(expected, X), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    model.set_mode("float")
    np.testing.assert_allclose(model(X), attention(X), rtol=1e-6, atol=1e-6)


def test_sites_before_and_behind_the_softmax_stay():
    roles = ("softmax_input", "softmax_output")
    spec = tfquant.QuantSpec("e4m3")
    recipe = Recipe((Rule(spec, role=roles),), softmax=SHIFTED)
    model = quantized(attention, recipe, signature=SIGNATURE)
    assert {site.role for site in model.plan.sites} == set(roles)
    quantizers = {site.role: model.quantizers[site.address] for site in model.plan.sites}
    wanted = attention(X, posit_softmax.softmax, lambda tensor, role: quantizers[role](tensor))
    np.testing.assert_allclose(model(X), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_narrow_types_are_kept_and_computed_in_float32(dtype):
    kernel = tf.Variable(tf.cast(KERNELS["query"], dtype), name="self/query/kernel")

    def network(x, softmax=tf.nn.softmax):
        scores = tf.matmul(x @ kernel, x, transpose_b=True)
        return tf.matmul(softmax(scores), x)

    x = tf.cast(X, dtype)
    signature = tf.TensorSpec([None, LENGTH, WIDTH], dtype)
    model = quantized(network, Recipe((), softmax=SHIFTED), [x], signature=signature)
    assert model(x).dtype == dtype
    np.testing.assert_array_equal(as_float(model(x)), as_float(network(x, posit_softmax.softmax)))


@pytest.mark.representatives("mixed_bfloat16*")
@pytest.mark.parametrize("name", ["own_bert", "mixed_bfloat16", "tf_keras_functional"])
def test_models_run_and_train_with_it_in_their_own_types(name):
    case = models.build(name, "")
    recipe = Recipe((), softmax=SHIFTED)
    model = quantized(case.model, recipe, case.batches)
    assert model.recipe == recipe
    found = tf.nest.flatten(model(case.batches[0]))[0]
    original = tf.nest.flatten(case.run(case.model, case.batches[0]))[0]
    assert found.dtype == original.dtype
    assert 0.0 < np.abs(as_float(found) - as_float(original)).max() < 1.0
    graph = engine_of(model).function("quantized", training=True).graph
    assert not [op.name for op in graph.get_operations() if op.type == "Softmax"]
    variables = case.trainable()
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(case.batches[0], training=True))
        loss = tf.add_n([tf.reduce_sum(tf.cast(t, tf.float32) ** 2) for t in outputs])
    found = [g for g in tape.gradient(loss, variables) if g is not None]
    assert len(found) > 6 and all(np.isfinite(as_float(g)).all() for g in found)


def as_float(tensor) -> np.ndarray:
    return tf.cast(tf.convert_to_tensor(tensor), tf.float32).numpy()


def test_networks_it_does_not_apply_to_are_refused_in_one_line():
    def written_out(x):
        def softmax(scores):
            e = tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True))
            return e / tf.reduce_sum(e, -1, keepdims=True)

        return attention(x, softmax)

    recipe = Recipe((), name="mine", softmax="posit_exp")
    with pytest.raises(RecipeError) as error:
        tfquant.plan(written_out, recipe, signature=SIGNATURE)
    assert str(error.value) == (
        "recipe 'mine': softmax of attention 'self' is written out as exponential, sum and"
        " division, which cannot be replaced: call tf.nn.softmax there, or set softmax: exact"
    )
    with pytest.raises(RecipeError, match="recipe 'mine': softmax applies to attention, of which"):
        tfquant.plan(lambda x: x @ KERNELS["key"], recipe, signature=SIGNATURE)


def test_it_is_written_where_it_approximates_and_checked(tmp_path):
    rule = Rule(INT8, role="weight")
    assert "softmax" not in Recipe((rule,)).to_dict()
    recipe = Recipe((rule,), softmax=SHIFTED)
    for suffix in ("yaml", "json"):
        recipe.save(tmp_path / f"recipe.{suffix}")
        assert Recipe.load(tmp_path / f"recipe.{suffix}") == recipe
    assert recipe.with_rules(Rule(INT8, role="bias")).softmax == SHIFTED
    assert Recipe.from_dict({"rules": [], "softmax": "posit_exp"}).softmax == Softmax("posit_exp")
    for softmax, message in (
        ("fast", "unknown exponential 'fast' of softmax; known: exact, posit_exp"),
        ({"reciprocal": True}, "softmax: unknown key 'reciprocal'; known: exponential, posit_rec"),
        ({"posit_reciprocal": 1}, "posit_reciprocal of softmax must be true or false, got 1"),
        (3, "a softmax is a mapping, got 3"),
    ):
        with pytest.raises(ValueError, match=f"recipe 'custom': {message}"):
            Recipe((rule,), softmax=softmax)
    with pytest.raises(ValueError, match="rules must be a list of rules"):
        Recipe(())


@pytest.fixture(scope="module")
def model():
    recipe = Recipe((Rule(INT8, role="weight"),), name="posit softmax", softmax=SHIFTED)
    return quantized(attention, recipe, signature=SIGNATURE)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "saved_model"])
def test_targets_without_it_refuse_it_by_name_before_anything_is_written(model, target, tmp_path):
    path = tmp_path / TARGETS[target].file
    with pytest.raises(ExportError) as error:
        tfquant.export(model, path, target=target)
    assert str(error.value) == (
        "attention self: approximated softmax (posit_exp_shifted, posit_reciprocal) does not exist"
        " in this target: export to saved_model, or set softmax: exact in the recipe"
    )
    assert not list(tmp_path.iterdir())


def test_a_saved_model_and_a_checkpoint_have_it(model, tmp_path):
    report = tfquant.export(model, tmp_path / "served", target="saved_model", check_data=[X])
    assert report.agreement is not None
    tfquant.save(model, tmp_path / "model.ckpt")
    again = tfquant.load(tmp_path / "model.ckpt", attention, signature=SIGNATURE)
    assert again.recipe == model.recipe
    np.testing.assert_allclose(again(X), model(X), rtol=1e-6, atol=1e-6)


def test_the_plan_names_it(model):
    assert "softmax: posit_exp_shifted, posit_reciprocal" in " ".join(str(model.plan).split())

"""Ranges along the embedding axis.

What is planned and refused, the numbers, what training does to them, and files.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import calib
import tfquant
from calib import NonFiniteError
from tests.calib.test_dimensions import X
from tests.core.test_qdq import formula
from tests.few import few
from tests.graph import models
from tfquant.graph.plan import RecipeError
from tfquant.model import engine_of
from tfquant.quantized_array import QuantParams
from tfquant.rules import Fuse, Recipe, Rule
from tfquant.spec import QuantSpec

RNG = np.random.default_rng(0)
FFN = "bert/encoder/layer_{}/output/dense:residual_other:other"


def grouped(groups: int = 4, **changes) -> QuantSpec:
    return QuantSpec(granularity="per_embedding_group", groups=groups, **changes)


def one_rule(spec: QuantSpec, role="linear_input", **rule) -> Recipe:
    return Recipe((Rule(spec, role, **rule),), name="one")


# The paper's sites: the input of the feed-forward part, its output, and their sum.
def paper(**changes) -> Recipe:
    spec = grouped(symmetric=False, **changes)
    return Recipe(
        (
            Rule(spec, "linear_input", path="*/intermediate/dense", name="x"),
            Rule(
                spec,
                ("residual_other", "residual_sum"),
                path="re:layer_./output/dense",
                name="h, y",
            ),
        ),
        name="paper",
    )


def dense_on(x: np.ndarray, spec: QuantSpec) -> tuple[tfquant.QuantizedFunction, str]:
    """A product with an identity matrix, whose input is calibrated on `x`."""
    kernel = tf.Variable(np.eye(x.shape[-1], dtype=np.float32), name="kernel")
    signature = tf.TensorSpec([None] * (x.ndim - 1) + [x.shape[-1]])
    model = tfquant.quantize(
        lambda x: tf.matmul(x, kernel), one_rule(spec), [x], signature=signature, progress=False
    )
    return model, model.plan.sites[0].address


@pytest.fixture(scope="module")
def bert() -> models.Case:
    return models.own_bert(2)


@pytest.fixture(scope="module")
def shared(bert):
    return tfquant.quantize(bert.model, paper(permute="shared"), bert.batches, progress=False)


def at_edges(model, batches, addresses) -> dict[str, np.ndarray]:
    """Float values [tokens, dimensions] of real tokens at edges."""
    engine, found = engine_of(model), {address: [] for address in addresses}
    for batch in batches:
        flat = engine.inputs.flatten(batch)
        answers = engine.function("float", taps=tuple(addresses))(*flat)[-len(addresses) :]
        for address, values in zip(addresses, answers, strict=True):
            found[address].append(values.numpy()[batch["input_mask"] > 0])
    return {address: np.concatenate(values) for address, values in found.items()}


# Specs


@pytest.mark.parametrize("permute", ["none", "own", "shared"])
def test_group_specs_survive_yaml_and_json(permute):
    recipe = paper(permute=permute).with_rules(
        Rule(QuantSpec(granularity="per_embedding"), "layernorm_output")
    )
    assert Recipe.from_yaml(recipe.to_yaml()) == Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.rules[0].spec.to_dict()["groups"] == 4


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"granularity": "per_embedding_group"},
            "per_embedding_group needs groups, an integer of at least 1, got None",
        ),
        ({"granularity": "per_embedding_group", "groups": 0}, "at least 1, got 0"),
        ({"granularity": "per_embedding_group", "groups": True}, "at least 1, got True"),
        (
            {"granularity": "per_embedding_group", "groups": 2, "permute": "all"},
            "unknown permute 'all'; known: none, own, shared",
        ),
        (
            {"granularity": "per_embedding", "groups": 2},
            "groups and permute belong to granularity per_embedding_group",
        ),
        ({"permute": "own"}, "groups and permute belong to granularity per_embedding_group"),
        (
            {"granularity": "per_embedding", "method": "percentile"},
            "per_embedding keeps the extremes .* its method must be max",
        ),
        (
            {"granularity": "per_embedding_group", "groups": 2, "method": "mse"},
            "its method must be max, got mse",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        QuantSpec(**fields)
    assert "\n" not in str(error.value)


def test_tables_tell_groups_and_their_order():
    assert (
        grouped(6, permute="shared", symmetric=False).describe()
        == "int8 per_embedding_group 6 (shared order) asymmetric max"
    )
    assert grouped(6).describe() == "int8 per_embedding_group 6 symmetric max"
    assert QuantSpec(granularity="per_embedding").describe() == "int8 per_embedding symmetric max"


# Plans


@pytest.mark.representatives("None-*")
@pytest.mark.parametrize(
    "role, path, message",
    [
        (
            "attention_scores",
            "*",
            "asks for per_embedding_group at .*attention_scores.*runs over tokens",
        ),
        ("softmax_output", "*", "at .*softmax_output.*runs over tokens"),
        ("matmul_input", "*", "at .*:matmul_input:probabilities, whose last axis runs over tokens"),
        (
            "weight",
            "*",
            "at .*:weight:kernel, which is a parameter: use per_channel or per_tensor there",
        ),
        ("embedding", "*", "which is a parameter"),
    ],
)
@pytest.mark.parametrize("length", [None, 8])  # 8 is as large as a head
def test_tensors_without_an_embedding_axis_are_refused(role, path, message, length):
    case = models.own_bert(1, length)
    with pytest.raises(RecipeError, match=message) as error:
        tfquant.plan(case.model, one_rule(grouped(2), role, path=path))
    assert "\n" not in str(error.value)


def test_tokens_of_a_model_without_ids_are_told_as_well():
    inputs = keras.Input((6, 16), name="x")
    attention = keras.layers.MultiHeadAttention(2, 8, name="mha")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="last")(attention))
    tfquant.plan(model, one_rule(grouped(4), path="last"))
    with pytest.raises(
        RecipeError, match="mha:softmax_output:output, whose last axis runs over tokens"
    ):
        tfquant.plan(model, one_rule(grouped(2), "softmax_output"))


def test_an_embedding_as_wide_as_the_tokens_that_a_graph_is_tried_with_is_told_from_them():
    ids = keras.Input((None,), dtype="int32", name="ids")
    hidden = keras.layers.Embedding(5, 77)(ids)  # 7 times 11
    model = keras.Model(ids, keras.layers.Dense(4, name="last")(hidden))
    (site,) = tfquant.plan(model, one_rule(grouped(7))).sites
    assert site.range_shape == (7,) and site.channel_axes == (2,)


def test_groups_that_do_not_divide_the_embedding_are_refused_with_the_site(bert):
    with pytest.raises(
        RecipeError,
        match="rule 'x' asks for 5 groups at .*intermediate/dense:linear_input:input, whose .* 16 ",
    ):
        tfquant.plan(bert.model, one_rule(grouped(5), path="*/intermediate/dense", name="x"))


def test_the_wide_activation_may_be_grouped_but_not_in_the_order_of_its_layer(bert):
    site, *_ = tfquant.plan(
        bert.model, one_rule(grouped(6, permute="own"), path="re:layer_./output/dense")
    ).sites
    assert site.range_shape == (6,) and site.shape[-1] == 24 and site.order == site.address
    with pytest.raises(
        RecipeError,
        match=(
            "the shared order of its layer .*, which has 24 dimensions where .* has 16: use permute"
        ),
    ):
        tfquant.plan(
            bert.model, one_rule(grouped(6, permute="shared"), path="re:layer_./output/dense")
        )


def test_the_order_of_a_layer_is_that_of_its_feed_forward_output(shared):
    orders = {site.address: site.order for site in shared.plan.sites}
    assert len(orders) == 6
    for address, order in orders.items():
        assert order == FFN.format(address.split("layer_")[1][0])


@pytest.mark.parametrize("make", [models.hub_bert, models.functional, models.subclassed])
def test_layers_of_other_models_are_found_too(make):
    case = make()
    plan = tfquant.plan(
        case.model,
        one_rule(grouped(permute="shared"), ("residual", "residual_other")),
        inputs=case.batches[0],
    )
    last = [site for site in plan.sites if site.role == "residual_other"][-1]
    assert [
        site.order
        for site in plan.sites
        if site.order != site.address and site.role == "residual_other"
    ] == [last.address]
    assert last.order == last.address


def test_tensors_outside_of_all_layers_keep_their_own_order_and_the_table_says_so(bert):
    plan = tfquant.plan(bert.model, one_rule(grouped(permute="shared"), "residual"))
    first, second, third, fourth = plan.sites
    assert (
        first.spec.permute == "own" and first.order == first.address
    )  # the embeddings enter the first layer
    assert [site.order for site in (second, third, fourth)] == [
        FFN.format(0),
        FFN.format(0),
        FFN.format(1),
    ]
    assert "(own order)" in first.spec.describe() and "(shared order)" in second.spec.describe()


def test_ranges_in_an_order_of_their_own_are_not_fused(bert):
    recipe = Recipe((Rule(grouped(permute="own"), "linear_output"),), fuse=(Fuse("linear_output"),))
    with pytest.raises(RecipeError, match="fused site .* an order of its own"):
        tfquant.plan(bert.model, recipe)


# Numbers


GOLDEN = {
    "none": ([0.04313726, 0.002745098, 0.16470589], [139, 109, 243], [0, 0, 1, 1, 2, 2]),
    "own": ([0.001568627, 0.009803922, 0.17647059], [64, 153, 227], [0, 2, 0, 1, 2, 1]),
}


@pytest.mark.parametrize("permute", GOLDEN)
def test_scales_and_zero_points_are_those_of_the_papers_code(permute):
    scales, zeros, group_of = GOLDEN[permute]
    model, address = dense_on(X, grouped(3, permute=permute, symmetric=False))
    quantizer = model.quantizers[address]
    params = QuantParams.of(quantizer.site, quantizer)
    np.testing.assert_array_equal(quantizer.group_of, group_of)
    np.testing.assert_allclose(params.scale, np.float32(scales)[group_of], rtol=1e-6)
    np.testing.assert_array_equal(params.zero, np.array(zeros)[group_of])
    scale, zero = np.float64(scales)[group_of], np.array(zeros)[group_of]
    expected = (np.clip(np.rint(X / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(model(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(40, 8), (3, 7, 8)])
def test_every_dimension_is_rounded_to_its_own_range(symmetric, shape):
    x = (RNG.normal(size=shape) * np.geomspace(0.01, 100, 8)).astype(np.float32)
    model, address = dense_on(x, QuantSpec(granularity="per_embedding", symmetric=symmetric))
    rows = x.reshape(-1, 8)
    lower, upper = model.ranges()[address]
    amax = np.abs(rows).max(0)
    np.testing.assert_array_equal(lower, -amax if symmetric else np.minimum(rows.min(0), 0))
    np.testing.assert_array_equal(upper, amax if symmetric else np.maximum(rows.max(0), 0))
    expected = formula(x, lower, upper, model.plan.sites[0].spec.grid, (x.ndim - 1,))
    assert (np.abs(model(x) - expected) <= 1e-6 * (upper - lower)).all()  # a step is 1/255 of that


def test_sorted_groups_lose_less_than_one_range_where_few_dimensions_dwarf_the_rest():
    x = RNG.normal(size=(200, 24)).astype(np.float32)
    x[:, [3, 17]] *= 100
    usual = [j for j in range(24) if j not in (3, 17)]
    errors = []
    for spec in (grouped(6, permute="own"), grouped(6), QuantSpec()):
        model, _ = dense_on(x, spec)
        errors.append(np.square(model(x).numpy() - x)[:, usual].mean())
    assert errors[0] < 0.5 * errors[1] and errors[1] < errors[2]


def test_shared_groups_follow_the_ranges_of_the_feed_forward_output_without_padding(shared, bert):
    addresses = [site.address for site in shared.plan.sites]
    seen = at_edges(shared, bert.batches, sorted({*addresses, FFN.format(0), FFN.format(1)}))
    for site in shared.plan.sites:
        quantizer, source, own = (
            shared.quantizers[site.address],
            seen[site.order],
            seen[site.address],
        )
        order = np.argsort(source.max(0) - source.min(0), kind="stable")
        for group, dimensions in enumerate(order.reshape(4, 4)):
            assert set(np.flatnonzero(quantizer.group_of.numpy() == group)) == set(dimensions)
            np.testing.assert_allclose(
                quantizer.lower[group], min(own[:, dimensions].min(), 0), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                quantizer.upper[group], max(own[:, dimensions].max(), 0), rtol=1e-5, atol=1e-6
            )


def test_what_orders_a_layer_is_observed_also_where_it_is_no_site(bert):
    recipe = one_rule(grouped(permute="shared"), path="*/intermediate/dense")
    model = tfquant.quantize(bert.model, recipe)
    calibration = tfquant.calibrate(model, bert.batches, progress=False)
    assert set(calibration.dimensions) == {FFN.format(0), FFN.format(1)}
    assert [site.grouping.order for site in calibration.values()] == [FFN.format(0), FFN.format(1)]


def test_nan_at_a_grouped_site_is_refused_with_site_and_batch(bert):
    x = X.copy()
    x[1, 4] = np.nan
    model, address = dense_on(X, grouped(3))
    with pytest.raises(NonFiniteError, match=f"{address}: NaN or Inf in calibration batch 1"):
        tfquant.calibrate(model, [X, x], progress=False)


def test_dimensions_of_sites_with_one_range_are_kept_when_asked_for(bert, tmp_path):
    model = tfquant.quantize(bert.model, "int8_residual")
    plain = tfquant.calibrate(model, bert.batches, progress=False)
    assert not plain.dimensions
    kept = tfquant.calibrate(model, bert.batches, progress=False, dimensions=True)
    assert kept.dimensions.keys() == {
        s.address for s in model.plan.sites if not s.is_weight and s.port != "probabilities"
    }
    for address, site in plain.items():
        assert site.equals(kept[address])
        if address in kept.dimensions:
            found = kept.dimension_statistics(address)
            assert (
                found.maximum.max() == site.statistics.maximum
                and found.minimum.min() == site.statistics.minimum
            )
    report = tfquant.outlier_report(kept, tmp_path)
    assert len(report.plots) == len(report.sites) == len(kept.dimensions)


# State


def test_a_site_without_groups_is_not_calibrated():
    model, address = dense_on(X, grouped(3))
    quantizer = tfquant.quantizer.Quantizer(model.plan.sites[0])
    assert not quantizer.calibrated
    for group_of, message in (
        (None, "range has no groups"),
        ([0, 0, 0, 1, 2, 2], "must assign 6 dimensions to 3 groups"),
    ):
        with pytest.raises(ValueError, match=message):
            quantizer.set_range(np.zeros(3), np.ones(3), group_of)
    quantizer.set_range(-np.ones(3), np.ones(3), [2, 2, 0, 0, 1, 1])
    assert quantizer.calibrated


def test_a_checkpoint_gives_groups_and_answers_back_to_the_last_bit(shared, bert, tmp_path):
    tfquant.save(shared, tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", models.own_bert(2).model)
    names = set(tf.train.load_checkpoint(str(tmp_path / "model")).get_variable_to_shape_map())
    assert f"tfquant/ranges/{shared.plan.sites[0].address}/group_of" in names
    for name, logits in shared(bert.batches[0]).items():
        np.testing.assert_array_equal(loaded(bert.batches[0])[name], logits)


# test_training_moves_the_one_learned_range_of_each_group stands for it.
@pytest.mark.long
def test_a_checkpoint_of_frozen_groups_can_be_loaded_to_learn_them(shared, bert, tmp_path):
    tfquant.save(shared, tmp_path / "model")
    change = lambda recipe: recipe.with_spec(roles=["*"], update="lsq")  # noqa: E731
    loaded = tfquant.load(tmp_path / "model", models.own_bert(2).model, change=change)
    assert sum(v.path.endswith("/step") for v in loaded.trainable_variables) == 6
    for name, logits in shared(bert.batches[0]).items():
        np.testing.assert_allclose(loaded(bert.batches[0])[name], logits, rtol=1e-3, atol=1e-3)


def test_packed_files_hold_groups(shared, bert, tmp_path):
    tfquant.export(shared, tmp_path / "model.safetensors", target="packed")
    loaded = tfquant.load_packed(tmp_path / "model.safetensors", models.own_bert(2).model)
    for name, logits in shared(bert.batches[0]).items():
        np.testing.assert_array_equal(loaded(bert.batches[0])[name], logits)


def test_a_calibration_with_other_groups_is_refused_and_changes_nothing(shared, bert):
    calibration, before = shared.calibration, shared.ranges()
    with pytest.raises(
        ValueError,
        match=(
            "the calibration has 4 groups of 16 dimensions sorted by .*, the recipe wants .*"
            " nothing"
        ),
    ):
        tfquant.apply(tfquant.quantize(bert.model, paper()), calibration)
    again = tfquant.quantize(bert.model, paper(permute="shared"), calibration)
    for address, ends in again.ranges().items():
        np.testing.assert_array_equal(ends, before[address])


# Training

DATA = (
    (RNG.normal(size=(64, 8)) * np.geomspace(0.1, 10, 8)).astype(np.float32),
    RNG.normal(size=(64, 1)).astype(np.float32),
)


def trained(update: str, steps: int = 30, **changes) -> tuple[dict, dict, list[float]]:
    keras.utils.set_random_seed(3)
    inputs = keras.Input([8])
    model = keras.Model(inputs, keras.layers.Dense(1, name="dense")(inputs))
    spec = grouped(4, format="int4", update=update, permute="own", **changes)
    quantized = tfquant.quantize(model, one_rule(spec), [DATA[0]], progress=False)
    before = quantized.ranges()
    quantized.compile(keras.optimizers.Adam(1e-2), loss="mse")
    losses = quantized.fit(*DATA, epochs=steps, batch_size=64, verbose=0).history["loss"]
    return before, quantized.ranges(), losses


@pytest.mark.representatives("tqt-True")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("update", few(["lsq", "tqt"], ("tqt",)))
def test_training_moves_the_one_learned_range_of_each_group(update, symmetric):
    before, after, losses = trained(update, symmetric=symmetric)
    ((_, first),), ((lower, last),) = before.values(), after.values()
    assert first.shape == last.shape == (4,)
    assert (first != last).all() and np.isfinite(last).all() and (lower <= 0).all()
    assert losses[-1] < losses[0]


def test_the_gradient_of_a_groups_range_is_the_sum_over_its_dimensions():
    model, address = dense_on(X, grouped(3, permute="own", update="tqt"))
    each, other = dense_on(X, QuantSpec(granularity="per_embedding", update="tqt"))
    quantizer, single = model.quantizers[address], each.quantizers[other]
    single.set_range(*(end.numpy() for end in quantizer.range()))
    gradients = []
    for one in (quantizer, single):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(one(tf.constant(0.7 * X)) * X)
        gradients.append(tape.gradient(loss, one.learned.value).numpy())
    np.testing.assert_allclose(
        gradients[0], np.bincount(quantizer.group_of, gradients[1]), rtol=1e-4
    )


def test_moving_ranges_of_groups_follow_the_extremes_of_each_batch():
    model, address = dense_on(
        X, grouped(3, permute="own", update="moving_average", decay=0.5, symmetric=False)
    )
    quantizer = model.quantizers[address]
    before = quantizer.upper.numpy()
    quantizer(tf.constant(3 * X), training=True)
    np.testing.assert_allclose(quantizer.upper, 2 * before, rtol=1e-6)  # half way from 1 to 3


def test_gradients_pass_inside_each_dimensions_range_alone():
    model, address = dense_on(X, QuantSpec(granularity="per_embedding"))
    amax, x = np.abs(X).max(0), tf.constant(1.5 * X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model.quantizers[address](x)
    np.testing.assert_array_equal(tape.gradient(y, x), np.abs(x) <= amax)


def test_calibration_statistics_are_of_the_float_network(shared, bert):
    assert isinstance(shared.calibration, calib.Calibration)
    again = tfquant.calibrate(shared, bert.batches, progress=False)  # its sites quantize now
    assert again.equals(shared.calibration) and shared.calibrated

"""Formats fitted to the tensor: levels, boundaries and codes against loops over groups in NumPy;
gradients, transforms, and the sites that have them.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.core.conftest import bert_batch, two_dense_layers
from tfquant import fitted, formats, ptq
from tfquant.error_decay import derivative, t_at
from tfquant.formats import fitted as levels_module
from tfquant.graph.plan import RecipeError
from tfquant.layout import Layout
from tfquant.rules import Recipe, Rule
from tfquant.scale import Scale, rounded_to
from tfquant.site import Site
from tfquant.spec import QuantSpec
from tfquant.transforms import transformed

BINARY, TERNARY = QuantSpec("binary", "per_channel"), QuantSpec("ternary", "per_channel")
BLOCKS = Layout("per_block", block_size=4)
IRNET = tfquant.recipe("irnet").rules[0].spec


def reference(group: np.ndarray, format: str, unsigned: bool = False, source: str = "dynamic"):
    """(rounded values, scale) of one group of elements, float64 sums, one element after another."""
    magnitudes = [abs(float(v)) for v in group]
    if not np.isfinite(magnitudes).all():
        return np.full(group.shape, np.nan), np.nan
    mean = sum(magnitudes) / len(magnitudes)
    if format == "ternary":
        boundary = np.float32(0.7) * mean
        kept = [m for m in magnitudes if m > boundary]
        scale = sum(kept) / len(kept) if kept else 0.0
        signs = np.where(np.array(magnitudes) > boundary, np.sign(group), 0)
        return (signs * scale).clip(0 if unsigned else None), scale
    if unsigned:
        kept = [v for v in group if v >= mean]
        scale = sum(kept) / len(kept)
        return np.array([scale if v >= mean else 0.0 for v in group]), scale
    scale = 1.0 if source == "none" else mean
    return np.array([scale if v >= 0 else -scale for v in group]), scale


def array(shape=(7, 12), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def site_of(spec: QuantSpec, shape, channel_axes=(), role="weight") -> Site:
    port = "kernel" if role == "weight" else "input"
    return Site(role, "layer", port, spec, "rule", tuple(shape), channel_axes)


def rounded(x: np.ndarray, spec: QuantSpec, channel_axes=(), role="weight") -> np.ndarray:
    site = site_of(spec, x.shape, channel_axes, role)
    return fitted.quantize_dequantize(tf.constant(x), site).numpy()


# Levels


@pytest.mark.parametrize("format", ["binary", "ternary"])
def test_every_channel_is_rounded_to_levels_of_its_own(format):
    x = array()
    x[:, 3] = 0.0
    x[:, 4] = 0.25  # one magnitude
    x[:, 5] = [0, -0.0, 1, -1, 2, -2, 0.5]
    y = rounded(x, QuantSpec(format, "per_channel"), (1,))
    for column in range(x.shape[1]):
        expected, _ = reference(x[:, column], format)
        np.testing.assert_allclose(y[:, column], expected, rtol=2e-6, atol=1e-30)
    np.testing.assert_array_equal(y[:, 3], 0)
    np.testing.assert_array_equal(y[:, 4], np.float32(0.25))
    whole, _ = reference(x.reshape(-1), format)
    np.testing.assert_allclose(rounded(x, QuantSpec(format)).reshape(-1), whole, rtol=2e-6)


def test_the_sign_of_zero_is_plus_and_a_magnitude_on_the_ternary_boundary_is_zero():
    x = np.array([0.0, -0.0, -1.0, 1.0], np.float32)
    np.testing.assert_array_equal(rounded(x, QuantSpec("binary")), [0.5, 0.5, -0.5, 0.5])
    np.testing.assert_array_equal(rounded(x, QuantSpec("binary", source="none")), [1, 1, -1, 1])
    boundary = levels_module.mean_magnitude(tf.constant(x), [0]) * 0.7
    assert boundary.numpy() == np.float32(0.35)
    x = np.array([0.35, -0.35, np.nextafter(np.float32(0.35), 1), 0.95 + 0.35], np.float32)
    levels = formats.fitted_format("ternary").fit(
        tf.constant([0.0, 0.0, -1.0, 1.0]), [0], Scale(source="dynamic")
    )
    y = levels_module.rounded(tf.constant(x), levels).numpy()
    np.testing.assert_array_equal(y, [0, 0, 1, 1])


@pytest.mark.parametrize("format", ["binary", "ternary"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_group_that_holds_nan_or_infinity_becomes_nan_and_no_other(format, broken):
    x = array()
    x[2, 6] = broken
    y = rounded(x, QuantSpec(format, "per_channel"), (1,))
    assert np.isnan(y[:, 6]).all()
    assert np.isfinite(np.delete(y, 6, 1)).all()


def test_without_a_scale_only_nan_itself_stays_nan():
    x = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    np.testing.assert_array_equal(
        rounded(x, QuantSpec("binary", source="none")), [np.nan, 1, -1, 1]
    )


@pytest.mark.parametrize("format", ["binary", "ternary"])
def test_tensors_without_a_sign_have_zero_and_one_value(format):
    x = np.abs(array((40,)))
    y = rounded(x, QuantSpec(format, unsigned=True), role="linear_input")
    expected, _ = reference(x, format, unsigned=True)
    np.testing.assert_allclose(y, expected, rtol=2e-6)
    half = np.array([0.0, 0.49, 0.5, 3.0], np.float32)
    spec = QuantSpec("binary", unsigned=True, source="none")
    np.testing.assert_array_equal(rounded(half, spec, role="linear_input"), [0, 0, 1, 1])


def test_the_binary_scale_is_the_least_squares_one():
    x = array((50,), 3)
    y = rounded(x, QuantSpec("binary"))
    best = np.square(x - y).sum()
    for factor in np.linspace(0.5, 1.5, 101):
        assert np.square(x - factor * y).sum() >= best * (1 - 1e-6)
    small = array((8,), 4)  # and no other signs do better
    own = np.square(small - rounded(small, QuantSpec("binary"))).sum()
    for signs in itertools.product([-1.0, 1.0], repeat=8):
        scale = max(np.dot(signs, small) / 8, 0.0)
        assert np.square(small - scale * np.array(signs)).sum() >= own * (1 - 1e-6)


def test_the_ternary_scale_is_the_least_squares_one_of_its_signs():
    x = array((50,), 5)
    y = rounded(x, QuantSpec("ternary"))
    signs = np.sign(y)
    np.testing.assert_allclose(y.max(), np.dot(signs, x) / np.dot(signs, signs), rtol=1e-5)


@pytest.mark.parametrize("format", ["binary", "ternary"])
def test_rounding_twice_changes_no_bit(format):
    x = array((300, 9), 6)
    spec = QuantSpec(format, "per_channel")
    once = rounded(x, spec, (1,))
    np.testing.assert_array_equal(rounded(once, spec, (1,)), once)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_have_levels_of_their_own_and_the_last_may_be_shorter(axis):
    x = array((7, 10))
    spec = QuantSpec("ternary", "per_block", block_size=4)
    site = dataclasses.replace(site_of(spec, x.shape), block_axis=axis - 2)
    y = fitted.quantize_dequantize(tf.constant(x), site).numpy()
    moved_x, moved_y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    for row_x, row_y in zip(moved_x, moved_y, strict=True):
        for start in range(0, row_x.size, 4):
            expected, _ = reference(row_x[start : start + 4], "ternary")
            np.testing.assert_allclose(row_y[start : start + 4], expected, rtol=2e-6)


def test_codes_decode_to_the_rounded_values():
    x = array((6, 20))
    levels = formats.fitted_format("ternary").fit(tf.constant(x), [1], Scale(source="dynamic"))
    values, thresholds = (part.numpy() for part in levels)
    assert values.shape == (6, 1, 3) and thresholds.shape == (6, 1, 2)
    codes = levels_module.encode(x, thresholds)
    assert set(np.unique(codes)) == {0, 1, 2}
    np.testing.assert_array_equal(levels_module.decode(codes, values), rounded(x, TERNARY, (0,)))


def test_scales_round_to_the_nearest_power_of_two_in_the_logarithm():
    scale = np.exp2(np.linspace(-20, 20, 4001)).astype(np.float32)
    result = rounded_to(tf.constant(scale), "nearest_power_of_two").numpy()
    np.testing.assert_array_equal(result, np.exp2(np.rint(np.log2(scale.astype(np.float64)))))


# Transforms and gradients


def test_standardized_weights_are_those_of_ir_net():
    w = array((30, 4)) * 0.02 + 0.01
    y = rounded(w, IRNET, (1,))
    for column in range(4):
        row = w[:, column].astype(np.float64)
        hat = (row - row.mean()) / row.std(ddof=1)
        scale = 2.0 ** round(np.log2(np.abs(hat).mean()))
        np.testing.assert_array_equal(y[:, column], np.where(hat >= 0, scale, -scale))
    np.testing.assert_array_equal(rounded(np.full((5, 2), 0.5, np.float32), IRNET, (1,)), 0)


def test_centered_weights_round_around_their_mean():
    w = array((30, 4)) + 0.3
    y = rounded(w, dataclasses.replace(BINARY, transform="center"), (1,))
    centered = w - w.mean(0)
    expected = np.abs(centered).mean(0) * np.where(centered >= 0, 1, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def gradient_of(x, spec, dy, channel_axes=(1,), role="weight", t=None):
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        decay = None if t is None else tf.constant(t)
        site = site_of(spec, x.shape, channel_axes, role)
        y = fitted.quantize_dequantize(tf.convert_to_tensor(variable), site, decay=decay)
        loss = tf.reduce_sum(y * dy)
    return tape.gradient(loss, variable).numpy()


def test_clipped_gradients_end_at_one_for_parameters_and_at_the_levels_for_activations():
    x = np.array([[-1.5], [-1.0], [0.2], [1.0], [1.1]], np.float32)
    dy = np.arange(1, 6, dtype=np.float32)[:, None]
    kinds = {"inclusive": [0, 2, 3, 4, 0], "strict": [0, 0, 3, 0, 0], "identity": [1, 2, 3, 4, 5]}
    for ste, expected in kinds.items():
        for options in ({}, {"source": "none"}):
            spec = QuantSpec("binary", "per_channel", ste=ste, **options)
            np.testing.assert_array_equal(gradient_of(x, spec, dy)[:, 0], expected)
    mean = np.abs(x).mean()  # 0.96
    inside = np.abs(x) <= mean
    spec = QuantSpec("binary")
    np.testing.assert_array_equal(
        gradient_of(x, spec, dy, (), role="linear_input"), np.where(inside, dy, 0)
    )


def test_the_gradient_of_ir_net_goes_through_the_standardization():
    w, dy, t = array((30, 4), 1) * 0.02, array((30, 4), 2), 0.8
    result = gradient_of(w, IRNET, dy, t=t)
    for column in range(4):
        row, g = w[:, column].astype(np.float64), dy[:, column].astype(np.float64)
        n, std = row.size, row.std(ddof=1)
        hat = (row - row.mean()) / std
        scale = 2.0 ** round(np.log2(np.abs(hat).mean()))
        inner = g * scale * max(1 / t, 1) * t * (1 - np.tanh(t * hat) ** 2)
        expected = (inner - inner.mean() - hat * (inner * hat).sum() / (n - 1)) / std
        np.testing.assert_allclose(result[:, column], expected, rtol=1e-4, atol=1e-4)


def test_the_error_decay_schedule_is_geometric():
    epochs = [t_at(i, 10) for i in range(11)]
    expected = [0.1, 0.1585, 0.2512, 0.3981, 0.6310, 1.0, 1.585, 2.512, 3.981, 6.310, 10.0]
    np.testing.assert_allclose(epochs, expected, rtol=1e-3)
    assert t_at(12, 10) == 10.0
    for t in (0.1, 1.0, 10.0):
        x = np.linspace(-2, 2, 21)
        k = max(1 / t, 1)
        slope = derivative(tf.constant(x, tf.float32), tf.constant(t)).numpy()
        np.testing.assert_allclose(slope, k * t * (1 - np.tanh(t * x) ** 2), rtol=1e-3, atol=1e-5)


def test_transforms_of_equal_elements_have_finite_gradients():
    for kind in ("center", "standardize"):
        x = tf.Variable(tf.fill([4, 2], 0.3))
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(transformed(x, kind, [0]))
        assert np.isfinite(tape.gradient(y, x)).all()


# Sites


def weights(spec: QuantSpec) -> Recipe:
    return Recipe((Rule(spec, "weight"),), name="weights")


@pytest.mark.parametrize("spec", [BINARY, TERNARY, QuantSpec("ternary")])
def test_a_model_needs_no_calibration_and_computes_and_trains_what_numpy_does(spec):
    model = two_dense_layers()
    x = array((10, 6))
    quantized = tfquant.quantize(model, weights(spec))
    assert quantized.calibrated and not quantized.quantizers
    kernels = [v.numpy() for v in model.weights[::2]]
    biases = [v.numpy() for v in model.weights[1::2]]
    groups = [
        np.stack([reference(c, spec.format)[0] for c in k.T], 1)
        if spec.granularity == "per_channel"
        else reference(k.reshape(-1), spec.format)[0].reshape(k.shape)
        for k in kernels
    ]
    hidden = np.maximum(x @ groups[0] + biases[0], 0)
    np.testing.assert_allclose(quantized(x), hidden @ groups[1] + biases[1], rtol=1e-4, atol=1e-5)
    # Straight through: the gradient of the latent kernel is that of the rounded one.
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(x, training=True))
    gradient = tape.gradient(loss, quantized.trainable_variables[2])
    np.testing.assert_allclose(gradient, hidden.T @ np.ones((10, 3)), rtol=1e-4, atol=1e-5)


def test_weights_follow_training():
    model = two_dense_layers()
    quantized = tfquant.quantize(model, weights(BINARY))
    x = array((10, 6))
    before = quantized(x).numpy()
    model.weights[0].assign(-model.weights[0])
    assert np.abs(quantized(x).numpy() - before).max() > 1e-3


def test_padding_does_not_count_for_activations(tiny_bert_config):
    import modeling

    model = modeling.build_squad_model(tiny_bert_config)
    batch = bert_batch([4, 6], 6)
    recipe = Recipe((Rule(QuantSpec("binary", unsigned="auto"), "linear_input"),), name="inputs")
    quantized = tfquant.quantize(model, recipe)
    wide = {name: np.pad(value, [(0, 0), (0, 5)]) for name, value in batch.items()}
    narrow_result, wide_result = (tf.nest.flatten(quantized(b)) for b in (batch, wide))
    real = batch["input_mask"].astype(bool)
    for one, two in zip(narrow_result, wide_result, strict=True):
        one, two = one.numpy()[real], two.numpy()[:, :6][real]
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def test_tables_are_fitted_row_by_row():
    table = tf.Variable(array((9, 6)), name="table")
    spec = QuantSpec("ternary", "per_token")
    quantized = tfquant.quantize(
        lambda ids: tf.gather(table, ids),
        Recipe((Rule(spec, "embedding"),), name="table"),
        signature=tf.TensorSpec([None], tf.int32),
    )
    expected = np.stack([reference(row, "ternary")[0] for row in table.numpy()])
    np.testing.assert_allclose(quantized(tf.constant([3, 1])), expected[[3, 1]], rtol=2e-6)
    with pytest.raises(RecipeError, match="rows are looked up: set granularity: per_token"):
        tfquant.plan(
            lambda ids: tf.gather(table, ids),
            Recipe((Rule(QuantSpec("ternary"), "embedding"),), name="table"),
            signature=tf.TensorSpec([None], tf.int32),
        )


# Specs


@pytest.mark.parametrize(
    "spec",
    [
        BINARY,
        IRNET,
        QuantSpec("ternary", unsigned="auto"),
        QuantSpec("binary", source="none"),
        QuantSpec("binary", update="elastic"),
    ],
)
def test_specs_survive_files(spec):
    recipe = weights(spec)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_any_recipe_takes_the_formats_without_further_fields():
    recipe = tfquant.recipe("w4a8_residual").with_spec(
        roles=["weight"], format="binary", update="frozen"
    )
    spec = recipe.rules[0].spec
    assert spec.source == "dynamic" and spec.method.name == "max"
    assert QuantSpec("int8").to_dict().keys().isdisjoint({"transform"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(format="binary", symmetric=False), "no zero point: set symmetric: true"),
        (dict(format="ternary", narrow_range=False), "set narrow_range: true"),
        (dict(format="binary", quant_max=2.0), "leave out quant_max"),
        (dict(format="ternary", source="delayed"), "set source: dynamic"),
        (dict(format="ternary", source="none"), "ternary values have a scale"),
        (dict(format="binary", update="lsq"), "leave out update 'lsq'"),
        (dict(format="binary", granularity="per_embedding_group", groups=2), "per_embedding_group"),
        (dict(format="ternary", ste="error_decay"), "set format: binary, got ternary"),
        (dict(format="binary", ste="error_decay", unsigned="auto"), "set unsigned: false"),
        (dict(format="int8", ste="error_decay"), "such as binary; got int8"),
        (dict(format="int8", transform="center"), "transform is for formats that are fitted"),
        (
            dict(format="binary", granularity="per_block", block_size=4, transform="center"),
            "blocks",
        ),
        (dict(format="binary", transform="whiten"), "unknown transform 'whiten'; known: none"),
        (dict(source="none", scale_format="power_of_two"), "source: none has none"),
        (dict(format="ternary", update="elastic"), "set format: binary, got 'ternary'"),
        (dict(format="binary", update="elastic", dynamic=True), "one scale and one shift"),
        (dict(format="binary", granularity="per_token", update="elastic"), "one scale and one"),
        (dict(format="binary", update="elastic", ste="strict"), "a gradient of its own"),
    ],
)
def test_what_a_fitted_format_cannot_have_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**fields)


def test_activations_are_not_transformed():
    rule = Rule(QuantSpec("binary", transform="center"), "linear_input")
    with pytest.raises(RecipeError, match="which is for parameters: leave it out"):
        tfquant.plan(two_dense_layers(), Recipe((rule,), name="inputs"))


def test_rounding_methods_refuse_weights_that_follow_training():
    model = tfquant.quantize(two_dense_layers(), weights(BINARY))
    with pytest.raises(ValueError, match="first:weight:kernel: its binary values are fitted to it"):
        ptq.adaround(model, [array((4, 6))], progress=False)


def test_a_fitted_codebook_has_no_values():
    with pytest.raises(TypeError, match="binary has no values in units of a scale"):
        print(BINARY.codebook.quant_max)
    with pytest.raises(TypeError, match="fitted to the tensor"):
        formats.of(BINARY.codebook)

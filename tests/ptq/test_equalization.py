"""Channels are rescaled between parameters.

The float network stays what it was, ranges become what the formulas say.
"""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from calib import NonFiniteError
from tests.graph import models
from tfquant.ptq import equalize, rescale
from tfquant.ptq.equalization import factors

QUIET = dict(progress=False)
RNG = np.random.default_rng(5)


def randomised(model, seed: int = 3):
    """The model with numbers in all its variables, biases and layer norms among them, that differ
    from channel to channel.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype.kind == "f" and "moving" not in variable.name:
            shift = 1.0 if "gamma" in variable.name else 0.0
            variable.assign((shift + 0.3 * rng.normal(size=value.shape)).astype(value.dtype))
    return model


def flat(case: models.Case) -> list[np.ndarray]:
    return [
        np.asarray(t, np.float64) for batch in case.batches for t in case.run(case.model, batch)
    ]


def difference(before, after) -> float:
    """Largest, as a share of the spread."""
    return max(float(np.abs(b - a).max() / np.ptp(a)) for a, b in zip(before, after, strict=True))


def names(report, kind: str = "") -> list[str]:
    return [pair.name for pair in report.pairs if pair.name.startswith(kind)]


def dense_chain(*layers: tuple, size: int = 6) -> keras.Model:
    inputs = keras.Input((size,), name="x")
    x = inputs
    for name, units, activation in layers:
        x = keras.layers.Dense(units, activation, name=name)(x)
    return randomised(keras.Model(inputs, x))


RELU = (("first", 8, "relu"), ("second", 5, "relu"), ("third", 3, None))


def variables_of(model) -> list[np.ndarray]:
    return [np.array(v) for v in model.variables]


def unchanged(model, before) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(variables_of(model), before, strict=True))


# The float network stays what it was

BLOCK = "subclassed/block_0"
PAIRS = {
    "own_bert": [
        "query_key:bert/encoder/layer_0/attention/self",
        "value:bert/encoder/layer_0/attention/self/value",
        "layernorm:bert/encoder/layer_0/output/LayerNorm",
    ],
    "hub_bert": [
        "query_key:transformer_layer_0/self_attention_layer",
        "value:transformer_layer_0/self_attention_layer/value",
    ],
    "functional": ["query_key:mha", "value:mha/value", "layernorm:norm2"],
    "subclassed": [
        f"query_key:{BLOCK}/attention",
        f"value:{BLOCK}/attention/value",
        f"layernorm:{BLOCK}/norm1",
        f"layernorm:{BLOCK}/norm2",
        "layernorm:subclassed/final_norm",
    ],
    "written_out_attention": ["query_key:attention", "value:attention/wv"],
    "sequential": ["linear:sequential/first"],
    "tf_keras_functional": ["query_key:mha", "value:mha/value", "layernorm:norm2"],
}


@pytest.mark.representatives(
    "hub_bert", "subclassed", "tf_keras_functional", "written_out_attention", "sequential"
)
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_stay_what_they_were_whatever_the_model_is_made_of(name):
    case = getattr(models, name)()
    case.run(case.model, case.batches[0])
    randomised(case.model)
    exact, before = flat(case), variables_of(case.model)
    report = equalize(case.model, case.batches, **QUIET)
    assert names(report) == PAIRS[name]
    assert difference(exact, flat(case)) <= 1e-5 and report.difference <= 1e-5
    changed = sum(
        not np.array_equal(a, b) for a, b in zip(variables_of(case.model), before, strict=True)
    )
    assert changed >= 2 * len(report.pairs)
    assert all(np.ptp(pair.factors) > 0.1 for pair in report.pairs)


@pytest.mark.representatives("subclassed")
@pytest.mark.parametrize("name", ["own_bert", "subclassed"])
def test_with_powers_of_two_no_bit_of_an_output_changes(name):
    case = getattr(models, name)()
    case.run(case.model, case.batches[0])
    randomised(case.model)
    exact = flat(case)
    report = equalize(case.model, case.batches, powers_of_two=True, **QUIET)
    for a, b in zip(exact, flat(case), strict=True):
        np.testing.assert_array_equal(a, b)
    for pair in report.pairs:
        np.testing.assert_array_equal(np.log2(pair.factors) % 1, 0)
    assert sum((pair.factors != 1).any() for pair in report.pairs) > 1


def test_weights_alone_will_do_and_need_no_data():
    case = models.own_bert()
    randomised(case.model)
    exact = flat(case)
    report = equalize(case.model, method="cross_layer", **QUIET)
    assert names(report) == PAIRS["own_bert"] and difference(exact, flat(case)) <= 1e-5
    assert all(pair.activation is None for pair in report.pairs)


def test_a_convolution_and_its_bias_are_rescaled_by_channel():
    inputs = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="one")(inputs)
    model = randomised(
        keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same", name="two")(x))
    )
    x = RNG.normal(size=(3, 6, 6, 3)).astype(np.float32)
    exact, kernel = model(x).numpy(), model.get_layer("two").kernel.numpy()
    report = equalize(model, [x], **QUIET)
    assert difference([exact], [model(x).numpy()]) <= 1e-5
    np.testing.assert_allclose(
        model.get_layer("two").kernel,
        kernel * report.pair("linear:one").factors[:, None],
        rtol=1e-6,
    )


def test_channels_that_do_not_follow_from_axes_are_refused_beside_others():
    inputs = keras.Input((6, 6, 3), name="image")
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(inputs)
    x = keras.layers.Conv2D(4, 1, activation="relu", name="one")(x)
    model = randomised(keras.Model(inputs, keras.layers.Conv2D(2, 1, name="two")(x)))
    x = RNG.normal(size=(3, 6, 6, 3)).astype(np.float32)
    exact = model(x).numpy()
    report = equalize(model, [x], **QUIET)
    assert names(report) == ["linear:one"] and difference([exact], [model(x).numpy()]) <= 1e-5
    ((name, reason),) = report.skipped
    assert name == "linear:depthwise" and "channels that do not follow from its axes" in reason


def test_a_function_over_its_own_variables_is_rescaled():
    a, b = (tf.Variable(RNG.normal(size=(5, 5)).astype(np.float32)) for _ in range(2))
    x = RNG.normal(size=(7, 5)).astype(np.float32)
    function = lambda x: tf.nn.relu(x @ a) @ b  # noqa: E731
    exact = function(x).numpy()
    equalize(function, [(x,)], **QUIET)
    assert difference([exact], [function(x).numpy()]) <= 1e-5


# Ranges are what the formulas say


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothquant_divides_by_its_factors_and_multiplies_the_next_weights(alpha):
    model = dense_chain(*RELU[:2])
    first, second = (model.get_layer(name) for name in ("first", "second"))
    kernel, bias, following = first.kernel.numpy(), first.bias.numpy(), second.kernel.numpy()
    batches = [RNG.normal(size=(9, 6)).astype(np.float32) for _ in range(2)]
    activation = np.maximum(np.concatenate(batches) @ kernel + bias, 0).max(0)
    expected = activation**alpha / np.abs(following).max(1) ** (1 - alpha)
    report = equalize(model, batches, alpha=alpha, **QUIET)
    (pair,) = report.pairs
    np.testing.assert_allclose(pair.factors, expected, rtol=1e-5)
    np.testing.assert_allclose(pair.activation, activation, rtol=1e-5)
    np.testing.assert_allclose(first.kernel, kernel / expected, rtol=1e-5)
    np.testing.assert_allclose(first.bias, bias / expected, rtol=1e-5)
    np.testing.assert_allclose(second.kernel, following * expected[:, None], rtol=1e-5)


def test_a_layer_norm_is_smoothed_against_all_linears_that_take_it():
    inputs = keras.Input((None, 8), name="x")
    normed = keras.layers.LayerNormalization(name="norm")(inputs)
    outputs = [keras.layers.Dense(units, name=f"d{units}")(normed) for units in (3, 4)]
    model = randomised(keras.Model(inputs, outputs))
    norm = model.get_layer("norm")
    kernels = [model.get_layer(name).kernel.numpy() for name in ("d3", "d4")]
    x = (RNG.normal(size=(4, 5, 8)) * np.geomspace(0.1, 3, 8)).astype(np.float32)
    gamma, beta = norm.gamma.numpy(), norm.beta.numpy()
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.epsilon)
    amax = np.abs(standard * gamma + beta).max((0, 1))
    expected = np.sqrt(amax / np.abs(np.concatenate(kernels, 1)).max(1))
    report = equalize(model, [x], **QUIET)
    np.testing.assert_allclose(report.pair("layernorm:norm").factors, expected, rtol=1e-4)
    np.testing.assert_allclose(norm.gamma, gamma / expected, rtol=1e-4)
    np.testing.assert_allclose(norm.beta, beta / expected, rtol=1e-4)
    for name, kernel in zip(("d3", "d4"), kernels, strict=True):
        np.testing.assert_allclose(
            model.get_layer(name).kernel, kernel * expected[:, None], rtol=1e-4
        )


def attention_of(x: np.ndarray, layer: keras.layers.MultiHeadAttention) -> dict[str, np.ndarray]:
    """q, k, v and context [batch, tokens, heads, size] as Vaswani et al. 2017 have them."""
    dense = {"q": layer.query_dense, "k": layer.key_dense, "v": layer.value_dense}
    found = {
        n: np.einsum("bsd,dnh->bsnh", x, d.kernel.numpy()) + d.bias.numpy()
        for n, d in dense.items()
    }
    scores = np.einsum("bqnh,bknh->bnqk", found["q"], found["k"]) / np.sqrt(found["q"].shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return found | {"context": np.einsum("bnqk,bknh->bqnh", weights, found["v"])}


@pytest.mark.parametrize("length", [None, 6])
def test_heads_of_an_attention_are_rescaled_dimension_by_dimension(length):
    inputs = keras.Input((length, 16), name="x")
    layer = keras.layers.MultiHeadAttention(2, 4, name="mha")
    model = randomised(keras.Model(inputs, layer(inputs, inputs)))
    x = RNG.normal(size=(3, 6, 16)).astype(np.float32)
    before, output = attention_of(x, layer), layer.output_dense.kernel.numpy()
    query, value = (dense.kernel.numpy() for dense in (layer.query_dense, layer.value_dense))
    report = equalize(model, [x], **QUIET)
    after = attention_of(x, layer)
    amax = {name: np.abs(tensor).max((0, 1)) for name, tensor in before.items()}
    s = np.sqrt(amax["context"] / np.abs(output).max(-1))
    np.testing.assert_allclose(report.pair("value:mha/value").factors.reshape(2, 4), s, rtol=1e-4)
    np.testing.assert_allclose(layer.value_dense.kernel, value / s, rtol=1e-4)
    np.testing.assert_allclose(layer.output_dense.kernel, output * s[..., None], rtol=1e-4)
    np.testing.assert_allclose(after["context"], before["context"] / s, rtol=1e-3, atol=1e-5)
    both = np.sqrt(amax["q"] * amax["k"])
    for name in "qk":  # query and key have the same range then
        np.testing.assert_allclose(np.abs(after[name]).max((0, 1)), both, rtol=1e-4)
    np.testing.assert_allclose(layer.query_dense.kernel, query * (both / amax["q"]), rtol=1e-4)


def test_keys_of_an_odd_layout_meet_the_queries_that_they_are_multiplied_with():
    """Two projections to [tokens, size, heads] and [tokens, heads, size]."""
    inputs = keras.Input((None, 8), name="x")
    query = keras.layers.EinsumDense("bsd,dhn->bshn", (None, 4, 2), bias_axes="hn", name="query")(
        inputs
    )
    key = keras.layers.EinsumDense("bsd,dnh->bsnh", (None, 2, 4), bias_axes="nh", name="key")(
        inputs
    )
    scores = keras.ops.einsum("bqhn,bknh->bnqk", query, key)
    context = keras.ops.einsum("bnqk,bkd->bqnd", keras.ops.softmax(scores), inputs)
    model = randomised(keras.Model(inputs, keras.layers.Dense(3, name="head")(context)))
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    exact = model(x).numpy()
    report = equalize(model, [x], pairs="query_key", **QUIET)
    assert len(report.pairs) == 1 and np.ptp(report.pairs[0].factors) > 0.1
    assert difference([exact], [model(x).numpy()]) <= 1e-5


def test_cross_layer_equalization_makes_the_ranges_of_both_sides_equal():
    model = dense_chain(*RELU)
    model.get_layer("first").kernel.assign(
        model.get_layer("first").kernel * np.geomspace(0.01, 10, 8).astype(np.float32)
    )
    kernels = [model.get_layer(name).kernel.numpy() for name in ("first", "second", "third")]
    x = RNG.normal(size=(9, 6)).astype(np.float32)
    exact = model(x).numpy()
    report = equalize(model, method="cross_layer", **QUIET)
    assert difference([exact], [model(x).numpy()]) <= 1e-5
    after = [model.get_layer(name).kernel.numpy() for name in ("first", "second", "third")]
    for before, following in zip(after, after[1:], strict=False):
        np.testing.assert_allclose(np.abs(before).max(0), np.abs(following).max(1), rtol=1e-2)
    single = dense_chain(*RELU[:2])
    single.get_layer("first").kernel.assign(kernels[0])
    single.get_layer("second").kernel.assign(kernels[1])
    expected = np.sqrt(np.abs(kernels[0]).max(0) / np.abs(kernels[1]).max(1))
    np.testing.assert_allclose(
        equalize(single, method="cross_layer", **QUIET).pairs[0].factors, expected, rtol=1e-5
    )
    assert len(report.pairs) == 2


def test_padding_does_not_count():
    def found(fill: float) -> np.ndarray:
        case = models.functional()
        randomised(case.model)
        batches = [
            [np.where(mask[..., None], x, fill).astype(np.float32), mask]
            for x, mask in case.batches
        ]
        return (
            equalize(case.model, batches, pairs="query_key", mask="auto", **QUIET)
            .pairs[0]
            .activation
        )

    np.testing.assert_allclose(found(0.0), found(100.0), rtol=1e-5)


def test_channels_without_a_range_keep_theirs_and_factors_are_bounded():
    model = dense_chain(*RELU[:2])
    kernel, bias = model.get_layer("first").kernel.numpy(), model.get_layer("first").bias.numpy()
    kernel[:, 2], bias[2] = 0, -1  # never active
    kernel[:, 4] *= 1e9
    following = model.get_layer("second").kernel.numpy()
    following[5] = 0
    for name, value in (("kernel", kernel), ("bias", bias)):
        getattr(model.get_layer("first"), name).assign(value)
    model.get_layer("second").kernel.assign(following)
    report = equalize(
        model, [RNG.normal(size=(9, 6)).astype(np.float32)], max_factor=1000.0, **QUIET
    )
    found = report.pairs[0].factors
    assert found[2] == found[5] == 1 and found[4] == 1000
    np.testing.assert_array_equal(
        factors.bounded(np.array([1e-9, 3.0, 1e9]), 1000.0, True), [2.0**-9, 4.0, 512.0]
    )


def test_what_one_range_loses_for_a_few_wide_channels_comes_back():
    case = models.functional()
    randomised(case.model)
    exact = flat(case)
    recipe = tfquant.Recipe(
        (tfquant.Rule(tfquant.QuantSpec(), role="linear_input", path="mha/attention_output"),)
    )
    widened = {"value:mha/value": np.where(np.arange(16) == 5, 1 / 512, 1)}

    def lost() -> float:
        quantized = tfquant.quantize(case.model, recipe, calibration=case.batches, **QUIET)
        return difference(
            exact, [np.asarray(t) for batch in case.batches for t in case.run(quantized, batch)]
        )

    plain = lost()
    rescale(case.model, widened, case.batches, **QUIET)
    assert difference(exact, flat(case)) <= 1e-5
    wide = lost()
    equalize(case.model, case.batches, pairs="value", **QUIET)
    assert lost() < 1.5 * plain < 0.5 * wide


# What is none


def test_norms_whose_output_is_carried_past_layers_are_listed_with_the_reason():
    case = models.own_bert(2)
    report = equalize(case.model, method="cross_layer", **QUIET)
    left = dict(report.skipped)
    assert len(left) == 4 and names(report, "layernorm") == [
        "layernorm:bert/encoder/layer_1/output/LayerNorm"
    ]
    for path in (
        "bert/embeddings",
        "bert/encoder/layer_0/output",
        "bert/encoder/layer_0/attention/output",
    ):
        assert "a residual connection takes it past" in left[f"layernorm:{path}/LayerNorm"]
    assert "layernorm:bert/embeddings/LayerNorm: a residual connection" in str(report)
    with pytest.raises(KeyError, match="was not rescaled: a residual connection"):
        report.pair("layernorm:bert/embeddings/LayerNorm")


def test_outputs_of_the_model_and_half_precision_are_no_pairs():
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(4, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, [hidden, keras.layers.Dense(2, name="head")(hidden)])
    report = equalize(model, [np.ones((2, 6), np.float32)], **QUIET)
    assert report.pairs == () and report.skipped == (
        ("linear:hidden", "it is an output of the model"),
    )
    case = models.mixed_bfloat16()
    assert (
        "bfloat16" in dict(equalize(case.model, case.batches, **QUIET).skipped)["value:mha/value"]
    )


def test_rotated_queries_and_activations_that_are_not_homogeneous_are_no_pairs():
    inputs = keras.Input((5, 8), name="x")
    query, key = (
        keras_hub.layers.RotaryEmbedding()(keras.layers.Dense(8, name=name)(inputs))
        for name in ("query", "key")
    )
    scores = keras.ops.softmax(keras.ops.matmul(query, keras.ops.transpose(key, (0, 2, 1))))
    context = keras.ops.matmul(scores, keras.layers.Dense(8, name="value")(inputs))
    hidden = keras.layers.Dense(8, "gelu", name="up")(context)
    model = randomised(keras.Model(inputs, keras.layers.Dense(8, name="down")(hidden)))
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    exact = model(x).numpy()
    report = equalize(model, [x], **QUIET)
    assert names(report) == ["value:value"] and [
        name.partition(":")[0] for name, _ in report.skipped
    ] == ["query_key"]
    assert difference([exact], [model(x).numpy()]) <= 1e-5


def test_a_mean_over_channels_does_not_keep_them_apart():
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(5, "relu", name="hidden")(inputs)
    mixed = keras.ops.mean(hidden, axis=-1, keepdims=True)
    model = randomised(keras.Model(inputs, keras.layers.Dense(2, name="head")(mixed)))
    report = equalize(model, [np.ones((2, 6), np.float32)], **QUIET)
    ((name, reason),) = report.skipped
    assert name == "linear:hidden" and ("channels" in reason)


def test_a_layer_that_is_called_twice_is_refused():
    inputs = keras.Input((6,), name="x")
    shared = keras.layers.Dense(6, "relu", name="shared")
    model = randomised(
        keras.Model(inputs, keras.layers.Dense(2, name="head")(shared(shared(inputs))))
    )
    before = variables_of(model)
    report = equalize(model, [np.ones((2, 6), np.float32)], **QUIET)
    assert report.pairs == () and len(report.skipped) == 2 and unchanged(model, before)
    assert all(
        "is shared" in reason and "uses it as well" in reason for _, reason in report.skipped
    )


def test_a_tied_embedding_is_refused():
    ids = keras.Input((None,), dtype="int32", name="ids")
    embedding = keras_hub.layers.ReversibleEmbedding(20, 8, tie_weights=True, name="embedding")
    normed = keras.layers.LayerNormalization(name="norm")(embedding(ids))
    model = randomised(keras.Model(ids, embedding(normed, reverse=True)))
    before = variables_of(model)
    report = equalize(model, [np.arange(6, dtype=np.int32).reshape(2, 3)], **QUIET)
    ((name, reason),) = report.skipped
    assert (
        name == "layernorm:norm" and "embeddings is shared" in reason and unchanged(model, before)
    )


# Errors leave everything as it was


def test_a_difference_above_the_tolerance_is_undone():
    model = dense_chain(*RELU)
    before = variables_of(model)
    x = RNG.normal(size=(64, 6)).astype(np.float32)
    with pytest.raises(
        ValueError, match="linear:.*outputs differ by .* more than tolerance=0: nothing was changed"
    ):
        equalize(model, [x], tolerance=0.0, **QUIET)
    assert unchanged(model, before)


def test_nan_in_data_or_weights_is_named_and_nothing_changes():
    model = dense_chain(*RELU)
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    bad = x.copy()
    bad[1, 2] = np.nan
    before = variables_of(model)
    with pytest.raises(NonFiniteError, match="input 'x': NaN or Inf in calibration batch 1"):
        equalize(model, [x, bad], **QUIET)
    assert unchanged(model, before)
    model.get_layer("second").kernel.assign(np.full((8, 5), np.inf, np.float32))
    with pytest.raises(
        ValueError, match="second/kernel holds NaN or infinity; check the checkpoint"
    ):
        equalize(model, [x], **QUIET)


def test_nan_behind_the_mask_is_padding_and_does_not_matter():
    mask = keras.Input((None,), dtype="int32", name="input_mask")
    x = keras.Input((None, 6), name="x")
    hidden = keras.layers.Dense(8, "relu", name="first")(x)
    model = randomised(
        keras.Model({"input_mask": mask, "x": x}, keras.layers.Dense(5, name="second")(hidden))
    )
    good = {
        "x": RNG.normal(size=(2, 3, 6)).astype(np.float32),
        "input_mask": np.ones((2, 3), np.int32),
    }
    padded = {"x": good["x"].copy(), "input_mask": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}
    padded["x"][0, 2, 1] = np.nan
    expected = np.maximum(
        good["x"] @ model.get_layer("first").kernel.numpy() + model.get_layer("first").bias.numpy(),
        0,
    )
    report = equalize(model, [good, padded], **QUIET)
    np.testing.assert_allclose(report.pairs[0].activation, expected.max((0, 1)), rtol=1e-5)
    with pytest.raises(NonFiniteError, match="input 'x': NaN or Inf in calibration batch 1"):
        equalize(model, [good, padded], mask=None, **QUIET)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(alpha=1.5), "alpha is 1.5; it must be a number from 0 to 1"),
        (dict(alpha=True), "alpha is True"),
        (dict(alpha=float("nan")), "alpha is nan"),
        (dict(max_factor=0.5), "max_factor is 0.5; it must be a finite number from 1"),
        (dict(tolerance=-1), "tolerance is -1"),
        (
            dict(method="magic"),
            "unknown method 'magic' of equalization; known: smoothquant, cross_layer",
        ),
        (
            dict(pairs="value"),
            (
                "pairs='value' matches no pair that can be rescaled; there are linear:first,"
                " linear:second"
            ),
        ),
        (
            dict(batches=None),
            (
                "smoothquant takes ranges of activations from data: pass batches, or"
                " method='cross_layer'"
            ),
        ),
        (dict(batches=[]), "no batch was given"),
        (
            dict(batches=np.ones((2, 6), np.float32)),
            "equalization takes an iterable of batches, got one batch",
        ),
        (
            dict(batches=[np.ones((2, 6), np.float32), np.ones((2, 7), np.float32)]),
            "batch 1: input 'x' has shape",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(options, message):
    model = dense_chain(*RELU)
    before = variables_of(model)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        equalize(model, **{"batches": [np.ones((2, 6), np.float32)], **QUIET, **options})
    assert "\n" not in str(error.value) and unchanged(model, before)


def test_a_model_with_ranges_is_refused_and_one_without_is_taken():
    model = dense_chain(*RELU)
    x = RNG.normal(size=(9, 6)).astype(np.float32)
    exact = model(x).numpy()
    quantized = tfquant.quantize(model, "int8_residual_float")
    assert len(equalize(quantized, [x], **QUIET).pairs) == 2
    assert difference([exact], [model(x).numpy()]) <= 1e-5
    tfquant.calibrate(quantized, [x], **QUIET)
    with pytest.raises(ValueError, match="the model has ranges, .* equalize before calibration"):
        equalize(quantized, [x], **QUIET)


def test_a_report_can_be_taken_back():
    model = dense_chain(*RELU)
    before = variables_of(model)
    x = RNG.normal(size=(9, 6)).astype(np.float32)
    report = equalize(model, [x], pairs=["linear:fir*", "linear:second"], **QUIET)
    rescale(model, {name: 1 / found for name, found in report.factors.items()}, **QUIET)
    for a, b in zip(variables_of(model), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"linear:none": np.ones(8)},
            "'linear:none' is no pair that can be rescaled: there are linear:first, linear:second",
        ),
        (
            {"linear:first": np.ones(7)},
            "factors of linear:first: 8 finite numbers above 0 are wanted",
        ),
        ({"linear:first": np.zeros(8)}, "8 finite numbers above 0"),
    ],
)
def test_factors_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rescale(dense_chain(*RELU), given, **QUIET)

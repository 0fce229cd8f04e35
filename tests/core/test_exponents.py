"""Exponent histograms of the inputs of quantizers, against NumPy's frexp."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from calib import figures
from fileio.errors import ContentError
from tests.core.test_padding import VOCAB, ids_of
from tfquant.exponents import (
    EXPONENTS,
    NONFINITE,
    NUM_COUNTERS,
    SUBNORMAL,
    ZERO,
    ExponentHistogram,
    ExponentHistograms,
    count_exponents,
    exponent_range,
)
from tfquant.recipes.op_groups import recipe_of
from tfquant.recipes.spec_strings import parse_spec

ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-45, 1.5 * 2.0**-126], np.float32)


def by_frexp(*arrays) -> dict[int, int]:
    """Exponent -> number of values, of those that are finite and not zero."""
    values = np.concatenate([np.asarray(a, np.float32).ravel() for a in arrays])
    values = values[np.isfinite(values) & (values != 0)]
    exponents, counts = np.unique(np.frexp(values)[1] - 1, return_counts=True)
    return dict(zip(exponents.tolist(), counts.tolist(), strict=True))


def counts_of(one: ExponentHistogram) -> dict[int, int]:
    filled = np.flatnonzero(one.counts)
    return dict(zip(EXPONENTS[filled].tolist(), one.counts[filled].tolist(), strict=True))


def made(counts: dict[int, int], address="a:weight:kernel", kind="weight", **fields):
    counters = np.zeros(NUM_COUNTERS, np.int64)
    for exponent, count in counts.items():
        counters[exponent + 127] = count
    fields = {"role": "weight", "part": "query", "block": 0} | fields
    return ExponentHistogram(address, kind, counters=counters, **fields)


@pytest.fixture(scope="module")
def model():
    """[batch, 6] -> ReLU of 5 features -> [batch, 3], with values of very different sizes."""
    keras.utils.set_random_seed(5)
    x = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(5, activation="relu", name="first")(x)
    return keras.Model(x, keras.layers.Dense(3, use_bias=False, name="second")(hidden))


def batches(seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(n, 6)) * np.exp2(rng.integers(-20, 4, (n, 6)))).astype(np.float32)
        for n in (4, 7)
    ]


def squares(network, batch):
    return tf.reduce_sum(network(batch, training=True) ** 2)


def recipe(activation="e4m3", weight="e4m3", **options):
    return recipe_of(parse_spec(activation), parse_spec(weight), **options)


def test_values_are_counted_as_by_frexp_and_the_rest_apart():
    values = np.concatenate([ODD, np.concatenate([b.ravel() for b in batches()])])
    one = made({})
    object.__setattr__(one, "counters", count_exponents(values))
    expected = by_frexp(values[(np.abs(values) >= 2.0**-126) | np.isnan(values)])
    assert counts_of(one) == expected and expected[-126] == 1
    assert (one.zeros, one.nonfinite, one.subnormals) == (2, 3, 2)
    assert one.counters.sum() == values.size
    assert {ZERO, NONFINITE, SUBNORMAL}.isdisjoint(EXPONENTS + 127)


def test_a_float_model_is_observed_where_its_op_groups_are(model):
    result = tfquant.exponent_histograms(model, batches(), progress=False)
    x = np.concatenate(batches())
    (kernel, bias), (second,) = (layer.get_weights() for layer in model.layers[1:])
    hidden = x @ kernel + bias
    expected = {
        "first:linear_input:input": x,
        "first:activation_input:input": hidden,
        "second:linear_input:input": np.maximum(hidden, 0),
        "first:weight:kernel": kernel,
        "second:weight:kernel": second,
    }
    assert set(expected) <= set(result)
    for address, values in expected.items():
        assert counts_of(result[address]) == by_frexp(values), address
        assert result[address].zeros == np.sum(values == 0)
        assert result[address].kind == ("weight" if "kernel" in address else "activation")
    assert {one.kind for one in result.values()} == {"activation", "weight"}


def test_gradients_are_those_of_the_loss(model):
    result = tfquant.exponent_histograms(model, batches(), loss=squares, progress=False)
    (kernel, bias), (second,) = (layer.get_weights() for layer in model.layers[1:])
    hidden = [b @ kernel + bias for b in batches()]
    outputs = [np.maximum(h, 0) @ second for h in hidden]
    of_outputs = [2 * y for y in outputs]
    of_hidden = [(g @ second.T) * (h > 0) for g, h in zip(of_outputs, hidden, strict=True)]
    expected = {
        "second:linear_output:output:backward": of_outputs,
        "first:linear_output:output:backward": of_hidden,
    }
    for address, values in expected.items():
        assert result[address].kind == "gradient"
        assert counts_of(result[address]) == by_frexp(*values), address


def test_quantizers_count_what_the_quantizers_before_leave(model):
    error = parse_spec("e5m2,qs=per_tensor_symmetric,ahl=2")
    quantized = tfquant.quantize(model, recipe("e4m3", "e2m1", error=error))
    before = [v.numpy() for v in quantized.variables]
    result = tfquant.exponent_histograms(quantized, batches(), loss=squares, progress=False)
    (kernel, bias), (second,) = (layer.get_weights() for layer in model.layers[1:])

    def rounded(x, format):
        codebook = parse_spec(format).codebook
        return codebook.quantize(x, *codebook.symmetric_range(codebook.quant_max))

    hidden = [np.maximum(rounded(b, "e4m3") @ rounded(kernel, "e2m1") + bias, 0) for b in batches()]
    assert counts_of(result["second:linear_input:input"]) == by_frexp(*hidden)
    assert counts_of(result["second:weight:kernel"]) == by_frexp(second)  # before rounding
    of_outputs = [2 * rounded(h, "e4m3") @ rounded(second, "e2m1") for h in hidden]
    assert counts_of(result["second:linear_output:output:backward"]) == by_frexp(*of_outputs)
    for variable, value in zip(quantized.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
    assert all(np.all(state.seen.numpy() < 0) for state in quantized._engine.delayed)


def test_a_recipe_without_gradients_has_them_observed_at_its_activations(model):
    quantized = tfquant.quantize(model, recipe())
    result = tfquant.exponent_histograms(quantized, batches(), loss=squares, progress=False)
    sites = [site.address for site in quantized.plan.sites]
    values = {address for address in result if address.endswith("input")}
    assert set(result) == {*sites, *(f"{address}:backward" for address in values)}
    gradient = result["second:linear_input:input:backward"]
    assert gradient.counts.any() and gradient.role == "linear_input"


def test_padding_is_not_counted():
    ids, mask = ids_of()
    tokens = keras.Input((None,), dtype="int32", name="ids")
    real = keras.Input((None,), dtype="int32", name="input_mask")
    embedded = keras.layers.Embedding(VOCAB, 8, name="table")(tokens)
    hidden = keras.layers.Dense(4, name="dense")(embedded)
    model = keras.Model([tokens, real], hidden * keras.ops.cast(real, "float32")[..., None])
    batch = {"ids": ids, "input_mask": mask.astype(np.int32)}
    result = tfquant.exponent_histograms(
        model, [batch], loss=lambda net, b: tf.reduce_sum(net(b) ** 2), progress=False
    )
    site = result["dense:linear_input:input"]
    assert site.counters.sum() == mask.sum() * 8
    assert counts_of(site) == by_frexp(model.get_layer("table").get_weights()[0][ids[mask]])
    (gradient,) = (one for one in result.values() if one.kind == "gradient")
    assert gradient.counters.sum() == mask.sum() * 4


def test_masked_scores_are_not_counted(tiny_bert_config, make_bert_batch):
    import modeling

    model, lengths, width = modeling.build_squad_model(tiny_bert_config), (5, 3), 6
    heads = tiny_bert_config.num_attention_heads
    result = tfquant.exponent_histograms(
        model, [make_bert_batch(lengths, width)], mask=None, progress=False
    )
    (scores,) = (one for one in result.values() if one.role == "softmax_input")
    assert scores.counters.sum() == heads * width * sum(lengths)
    (scaled,) = (one for one in result.values() if one.role == "scaling_input")
    assert scaled.counters.sum() == heads * width**2 * len(lengths)
    inside, outside = result.blocks[0], result.blocks[None]
    assert {
        "ffn_in weight",
        "value matmul_input",
        "matmul_input probabilities",
        "ffn_out layernorm_input",
    } <= set(inside)
    assert {"head logits", "head logits weight"} <= set(outside)


def test_dropout_of_training_leaves_the_seed_as_it_is():
    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dropout(0.5, seed=1)(x)))
    seeds = [v.numpy() for v in model.non_trainable_variables]
    outputs = []

    def loss(network, batch):
        outputs.append(network(batch, training=True))
        return tf.reduce_sum(outputs[-1] ** 2)

    tfquant.exponent_histograms(model, batches()[:1] * 2, loss=loss, progress=False)
    assert np.any(outputs[0] != outputs[1])
    for variable, value in zip(model.non_trainable_variables, seeds, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "no batch was given: pass at least one"),
        (np.zeros((2, 6), np.float32), "exponent_histograms takes an iterable of batches"),
        ([np.zeros((2, 5), np.float32)], "6"),
    ],
)
def test_wrong_batches_are_refused(model, given, said):
    with pytest.raises(ValueError, match=said):
        tfquant.exponent_histograms(model, given, progress=False)


@pytest.mark.parametrize(
    "format, expected",
    [
        ("e4m3", (-9, 8)),
        ("posit8_1", (-12, 12)),
        ("e5m2", (-16, 15)),
        ("e2m1", (-1, 2)),
        ("int8", (0, 6)),
        ("mxfp4", (-1, 2)),
        ("posit8_1,qs=per_tensor_symmetric,qmax=64", (-12, 12)),
    ],
)
def test_exponents_of_a_format(format, expected):
    assert exponent_range(format) == expected


def test_shares_outside_of_a_format_and_the_span():
    one = made({-130 + 10: 3, -9: 900, 8: 90, 9: 7})
    assert one.outside(*exponent_range("e4m3")) == (0.003, 0.007)
    assert one.span == (-9, 9)  # the smallest 0.5 % are left out
    assert made({-3: 5}).span == (-3, -3) and made({}).span is None
    both = ExponentHistograms([one, made({-9: 1000}, "b:weight:kernel", block=1)])
    assert both.outside("e4m3") == {"weight": (0.0015, 0.0035)}


def test_a_file_holds_everything_and_damage_is_refused(tmp_path):
    histograms = ExponentHistograms(
        [
            made({0: 1}),
            made({2: 5}, "x:logits:input", "activation", role="logits", part=None, block=None),
        ]
    )
    path = tmp_path / "exponents.npz"
    histograms.save(path)
    loaded = ExponentHistograms.load(path)
    assert list(loaded) == list(histograms) and str(loaded) == histograms.table()
    for address, one in histograms.items():
        assert loaded[address].counters.tolist() == one.counters.tolist()
        assert (loaded[address].part, loaded[address].block) == (one.part, one.block)
    np.savez(path, header=np.array("{}"), counters=np.zeros((1, 2)))
    with pytest.raises(ContentError, match="not a file of exponent histograms"):
        ExponentHistograms.load(path)
    with pytest.raises(FileNotFoundError):
        ExponentHistograms.load(tmp_path / "none.npz")


@pytest.fixture
def drawn(monkeypatch):
    """Name of a file -> figure that was written there."""
    result = {}
    write = figures.write_png

    def noted(figure, path):
        result[str(path).rpartition("/")[2]] = figure
        write(figure, path)

    monkeypatch.setattr(figures, "write_png", noted)
    return result


BLOCKS = ExponentHistograms(
    [
        made({-4: 10, -2: 30, 0: 5}),
        made({-4: 10, 3: 90}, "b:weight:kernel", block=1),
        made({-20: 2, -18: 3}, "a:weight:x:backward", "gradient", role="linear_output"),
        made({5: 7}, "c:logits:kernel", role="logits", part=None, block=None),
    ]
)


def test_a_figure_for_each_block_shows_its_sublayers(drawn, tmp_path):
    paths = BLOCKS.plot_layer_distribution(tmp_path)
    assert [path.rpartition("/")[2] for path in paths] == [
        "block_0_distribution.png",
        "block_1_distribution.png",
        "outside_blocks_distribution.png",
    ]
    (axes,) = drawn["block_0_distribution.png"].axes
    assert axes.get_title() == "Block 0 Tensor Distribution"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Exponent Value", "Frequency")
    weights, gradients = axes.lines
    assert weights.get_label() == "query weight"
    assert gradients.get_label() == "query linear_output, gradient"
    x, y = weights.get_data()
    assert len(x) == 500 and (x[0], x[-1]) == (-4, 0) and (y >= 0).all()
    np.testing.assert_allclose(np.interp([-4, -2, 0], x, y), [10 / 45, 30 / 45, 5 / 45], atol=0.01)
    assert drawn["outside_blocks_distribution.png"].axes[0].lines[0].get_xdata().tolist() == [5]


def test_the_figure_of_ranges_has_a_bar_for_each_sublayer_over_all_blocks(drawn, tmp_path):
    BLOCKS.plot_layer_range(tmp_path / "layer_distribution.png")
    figure = drawn["layer_distribution.png"]
    (axes,) = figure.axes
    assert figure.dpi == 300 and not any(spine.get_visible() for spine in axes.spines.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "query weight",
        "query linear_output, gradient",
    ]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(-4, 7), (-20, 2)]
    assert axes.lines[0].get_xdata() == [0.0, 0.0]


def test_densities_are_drawn_over_the_ranges_of_formats(drawn, tmp_path):
    BLOCKS.plot_densities(tmp_path / "densities.png", ("e2m1", "posit8_1"), loss_scale=1024)
    weights, gradients = drawn["densities.png"].axes
    labels = [text.get_text() for text in gradients.get_legend().get_texts()]
    assert labels == ["e2m1: -1 ... 2, outside 100.00%", "posit8_1: -12 ... 12, outside 0.00%"]
    assert gradients.get_ylabel() == "gradient, times 1024"
    assert "e2m1: -1 ... 2, outside 96.71%" in weights.get_legend().get_texts()[0].get_text()
    with pytest.raises(ValueError, match="must be a power of two"):
        BLOCKS.plot_densities(tmp_path / "densities.png", loss_scale=1000)

"""Calibration on tiny models: what is counted, what is refused, and what stays as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import calib
import modeling
import tfquant
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

RNG_ROWS = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
MAX = Recipe(
    (Rule(QuantSpec(granularity="per_channel"), "weight"), Rule(QuantSpec(), "linear_input")),
    name="max",
)


def recipe_with(method: str, **options) -> Recipe:
    return MAX.with_method(method, **options)


def copy_of(ranges: dict) -> dict:
    return {address: (lower.copy(), upper.copy()) for address, (lower, upper) in ranges.items()}


def assert_same_ranges(a: dict, b: dict, **tolerance):
    assert a.keys() == b.keys() and a
    for address in a:
        for mine, other in zip(a[address], b[address], strict=True):
            np.testing.assert_allclose(
                mine, other, err_msg=address, **{"rtol": 0, "atol": 0, **tolerance}
            )


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def upper_of(ranges: dict, address_part: str) -> float:
    return next(
        float(np.max(upper)) for address, (_, upper) in ranges.items() if address_part in address
    )


@pytest.fixture(scope="module")
def two_dense(make_two_dense):
    return make_two_dense()


@pytest.fixture
def quantized(two_dense):
    return tfquant.quantize(two_dense, MAX)


@pytest.fixture(scope="module")
def bert(tiny_bert_config):
    """A BERT whose padding token has activations hundreds of times as large as any real one."""
    model = modeling.build_squad_model(tiny_bert_config, seed=3)
    by_path = {v.path: v for v in model.weights}
    table = by_path["bert/embeddings/word_embeddings"]
    # LayerNorm hides the size of its input but not its direction: gamma is large where only padding
    # has large values.
    values = table.numpy() * 10
    values[:, 0] = 0.0
    values[0] = 0.0
    values[0, 0] = 50.0
    table.assign(values)
    gamma = np.ones(8, np.float32)
    gamma[0] = 20.0
    by_path["bert/embeddings/LayerNorm/gamma"].assign(gamma)
    return model


@pytest.fixture(scope="module")
def quantized_bert(bert):
    recipe = tfquant.recipe("int8_residual_both").with_method("max")
    return tfquant.quantize(bert, recipe)


# Ranges are those of the data


def test_activation_ranges_are_the_extremes_of_what_reaches_the_site(quantized, two_dense):
    calibration = tfquant.calibrate(
        quantized, [RNG_ROWS[:10], RNG_ROWS[10:17], RNG_ROWS[17:]], progress=False
    )
    weights = {v.path: v.numpy().astype(np.float64) for v in two_dense.weights}
    hidden = np.maximum(RNG_ROWS @ weights["first/kernel"] + weights["first/bias"], 0)
    ranges = quantized.ranges()
    for layer, values in (("first", RNG_ROWS), ("second", hidden)):
        lower, upper = ranges[f"{layer}:linear_input:input"]
        assert upper == pytest.approx(abs(values).max(), rel=1e-6) and lower == -upper
        statistics = calibration[f"{layer}:linear_input:input"].statistics
        assert statistics.minimum == pytest.approx(values.min(), rel=1e-6)
        assert statistics.count == values.size and statistics.batches == 3
    assert calibration.samples == 40
    assert quantized.mode == "quantized" and quantized.calibrated


def test_weight_ranges_are_the_largest_magnitudes_of_each_column(quantized, two_dense):
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    for variable in two_dense.weights:
        if variable.path.endswith("kernel"):
            lower, upper = quantized.ranges()[f"{variable.path.rpartition('/')[0]}:weight:kernel"]
            np.testing.assert_array_equal(upper, abs(variable.numpy()).max(axis=0))
            np.testing.assert_array_equal(lower, -upper)


def test_weight_ranges_with_several_channel_axes_and_asymmetric_columns():
    kernel = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    kernel[:, 1, 2] = abs(kernel[:, 1, 2])
    variable = tf.Variable(kernel, name="heads")
    for symmetric in (True, False):
        recipe = Recipe(
            (Rule(QuantSpec(granularity="per_channel", symmetric=symmetric), "weight"),)
        )
        quantized = tfquant.quantize(
            lambda x: tf.einsum("bi,ihd->bhd", x, variable),
            recipe,
            signature=tf.TensorSpec([None, 6]),
            calibration=[RNG_ROWS],
            progress=False,
        )
        ((lower, upper),) = quantized.ranges().values()
        assert upper.shape == (2, 3)
        np.testing.assert_array_equal(
            upper, abs(kernel).max(axis=0) if symmetric else np.maximum(kernel.max(axis=0), 0)
        )
        np.testing.assert_array_equal(
            lower, -upper if symmetric else np.minimum(kernel.min(axis=0), 0)
        )
        step = (upper / 127) if symmetric else (upper - lower) / 255
        difference = quantized(np.eye(6, dtype=np.float32)).numpy() - kernel
        assert 0 < abs(difference).max() and (abs(difference) <= 0.501 * step).all()


def test_batches_of_other_sizes_and_order_give_the_same_ranges_and_histograms(quantized):
    whole = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    pieces = [RNG_ROWS[30:], RNG_ROWS[:1], RNG_ROWS[1:30]]
    split = tfquant.calibrate(quantized, pieces, progress=False)
    for address in whole:
        assert whole[address].lower == pytest.approx(split[address].lower, rel=1e-6)
        if not whole[address].statistics.constant:
            counts = [abs(c[address].statistics.histogram.counts).sum() for c in (whole, split)]
            assert counts[0] == counts[1] == whole[address].statistics.count
    first = "first:linear_input:input"
    np.testing.assert_array_equal(
        whole[first].statistics.histogram.counts, split[first].statistics.histogram.counts
    )


def test_same_seed_same_ranges_and_another_seed_another_sample(quantized):
    quantized = tfquant.quantize(quantized.original, recipe_with("percentile", percentile=90.0))
    batches = [np.random.default_rng(i).normal(size=(900, 6)).astype(np.float32) for i in range(2)]

    def run(seed):
        calibration = tfquant.calibrate(quantized, batches, sample=1024, seed=seed, progress=False)
        return calibration, copy_of(quantized.ranges())

    (first, ranges), (second, again), (third, other) = run(0), run(0), run(1)
    assert first.equals(second)
    assert_same_ranges(ranges, again)
    address = "first:linear_input:input"
    assert (
        first[address].statistics.histogram.counts != third[address].statistics.histogram.counts
    ).any()
    assert ranges[address][1] == pytest.approx(other[address][1], rel=0.1)
    assert (
        first[address].statistics.maximum
        == third[address].statistics.maximum
        == max(b.max() for b in batches)
    )


# Padding


def test_padding_is_left_out_of_every_site_of_bert(quantized_bert, make_bert_batch):
    lengths = [5, 3, 4]
    padded = make_bert_batch(lengths, width=9)
    alone = [{k: v[i : i + 1, :n] for k, v in padded.items()} for i, n in enumerate(lengths)]
    reference = tfquant.calibrate(quantized_bert, alone, progress=False)
    expected = copy_of(quantized_bert.ranges())
    masked = tfquant.calibrate(quantized_bert, [padded], progress=False)
    assert_same_ranges(quantized_bert.ranges(), expected, rtol=2e-4, atol=1e-6)
    roles = {member.split(":")[-2] for site in quantized_bert.plan.sites for member in site.members}
    assert roles >= {"matmul_input", "residual", "residual_other", "linear_input"}
    for address in masked:
        assert masked[address].statistics.count == reference[address].statistics.count, address
        assert masked[address].statistics.minimum == pytest.approx(
            reference[address].statistics.minimum, rel=2e-4, abs=1e-5
        )
    tfquant.calibrate(quantized_bert, [padded], mask=None, progress=False)
    unmasked = quantized_bert.ranges()
    shared_input = "attention/self/key:linear_input:input"
    assert upper_of(unmasked, shared_input) > 3 * upper_of(expected, shared_input)


def test_batches_of_different_lengths_and_padding_mix(quantized_bert, make_bert_batch):
    short, long = make_bert_batch([4, 2], seed=1), make_bert_batch([9, 16, 12], seed=2)
    alone = [
        {k: v[i : i + 1, : int(b["input_mask"][i].sum())] for k, v in b.items()}
        for b in (short, long)
        for i in range(len(b["input_ids"]))
    ]
    calibration = tfquant.calibrate(quantized_bert, [short, long], progress=False)
    mixed = copy_of(quantized_bert.ranges())
    tfquant.calibrate(quantized_bert, alone, progress=False)
    assert_same_ranges(mixed, quantized_bert.ranges(), rtol=2e-4, atol=1e-6)
    assert calibration.samples == 5


def tokens_model() -> keras.Model:
    """Embedding whose row 0 is huge, then per-token layers; the mask is an input that nothing else
    reads.
    """
    ids = keras.Input((None,), dtype="int32", name="tokens")
    mask = keras.Input((None,), dtype="bool", name="real")
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    table[0] = 1000.0
    embedding = keras.layers.Embedding(
        9, 4, embeddings_initializer=keras.initializers.Constant(table)
    )
    out = keras.layers.Dense(3, name="dense")(embedding(ids))
    return keras.Model({"tokens": ids, "real": mask}, out)


def test_mask_can_be_named_and_found_or_not():
    model = tokens_model()
    ids = np.array([[3, 4, 0, 0], [5, 6, 7, 0]], np.int32)
    batch = {"tokens": ids, "real": ids > 0}
    recipe = Recipe((Rule(QuantSpec(), "linear_input"),))
    table = next(v.numpy() for v in model.weights if v.path.endswith("embeddings"))
    real = abs(table[ids[ids > 0]]).max()
    for mask, expected in (("real", real), (None, 1000.0), ("auto", 1000.0)):
        quantized = tfquant.quantize(model, recipe, [batch], mask=mask, progress=False)
        assert float(quantized.ranges()["dense:linear_input:input"][1]) == pytest.approx(
            expected
        ), mask


def test_unknown_mask_lists_the_inputs(quantized_bert, quantized, make_bert_batch):
    with pytest.raises(
        ValueError, match="mask='attention' is no input of the model; it has input_ids, input_mask"
    ) as error:
        tfquant.calibrate(quantized_bert, [make_bert_batch([3])], mask="attention", progress=False)
    one_line(error)
    with pytest.raises(ValueError, match="mask='input_mask' is no input of the model; it has "):
        tfquant.calibrate(quantized, [RNG_ROWS], mask="input_mask", progress=False)


def test_batches_of_nothing_but_padding_are_refused_naming_a_site(quantized_bert, make_bert_batch):
    batch = make_bert_batch([3, 2])
    batch["input_mask"][:] = 0
    before = copy_of(quantized_bert.ranges())
    with pytest.raises(
        calib.EmptyStatisticsError,
        match="^bert/.*: no value was seen, so no range can be estimated",
    ) as error:
        tfquant.calibrate(quantized_bert, [batch], progress=False)
    one_line(error)
    np.testing.assert_equal(quantized_bert.ranges(), before)


# What batches may be


def batches_in_forms():
    return {
        "list": lambda: [RNG_ROWS[:25], RNG_ROWS[25:]],
        "tuple": lambda: (RNG_ROWS[:25], RNG_ROWS[25:]),
        "generator": lambda: (RNG_ROWS[i : i + 20] for i in (0, 20)),
        "pairs": lambda: [(RNG_ROWS[:25], np.full((25, 3), 1e6)), (RNG_ROWS[25:], None)],
        "triples": lambda: [(RNG_ROWS, np.zeros(40), np.ones(40))],
        "lists of one": lambda: [[RNG_ROWS]],
        "tensors": lambda: [tf.constant(RNG_ROWS)],
        "float64": lambda: [RNG_ROWS.astype(np.float64)],
        "dataset": lambda: tf.data.Dataset.from_tensor_slices(RNG_ROWS).batch(7),
        "dataset of pairs": (
            lambda: tf.data.Dataset.from_tensor_slices((RNG_ROWS, np.zeros(40))).batch(7)
        ),
        "dataset of unknown length": lambda: (
            tf.data.Dataset.from_tensor_slices(RNG_ROWS).batch(7).filter(lambda x: True)
        ),
    }


@pytest.mark.representatives(
    "generator",
    "triples",
    "lists of one",
    "float64",
    "dataset of pairs",
    "dataset of unknown length",
)
@pytest.mark.parametrize("form", batches_in_forms())
def test_batches_come_in_many_forms(quantized, form):
    calibration = tfquant.calibrate(quantized, batches_in_forms()[form](), progress=False)
    assert float(calibration["first:linear_input:input"].statistics.maximum) == RNG_ROWS.max()
    assert float(calibration["first:linear_input:input"].statistics.minimum) == RNG_ROWS.min()
    assert calibration.samples == 40


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("as_pairs", [False, True])
def test_signature_taken_from_the_first_batch_of_a_generator_does_not_lose_it(as_pairs):
    rows = np.array([[7.0, 0.0], [0.5, -0.5], [0.1, 0.2]], np.float32)
    batches = ((rows[i : i + 1], 0) if as_pairs else rows[i : i + 1] for i in range(3))
    quantized = tfquant.quantize(
        Subclassed(), Recipe((Rule(QuantSpec(), "linear_input"),)), batches, progress=False
    )
    ((lower, upper),) = quantized.ranges().values()
    assert upper == 7.0
    assert quantized.calibration.samples == 3


def test_functions_take_tuples_of_arguments_or_single_tensors():
    kernel = tf.Variable(
        np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32), name="kernel"
    )

    def scaled(x, factor):
        return tf.matmul(x * factor, kernel)

    def plain(x):
        return tf.matmul(x, kernel)

    recipe = Recipe((Rule(QuantSpec(), "linear_input"),))
    batches = [(RNG_ROWS[:8], np.float32(2.0)), (RNG_ROWS[8:], np.float32(3.0))]
    quantized = tfquant.quantize(scaled, recipe, batches, progress=False)
    ((_, upper),) = quantized.ranges().values()
    assert upper == max(abs(RNG_ROWS[:8]).max() * 2, abs(RNG_ROWS[8:]).max() * 3)
    for form in ([RNG_ROWS], [(RNG_ROWS,)], iter([RNG_ROWS])):
        ((_, upper),) = tfquant.quantize(plain, recipe, form, progress=False).ranges().values()
        assert upper == abs(RNG_ROWS).max()


def test_weights_alone_need_no_batch(two_dense):
    quantized = tfquant.quantize(
        two_dense, Recipe((Rule(QuantSpec(), "weight"),)), [], progress=False
    )
    assert quantized.calibrated
    calibration = tfquant.calibrate(quantized, [], progress=False)
    assert calibration.samples == 0 and len(calibration) == 2


# What batches may not be


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration batch was given: pass at least one"),
        (iter(()), "no calibration batch was given: pass at least one"),
        (RNG_ROWS, "calibration takes an iterable of batches, got one batch: put it into a list"),
        (
            tf.constant(RNG_ROWS),
            "calibration takes an iterable of batches, got one batch: put it into a list",
        ),
        (
            {"x": RNG_ROWS},
            "calibration takes an iterable of batches, got one batch: put it into a list",
        ),
        (None, "calibration takes an iterable of batches, got NoneType"),
        (5, "calibration takes an iterable of batches, got int"),
        ("data.npz", "calibration takes an iterable of batches, got str"),
        (
            [RNG_ROWS, RNG_ROWS[:, :5]],
            r"calibration batch 1: input '.*' has shape \[40, 5\], the model takes \[None, 6\]",
        ),
        (
            [RNG_ROWS[0]],
            r"calibration batch 0: input '.*' has shape \[6\], the model takes \[None, 6\]",
        ),
        (
            [RNG_ROWS.astype(np.complex64)],
            "calibration batch 0: input '.*' is complex64, the model takes float32",
        ),
        ([{"y": RNG_ROWS}], "calibration batch 0: inputs are a mapping of y, the model takes"),
        ([None], "calibration batch 0: "),
        ([[[1.0, 2.0], [3.0]]], "calibration batch 0: "),
        ([np.full((2, 6), "a")], "calibration batch 0: "),
        ([np.full((2, 6), None)], "calibration batch 0: "),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_batches_that_do_not_fit_are_refused_in_one_line_and_change_nothing(
    quantized, batches, message
):
    before = copy_of(quantized.ranges())
    with pytest.raises(ValueError, match=message) as error:
        tfquant.calibrate(quantized, batches, progress=False)
    one_line(error)
    np.testing.assert_equal(quantized.ranges(), before)
    assert not quantized.calibrated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b.pop("segment_ids"),
            "calibration batch 0: input 'segment_ids' is missing; the model takes input_ids",
        ),
        (
            lambda b: b.update(input_ids=b["input_ids"] + 0.5),
            (
                "batch 0: input 'input_ids' holds numbers that are not whole, the model takes"
                " int32: round them"
            ),
        ),
        (
            lambda b: b.update(input_ids=b["input_ids"][0]),
            r"batch 0: input 'input_ids' has shape \[5\], the model takes",
        ),
    ],
)
def test_mapping_batches_that_do_not_fit_name_the_input(
    quantized_bert, make_bert_batch, change, message
):
    bad = make_bert_batch([5, 4])
    change(bad)
    with pytest.raises(ValueError, match=message) as error:
        tfquant.calibrate(quantized_bert, [bad, make_bert_batch([3])], progress=False)
    one_line(error)


def test_quantize_says_the_same_of_bad_batches(two_dense):
    for model in (two_dense, Subclassed()):
        with pytest.raises(ValueError, match="got one batch: put it into a list"):
            tfquant.quantize(model, MAX, RNG_ROWS)
        with pytest.raises(ValueError, match="no calibration batch was given"):
            tfquant.quantize(model, MAX, [])
    with pytest.raises(
        ValueError, match="mask= belongs to calibration: pass calibration=batches as well"
    ):
        tfquant.quantize(two_dense, MAX, mask=None)


def test_a_model_that_is_not_quantized_is_refused(two_dense, quantized):
    for call in (tfquant.calibrate, tfquant.apply):
        with pytest.raises(
            TypeError,
            match="expected a model from tfquant.quantize or tfquant.load, got Functional",
        ) as error:
            call(two_dense, [RNG_ROWS])
        one_line(error)
    with pytest.raises(ValueError, match="bins"):
        tfquant.calibrate(quantized, [RNG_ROWS], bins=1000)


# NaN and infinity


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_data_names_site_and_batch_and_leaves_the_model_as_it_was(
    quantized, value, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    quantized.set_mode("float")
    before, calibration = copy_of(quantized.ranges()), quantized.calibration
    bad = RNG_ROWS.copy()
    bad[3, 2] = value
    with pytest.raises(
        calib.NonFiniteError, match="^first:linear_input:input: NaN or Inf in calibration batch 2"
    ) as error:
        tfquant.calibrate(quantized, [RNG_ROWS * 9, RNG_ROWS, bad, RNG_ROWS], progress=False)
    one_line(error)
    assert_same_ranges(quantized.ranges(), before)
    assert quantized.mode == "float" and quantized.calibration is calibration
    assert not list(tmp_path.iterdir())


def test_nan_behind_the_mask_is_padding_and_does_not_matter():
    ids = keras.Input((None,), dtype="int32", name="input_mask")
    x = keras.Input((None, 2), name="x")
    model = keras.Model({"input_mask": ids, "x": x}, keras.layers.Dense(2, name="dense")(x))
    data = np.array([[[1, 2], [3, -4], [np.nan, np.inf]]], np.float32)
    batch = {"x": data, "input_mask": np.array([[1, 1, 0]], np.int32)}
    quantized = tfquant.quantize(
        model, Recipe((Rule(QuantSpec(), "linear_input"),)), [batch], progress=False
    )
    assert float(quantized.ranges()["dense:linear_input:input"][1]) == 4.0


def test_nan_in_a_weight_names_the_site(make_two_dense):
    model = make_two_dense()
    kernel = model.get_layer("second").kernel.numpy()
    kernel[1, 1], kernel[2, 0] = np.nan, np.inf
    model.get_layer("second").kernel.assign(kernel)
    quantized = tfquant.quantize(model, MAX)
    with pytest.raises(
        calib.NonFiniteError,
        match="site second:weight:kernel: the weight holds 2 NaN or infinite values",
    ) as error:
        tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    one_line(error)
    assert not quantized.calibrated


def test_nan_in_a_weight_that_no_site_quantizes_shows_at_the_next_site():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, name="first"),
            keras.layers.Dense(3, name="second"),
        ]
    )
    model.get_layer("first").bias.assign([0, 0, np.nan, 0, 0])
    quantized = tfquant.quantize(model, MAX)
    with pytest.raises(
        calib.NonFiniteError,
        match="second:linear_input:input: NaN or Inf in calibration batch 0; .*weights",
    ):
        tfquant.calibrate(quantized, [RNG_ROWS], progress=False)


# Without a calibration


def test_uncalibrated_model_refuses_to_quantize_naming_site_and_remedies(quantized):
    calls = [
        lambda: quantized(RNG_ROWS),
        lambda: quantized.predict(RNG_ROWS, verbose=0),
        lambda: quantized.predict_on_batch(RNG_ROWS),
        lambda: tf.function(quantized, autograph=False)(tf.constant(RNG_ROWS)),
    ]
    quantized.compile("sgd", "mse")
    calls.append(lambda: quantized.fit(RNG_ROWS, np.zeros((40, 3)), verbose=0))
    calls.append(lambda: quantized.evaluate(RNG_ROWS, np.zeros((40, 3)), verbose=0))
    for call in calls:
        with pytest.raises(
            tfquant.UncalibratedError,
            match=r"has no range \(4 of 4 sites have none\): run tfquant.cal",
        ) as error:
            call()
        assert "set_mode('float')" in one_line(error) and "tfquant.load" in str(error.value)
        assert "first:weight:kernel" in str(error.value) or "first:linear_input" in str(error.value)


def test_uncalibrated_model_runs_in_float(quantized, two_dense):
    quantized.set_mode("float")
    np.testing.assert_array_equal(quantized(RNG_ROWS), two_dense(RNG_ROWS))
    with pytest.raises(ValueError, match="unknown mode 'int8'; known: float, quantized"):
        quantized.set_mode("int8")


def test_uncalibrated_function_refuses_too():
    kernel = tf.Variable(tf.ones([6, 2]))
    quantized = tfquant.quantize(
        lambda x: tf.matmul(x, kernel),
        Recipe((Rule(QuantSpec(), "linear_input"),)),
        inputs=RNG_ROWS,
    )
    with pytest.raises(tfquant.UncalibratedError, match=r"has no range \(1 of 1 sites have none\)"):
        quantized(RNG_ROWS)


# Again


def test_calibrating_again_forgets_the_first_time(quantized):
    tfquant.calibrate(quantized, [RNG_ROWS * 100], progress=False)
    wide = quantized(RNG_ROWS).numpy()
    again = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    fresh = tfquant.quantize(quantized.original, MAX)
    assert again.equals(tfquant.calibrate(fresh, [RNG_ROWS], progress=False))
    assert_same_ranges(quantized.ranges(), fresh.ranges())
    np.testing.assert_array_equal(quantized(RNG_ROWS), fresh(RNG_ROWS))
    assert (wide != quantized(RNG_ROWS).numpy()).any()


def test_weights_changed_since_are_read_anew(make_two_dense):
    model = make_two_dense()
    quantized = tfquant.quantize(model, MAX, [RNG_ROWS], progress=False)
    model.get_layer("first").kernel.assign(3 * model.get_layer("first").kernel)
    before = quantized.ranges()["first:weight:kernel"][1]
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    np.testing.assert_allclose(quantized.ranges()["first:weight:kernel"][1], 3 * before, rtol=1e-6)


def test_calibration_is_estimated_again_by_another_method_and_applied_without_data(
    quantized, tmp_path
):
    calibration = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    wide = copy_of(quantized.ranges())
    calibration.save(tmp_path / "calibrators.npz")
    loaded = calib.Calibration.load(tmp_path / "calibrators.npz").reestimate(
        calib.Method.parse("percentile", percentile=70.0), "*:linear_input:*"
    )
    fresh = tfquant.quantize(quantized.original, MAX)
    tfquant.apply(fresh, loaded)
    assert fresh.mode == "quantized" and fresh.calibrated
    expected = np.percentile(abs(RNG_ROWS), 70.0)
    assert float(fresh.ranges()["first:linear_input:input"][1]) == pytest.approx(expected, rel=0.01)
    np.testing.assert_array_equal(
        fresh.ranges()["first:weight:kernel"], wide["first:weight:kernel"]
    )
    direct = tfquant.quantize(
        quantized.original, recipe_with("percentile", percentile=70.0), [RNG_ROWS], progress=False
    )
    assert_same_ranges(fresh.ranges(), direct.ranges())
    np.testing.assert_array_equal(fresh(RNG_ROWS), direct(RNG_ROWS))


def test_calibration_is_applied_from_its_file_and_by_quantize(quantized, tmp_path):
    calibration = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    calibration.save(tmp_path / "calibrators.npz")
    from_file = tfquant.quantize(quantized.original, MAX)
    tfquant.apply(from_file, tmp_path / "calibrators.npz")
    at_once = tfquant.quantize(quantized.original, MAX, calibration)
    for other in (from_file, at_once):
        assert_same_ranges(quantized.ranges(), other.ranges())
        np.testing.assert_array_equal(quantized(RNG_ROWS), other(RNG_ROWS))
    with pytest.raises(ValueError, match="mask= belongs to calibration"):
        tfquant.quantize(quantized.original, MAX, calibration, mask=None)


def test_calibration_with_more_sites_than_needed_is_fine(quantized):
    calibration = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    weights_only = tfquant.quantize(quantized.original, Recipe(MAX.rules[:1]), calibration)
    assert_same_ranges(
        weights_only.ranges(), {a: r for a, r in quantized.ranges().items() if ":weight:" in a}
    )


def test_merged_calibrations_equal_one_over_all_data(quantized):
    parts = [
        tfquant.calibrate(quantized, [rows], progress=False)
        for rows in (RNG_ROWS[:15], RNG_ROWS[15:])
    ]
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    whole = copy_of(quantized.ranges())
    tfquant.apply(quantized, parts[0].merge(parts[1]))
    assert_same_ranges(quantized.ranges(), whole, rtol=1e-6)


def test_calibration_that_does_not_fit_is_refused_and_changes_nothing(
    quantized, make_two_dense, tmp_path
):
    calibration = tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    lacking = calib.Calibration(
        {a: e for a, e in calibration.items() if a != "second:weight:kernel"}
    )
    per_tensor = tfquant.quantize(
        quantized.original, MAX.with_spec(roles=["weight"], granularity="per_tensor")
    )
    int4 = tfquant.quantize(quantized.original, MAX.with_spec(roles=["weight"], format="int4"))
    asymmetric = tfquant.quantize(
        quantized.original, MAX.with_spec(roles=["linear_input"], symmetric=False)
    )
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    cases = [
        (
            quantized,
            lacking,
            ValueError,
            r"has no range for site second:weight:kernel \(1 of 4 are missing\).*calibrate again",
        ),
        (
            per_tensor,
            calibration,
            ValueError,
            r"site first:weight:kernel: the calibration has 5 ranges, the site needs \[\]",
        ),
        (
            int4,
            calibration,
            ValueError,
            "site first:weight:kernel: .* is for codes -127..127, the recipe wants codes -7",
        ),
        (
            asymmetric,
            calibration,
            ValueError,
            r"site first:linear_input:input: .* the recipe wants codes 0..255 asymmetric",
        ),
        (
            quantized,
            {},
            TypeError,
            "a calibration is what tfquant.calibrate returns or its file, got dict",
        ),
        (quantized, tmp_path / "absent.npz", FileNotFoundError, "absent.npz"),
        (quantized, tmp_path / "bad.npz", calib.CalibrationFileError, "bad.npz"),
    ]
    for model, what, kind, message in cases:
        before = copy_of(model.ranges())
        with pytest.raises(kind, match=message) as error:
            tfquant.apply(model, what)
        one_line(error)
        np.testing.assert_equal(model.ranges(), before)


# The user's code is traced once


class Counting(keras.layers.Layer):
    calls = 0

    def build(self, shape):
        self.kernel = self.add_weight(shape=(6, 3), name="kernel")

    def call(self, x, training=False):
        Counting.calls += 1
        return tf.matmul(x, self.kernel)


def test_modes_batches_and_calibrations_never_run_the_users_code_again():
    x = keras.Input((6,))
    model = keras.Model(x, Counting(name="counting")(x))
    Counting.calls = 0
    quantized = tfquant.quantize(model, MAX)
    assert Counting.calls == 1
    tfquant.calibrate(quantized, [RNG_ROWS, RNG_ROWS[:3]], progress=False)
    for mode in ("float", "quantized", "float", "quantized"):
        quantized.set_mode(mode)
        quantized(RNG_ROWS), quantized(RNG_ROWS[:7]), quantized.predict(RNG_ROWS, verbose=0)
    tfquant.calibrate(quantized, [RNG_ROWS[:9]], progress=False)
    assert Counting.calls == 1
    quantized.compile("sgd", "mse")
    for mode in ("quantized", "float", "quantized"):
        quantized.set_mode(mode)
        quantized.fit(RNG_ROWS, np.zeros((40, 3)), verbose=0)
    assert Counting.calls == 2  # the training trace


def test_a_function_is_run_once_for_all_modes():
    kernel, calls = tf.Variable(tf.ones([6, 2])), []

    def function(x):
        calls.append(1)
        return tf.matmul(x, kernel)

    quantized = tfquant.quantize(
        function, Recipe((Rule(QuantSpec(), "linear_input"),)), inputs=RNG_ROWS
    )
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    rounded = quantized(RNG_ROWS).numpy()
    quantized.set_mode("float")
    np.testing.assert_array_equal(quantized(RNG_ROWS), tf.matmul(RNG_ROWS, kernel))
    quantized.set_mode("quantized")
    np.testing.assert_array_equal(quantized(RNG_ROWS), rounded)
    step = abs(RNG_ROWS).max() / 127
    np.testing.assert_allclose(
        rounded, np.rint(RNG_ROWS / step) @ np.ones((6, 2)) * step, rtol=1e-4, atol=1e-5
    )
    assert len(calls) == 1


def test_training_does_not_move_ranges_and_calibrating_does_not_move_weights(make_two_dense):
    model = make_two_dense()
    quantized = tfquant.quantize(model, MAX)
    weights = [w.numpy() for w in model.weights]
    tfquant.calibrate(quantized, [RNG_ROWS], progress=False)
    for before, variable in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, variable)
    ranges = copy_of(quantized.ranges())
    quantized.compile("sgd", "mse")
    quantized.fit(RNG_ROWS, np.ones((40, 3)), epochs=2, verbose=0)
    assert_same_ranges(quantized.ranges(), ranges)
    assert (model.get_layer("first").kernel.numpy() != weights[0]).any()

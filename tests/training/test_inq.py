"""Incremental quantization: levels and partitions against NumPy, frozen bits, resume, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import tfquant
from tests.core.conftest import two_dense_layers
from tests.few import few
from tfquant import Recipe, Rule, formats
from tfquant.formats.incremental import largest_power
from tfquant.recipes.incremental import format_of, recipe_of
from tfquant.training import (
    BertAdamW,
    IncrementalQuantization,
    IncrementalQuantizationCallback,
    StageRestarts,
    Trainer,
    TrainOptions,
    WarmupLinearDecay,
)
from tfquant.training.frozen import FrozenWeights
from tfquant.training.inq import check_fractions, fractions_of, largest, stage_starts

FRACTIONS, STARTS = (0.5, 0.75, 1.0), (0, 4, 8)
MODES = [("p2", 5, None), ("lin", 4, "row"), ("lin_fixed", 6, None), ("mb", 2, "row")]


def quantized(mode="p2", bits=5, granularity=None, model=None, **others):
    return tfquant.quantize(
        model or two_dense_layers(), recipe_of(mode, bits, granularity, embeddings=False, **others)
    )


def loss(model, batch):
    return tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2)


def batches(steps):
    random = np.random.default_rng(3)
    return [
        {n: random.normal(size=(8, w)).astype(np.float32) for n, w in (("x", 6), ("y", 3))}
        for _ in range(steps)
    ]


def reference_p2(w, bits):
    """Section 2.1 of the paper, one number at a time."""
    s = np.abs(w).max()
    n1 = int(np.floor(np.log2(4 * float(s) / 3)))
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    levels = [0.0, *(2.0**j for j in range(n2, n1 + 1))]
    result = np.zeros_like(w)
    for place, number in np.ndenumerate(w):
        a = abs(float(number))
        for low, high in zip(levels, levels[1:], strict=False):
            if (low + high) / 2 <= a < 1.5 * high:
                result[place] = np.sign(number) * high
        if a >= 1.5 * levels[-1]:
            result[place] = np.sign(number) * levels[-1]
    return result


@pytest.mark.parametrize("bits", range(2, 9))
def test_powers_of_two_are_those_of_the_paper(bits):
    w = (0.3 * np.random.default_rng(bits).standard_t(2, size=500)).astype(np.float32)
    format, amax = formats.get(f"inq_{bits}"), largest_power(np.abs(w).max())
    found = format.round(tf.constant(w), tf.constant(amax), format.book)
    np.testing.assert_array_equal(found, reference_p2(w, bits))
    assert format.bits == bits and format.book.num_codes == 2 ** (bits - 1) + 1
    codes = format.encode(w / amax, format.book)
    assert codes.min() >= 0 and codes.max() < 2**bits
    np.testing.assert_array_equal(format.decode(codes, format.book) * amax, found)


def test_level_sets_and_boundaries_of_powers_of_two():
    sets = {
        2: [1.0],
        3: [0.5, 1.0],
        4: [0.125, 0.25, 0.5, 1.0],
        5: [2.0**-j for j in range(7, -1, -1)],
    }
    for bits, positive in sets.items():
        book = formats.get(f"inq_{bits}").book
        assert list(book.levels) == [*(-v for v in positive[::-1]), 0.0, *positive]
    x = np.array([0.0624, 0.0625, 0.1874, 0.1875, 0.374, 0.375, 0.74, 0.75, 1.5, 7], np.float32)
    format = formats.get("inq_4")
    expected = np.array([0, 0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1, 1, 1], np.float32)
    one = tf.constant(1.0)
    np.testing.assert_array_equal(format.round(tf.constant(x), one, format.book), expected)
    np.testing.assert_array_equal(format.round(tf.constant(-x), one, format.book), -expected)
    assert largest_power(np.float32([0, 0.75, 0.7499999, 1.5, 3])).tolist() == [0, 1, 0.5, 2, 4]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_fixed_grid_rounds_half_up_and_stays_within_one(bits):
    step = 2.0 ** (2 - bits)
    x = np.linspace(-1.5, 1.5, 6 * 2**bits + 1).astype(np.float32)  # with all ties
    format = formats.get(f"fixed_{bits}")
    expected = np.clip(step * np.floor(x / step + 0.5), -1, 1)
    found = format.round(tf.constant(x), tf.constant(1.0), format.book).numpy()
    np.testing.assert_array_equal(found, expected)
    codes = format.encode(x, format.book)
    assert codes.min() >= 0 and codes.max() < 2**bits
    np.testing.assert_array_equal(format.decode(codes, format.book), found)


@pytest.mark.parametrize(("mode", "bits", "granularity"), MODES)
def test_training_ends_with_weights_that_quantizers_leave_as_they_are(
    mode, bits, granularity, tmp_path
):
    model = two_dense_layers()
    network = quantized(mode, bits, granularity, model, biases=mode == "p2")
    start = {v.path: v.numpy() for v in model.weights}
    hook = IncrementalQuantization(network, FRACTIONS, STARTS)
    seen = []

    class Watch(tfquant.training.Hook):
        def before_step(self, step):
            seen.append((hook.frozen_share(), {v.path: v.numpy() for v in model.weights}))

    options = TrainOptions(tmp_path, 8, progress=False)
    data = batches(8)
    Trainer(network, loss, BertAdamW(0.05), options, hooks=[hook, Watch()]).fit(lambda n: data[n:])
    shares = [share for share, _ in seen]
    assert shares[:4] == [shares[0]] * 4 and shares[4:] == [shares[4]] * 4
    assert shares[0] == pytest.approx(0.5, abs=0.03) and shares[4] == pytest.approx(0.75, abs=0.03)
    assert hook.frozen_share() == 1.0 and network.mode == "quantized"
    end = {v.path: v.numpy() for v in model.weights}
    for name in hook.names:
        # The largest half is frozen at once, and no step moves it.
        frozen = np.zeros(start[name].size, bool)
        frozen[np.argsort(-np.abs(start[name].ravel()))[: start[name].size // 2]] = True
        for _, weights in seen:
            np.testing.assert_array_equal(weights[name].ravel()[frozen], end[name].ravel()[frozen])
        assert mode != "lin" or (end[name] != start[name]).any()
    x = data[0]["x"]
    answer = network(x).numpy()
    tfquant.save(network, tmp_path / "saved")
    loaded = tfquant.load(tmp_path / "saved", two_dense_layers(seed=9))
    np.testing.assert_array_equal(loaded(x), answer)
    network.set_mode("float")
    np.testing.assert_allclose(network(x), answer, rtol=1e-6, atol=1e-6)
    again = IncrementalQuantization(loaded, FRACTIONS, STARTS)
    again.before_step(8)  # rounding all weights again
    for variable in loaded.original.weights:
        np.testing.assert_array_equal(variable.numpy(), end[variable.path])


@pytest.mark.parametrize(
    ("mode", "bits", "granularity"),
    few(
        [*MODES, ("p2", 2, None), ("p2", 8, None), ("lin", 2, None), ("mb", 1, None)],
        kept=[("p2", 5, None)],
    ),
)
def test_trained_weights_load_from_a_packed_file_bit_for_bit(mode, bits, granularity, tmp_path):
    model = two_dense_layers()
    network = quantized(mode, bits, granularity, model)
    hook = IncrementalQuantization(network, FRACTIONS, STARTS)
    data = batches(8)
    options = TrainOptions(tmp_path / "training", 8, progress=False)
    Trainer(network, loss, BertAdamW(0.05), options, hooks=[hook]).fit(lambda n: data[n:])
    path = tmp_path / "model.safetensors"
    tfquant.export(network, path, target="packed")
    sizes = {row.path: row for row in tfquant.size_report(network, path).variables}
    assert {sizes[name].bits for name in hook.names} == {bits}
    for name in hook.names:
        codes = load_file(path)[f"{name}/codes"]
        assert codes.nbytes == (np.prod(sizes[name].shape) * bits + 7) // 8
    loaded = tfquant.load_packed(path, two_dense_layers(seed=9))
    # Those of `lin` are stored as a scale times an integer, which the simulation computes in
    # another order: they are rounded to the same bits again, but may differ in the last one before.
    limit = 3e-7 if mode == "lin" else 0
    for one, other in zip(loaded.original.weights, model.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=limit, atol=0)
    np.testing.assert_array_equal(loaded(data[0]["x"]), network(data[0]["x"]))


def test_levels_are_those_of_the_initial_weights():
    network = quantized("lin", 4, "row")
    initial = {k: v[1] for k, v in network.ranges().items()}
    assert all(np.isnan(v).all() for v in initial.values())
    kernels = {v.path: v.numpy() for v in network.original.weights}
    IncrementalQuantization(network, FRACTIONS, STARTS)
    for address, (lower, upper) in network.ranges().items():
        kernel = kernels[f"{address.split(':')[0]}/kernel"]
        np.testing.assert_array_equal(upper, np.abs(kernel).max(0))
        np.testing.assert_array_equal(lower, -upper)


def train(folder, steps, stop=None, mode="p2", group=None):
    model = two_dense_layers()
    saved = tfquant.checkpoint.steps(folder) if folder.exists() else []
    network = tfquant.load(saved[-1][1], model) if saved else quantized(*mode, model=model)
    hook = IncrementalQuantization(network, FRACTIONS, STARTS, strategy="random", seed=4)
    trainer = Trainer(
        network,
        loss,
        BertAdamW(0.05),
        TrainOptions(folder, stop or steps, progress=False),
        weights=model.weights,
        hooks=[hook],
        write=lambda prefix, tensors: tfquant.save(network, prefix, extra=tensors),
    )
    trainer.restore()
    data = batches(steps)
    trainer.fit(lambda n: data[n:])
    return model


@pytest.mark.parametrize("mode", [("p2", 5), ("mb", 2)])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(mode, tmp_path):
    whole = train(tmp_path / "whole", 8, mode=mode)
    train(tmp_path / "parts", 8, stop=6, mode=mode)
    resumed = train(tmp_path / "parts", 8, mode=mode)
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
        pytest.param(keras.optimizers.Lion(0.01), marks=pytest.mark.long),
        pytest.param(keras.optimizers.Adafactor(0.01), marks=pytest.mark.long),
        pytest.param(keras.optimizers.Ftrl(0.01), marks=pytest.mark.long),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_frozen_weights_stay_bit_identical_in_thousands_of_steps(optimizer):
    variable = keras.Variable(np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32))
    start, free = variable.numpy(), np.random.default_rng(1).random((6, 5)) < 0.5
    frozen = FrozenWeights({"v": variable.value})
    frozen.set("v", free)
    optimizer.build([variable])

    @tf.function(autograph=False)
    def ten_steps():
        for _ in range(10):
            optimizer.apply([tf.sin(variable.value * 7.0) + 0.3], [variable])
            frozen.impose()

    for _ in range(200):
        ten_steps()
    assert int(optimizer.iterations) == 2000
    np.testing.assert_array_equal(variable.numpy()[~free], start[~free])
    assert (variable.numpy()[free] != start[free]).all()


def test_fit_of_keras_quantizes_in_stages():
    network = quantized("lin", 4, "row")
    network.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    data = batches(1)[0]
    x, y = np.repeat(data["x"], 8, 0), np.repeat(data["y"], 8, 0)
    callback = IncrementalQuantizationCallback(FRACTIONS, STARTS)
    network.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[callback])
    assert network.mode == "quantized"
    for address, quantizer in network.quantizers.items():
        kernel = next(
            v for v in network.original.weights if v.path == f"{address.split(':')[0]}/kernel"
        )
        rounded = tf.function(lambda x, q=quantizer: q(x), autograph=False)  # as in the model
        np.testing.assert_array_equal(rounded(tf.constant(kernel.numpy())), kernel)


def test_random_partitions_are_nested_and_of_the_right_size():
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100, name="d")])
    network = quantized(model=model)
    hook = IncrementalQuantization(network, (0.3, 0.6, 1.0), (0, 1, 2), strategy="random", seed=1)
    masks = []
    for step in range(3):
        hook.before_step(step)
        masks.append(~next(iter(hook.state().values())).numpy())
    assert masks[0].mean() == pytest.approx(0.3, abs=0.02)
    assert masks[1].mean() == pytest.approx(0.6, abs=0.02)
    assert masks[2].all() and not (masks[0] & ~masks[1]).any()


def test_largest_takes_the_first_of_equal_values():
    values = np.array([[3.0, 1.0], [3.0, 2.0]])
    assert largest(values, 1).tolist() == [[True, False], [False, False]]
    assert largest(values, 3).tolist() == [[True, False], [True, True]]
    assert not largest(values, 0).any() and largest(values, 4).all()
    assert largest(np.ones(5), 2).tolist() == [True, True, False, False, False]


def test_learning_rates_start_again_at_each_stage():
    rate = StageRestarts.over([0, 10, 30], 30, lambda steps: WarmupLinearDecay(1.0, steps, 2))
    assert rate.starts == (0, 10)
    first, second = WarmupLinearDecay(1.0, 10, 2), WarmupLinearDecay(1.0, 20, 2)
    for step in range(30):
        expected = first(step) if step < 10 else second(step - 10)
        assert float(rate(step)) == pytest.approx(float(expected))
    again = StageRestarts.from_config(rate.get_config())
    assert float(again(12)) == float(rate(12))


def test_stages_of_a_training():
    assert stage_starts((0.5, 0.75, 1.0), 9) == [0, 4, 9]
    assert stage_starts((0.5, 0.75, 1.0), 9, 3) == [0, 3, 6]
    assert stage_starts((1.0,), 9) == [0]
    seed = [n / 10 for n in range(1, 11)]
    assert stage_starts(seed, 9) == list(range(10))
    assert len(fractions_of(2)) == 10 and fractions_of(8) == fractions_of(5)
    for bits in range(1, 9):
        check_fractions(fractions_of(bits))
    with pytest.raises(ValueError, match="10 fractions are 9 stages steps, training has 8"):
        stage_starts(seed, 8)
    with pytest.raises(ValueError, match="3 fractions are 2 stages of 5 steps, training has 9"):
        stage_starts((0.5, 0.75, 1.0), 9, 5)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.9), "the last fraction is 0.9: it must be 1"),
        ((0.5, 0.5, 1.0), "fraction 0.5 after 0.5: fractions are accumulated"),
        ((0.0, 1.0), "fraction 0 after 0"),
        ((0.5, 1.5), "fraction 1.5 after 0.5"),
        ((0.5, float("nan"), 1.0), "fraction nan after 0.5"),
        ((), "no fractions"),
    ],
)
def test_fractions_that_do_not_ascend_to_one_are_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        check_fractions(fractions)


@pytest.mark.parametrize(
    ("mode", "bits", "message"),
    [
        ("p2", 1, "p2 has 2 to 8 bits, got 1"),
        ("lin", 1, "lin has 2 to 8 bits"),
        ("mb", 5, "mb has 1 to 4 bits, got 5"),
        ("ternary", 2, "unknown mode 'ternary'"),
    ],
)
def test_bits_out_of_range_for_a_mode_are_refused(mode, bits, message):
    with pytest.raises(ValueError, match=message):
        format_of(mode, bits)


def test_what_cannot_be_frozen_is_refused_by_name():
    model = two_dense_layers()
    with pytest.raises(TypeError, match="from tfquant.quantize or tfquant.load, got Functional"):
        IncrementalQuantization(model, FRACTIONS, STARTS)
    both = tfquant.quantize(two_dense_layers(), "int8_residual_float")
    with pytest.raises(ValueError, match="first:linear_input:input: incremental .* weights alone"):
        IncrementalQuantization(both, FRACTIONS, STARTS)
    learned = Recipe((Rule(tfquant.QuantSpec("int4", update="lsq"), role="weight"),))
    with pytest.raises(ValueError, match="leave out update"):
        IncrementalQuantization(tfquant.quantize(two_dense_layers(), learned), FRACTIONS, STARTS)
    with pytest.raises(ValueError, match="3 fractions with 2 starts"):
        IncrementalQuantization(quantized(), FRACTIONS, (0, 4))
    with pytest.raises(ValueError, match="stage start 4 after 4"):
        IncrementalQuantization(quantized(), FRACTIONS, (0, 4, 4))
    with pytest.raises(ValueError, match="unknown strategy 'pruning'; known: magnitude, random"):
        IncrementalQuantization(quantized(), FRACTIONS, STARTS, strategy="pruning")

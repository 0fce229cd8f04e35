"""LoRA with a quantized base against formulas in NumPy; training, resume, merge and files."""

import threading

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tests.core.conftest import TINY, bert_batch, two_dense_layers
from tests.few import few
from tfquant import Recipe, Rule, checkpoint
from tfquant.distributed.group import fake_groups
from tfquant.recipes.spec_strings import parse_spec
from tfquant.training import BertAdamW, Lora, Trainer, TrainOptions

RANK, ALPHA = 2, 6.0
DELAYED = "e4m3,qs=per_tensor_symmetric,ahl=3"


def rounded(x, scale=1.0):
    units = np.clip(np.asarray(x, np.float32) / np.float32(scale), -448, 448)
    return units.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)


def recipe(weight="e4m3", activation="e4m3"):
    rules = [Rule(parse_spec(weight), role=("weight", "logits", "pooler"), port="kernel")]
    rules += [Rule(parse_spec(activation), role="linear_input")] if activation else []
    return Recipe(tuple(rules), name="weights")


def adapted(weight="e4m3", model=None, targets="first,second", **options):
    """A quantized model with updates whose B is not zero."""
    quantized = tfquant.quantize(model or two_dense_layers(), recipe(weight))
    lora = Lora(quantized, RANK, ALPHA, targets, **options)
    random = np.random.default_rng(1)
    for path, variable in lora.variables.items():
        if path.endswith("lora_b"):
            variable.assign(random.standard_normal(variable.shape).astype(np.float32))
    return quantized, lora


def data(rows=4, seed=0):
    random = np.random.default_rng(seed)
    x, y = (random.standard_normal((rows, n)).astype(np.float32) for n in (6, 3))
    return x, y


def numbers(variables):
    return {v.path: v.numpy() for v in variables}


def test_forward_and_gradients_are_those_of_the_formula():
    quantized, lora = adapted()
    (x, target), start = data(), numbers(quantized.variables)
    with tf.GradientTape() as tape:
        result = quantized(x, training=True)
        loss = tf.reduce_sum(result * target)
    variables = lora.variables
    found = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
    scaling, kernels, factors = np.float32(ALPHA / RANK), {}, {}
    for name in ("first", "second"):
        a, b = rounded(start[f"{name}/lora_a"]), rounded(start[f"{name}/lora_b"])
        factors[name] = a, b
        kernels[name] = rounded(start[f"{name}/kernel"] + scaling * (a @ b))
    x_q = rounded(x)
    hidden = np.maximum(x_q @ kernels["first"] + start["first/bias"], 0)
    expected = rounded(hidden) @ kernels["second"] + start["second/bias"]
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)
    d_kernel = {"second": rounded(hidden).T @ target}
    d_kernel["first"] = x_q.T @ ((target @ kernels["second"].T) * (hidden > 0))
    for name, (a, b) in factors.items():
        for path, expected in (
            (f"{name}/lora_a", scaling * d_kernel[name] @ b.T),
            (f"{name}/lora_b", scaling * a.T @ d_kernel[name]),
        ):
            np.testing.assert_allclose(found[path].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_first_forward_pass_is_that_of_the_quantized_network():
    quantized = tfquant.quantize(two_dense_layers(), recipe())
    x, _ = data()
    before = quantized(x).numpy()
    lora = Lora(quantized, RANK, targets="first")
    np.testing.assert_array_equal(quantized(x).numpy(), before)
    a = lora.variables["first/lora_a"].numpy()
    assert a.any() and np.abs(a).max() <= 6**-0.5
    other = Lora(tfquant.quantize(two_dense_layers(), recipe()), RANK, targets="first", seed=1)
    assert not np.array_equal(other.variables["first/lora_a"].numpy(), a)


def test_factors_have_delayed_scales_of_their_own():
    quantized, lora = adapted(DELAYED, targets="second")
    x, _ = data()
    start = numbers(quantized.variables)
    a, b = start["second/lora_a"], start["second/lora_b"]
    scaling = np.float32(ALPHA / RANK)
    quantized(x, training=True)
    quantized.update_scales()
    first = start["second/kernel"] + scaling * (rounded(a) @ rounded(b))
    for state, values in zip(lora.delayed, (a, b), strict=True):
        assert state.history.numpy().tolist() == [np.abs(values).max(), 0, 0]
    kernel = quantized.quantizers["second:weight:kernel"].state
    assert kernel.history.numpy()[0] == pytest.approx(np.abs(first).max(), rel=1e-6)
    scales = [np.abs(v).max() * np.float32(1 / 448) for v in (a, b, first)]
    product = rounded(a, scales[0]) @ rounded(b, scales[1])
    expected = rounded(start["second/kernel"] + scaling * product, scales[2])
    hidden = rounded(np.maximum(rounded(x) @ rounded(start["first/kernel"]), 0))
    quantized.quantizers["first:weight:kernel"].set_range(-448.0, 448.0)
    np.testing.assert_allclose(quantized(x).numpy(), hidden @ expected, rtol=1e-5, atol=1e-5)


def test_fit_trains_factors_alone_and_merging_changes_no_bit_of_the_answers():
    quantized = tfquant.quantize(two_dense_layers(), recipe())
    lora = Lora(quantized, RANK, targets="first", trained="second")
    (x, y), start = data(16), numbers(quantized.variables)
    assert set(numbers(quantized.trainable_variables)) == {
        "first/lora_a",
        "first/lora_b",
        "second/kernel",
        "second/bias",
    }
    assert set(numbers(quantized.non_trainable_variables)) == {"first/kernel", "first/bias"}
    quantized.compile("adam", "mse")
    quantized.fit(x, y, epochs=3, verbose=0)
    after = numbers(quantized.variables)
    for name in ("first/kernel", "first/bias"):
        np.testing.assert_array_equal(after[name], start[name])
    for name in numbers(quantized.trainable_variables):
        assert not np.array_equal(after[name], start[name]), name
    graph = tf.function(lambda x: quantized(x))
    before = graph(x).numpy()
    lora.merge()
    np.testing.assert_array_equal(quantized(x).numpy(), before)
    np.testing.assert_array_equal(graph(x).numpy(), before)
    names = ["first/kernel", "first/bias", "second/kernel", "second/bias"]
    assert list(numbers(quantized.trainable_variables)) == names
    assert quantized.lora is None and list(numbers(quantized.variables)) == names
    assert not np.array_equal(quantized.get_layer("first").kernel.numpy(), start["first/kernel"])
    quantized.compile("adam", "mse")
    quantized.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="merged already"):
        lora.merge()


def trainer(folder, steps):
    quantized = tfquant.quantize(two_dense_layers(), recipe(DELAYED, DELAYED))
    lora = Lora(quantized, RANK, targets="first")

    def loss(model, batch):
        return tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2)

    options = TrainOptions(str(folder), steps, checkpoint_every=2, progress=False)
    return lora, Trainer(quantized, loss, BertAdamW(0.01), options)


def batches(start):
    for step in range(start, 20):
        x, y = data(seed=step)
        yield {"x": x, "y": y}


def test_a_resumed_training_ends_with_the_same_factors_and_scales(tmp_path):
    lora, whole = trainer(tmp_path / "whole", 4)
    whole.fit(batches)
    trainer(tmp_path / "part", 2)[1].fit(batches)
    again, resumed = trainer(tmp_path / "part", 4)
    assert resumed.restore() == 2
    resumed.fit(batches)
    assert lora.state.keys() == again.state.keys() and len(lora.state) == 6
    saved = [checkpoint.read(tmp_path / name / "model.ckpt-4") for name in ("whole", "part")]
    assert {"first/lora_a", "first/lora_b/adam_m"} <= set(saved[0])
    assert set(saved[0]) == set(saved[1])
    for name in saved[0]:
        np.testing.assert_array_equal(saved[1][name], saved[0][name], err_msg=name)


def test_ranks_share_the_scales_of_factors():
    groups, (x, _) = fake_groups(2), data(8)
    networks = [adapted(DELAYED)[0] for _ in groups]

    def step(rank):
        networks[rank](x[4 * rank : 4 * rank + 4], training=True)
        networks[rank].update_scales(groups[rank])

    threads = [threading.Thread(target=step, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, _ = adapted(DELAYED)
    one(x, training=True)
    one.update_scales()
    expected = one.lora.state
    for network in networks:
        for name, variable in network.lora.state.items():
            np.testing.assert_array_equal(variable.numpy(), expected[name].numpy(), err_msg=name)


def attention_like():
    """Kernels [6, 2, 4] and [2, 4, 6], of Einsum products."""
    inputs = keras.Input((3, 6))
    hidden = keras.layers.EinsumDense("btd,dnh->btnh", (None, 2, 4), name="first")(inputs)
    output = keras.layers.EinsumDense("btnh,nhd->btd", (None, 6), name="second")(hidden)
    return keras.Model(inputs, output)


WEIGHTS = [
    "e4m3",
    "posit8_1",
    "mxfp4",
    "nf4,qs=microscaling,bs=4",
    "int8,qs=per_channel_symmetric,ax=0,ahl=3",
]


@pytest.mark.parametrize("weight", few(WEIGHTS, kept=("e4m3", WEIGHTS[-1])))
def test_kernels_of_any_rank_and_layout_answer_the_same_when_merged(weight):
    quantized, lora = adapted(weight, attention_like())
    x = np.random.default_rng(3).standard_normal((2, 3, 6)).astype(np.float32)
    for _ in range(2):
        quantized(x, training=True)
        quantized.update_scales()
    before, start = quantized(x).numpy(), numbers(quantized.variables)
    lora.merge()
    np.testing.assert_array_equal(quantized(x).numpy(), before)
    if weight != "e4m3":
        return
    for name in ("first", "second"):
        product = rounded(start[f"{name}/lora_a"]) @ rounded(start[f"{name}/lora_b"])
        kernel = start[f"{name}/kernel"]
        expected = kernel + np.float32(ALPHA / RANK) * product.reshape(kernel.shape)
        merged = quantized.get_layer(name).kernel.numpy()
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


def test_calibrated_and_half_precision_kernels_answer_the_same_when_merged():
    inputs = keras.Input((6,))
    output = keras.layers.Dense(5, dtype="mixed_bfloat16", name="first")(inputs)
    quantized = tfquant.quantize(
        keras.Model(inputs, output), "int8_residual", [data()[0]], progress=False
    )
    lora = Lora(quantized, RANK, ALPHA, "first")
    lora.variables["first/lora_b"].assign(np.full((RANK, 5), 0.1))
    before = quantized(data()[0]).numpy()
    lora.merge()
    np.testing.assert_array_equal(quantized(data()[0]).numpy(), before)


def test_parts_name_kernels_of_an_encoder_and_its_last_layers_are_trained():
    quantized = tfquant.quantize(modeling.build_classifier(TINY, 2), recipe(DELAYED, None))
    lora = Lora(quantized, RANK, targets="query,ffn_in,attention/output/dense")
    layer = "bert/encoder/layer_0"
    assert [address.partition(":")[0] for address in lora.updates] == [
        f"{layer}/attention/self/query",
        f"{layer}/attention/output/dense",
        f"{layer}/intermediate/dense",
    ]
    others = {name for name in numbers(quantized.trainable_variables) if "lora" not in name}
    assert others == {
        "bert/pooler/dense/kernel",
        "bert/pooler/dense/bias",
        "output_weights",
        "output_bias",
    }
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(bert_batch([5, 3]), training=True)["logits"] ** 2)
    gradients = tape.gradient(loss, [v.value for v in quantized.trainable_variables])
    assert all(g is not None for g in gradients)


def test_saved_updates_are_loaded_apart_from_their_kernels(tmp_path):
    quantized, lora = adapted(DELAYED)
    x, _ = data()
    quantized(x, training=True)
    quantized.update_scales()
    tfquant.save(quantized, tmp_path / "model.ckpt")
    loaded = tfquant.load(tmp_path / "model.ckpt", two_dense_layers(seed=7))
    assert (loaded.lora.rank, loaded.lora.alpha) == (RANK, ALPHA)
    np.testing.assert_array_equal(loaded(x).numpy(), quantized(x).numpy())
    for name, variable in lora.state.items():
        np.testing.assert_array_equal(loaded.lora.state[name].numpy(), variable.numpy())
    lora.merge()
    loaded.lora.merge()
    np.testing.assert_array_equal(loaded(x).numpy(), quantized(x).numpy())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"first/lora_a": None}, "is damaged, it holds no first/lora_a"),
        ({"first/lora_a": np.zeros((6, 3), np.float32)}, "first/lora_a is NaN .* than \\[6, 2\\]"),
        ({"tfquant/lora": '{"rank": 2}'}, "tfquant/lora does not fit the model"),
        ({"tfquant/lora": "[]"}, "tfquant/lora is damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, said):
    quantized, _ = adapted()
    tfquant.save(quantized, tmp_path / "model.ckpt")
    saved = checkpoint.read(tmp_path / "model.ckpt")
    tensors = {name: saved[name] for name in saved} | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    checkpoint.write(tmp_path / "damaged.ckpt", tensors)
    model = two_dense_layers(seed=7)
    before = numbers(model.variables)
    with pytest.raises(ValueError, match=said):
        tfquant.load(tmp_path / "damaged.ckpt", model)
    for name, value in before.items():
        np.testing.assert_array_equal(numbers(model.variables)[name], value)


def test_files_hold_merged_kernels_alone(tmp_path):
    quantized, lora = adapted()
    (x, _), path = data(), tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="2 kernels have LoRA updates, which a file would leave"):
        tfquant.export(quantized, path, target="packed")
    with pytest.raises(ValueError, match="which calibration would leave out: merge them first"):
        tfquant.calibrate(quantized, [x])
    before = quantized(x).numpy()
    lora.merge()
    tfquant.export(quantized, path, target="packed")
    loaded = tfquant.load_packed(path, two_dense_layers(seed=7))
    np.testing.assert_array_equal(loaded(x).numpy(), before)


def shared_kernel():
    inputs, kernel = keras.Input((6,)), keras.layers.Dense(6, use_bias=False, name="first")
    kernel.build((None, 6))
    read = keras.layers.Lambda(lambda x: x * keras.ops.sum(kernel.kernel))
    return keras.Model(inputs, read(kernel(inputs)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": True}, "rank must be an integer"),
        ({"rank": 4}, "second:weight:kernel: rank 4 is larger than the kernel, 5 .* at most 3"),
        ({"alpha": float("nan")}, "alpha must be a number above 0"),
        ({"alpha": -1}, "alpha must be a number above 0"),
        ({"targets": "first,querry"}, "'querry' matches no quantized kernel; there are first, se"),
        ({"targets": " , "}, "there are no targets; give some"),
        ({"trained": "third"}, "trained='third' names no layer"),
    ],
)
def test_wrong_arguments_change_nothing(options, said):
    quantized = tfquant.quantize(two_dense_layers(), recipe())
    with pytest.raises(ValueError, match=said):
        Lora(quantized, **{"rank": 2, "targets": "first,second"} | options)
    assert quantized.lora is None and len(quantized.variables) == 4


def test_models_without_kernels_to_merge_into_are_refused():
    with pytest.raises(ValueError, match="no kernel is quantized.*rule for role weight"):
        activations = Recipe((Rule(parse_spec("e4m3"), role="linear_input"),))
        Lora(tfquant.quantize(two_dense_layers(), activations), 2)
    with pytest.raises(ValueError, match="first:weight:kernel: its variable is used by"):
        Lora(tfquant.quantize(shared_kernel(), recipe()), 2, targets="first")
    quantized, _ = adapted()
    with pytest.raises(ValueError, match="has LoRA updates already"):
        Lora(quantized, 2)
    function = tfquant.quantize(lambda x: x @ tf.ones((6, 3)), recipe(), inputs=data()[:1])
    with pytest.raises(TypeError, match="got a quantized function"):
        Lora(function, 2)


def test_arguments_of_the_command_line_add_updates():
    parser = tfquant.add_training_args()
    words = ["--weight=e4m3", "--lora_rank=2", "--lora-alpha=4", "--target_modules=first"]
    quantized = tfquant.quantize(two_dense_layers(), parser.parse_args(words))
    assert (quantized.lora.rank, quantized.lora.alpha) == (2, 4.0)
    assert list(quantized.lora.updates) == ["first:weight:kernel"]
    with pytest.raises(ValueError, match="--lora_rank: .* give --weight a spec as well"):
        words = ["--activation=e4m3", "--lora_rank=2"]
        tfquant.quantize(two_dense_layers(), parser.parse_args(words))

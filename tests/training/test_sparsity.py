"""2:4 sparsity: masks against NumPy, schedule, resume, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfquant.training import BertAdamW, Trainer, TrainOptions
from tfquant.training.sparsity import StructuredSparsity, check, encoder_kernels


def kernel(rows=8, columns=3, name="layer_0/output/dense/kernel", seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    return tf.Variable(values, name=name)


def two_largest_of_four(values):
    groups = np.abs(values).reshape(-1, 4, values.shape[1])
    rank = np.argsort(np.argsort(groups, axis=1), axis=1)
    return (rank >= 2).reshape(values.shape).astype(np.float32)


def test_masks_keep_the_two_largest_of_four_along_the_inputs():
    variable = kernel(
        8, 6
    )  # 6 outputs: groups along the wrong axis would be refused or found wrong
    before = variable.numpy()
    sparsity = StructuredSparsity([variable])
    (name, mask), *rest = sparsity.state().items()
    assert name == "tfquant/masks/layer_0/output/dense/kernel" and not rest
    np.testing.assert_array_equal(mask, 1.0)
    assert sparsity.before_step(0)
    np.testing.assert_array_equal(mask, two_largest_of_four(before))
    np.testing.assert_array_equal(variable, before * two_largest_of_four(before))
    check({"k": variable.numpy()}, "2x4")


@pytest.mark.parametrize("count", [2, 3])
def test_kernels_of_one_path_are_all_kept_sparse(count):
    kernels = [kernel(seed=seed, name="d/kernel") for seed in range(count)]
    wanted = [v.numpy() * two_largest_of_four(v.numpy()) for v in kernels]
    sparsity = StructuredSparsity([*kernels, kernels[0]])
    assert list(sparsity.state()) == [
        "tfquant/masks/d/kernel",
        *(f"tfquant/masks/d/kernel#{n}" for n in range(2, count + 1)),
    ]
    sparsity.before_step(0)
    for variable, value in zip(kernels, wanted, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_masks_are_made_when_the_schedule_says_so():
    sparsity = StructuredSparsity([kernel()], begin_step=2, end_step=7, frequency=3)
    assert [step for step in range(12) if sparsity.before_step(step)] == [2, 5]
    forever = StructuredSparsity([kernel()], begin_step=1, frequency=4)
    assert [step for step in range(12) if forever.before_step(step)] == [1, 5, 9]


def test_nothing_is_dropped_before_the_begin():
    variable = kernel()
    before = variable.numpy()
    sparsity = StructuredSparsity([variable], begin_step=1)
    assert not sparsity.before_step(0)
    sparsity.after_update()
    np.testing.assert_array_equal(variable, before)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_apply_in_a_function_undoes_what_an_update_gives_to_dropped_weights(dtype):
    variable = tf.Variable(kernel().numpy().astype(dtype), name="k")
    sparsity = StructuredSparsity([variable])
    sparsity.before_step(0)
    kept = two_largest_of_four(kernel().numpy())

    @tf.function(autograph=False)
    def step():
        variable.assign_add(tf.ones_like(variable))
        sparsity.after_update()

    expected = (variable.numpy() + 1) * kept.astype(dtype)
    step()
    np.testing.assert_array_equal(variable, expected)


def encoder():
    keras.utils.set_random_seed(5)
    x = keras.Input((8,))
    hidden = keras.layers.Dense(8, name="intermediate")(x)
    return keras.Model(x, keras.layers.Dense(1, name="head")(hidden))


def train(folder, steps, stop=None):
    model = encoder()
    sparsity = StructuredSparsity(
        encoder_kernels(model.trainable_variables, "^intermediate/kernel$"),
        begin_step=2,
        frequency=2,
    )
    rng = np.random.default_rng(3)
    data = [{"x": rng.normal(size=(4, 8)).astype(np.float32)} for _ in range(steps)]
    trainer = Trainer(
        model,
        lambda m, b: tf.reduce_mean((m(b["x"], training=True) - 1.0) ** 2),
        BertAdamW(0.05),
        TrainOptions(directory=folder, total_steps=stop or steps),
        hooks=[sparsity],
    )
    trainer.restore()
    trainer.fit(lambda n: data[n:])
    return model


def test_training_keeps_the_pattern_and_resumes_exactly(tmp_path):
    whole = train(tmp_path / "whole", 7)
    check({"intermediate/kernel": whole.get_layer("intermediate").kernel.numpy()}, "2x4")
    train(
        tmp_path / "parts", 7, stop=5
    )  # 5 is no step at which masks are made: they must come from the checkpoint
    resumed = train(tmp_path / "parts", 7)
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_check_names_the_first_kernel_without_zeros():
    good = np.tile(np.array([[1.0], [0.0], [0.0], [2.0]], np.float32), (2, 3))
    bad = good.copy()
    bad[5, 1] = 0.5
    check({"good": good})
    check({"good": np.zeros_like(good)})
    with pytest.raises(
        ValueError, match="kernel bad is not 2x4 sparse: inputs 4 to 7 of output 1 have 1 zeros"
    ):
        check({"good": good, "bad": bad, "later": bad})


def test_check_counts_along_the_inputs():
    along_outputs = np.tile(np.array([[1.0, 1.0, 0.0, 0.0]], np.float32), (4, 1))
    with pytest.raises(ValueError, match="kernel k is not"):
        check({"k": along_outputs})


def test_what_cannot_be_sparse_is_refused_by_name():
    with pytest.raises(ValueError, match="kernel odd/kernel has 6 inputs, no multiple of 4"):
        StructuredSparsity([kernel(), kernel(6, name="odd/kernel")])
    with pytest.raises(ValueError, match="kernel odd has 6 inputs"):
        check({"odd": np.zeros((6, 4))})
    with pytest.raises(ValueError, match=r"kernel bias has shape \[4\]"):
        StructuredSparsity([tf.Variable(tf.zeros(4), name="bias")])
    with pytest.raises(ValueError, match="no kernels"):
        StructuredSparsity([])


@pytest.mark.parametrize("pattern", ["4x2", "0x4", "2:4", "4x4"])
def test_wrong_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="sparsity pattern"):
        StructuredSparsity([kernel()], pattern)


def test_encoder_kernels_are_chosen_by_path():
    layer = "bert/encoder/layer_0/"
    chosen = [
        *(f"{layer}attention/self/{p}/kernel" for p in ("query", "key", "value")),
        f"{layer}attention/output/dense/kernel",
        f"{layer}intermediate/dense/kernel",
        f"{layer}output/dense/kernel",
    ]
    others = [
        "bert/embeddings/word_embeddings",
        f"{layer}output/dense/bias",
        f"{layer}output/LayerNorm/gamma",
        "bert/pooler/dense/kernel",
        "cls/squad/output_weights",
    ]
    variables = [tf.Variable(0.0, name=name) for name in (*others, *chosen)]
    assert [v.name.removesuffix(":0") for v in encoder_kernels(variables)] == chosen
    with pytest.raises(ValueError, match="no variable's path matches"):
        encoder_kernels(variables, "decoder")

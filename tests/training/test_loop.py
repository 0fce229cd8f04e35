"""The training loop.

Same numbers whether a run is whole, resumed, or split into smaller batches.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tfquant import checkpoint
from tfquant.distributed.group import Single
from tfquant.training import BertAdamW, NonFiniteLossError, Trainer, TrainOptions, WarmupLinearDecay

WORDS, LENGTH = 11, 5


def make_model(dropout: float = 0.3, dtype: str | None = None) -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(WORDS, 6, name="words", dtype=dtype)(ids)
    x = keras.layers.Dropout(dropout, seed=3, dtype=dtype)(x)
    x = keras.layers.Dense(8, activation="tanh", name="dense", dtype=dtype)(x)
    x = keras.layers.LayerNormalization(name="LayerNorm", dtype=dtype)(x)
    x = keras.layers.Dropout(dropout, seed=4, dtype=dtype)(x)
    return keras.Model(ids, keras.layers.Dense(2, name="head", dtype="float32")(x))


def loss(model, batch):
    logits = model(batch["ids"], training=True)[:, 0]
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))


def batches(start: int, size: int = 4, count: int | None = None):
    """An endless stream: whether the first word is an even number. Batches differ in length."""
    for index in itertools.count(start) if count is None else range(start, count):
        rng = np.random.default_rng([5, index])
        ids = rng.integers(0, WORDS, (size, LENGTH + index % 3)).astype(np.int32)
        yield {"ids": ids, "label": ids[:, 0] % 2}


def make_trainer(
    directory, total_steps=6, *, model=None, rate=0.01, loss=loss, write=None, **options
):
    given = {} if write is None else {"write": write}
    options = {"checkpoint_every": 2, "keep_checkpoints": 0} | options
    return Trainer(
        model or make_model(),
        loss,
        BertAdamW(WarmupLinearDecay(rate, total_steps, 1)),
        TrainOptions(directory, total_steps, **options),
        **given,
    )


def everything(prefix) -> dict[str, np.ndarray]:
    found = checkpoint.read(prefix)
    return {name: found[name] for name in found}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(tmp_path, accumulation):
    whole = make_trainer(tmp_path / "whole", accumulation=accumulation)
    start = [v.numpy() for v in whole.model.weights]
    whole.fit(batches)

    class Cut(Exception):
        pass

    def cut(first):
        for index, batch in enumerate(batches(first), first):
            if (
                index == 5 * accumulation - 1
            ):  # in the middle of step 5, the last checkpoint is of step 4
                raise Cut
            yield batch

    broken = make_trainer(tmp_path / "broken", accumulation=accumulation)
    for variable, value in zip(broken.model.weights, start, strict=True):
        variable.assign(value)
    with pytest.raises(Cut):
        broken.fit(cut)
    keras.utils.set_random_seed(99)  # a new process starts from other weights
    resumed = make_trainer(tmp_path / "broken", accumulation=accumulation)
    assert resumed.restore() == 4
    summary = resumed.fit(batches)
    assert (summary.first_step, summary.last_step) == (4, 6)

    four, one = (everything(tmp_path / "whole" / f"model.ckpt-{step}") for step in (4, 6))
    two = everything(tmp_path / "broken" / "model.ckpt-6")
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name
    assert not np.array_equal(one["words/embeddings"], four["words/embeddings"])


def with_layers_of_one_name() -> keras.Model:
    """Nested models name their layers by themselves.

    Two kernels are called `inner/kernel`, two `head/kernel`.
    """

    def nested(width, units, name):
        inputs = keras.Input((None, width))
        return keras.Model(inputs, keras.layers.Dense(units, name=name)(inputs))

    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(WORDS, 6, name="words")(ids)
    x = nested(6, 6, "inner")(nested(6, 6, "inner")(x))
    return keras.Model(ids, nested(6, 2, "head")(nested(6, 6, "head")(x)))


def test_variables_of_one_path_are_all_saved_and_restored(tmp_path):
    trainer = make_trainer(tmp_path, 2, model=with_layers_of_one_name())
    trainer.fit(batches)
    expected = [v.numpy() for v in trainer.model.weights]
    slots = [slot.numpy() for pair in trainer.optimizer.slots() for slot in pair]
    names = everything(tmp_path / "model.ckpt-2").keys()
    assert {"inner/kernel", "inner/kernel#2", "head/kernel#2/adam_m", "head/bias#2/adam_v"} <= names
    keras.utils.set_random_seed(99)
    resumed = make_trainer(tmp_path, 2, model=with_layers_of_one_name())
    assert resumed.restore() == 2
    for own, value in zip(resumed.model.weights, expected, strict=True):
        np.testing.assert_array_equal(own, value)
    for own, value in zip(
        (slot for pair in resumed.optimizer.slots() for slot in pair), slots, strict=True
    ):
        np.testing.assert_array_equal(own, value)


def test_the_checkpoint_holds_weights_slots_step_and_seeds_under_their_names(tmp_path):
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(batches)
    weights = {v.path for v in trainer.model.weights}
    assert {"words/embeddings", "dense/kernel", "LayerNorm/gamma", "head/bias"} <= weights
    slots = {f"{name}/{slot}" for name in weights for slot in ("adam_m", "adam_v")}
    found = checkpoint.read(tmp_path / "model.ckpt-2")
    assert set(found) == weights | slots | {
        "global_step",
        "tfquant/state/seed_0",
        "tfquant/state/seed_1",
    }
    assert found["global_step"] == 2 and found.dtypes["global_step"] == tf.int64


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    def joined(start):
        stream = itertools.islice(batches(0), start * 3, None, 3)  # every third: all of one length
        while True:
            group = list(itertools.islice(stream, 3))
            yield {name: np.concatenate([b[name] for b in group]) for name in group[0]}

    def single(start):
        return itertools.islice(batches(0), start * 3, None, 3)

    results = []
    for accumulation, stream in ((1, joined), (3, single)):
        keras.utils.set_random_seed(0)
        model = make_model(dropout=0.0)
        trainer = make_trainer(
            tmp_path / str(accumulation), 3, model=model, accumulation=accumulation
        )
        trainer.fit(stream)
        results.append([v.numpy() for v in model.weights])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_gradients_are_averaged_then_clipped_by_their_global_norm(tmp_path):
    applied = []

    class Recorder(BertAdamW):
        def apply(self, grads, trainable_variables=None):
            applied.append(list(grads))
            return super().apply(grads, trainable_variables)

    model = make_model(dropout=0.0)
    seen = []

    class Pair(Single):
        size = 2

        def average(self, tensors):
            *gradients, scalars = map(
                tf.convert_to_tensor, tensors
            )  # those of the embedding arrive sparse
            seen.append(gradients)
            return [100.0 * g for g in gradients] + [scalars]

    def run(clip_norm):
        options = TrainOptions(tmp_path, 1, clip_norm=clip_norm)
        trainer = Trainer(model, loss, Recorder(0.0, weight_decay=0.0), options, group=Pair())
        batch = {k: tf.constant(v) for k, v in next(batches(0)).items()}

        @tf.function
        def step(batch):
            value, gradients = trainer._gradients(batch)
            _, norm, *_ = trainer._apply(gradients, value, tf.constant(False))
            return norm, seen[-1], applied[-1]

        return step(batch)

    norm, raw, clipped = run(1.0)
    expected = 100.0 * np.sqrt(sum(np.sum(np.square(g.numpy().astype(np.float64))) for g in raw))
    assert expected > 1.0
    np.testing.assert_allclose(float(norm), expected, rtol=1e-5)
    for before, after in zip(raw, clipped, strict=True):
        np.testing.assert_allclose(after, 100.0 * before.numpy() / expected, rtol=1e-4, atol=1e-8)
    for limit in (1e6, None):
        _, raw, untouched = run(limit)
        for before, after in zip(raw, untouched, strict=True):
            np.testing.assert_allclose(after, 100.0 * before.numpy(), rtol=1e-6)


def test_repeated_words_count_as_one_gradient_in_the_norm(tmp_path):
    model = make_model(dropout=0.0)
    trainer = make_trainer(tmp_path, model=model)
    batch = {"ids": tf.zeros((1, LENGTH), tf.int32), "label": tf.zeros(1, tf.int32)}

    def everywhere(model, batch):
        return tf.reduce_sum(model(batch["ids"], training=True)[..., 0])

    trainer._loss = everywhere
    _, gradients = trainer._gradients(batch)
    table = gradients[trainer._variables.index(model.get_layer("words").embeddings)]
    assert table.shape == (WORDS, 6) and np.any(table.numpy()[0]) and not np.any(table.numpy()[1:])


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_weights(tmp_path):
    def poisoned(start):
        for index, batch in enumerate(batches(start), start):
            yield batch | {"factor": np.float32(np.nan if index == 2 else 1.0).reshape(1)}

    trainer = make_trainer(
        tmp_path, loss=lambda model, batch: loss(model, batch) * batch["factor"][0]
    )
    with pytest.raises(NonFiniteLossError, match="step 3.*learning rate"):
        trainer.fit(poisoned)
    assert trainer.step == 2
    for name, value in everything(tmp_path / "model.ckpt-2").items():
        if not name.startswith("tfquant/"):  # dropout has drawn once more
            assert np.array_equal(trainer.state()[name].numpy(), value), name


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_caught_too(tmp_path):
    def cusp(model, batch):
        return tf.sqrt(tf.reduce_sum(tf.nn.relu(model(batch["ids"], training=True) * 0.0)))

    trainer = make_trainer(tmp_path, loss=cusp)
    with pytest.raises(NonFiniteLossError, match="step 1: its gradient of words/embeddings is"):
        trainer.fit(batches)
    assert all(np.isfinite(v.numpy()).all() for v in trainer.model.weights)


def test_data_that_ends_early_is_an_error_naming_the_step(tmp_path):
    with pytest.raises(ValueError, match="ended before step 4 of 6"):
        make_trainer(tmp_path).fit(lambda start: batches(start, count=3))


def test_a_finished_run_says_so_and_does_nothing(tmp_path, capsys):
    make_trainer(tmp_path, 2).fit(batches)
    again = make_trainer(tmp_path, 2)
    again.restore()
    summary = again.fit(batches)
    assert "already been trained for 2 steps of 2" in capsys.readouterr().err
    assert (summary.first_step, summary.last_step) == (2, 2)
    assert summary.checkpoint == str(tmp_path / "model.ckpt-2")


def test_resuming_a_different_model_lists_every_difference_and_changes_nothing(tmp_path):
    make_trainer(tmp_path, 2).fit(batches)
    ids = keras.Input((None,), dtype="int32")
    other = keras.Model(
        ids, keras.layers.Dense(3, name="head")(keras.layers.Embedding(7, 6, name="words")(ids))
    )
    before = [v.numpy() for v in other.weights]
    trainer = make_trainer(tmp_path, model=other)
    with pytest.raises(
        ValueError,
        match=r"embeddings has shape \(11, 6\) instead of \(7, 6\).*head/kernel has shape",
    ):
        trainer.restore()
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(other.weights, before, strict=True))


def test_a_checkpoint_without_slots_is_not_resumed(tmp_path):
    model = make_model()
    checkpoint.write(tmp_path / "model.ckpt-3", {v.path: v for v in model.weights})
    with pytest.raises(ValueError, match="dense/kernel/adam_m is missing.*global_step is missing"):
        make_trainer(tmp_path, model=model).restore()


def test_restore_without_a_checkpoint_starts_at_zero(tmp_path):
    assert make_trainer(tmp_path / "new").restore() == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    make_trainer(tmp_path, 7, keep_checkpoints=2).fit(batches)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [6, 7]
    assert checkpoint.latest(tmp_path) == str(tmp_path / "model.ckpt-7")


def test_mixed_bfloat16_trains_float32_weights(tmp_path):
    model = make_model(dropout=0.0, dtype="mixed_bfloat16")
    summary = make_trainer(tmp_path, 60, model=model, checkpoint_every=0, rate=0.03).fit(batches)
    assert all(v.dtype == "float32" for v in model.weights)
    assert np.isfinite(summary.loss) and summary.loss < 0.4  # guessing gives 0.69


def test_a_custom_writer_sees_all_state_and_its_extra_tensors_do_not_disturb_resuming(tmp_path):
    def write(prefix, tensors):
        checkpoint.write(prefix, {**tensors, "tfquant/recipe": "{}"})

    make_trainer(tmp_path, 2, write=write).fit(batches)
    assert checkpoint.read(tmp_path / "model.ckpt-2")["tfquant/recipe"] == "{}"
    assert make_trainer(tmp_path, write=write).restore() == 2


def test_speed_and_scalars_are_reported(tmp_path, capsys):
    summary = make_trainer(tmp_path, 6, log_every=3).fit(batches)
    assert (
        summary.seconds > 0 and 0 < summary.examples_per_second < summary.steady_examples_per_second
    )
    assert "examples/s" in capsys.readouterr().err
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    logged = {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    tags = ("loss", "gradient_norm", "learning_rate", "examples_per_second")
    assert logged == {f"train/{tag}": [3, 6] for tag in tags}


@pytest.mark.parametrize(
    "options",
    [
        {"total_steps": 0},
        {"accumulation": 0},
        {"checkpoint_every": -1},
        {"clip_norm": 0.0},
        {"log_every": 0},
    ],
)
def test_options_out_of_range_are_refused_by_name(options, tmp_path):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainOptions(**({"directory": tmp_path, "total_steps": 5} | options))


def test_nothing_to_train_is_an_error(tmp_path):
    model = make_model()
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        make_trainer(tmp_path, model=model)
    with pytest.raises(ValueError, match="depends on no trainable variable"):
        make_trainer(tmp_path, loss=lambda model, batch: tf.constant(1.0)).fit(batches)

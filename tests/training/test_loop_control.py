"""What interrupts or accompanies training.

SIGTERM, overflowing gradients, hooks, further state, several ranks.
"""

import os
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf

from tfquant import checkpoint
from tfquant.distributed.group import DivergedError, Single
from tfquant.training import BertAdamW, NonFiniteLossError, Trainer, TrainOptions
from tfquant.training.hooks import Hook
from tfquant.training.loop import TrainingInterrupted
from tfquant.training.loss_scale import LARGEST, DynamicLossScale


class Line:
    """y = w x + b, as little as the trainer asks of a model."""

    def __init__(self):
        self.weights = [tf.Variable([0.5, -0.5], name="line/w"), tf.Variable(0.25, name="line/b")]
        self.trainable_variables = self.variables = self.weights


def loss(model, batch):
    w, b = model.weights
    return tf.reduce_mean(tf.square(tf.linalg.matvec(batch["x"], w) + b - 1.0))


def batches(start):
    for index in range(start, 100):
        yield {"x": np.random.default_rng(index).normal(size=(3, 2)).astype(np.float32)}


def make(folder, steps=6, *, loss=loss, loss_scale=None, accumulation=1, every=0, **given):
    options = TrainOptions(
        folder,
        steps,
        accumulation=accumulation,
        checkpoint_every=every,
        keep_checkpoints=0,
        loss_scale=loss_scale,
    )
    return Trainer(Line(), loss, BertAdamW(0.01), options, **given)


def everything(prefix):
    found = checkpoint.read(prefix)
    return {name: found[name] for name in found}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


def killing(number, start=0, by=signal.SIGTERM):
    for index, batch in enumerate(batches(start), start):
        if index == number:
            os.kill(os.getpid(), by)
        yield batch


@pytest.mark.parametrize(
    ("accumulation", "by"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGUSR1)]
)
def test_a_signal_to_stop_finishes_the_step_and_saves_it_and_the_resumed_run_ends_the_same(
    tmp_path, accumulation, by, capsys
):
    make(tmp_path / "whole", accumulation=accumulation).fit(batches)
    before = signal.getsignal(by)
    with pytest.raises(TrainingInterrupted) as caught:
        make(tmp_path / "cut", accumulation=accumulation).fit(
            lambda start: killing(2 * accumulation, start, by)
        )
    assert signal.getsignal(by) is before
    assert (caught.value.code, caught.value.step) == (0, 3)
    assert caught.value.checkpoint == str(tmp_path / "cut" / "model.ckpt-3")
    assert "stopped by a signal after step 3 of 6" in capsys.readouterr().err
    again = make(tmp_path / "cut", accumulation=accumulation)
    assert again.restore() == 3
    again.fit(batches)
    assert_same(
        everything(tmp_path / "whole" / "model.ckpt-6"),
        everything(tmp_path / "cut" / "model.ckpt-6"),
    )


def test_a_sigterm_too_late_for_any_step_is_not_lost(tmp_path):
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append(True))
    try:
        make(tmp_path, 1, write=lambda *_: os.kill(os.getpid(), signal.SIGTERM)).fit(batches)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [True]


def test_outside_the_main_thread_training_works_without_a_handler(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(make(tmp_path, 2).fit(batches).last_step))
    thread.start()
    thread.join()
    assert done == [2]


class Other(Single):
    """A group of two whose other rank always sends the same gradients as this one, but its own loss
    and wish to stop.
    """

    size = 2

    def __init__(self, rank=0, loss=0.0, stop=False):
        self.rank, self._other = rank, tf.constant([loss, float(stop)])

    def average(self, tensors):
        *same, scalars = tensors
        return [*same, (scalars + self._other) / 2]


def test_a_wish_to_stop_of_another_rank_stops_this_one_at_the_same_step(tmp_path):
    with pytest.raises(TrainingInterrupted) as caught:
        make(tmp_path, group=Other(stop=True)).fit(batches)
    assert caught.value.step == 1


def test_the_loss_shown_is_the_mean_over_ranks(tmp_path):
    alone = make(tmp_path / "one", 1).fit(batches).loss
    np.testing.assert_allclose(
        make(tmp_path / "two", 1, group=Other(loss=4.0)).fit(batches).loss,
        (alone + 4.0) / 2,
        rtol=1e-6,
    )


def test_a_loss_not_finite_on_another_rank_stops_this_one_too(tmp_path):
    with pytest.raises(NonFiniteLossError, match="step 1: its loss"):
        make(tmp_path, group=Other(loss=np.nan)).fit(batches)


def test_state_of_hooks_that_differs_between_ranks_stops_the_run_before_a_checkpoint(tmp_path):
    class Differing(Single):
        def gather(self, data):
            return [data, data[:-8] + b"\0\0\0\0" + data[-4:]]  # the last is the step

    with pytest.raises(DivergedError, match="at step 1 the ranks hold different weights: updates"):
        make(tmp_path, 1, hooks=[Masked()], group=Differing()).fit(batches)
    assert not list(tmp_path.glob("model.ckpt*"))


def test_other_ranks_write_nothing(tmp_path, capsys):
    make(tmp_path, 2, group=Other(rank=1)).fit(batches)
    assert not list(tmp_path.rglob("*.*")) and not capsys.readouterr().err


def test_the_first_variable_whose_gradient_is_not_finite_is_named(tmp_path):
    def cusp(model, batch):
        return loss(model, batch) + tf.sqrt(tf.square(model.weights[1]) * 0.0)

    trainer = make(tmp_path, loss=cusp)
    with pytest.raises(NonFiniteLossError, match="step 1: its gradient of line/b is NaN"):
        trainer.fit(batches)
    assert trainer.step == 0 and float(trainer.model.weights[1]) == 0.25


def test_a_gradient_whose_norm_alone_overflows_blames_no_variable(tmp_path):
    trainer = make(tmp_path, loss=lambda model, batch: tf.reduce_sum(model.weights[0]) * 1e30)
    with pytest.raises(NonFiniteLossError, match="gradient's norm"):
        trainer.fit(batches)


def half(model, batch):
    """The gradient passes through float16 three times as large as the scale.

    2**15 overflows, 2**14 does not.
    """
    return tf.cast(tf.cast(loss(model, batch), tf.float16) * 3.0, tf.float32)


def test_a_step_that_overflows_is_skipped_with_half_the_scale_and_a_resumed_run_ends_the_same(
    tmp_path,
):
    seen = []
    whole = make(tmp_path / "whole", loss=half, loss_scale="dynamic", every=1)
    start = [w.numpy() for w in whole.model.weights]

    class Watch(Hook):
        def before_step(self, step):
            seen.append((float(whole._scale.factor), whole.model.weights[0].numpy()))

    whole._hooks.append(Watch())
    summary = whole.fit(batches)
    assert summary.last_step == whole.step == 6
    assert seen[0][0] == 2**15 and seen[1][0] == 2**14
    assert np.array_equal(seen[1][1], start[0])
    assert not np.array_equal(whole.model.weights[0].numpy(), start[0])
    names = {"tfquant/state/loss_scale", "tfquant/state/loss_scale_good_steps"}
    assert names <= everything(tmp_path / "whole" / "model.ckpt-3").keys()

    resumed = make(tmp_path / "resumed", loss=half, loss_scale="dynamic")
    assert resumed.restore(tmp_path / "whole" / "model.ckpt-3") == 3
    resumed.fit(batches)
    assert_same(
        everything(tmp_path / "whole" / "model.ckpt-6"),
        everything(tmp_path / "resumed" / "model.ckpt-6"),
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_scaling_by_powers_of_two_changes_no_weight_where_nothing_overflows(tmp_path, accumulation):
    plain, scaled = (
        make(tmp_path / str(kind), loss_scale=kind, accumulation=accumulation)
        for kind in (None, "dynamic")
    )
    plain.fit(batches)
    scaled.fit(batches)
    assert int(scaled._scale.good_steps) == 6
    for one, two in zip(plain.model.weights, scaled.model.weights, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())


def test_scaling_gives_up_when_no_smaller_scale_is_left(tmp_path):
    trainer = make(
        tmp_path, 50, loss=lambda model, batch: loss(model, batch) * np.nan, loss_scale="dynamic"
    )
    with pytest.raises(NonFiniteLossError, match="step 16"):
        trainer.fit(batches)
    assert trainer.step == 15 and float(trainer._scale.factor) == 1.0


def test_the_scale_doubles_after_enough_good_steps_up_to_its_bound():
    scale = DynamicLossScale(LARGEST / 2, growth_steps=2)
    found = []
    for _ in range(4):
        scale.good()
        found.append((float(scale.factor), int(scale.good_steps)))
    assert found == [(LARGEST / 2, 1), (LARGEST, 0), (LARGEST, 1), (LARGEST, 0)]
    scale.good()
    assert bool(scale.bad()) and (float(scale.factor), int(scale.good_steps)) == (LARGEST / 2, 0)


@pytest.mark.parametrize(
    "arguments", [{"initial": 0.5}, {"initial": float("nan")}, {"growth_steps": 0}]
)
def test_scale_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="initial|growth_steps"):
        DynamicLossScale(**arguments)


def test_an_unknown_loss_scale_is_refused(tmp_path):
    with pytest.raises(ValueError, match="loss_scale is 'static'"):
        make(tmp_path, loss_scale="static")


class Masked(Hook):
    """Multiplies the first weight with a mask, and counts."""

    def __init__(self):
        self.mask, self.count, self.steps, self.model = (
            tf.Variable([1.0, 0.0]),
            tf.Variable(0),
            [],
            None,
        )

    def state(self):
        return {"mask": self.mask, "updates": self.count}

    def before_step(self, step):
        self.steps.append(step)

    def after_update(self):
        if self.model is not None:
            self.model.weights[0].assign(self.model.weights[0] * self.mask)
        self.count.assign_add(1)


def masked(folder, steps):
    hook = Masked()
    trainer = make(folder, steps, hooks=[hook])
    hook.model = trainer.model
    return trainer, hook


def test_hooks_run_before_each_step_and_after_each_update_and_their_state_is_resumed(tmp_path):
    trainer, hook = masked(tmp_path, 2)
    trainer.fit(batches)
    assert hook.steps == [0, 1] and int(hook.count) == 2
    first, second = trainer.model.weights[0].numpy()
    assert first != 0.5 and second == 0.0  # the mask came after the update
    again, hook = masked(tmp_path, 4)
    hook.mask.assign([0.0, 0.0])
    assert (
        again.restore() == 2 and int(hook.count) == 2 and hook.mask.numpy().tolist() == [1.0, 0.0]
    )
    again.fit(batches)
    assert hook.steps == [2, 3] and int(hook.count) == 4


def test_a_step_that_is_not_finite_runs_no_hook_after_it(tmp_path):
    hook = Masked()
    trainer = make(tmp_path, loss=lambda m, b: loss(m, b) * np.nan, hooks=[hook])
    with pytest.raises(NonFiniteLossError):
        trainer.fit(batches)
    assert int(hook.count) == 0


def test_the_state_of_a_hook_must_not_take_the_name_of_a_weight(tmp_path):
    class Taken(Hook):
        def state(self):
            return {"line/b": tf.Variable(0.0)}

    with pytest.raises(ValueError, match="already has: line/b"):
        make(tmp_path, hooks=[Taken()])

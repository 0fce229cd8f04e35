"""Scores while training.

When, which weights are kept, and that a run that was cut off ends with the same.
"""

import itertools
import signal

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed.ranks import on_ranks
from tests.training.test_loop_control import Line, batches, everything, killing, loss
from tfquant import checkpoint
from tfquant.training import BertAdamW, Best, Evaluation, Trainer, TrainingInterrupted, TrainOptions

SCORES = {2: 0.3, 4: 0.7, 6: 0.7, 8: 0.1}  # by step


def make(folder, steps=8, *, scores=None, keep=True, metric="score", every=0, told=None, **options):
    """A trainer whose model scores as `scores` say, and what its evaluations saw of the first
    weight.
    """
    model, seen = Line(), {}
    wanted = SCORES if scores is None else scores

    def evaluate():
        seen[trainer.step] = model.weights[0].numpy()
        return {"score": wanted[trainer.step], "other": -1.0}

    evaluation = Evaluation(
        evaluate,
        lambda step: step % 2 == 0,
        metric=metric,
        tell=(told if told is not None else []).append,
        keep={f"line/{i}": v for i, v in enumerate(model.weights)} if keep else None,
        **options,
    )
    trainer = Trainer(
        model,
        loss,
        BertAdamW(0.1),
        TrainOptions(folder, steps, checkpoint_every=every, keep_checkpoints=0),
        hooks=[evaluation],
    )
    return trainer, evaluation, seen


@pytest.mark.parametrize(("greater", "step"), [(True, 4), (False, 8)])
def test_the_weights_of_the_first_of_the_best_scores_come_back(tmp_path, greater, step):
    told = []
    trainer, evaluation, seen = make(tmp_path, greater=greater, told=told)
    trainer.fit(batches)
    assert sorted(seen) == [2, 4, 6, 8]
    assert evaluation.best == Best(step, SCORES[step])
    np.testing.assert_array_equal(trainer.model.weights[0], seen[step])
    assert len(told) == 5 and f"restored the weights of step {step}, the best" in told[-1]


def test_without_kept_weights_the_last_stay(tmp_path):
    trainer, evaluation, seen = make(tmp_path, keep=False)
    trainer.fit(batches)
    assert evaluation.best == Best(4, 0.7)
    np.testing.assert_array_equal(trainer.model.weights[0], seen[8])
    assert not any("best/" in name for name in checkpoint.read(tmp_path / "model.ckpt-8"))


def test_the_last_step_is_scored_though_it_is_not_due(tmp_path):
    trainer, _, seen = make(tmp_path, 3, scores={2: 0.0, 3: 1.0})
    trainer.fit(batches)
    assert sorted(seen) == [2, 3]


def test_scores_that_are_not_numbers_are_never_best(tmp_path):
    trainer, evaluation, _ = make(tmp_path, scores={2: np.nan, 4: 0.2, 6: np.nan, 8: 0.1})
    trainer.fit(batches)
    assert evaluation.best == Best(4, 0.2)
    trainer, evaluation, seen = make(tmp_path / "none", 2, scores={2: np.nan})
    trainer.fit(batches)
    assert evaluation.best is None
    np.testing.assert_array_equal(trainer.model.weights[0], seen[2])


@pytest.mark.parametrize("cut", range(2, 8))
def test_wherever_a_run_is_stopped_it_ends_with_the_same_best_weights_and_scores_no_step_twice(
    tmp_path, cut
):
    whole, evaluation, seen = make(tmp_path / "whole")
    whole.fit(batches)
    first, _, before = make(tmp_path / "cut")
    with pytest.raises(TrainingInterrupted):
        first.fit(lambda start: killing(cut, start, signal.SIGTERM))
    second, again, after = make(tmp_path / "cut")
    assert second.restore() == cut + 1
    second.fit(batches)
    assert again.best == evaluation.best
    assert sorted([*before, *after]) == sorted(seen)
    for one, two in zip(whole.model.weights, second.model.weights, strict=True):
        np.testing.assert_array_equal(one, two)
    one, two = (everything(tmp_path / name / "model.ckpt-8") for name in ("whole", "cut"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_kill_between_checkpoints_repeats_steps_and_scores(tmp_path):
    whole, evaluation, seen = make(tmp_path / "whole")
    whole.fit(batches)

    def cut(start):
        yield from itertools.islice(batches(start), 7 - start)
        raise KeyboardInterrupt

    first, _, _ = make(tmp_path / "cut", every=3)
    with pytest.raises(KeyboardInterrupt):
        first.fit(cut)
    second, again, after = make(tmp_path / "cut", every=3)
    assert second.restore() == 6
    second.fit(batches)
    assert sorted(after) == [6, 8] and again.best == evaluation.best
    np.testing.assert_array_equal(second.model.weights[0], seen[4])


def test_rank_0_has_the_last_word_so_that_all_ranks_end_with_the_same_weights():
    def work(group):
        scores = iter([0.1, 0.9, 0.2] if group.rank == 0 else [0.9, 0.1, 0.2])
        weight = tf.Variable(0.0)
        evaluation = Evaluation(
            lambda: {"score": next(scores)},
            lambda step: True,
            metric="score",
            keep={"weight": weight},
            group=group,
        )
        for step in (1, 2):
            weight.assign(step)
            evaluation.before_step(step)
        weight.assign(3)
        evaluation.after_training(3)
        return evaluation.best, float(weight)

    assert on_ranks(2, work) == [(Best(2, 0.9), 2.0)] * 2


def test_a_metric_that_is_none_is_named_with_those_there_are(tmp_path):
    trainer, _, _ = make(tmp_path, metric="accuracy")
    with pytest.raises(
        ValueError,
        match="metric 'accuracy' is not among the scores of the evaluation: score, other",
    ):
        trainer.fit(batches)

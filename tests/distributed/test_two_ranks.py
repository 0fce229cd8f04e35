"""Two processes under mpirun."""

import sys

import keras
import numpy as np
import pytest

from tests.distributed.ranks import found_by_two_ranks, needs_ranks
from tfquant.distributed import DivergedError, Horovod, Single
from tfquant.training import BertAdamW, Trainer, TrainOptions


def found(kind: str, folder) -> list[dict]:
    return sorted(found_by_two_ranks("worker.py", folder, kind), key=lambda one: one["rank"])


@needs_ranks
def test_two_ranks_end_with_the_weights_of_one_process_on_the_whole_batches(tmp_path):
    first, second = found("averaged", tmp_path / "two")
    assert first["weights"] == second["weights"] and not first["error"]
    assert first["gathered"] == second["gathered"] == ["x", "xx"]

    keras.utils.set_random_seed(0)  # what rank 0 starts with
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    data = np.random.default_rng(0).normal(size=(10, 8, 4)).astype(np.float32)

    def loss(model, batch):
        return keras.ops.mean((model(batch["x"]) - keras.ops.sum(batch["x"], -1, keepdims=True)) ** 2)

    Trainer(model, loss, BertAdamW(1e-2), TrainOptions(tmp_path / "one", 10)).fit(lambda start: ({"x": b} for b in data[start:]))
    np.testing.assert_allclose(first["weights"], [np.abs(w).sum() for w in model.get_weights()], rtol=1e-5)


@needs_ranks
def test_gradients_that_are_not_averaged_stop_the_run_before_a_checkpoint_is_written(tmp_path):
    for one in found("unreduced", tmp_path):
        assert "at step 10 the ranks hold different weights" in one["error"]
    assert not list(tmp_path.glob("model.ckpt*"))


def test_a_missing_horovod_is_one_line_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match="Horovod is not installed.*make env"):
        Horovod()


def test_weights_of_another_rank_are_told_apart_by_name():
    class Other(Single):
        def gather(self, data):
            return [data, data[:4] + b"\0\0\0\0"]

    with pytest.raises(DivergedError, match="at step 3 the ranks hold different weights: kernel"):
        Other().check_equal({"bias": np.zeros(2), "kernel": np.ones(2)}, "at step 3")
    Single().check_equal({"kernel": np.ones(2)}, "at step 3")

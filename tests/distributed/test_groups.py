"""Groups of processes: alone, faked by threads, and two real ones."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed.ranks import found_by_two_ranks, needs_ranks, on_each
from tfquant.distributed.group import DivergedError, Group, Single, fake_groups, start


def slices(rank, dtype=tf.float32):
    """One or two rows of a table of four, row 1 from every rank."""
    values = tf.fill([rank + 1, 2], tf.cast(rank + 1, dtype))
    return tf.IndexedSlices(
        values, tf.constant([1, 3][: rank + 1], tf.int64), tf.constant([4, 2], tf.int64)
    )


def test_one_process_alone_changes_nothing():
    group = start(horovod=False)
    assert isinstance(group, Single) and (group.rank, group.size, group.local_rank) == (0, 1, 0)
    dense, sparse = group.average([tf.constant([1.0]), slices(0)])
    assert dense.numpy() == [1.0] and isinstance(sparse, tf.IndexedSlices)
    assert group.extremes(3, 4) == (3, 4) and group.gather(b"a") == [b"a"]


def test_every_thread_gets_the_mean_and_the_extremes():
    def work(group):
        dense, half = group.average(
            [tf.constant([2.0, 4.0]) * group.rank, tf.constant(group.rank, tf.bfloat16)]
        )
        lowest, highest = group.extremes(
            tf.constant([-1.0, 1.0]) * group.rank, tf.constant([5.0, -5.0]) * group.rank
        )
        return (
            dense.numpy().tolist(),
            half.dtype,
            float(half),
            lowest.numpy().tolist(),
            highest.numpy().tolist(),
        )

    assert (
        on_each(fake_groups(3), work)
        == [([2.0, 4.0], tf.bfloat16, 1.0, [-2.0, 0.0], [10.0, 0.0])] * 3
    )


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_sparse_gradients_average_to_what_dense_ones_do(dtype):
    for mean in on_each(
        fake_groups(2), lambda group: group.average([slices(group.rank, dtype)])[0]
    ):
        assert isinstance(mean, tf.IndexedSlices) and mean.dtype == dtype
        np.testing.assert_array_equal(
            tf.cast(tf.convert_to_tensor(mean), tf.float32), [[0, 0], [1.5, 1.5], [0, 0], [1, 1]]
        )


def test_what_ranks_give_comes_back_by_rank_call_after_call():
    def work(group):
        return [group.gather(b"%d" % call * group.rank) for call in range(50)]

    assert (
        on_each(fake_groups(3), work)
        == [[[b"", b"%d" % call, b"%d" % call * 2] for call in range(50)]] * 3
    )


def test_variables_become_those_of_rank_0_and_a_later_difference_is_named():
    def work(group):
        variables = {"bias": tf.Variable([1.0]), "kernel": tf.Variable([float(group.rank)])}
        group.broadcast(list(variables.values()))
        group.check_equal(variables, "at step 1")
        variables["kernel"].assign_add([float(group.rank)])
        group.check_equal(variables, "at step 2")

    for error in on_each(fake_groups(2), work):
        assert isinstance(
            error, DivergedError
        ) and "at step 2 the ranks hold different weights: kernel" in str(error)
        assert "were not averaged, or they started differently" in str(error) and "is kept" in str(
            error
        )


def test_a_rank_that_fails_does_not_leave_the_others_waiting():
    def work(group):
        return group.rank and group.gather(b"")

    first, second = on_each(fake_groups(2, timeout=0.2), work)
    assert first == 0 and isinstance(second, RuntimeError) and "rank 1 of 2 waited" in str(second)


def test_threads_refuse_a_graph():
    with pytest.raises(RuntimeError, match="work eagerly"):
        tf.function(lambda: fake_groups(1)[0].extremes(tf.constant(1.0), tf.constant(1.0)))()


def test_an_incomplete_group_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Group()


def test_a_missing_horovod_says_both_ways_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match="`make env`.*scripts/build_horovod.sh"):
        start(horovod=True)


# The two processes of test_two_ranks.py and test_calibration.py stand for it.
@pytest.mark.long
@needs_ranks
def test_two_processes_do_what_two_threads_do():
    lines = found_by_two_ranks("groups_worker.py")
    for found in lines:
        assert found["dense"] == [0.5, 0.5] and found["half"] == ["bfloat16", 0.5]
        assert found["table"] == found["table_bfloat16"] == [[0, 0], [1.5, 1.5], [0, 0], [1, 1]]
        assert found["extremes"] == [[0, 0], [2, 2]]
        assert found["sparse"] == [True, True, False] and found["table_dense"] == found["table"]
        assert (
            found["compressed"] == [0.5, 0.5]
            and found["gathered"] == ["", "x"]
            and found["kernel"] == [0.0]
        )
        assert "later the ranks hold different weights: kernel" in found["diverged"]
    assert sorted(found["ranks"] for found in lines) == [[0, 2, 0], [1, 2, 1]]


def test_each_process_of_a_machine_keeps_a_gpu_of_its_own_and_shares_where_there_are_too_few(
    monkeypatch,
):
    seen = []
    for local_rank, gpus in ((0, "ab"), (1, "ab"), (2, "ab"), (1, "")):
        monkeypatch.setitem(sys.modules, "horovod.tensorflow", faked_horovod(local_rank))
        monkeypatch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind, gpus=gpus: list(gpus) if kind == "GPU" else ["cpu"],
        )
        monkeypatch.setattr(
            tf.config, "set_visible_devices", lambda device, kind: seen.append((device, kind))
        )
        monkeypatch.setattr(
            tf.config.experimental,
            "set_memory_growth",
            lambda device, on: seen.append((device, on)),
        )
        group = start(horovod=True)
        assert (group.rank, group.local_rank, group.size) == (local_rank + 4, local_rank, 8)
    assert seen == [("a", "GPU"), ("a", True), ("b", "GPU"), ("b", True), ("a", "GPU"), ("a", True)]


def faked_horovod(local_rank: int) -> types.ModuleType:
    """The second machine of two that run four processes each."""
    module = types.ModuleType("horovod.tensorflow")
    module.Compression = types.SimpleNamespace(none=None, fp16=None)
    module.init = lambda: None
    module.rank, module.size, module.local_rank = (
        lambda: local_rank + 4,
        lambda: 8,
        lambda: local_rank,
    )
    return module

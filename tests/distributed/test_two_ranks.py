"""Two processes under mpirun."""

import sys

import numpy as np
import pytest

from tests.distributed import worker
from tests.distributed.ranks import found_by_two_ranks, needs_ranks
from tfquant.distributed.group import DivergedError, Horovod, Single


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    """What each rank found, case by case."""
    return sorted(found_by_two_ranks("worker.py", folder), key=lambda one: one["rank"])


@needs_ranks
@pytest.mark.parametrize("case", ["averaged", "accumulated", "moving"])
def test_two_ranks_end_where_one_process_with_the_whole_batches_does(ranks, tmp_path, case):
    first, second = (found[case] for found in ranks)
    assert not first["error"] and first["variables"] == second["variables"]
    alone = worker.train(case, tmp_path, Single())["variables"]
    assert alone.keys() == first["variables"].keys()
    assert sum("linear_input" in path for path in alone) == (4 if case == "moving" else 0)
    for path, value in alone.items():
        np.testing.assert_allclose(
            first["variables"][path], value, rtol=1e-4, atol=1e-6, err_msg=path
        )


@needs_ranks
def test_speeds_are_added_up_and_the_share_of_all_reduce_is_measured(ranks):
    first, second = (found["averaged"] for found in ranks)
    assert first["total"] == second["total"] == pytest.approx(first["own"] + second["own"])
    assert 0 < first["share"] < 1 and 0 < second["share"] < 1


@needs_ranks
@pytest.mark.parametrize(
    ("case", "what"), [("unreduced", "first/kernel"), ("ranges apart", "linear_input")]
)
def test_what_was_not_averaged_stops_the_run_before_a_checkpoint_is_written(
    ranks, folder, case, what
):
    for found in ranks:
        error = found[case]["error"]
        assert error.startswith("at step 10 the ranks hold different weights") and what in error
    assert not list((folder / case).glob("model.ckpt*"))
    assert list((folder / "averaged").glob("model.ckpt-10*"))


def test_a_missing_horovod_is_one_line_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match="Horovod is not installed.*make env"):
        Horovod()


def test_a_horovod_that_lacks_a_library_is_not_called_missing(monkeypatch, tmp_path):
    package = tmp_path / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise ImportError('libmpi.so.40: cannot open shared object file')"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ModuleNotFoundError,
        match="Horovod is installed but cannot be loaded .libmpi.so.40.*make env",
    ):
        Horovod()


def test_weights_of_another_rank_are_told_apart_by_name():
    class Other(Single):
        def gather(self, data):
            return [data, data[:4] + b"\0\0\0\0"]

    with pytest.raises(DivergedError, match="at step 3 the ranks hold different weights: kernel"):
        Other().check_equal({"bias": np.zeros(2), "kernel": np.ones(2)}, "at step 3")
    Single().check_equal({"kernel": np.ones(2)}, "at step 3")

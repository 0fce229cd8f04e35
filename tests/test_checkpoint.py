"""A checkpoint is always whole.

The old one or the new one, whatever happens to the process or the disk.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tfquant import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
FILES = {"model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001", "checkpoint"}

# One interpreter imports TensorFlow and forks a child for every death: only the children start its
# runtime.
CHILD = """
    import json, os, pathlib, random, signal, sys, time
    import numpy as np, tensorflow as tf
    from tfquant import checkpoint

    def tensors(value, size=2000):
        return {f"layer_{i}/kernel": np.full((size,), value, np.float32) for i in range(4)} | {"name": str(value)}

    def in_child(body):
        pid = os.fork()
        if pid == 0:
            try:
                body()
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(3)
            os._exit(0)
        return pid

    base = pathlib.Path(sys.argv[1])
"""  # noqa: E501


def run_child(script: str, *args: str) -> subprocess.CompletedProcess:
    code = textwrap.dedent(CHILD) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def values(prefix) -> set[float]:
    """Every distinct number in the checkpoint: exactly one when it is whole."""
    found = checkpoint.read(prefix)
    return {float(v) for name in found if name != "name" for v in np.unique(found[name])} | {
        float(found["name"])
    }


def test_every_kind_of_tensor_comes_back_equal_here_and_in_tensorflow(tmp_path):
    prefix = tmp_path / "new" / "folder" / "model.ckpt-7"
    tensors = {
        "bert/embeddings/word_embeddings": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.array([0.5, -3.0], ml_dtypes.bfloat16),
        "count": np.int64(2**40),
        "variable": tf.Variable([True, False]),
        "text": "int8 \u00b5",
        "words": np.array(["a", "bc"]),
        "empty": np.zeros((0, 3), np.float32),
    }
    checkpoint.write(prefix, tensors)
    theirs, ours = tf.train.load_checkpoint(str(prefix)), checkpoint.read(prefix)
    assert set(ours) == set(tensors) == set(theirs.get_variable_to_shape_map())
    assert ours["text"] == "int8 \u00b5"
    assert list(ours["words"]) == [b"a", b"bc"]
    for name in ("bert/embeddings/word_embeddings", "half", "count", "variable", "empty"):
        expected = np.asarray(tensors[name])
        for got in (ours[name], theirs.get_tensor(name)):
            assert np.asarray(got).dtype == expected.dtype and np.array_equal(got, expected)
    assert ours.shapes["empty"] == (0, 3) and ours.dtypes["half"] == tf.bfloat16
    assert tf.train.latest_checkpoint(str(prefix.parent)) == str(prefix)


def test_a_name_that_is_not_there_is_named_with_the_checkpoint(tmp_path):
    checkpoint.write(tmp_path / "model", {"a": 1.0})
    with pytest.raises(KeyError, match="no tensor 'b'"):
        checkpoint.read(tmp_path / "model")["b"]


def test_a_missing_checkpoint_lists_those_that_are_there(tmp_path):
    checkpoint.write(tmp_path / "model.ckpt-5", {"a": 1.0})
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt-6.*Checkpoints there: model\.ckpt-5"):
        checkpoint.read(tmp_path / "model.ckpt-6")
    with pytest.raises(FileNotFoundError, match="none"):
        checkpoint.read(tmp_path / "nowhere" / "model")


@pytest.mark.parametrize("suffix", [checkpoint.INDEX, checkpoint.DATA])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_broken_file_is_called_damaged(tmp_path, suffix, damage):
    checkpoint.write(tmp_path / "model", {"a": np.ones(1000, np.float32)})
    path = tmp_path / ("model" + suffix)
    old = path.read_bytes()
    path.write_bytes(old[:20] if damage == "cut" else old[:30] + b"\x5a" * 4 + old[34:])
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.read(tmp_path / "model")["a"]


@pytest.mark.parametrize("tensors", [{}, {"": 1.0}])
def test_nothing_to_write_is_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match="at least one tensor"):
        checkpoint.write(tmp_path / "model", tensors)
    assert not list(tmp_path.iterdir())


def test_latest_is_the_one_written_last_and_survives_a_lost_state_file(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None and checkpoint.latest(tmp_path) is None
    for name in ("model.ckpt-20", "model.ckpt-100", "model.ckpt-calibrated"):
        checkpoint.write(tmp_path / name, {"a": 1.0})
        assert checkpoint.latest(tmp_path) == str(tmp_path / name)
    (tmp_path / "checkpoint").unlink()
    assert checkpoint.latest(tmp_path) == str(tmp_path / "model.ckpt-100")


def test_prune_keeps_the_highest_steps_and_every_other_name(tmp_path):
    for name in (
        "model.ckpt-9",
        "model.ckpt-10",
        "model.ckpt-200",
        "model.ckpt-calibrated",
        "other-1",
    ):
        checkpoint.write(tmp_path / name, {"a": 1.0})
    (tmp_path / ("model.ckpt-3" + checkpoint.DATA)).write_bytes(
        b"what a prune that was cut off leaves"
    )
    checkpoint.prune(tmp_path, 0)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [9, 10, 200]
    checkpoint.prune(tmp_path, 2)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [10, 200]
    for name in ("model.ckpt-calibrated", "other-1"):
        assert checkpoint.read(tmp_path / name)["a"] == 1.0
    assert not list(tmp_path.glob("model.ckpt-3*")) and not list(tmp_path.glob("model.ckpt-9*"))
    with pytest.raises(ValueError, match="-1"):
        checkpoint.prune(tmp_path, -1)


@pytest.mark.parametrize("where", ["file/model", "/proc/nowhere/model"])
def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, where):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        checkpoint.CheckpointError,
        match="cannot write checkpoint .*model: .*(Not a|No such|exists)",
    ):
        checkpoint.write(tmp_path / where, {"a": 1.0})
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("name", ["", "/"])
def test_a_folder_is_no_checkpoint_name(tmp_path, name):
    with pytest.raises(ValueError, match="is a folder: give a name inside it"):
        checkpoint.write(str(tmp_path) + name, {"x": np.zeros(2)})
    assert not list(tmp_path.parent.glob(tmp_path.name + ".*"))


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    result = run_child(
        """
        import resource
        checkpoint.write(base / "model.ckpt-1", tensors(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.write(base / "model.ckpt-1", tensors(2, size=200_000))
        except checkpoint.CheckpointError as error:
            print(error)
        """,
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.count("\n") == 1
        and "File too large" in result.stdout
        and "Free some space" in result.stdout
    )
    assert "tempstate" not in result.stdout
    assert set(os.listdir(tmp_path)) == FILES
    assert values(tmp_path / "model.ckpt-1") == {1.0}


def test_killed_before_any_single_step_of_an_overwrite_one_whole_checkpoint_loads(tmp_path):
    result = run_child(
        """
        CALLS = ("mkdir", "open", "fsync", "rename", "replace", "rmdir", "unlink", "close")

        def overwrite(folder, die_at):
            checkpoint.write(folder / "model.ckpt-1", tensors(1))
            seen = [0]
            def deadly(call):
                def wrapped(*args, **kwargs):
                    if seen[0] == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen[0] += 1
                    return call(*args, **kwargs)
                return wrapped
            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            checkpoint.write(folder / "model.ckpt-1", tensors(2))

        for die_at in range(100):
            folder = base / str(die_at)
            _, status = os.waitpid(in_child(lambda: overwrite(folder, die_at)), 0)
            if os.WIFEXITED(status):
                sys.exit(os.WEXITSTATUS(status))
            assert os.WTERMSIG(status) == signal.SIGKILL
        """,
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    loaded = [values(folder / "model.ckpt-1") for folder in folders]
    # Old up to the commit, new from there on; the last folder is the write that was left to finish.
    switch = loaded.index({2.0})
    assert 10 < switch < len(loaded) - 5
    assert loaded == [{1.0}] * switch + [{2.0}] * (len(loaded) - switch)
    for folder in folders:
        assert set(os.listdir(folder)) == FILES
        assert checkpoint.latest(folder) == str(folder / "model.ckpt-1")


# test_killed_before_any_single_step_of_an_overwrite_one_whole_checkpoint_loads stands for it.
@pytest.mark.long
def test_killed_at_a_random_moment_one_whole_checkpoint_loads_and_progress_is_not_lost(tmp_path):
    result = run_child(
        """
        random.seed(int(sys.argv[2]))

        def forever(folder, ready):
            for value in range(1, 1_000_000):
                checkpoint.write(folder / "model.ckpt-1", tensors(value, size=20_000))
                os.write(ready, value.to_bytes(4, "big"))

        acknowledged = []
        for trial in range(12):
            end, ready = os.pipe()
            pid = in_child(lambda: forever(base / str(trial), ready))
            os.close(ready)
            first = os.read(end, 4)
            time.sleep(random.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            rest = os.read(end, 1 << 20)
            acknowledged.append(int.from_bytes((first + rest)[-4:], "big"))
        print(json.dumps(acknowledged))
        """,
        str(tmp_path),
        "7",
    )
    assert result.returncode == 0, result.stderr
    for trial, acknowledged in enumerate(json.loads(result.stdout)):
        found = values(tmp_path / str(trial) / "model.ckpt-1")
        assert found in ({acknowledged}, {acknowledged + 1.0})
        assert set(os.listdir(tmp_path / str(trial))) == FILES


def test_a_reader_waits_for_a_live_writer_instead_of_tidying_its_files_away(tmp_path):
    checkpoint.write(tmp_path / "model", {"a": 1.0})
    result = run_child(
        """
        save = checkpoint._save_bundle
        def slow(prefix, values):
            print("writing", flush=True)
            time.sleep(0.5)
            save(prefix, values)

        def writer():
            checkpoint._save_bundle = slow
            checkpoint.write(base / "model", {"a": 2.0})

        end, ready = os.pipe()
        os.dup2(1, 9), os.dup2(ready, 1)
        pid = in_child(writer)
        os.dup2(9, 1)
        os.read(end, 7)
        print(checkpoint.read(base / "model")["a"])
        assert os.waitpid(pid, 0)[1] == 0
        """,
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == 2.0


@pytest.mark.parametrize("folder", ["run[1]", "back\\slash", "a*b?", "[open", "[x]{y}*"])
def test_folders_that_look_like_patterns_are_folders(folder, tmp_path):
    for step in (1, 2):
        checkpoint.write(
            tmp_path / folder / f"model.ckpt-{step}", {"x": np.full(3, step, np.float32)}
        )
    (_, _), (step, prefix) = checkpoint.steps(tmp_path / folder)
    assert step == 2 and prefix == checkpoint.latest(tmp_path / folder)
    assert np.array_equal(checkpoint.read(prefix)["x"], np.full(3, 2, np.float32))
    checkpoint.prune(tmp_path / folder, 1)
    assert [step for step, _ in checkpoint.steps(tmp_path / folder)] == [2]


# test_a_reader_waits_for_a_live_writer_instead_of_tidying_its_files_away stands for it.
@pytest.mark.long
def test_a_reader_beside_a_writer_always_gets_one_whole_checkpoint(tmp_path):
    result = run_child(
        """
        checkpoint.write(base / "model", tensors(1, size=5_000))

        def forever():
            for value in range(2, 1_000_000):
                checkpoint.write(base / "model", tensors(value, size=5_000))

        pid = in_child(forever)
        found, last, deadline = 0, 0.0, time.monotonic() + 5
        try:
            while time.monotonic() < deadline:
                read = checkpoint.read(base / "model")
                time.sleep(0.002)  # what is open stays what it was
                seen = {float(v) for name in read if name != "name" for v in np.unique(read[name])} | {float(read["name"])}
                assert len(seen) == 1 and max(seen) >= last, seen
                found, last = found + 1, max(seen)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert last > 3 and found > 5, (found, last)
        """,  # noqa: E501
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    checkpoint.recover(tmp_path / "model")
    assert set(os.listdir(tmp_path)) == {name.replace("model.ckpt-1", "model") for name in FILES}

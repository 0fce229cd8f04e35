"""Two runs in one folder notice each other, and a dead one holds nothing."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from fileio.locks import NAME, FolderInUseError, folder_in_use

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
    import sys
    from fileio.locks import folder_in_use
    with folder_in_use(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def enter(folder):
    with folder_in_use(folder):
        return "went on"


def test_another_run_is_refused_in_one_line_that_names_the_first(tmp_path, holder):
    with pytest.raises(
        FolderInUseError, match=rf"is in use by another run \(process {holder.pid} on .*\): wait"
    ) as caught:
        enter(tmp_path)
    assert str(caught.value).isprintable()
    assert enter(tmp_path / "other") == "went on"


@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_the_folder_is_free_once_the_run_ends_or_is_killed(tmp_path, holder, end):
    if end == "ends":
        holder.stdin.close()
    else:
        holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert enter(tmp_path) == "went on" and enter(tmp_path) == "went on"


def test_one_process_may_enter_a_folder_by_two_names_and_twice(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with folder_in_use(tmp_path / "out"), folder_in_use(tmp_path / "link"):
        pass
    assert enter(tmp_path / "out") == "went on"


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    for place, left in ((tmp_path / "new" / "out", []), (tmp_path / "used", ["used"])):
        with pytest.raises(KeyError), folder_in_use(place):
            if left:
                (place / "result").touch()
            raise KeyError
        assert [path.name for path in tmp_path.iterdir()] == left
    with pytest.raises(KeyError), folder_in_use(tmp_path / "used"):
        raise KeyError
    assert (tmp_path / "used" / "result").exists() and enter(tmp_path / "new") == "went on"


def test_a_folder_is_made_and_an_unwritable_one_is_an_error(tmp_path):
    assert enter(tmp_path / "a" / "b") == "went on" and os.listdir(tmp_path / "a" / "b") == [NAME]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        enter(tmp_path / "file")
    with pytest.raises(OSError, match="/proc"):
        enter("/proc/nowhere")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert enter(tmp_path / "out") == "went on"
    monkeypatch.undo()
    assert enter(tmp_path / "out") == "went on"

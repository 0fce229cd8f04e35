"""A file is written whole or not at all, and nothing but a file is ever replaced."""

import errno
import os
import pathlib
import stat
import threading

import pytest

from fileio import atomic, staging
from fileio.errors import WriteError


def names(folder) -> set[str]:
    return set(os.listdir(folder))


def test_an_existing_file_keeps_its_permissions_and_a_link_stays_a_link(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to("file")
    atomic.write_text(link, "new")
    assert (
        file.read_text() == "new"
        and link.is_symlink()
        and stat.S_IMODE(file.stat().st_mode) == 0o640
    )
    assert names(tmp_path) == {"file", "link"}


def test_a_link_to_nothing_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("file")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("device", ["/dev/null", "link to /dev/null", "/proc/self/fd/{}"])
def test_devices_and_open_files_are_written_to_and_not_replaced(tmp_path, device):
    with open(tmp_path / "open", "w") as opened:
        path = device.format(opened.fileno())
        if device.startswith("link"):
            (tmp_path / "null").symlink_to("/dev/null")
            path = tmp_path / "null"
        before = os.stat(path).st_ino
        atomic.write_text(path, "text")
        assert os.stat(path).st_ino == before and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "open").read_text() == ("text" if device.startswith("/proc") else "")
    assert names(tmp_path) <= {"open", "null"}


def test_a_named_pipe_is_written_to_where_somebody_reads_it(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    with pytest.raises(
        WriteError, match="cannot write .*pipe: No such device"
    ):  # and not waited for without end
        atomic.write_text(pipe, "text")
    opened = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(opened, True)
    reader = threading.Thread(target=lambda: found.append(os.read(opened, 100)))
    atomic.write_text(pipe, "text")
    reader.start()
    reader.join()
    os.close(opened)
    assert found == [b"text"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "it is a folder"),
        ("nowhere/file", "No such file or directory"),
        ("file/file", "Not a directory"),
        ("loop", "symbolic links"),
        ("x" * 300, "File name too long"),
        ("a\x1b[31m\nb/file", r"a\\x1b\[31m\\nb/file: No such file"),
        ("socket", "it is no file"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "loop").symlink_to("loop")
    if place == "socket":
        os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    before = names(tmp_path)
    with pytest.raises(WriteError, match=message) as caught:
        atomic.write_bytes(tmp_path / place, b"new")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert names(tmp_path) == before and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_step_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, call, number
):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(WriteError, match=f"cannot write .*file: {os.strerror(number)}") as caught:
        atomic.write_text(path, "new")
    assert caught.value.errno == number and ("free some space" in str(caught.value)) == (
        number == errno.ENOSPC
    )
    assert path.read_text() == "old" and names(tmp_path) == {"file"}


def test_a_full_device_says_so():
    with pytest.raises(
        WriteError, match="cannot write /dev/full: No space left on device; free some space"
    ):
        atomic.write_bytes("/dev/full", b"text")


@pytest.mark.parametrize("error", [ValueError("own"), KeyboardInterrupt()])
def test_an_error_of_the_writer_replaces_nothing(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(type(error)), atomic.replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == {"file"}


def test_a_staging_folder_that_is_in_use_is_left_alone_by_other_writes(tmp_path):
    with staging.staging(tmp_path) as own:
        atomic.write_text(tmp_path / "file", "text")
        assert own.is_dir()
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("name", "age", "kept"),
    [
        ("{machine}-{pid}-{started}-00000000", 0, True),  # of this process, which lives
        ("{machine}-{pid}-1-00000000", 0, False),  # of one whose number this process has now
        ("{machine}-999999999-5-00000000", 0, False),  # of a dead one
        ("elsewhere-999999999-5-00000000", 0, True),  # of a machine that cannot be asked
        ("elsewhere-999999999-5-00000000", 2 * 24 * 3600, False),  # which no write takes so long
        ("0123456789ab", 0, True),  # of an earlier version
        ("0123456789ab", 2 * 24 * 3600, False),
    ],
)
def test_the_next_write_removes_what_dead_processes_left_and_nothing_else(
    tmp_path, name, age, kept
):
    own = {
        "machine": staging._machine(),
        "pid": os.getpid(),
        "started": staging._started(os.getpid()),
    }
    left = tmp_path / (staging.PREFIX + name.format(**own))
    left.mkdir()
    (left / "half").write_text("x")
    now = left.stat().st_mtime
    os.utime(left, (now - age, now - age))
    (tmp_path / ".tfquant-temporary-of-somebody").mkdir()
    atomic.write_text(tmp_path / "file", "text")
    assert names(tmp_path) == {"file", ".tfquant-temporary-of-somebody"} | (
        {left.name} if kept else set()
    )


def test_readers_need_no_right_to_write(tmp_path):
    assert (
        staging.leftovers(tmp_path / "nowhere") == []
        and staging.leftovers(pathlib.Path("/proc/1/root")) == []
    )


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic.replacing(tmp_path / "private") as temporary:  # as safetensors writes
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        atomic.write_text(tmp_path / "plain", "text")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "plain")] == [
        mode,
        mode,
    ]

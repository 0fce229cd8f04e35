"""Files that belong together are the old ones or the new ones, whenever a writer is killed and
whenever a reader looks.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading

import pytest

from fileio import transaction
from fileio.errors import WriteError

ROOT = pathlib.Path(__file__).parents[2]

# Forked children that import nothing heavy: one for every step at which the writer dies.
KILLED = """
    import os, pathlib, signal, sys
    from fileio import staging, transaction

    CALLS = ("mkdir", "open", "fsync", "rename", "replace", "rmdir", "unlink", "close")

    def pair(folder, value):
        with transaction.replacing_together(folder) as own:
            (own / "m.bin").write_text(value)
            (own / "m.xml").write_text(value)

    def folder(folder, value):
        with staging.staging(folder) as own:
            (own / "m").mkdir()
            for name in ("graph", "variables"):
                (own / "m" / name).write_text(value)
            transaction.replace_folder(own / "m", folder / "m")

    def folder_without_exchange(where, value):
        transaction._exchanged = lambda *_: False
        folder(where, value)

    def dies(write, where, at):
        write(where, "old")
        seen = [0]
        def deadly(call):
            def wrapped(*args, **kwargs):
                if seen[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen[0] += 1
                return call(*args, **kwargs)
            return wrapped
        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        write(where, "new")

    write = globals()[sys.argv[2]]
    for at in range(200):
        where = pathlib.Path(sys.argv[1], str(at))
        where.mkdir()
        pid = os.fork()
        if pid == 0:
            try:
                dies(write, where, at)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(3)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
"""


def run(script: str, *arguments) -> None:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def content(folder: pathlib.Path, kind: str) -> set[str]:
    """What a program finds that knows nothing of transactions."""
    names = ("m.xml", "m.bin") if kind == "pair" else ("m/graph", "m/variables")
    if not (folder / names[0]).exists():
        return set()
    return {(folder / name).read_text() for name in names}


@pytest.mark.parametrize("kind", ["pair", "folder", "folder_without_exchange"])
def test_killed_at_any_step_the_old_or_the_new_is_there_as_a_whole(tmp_path, kind):
    run(KILLED, tmp_path, kind)
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 20
    found = [content(folder, kind) for folder in folders]
    assert {len(values) for values in found} <= {0, 1}  # never some old and some new
    if kind == "folder":
        assert set() not in found  # exchanged in one step: there is never none
    for folder in folders:
        transaction.recover(folder)
    recovered = [content(folder, kind) for folder in folders]
    switch = recovered.index({"new"})
    assert (
        recovered == [{"old"}] * switch + [{"new"}] * (len(folders) - switch)
        and 5 < switch < len(folders) - 1
    )
    expected = {"m.bin", "m.xml"} if kind == "pair" else {"m"}
    assert all(set(os.listdir(folder)) == expected for folder in folders)


def test_a_reader_beside_a_writer_never_sees_some_old_and_some_new(tmp_path):
    def write(value):
        with transaction.replacing_together(tmp_path) as own:
            for name in ("m.bin", "m.xml"):
                (own / name).write_text(str(value))

    write(0)
    done = threading.Event()

    def writer():
        for value in range(1, 150):
            write(value)
        done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    files, last = [tmp_path / "m.xml", tmp_path / "m.bin"], -1
    while not done.is_set():
        found = transaction.open_unchanged(
            lambda: files, lambda: [path.read_text() for path in files]
        )
        assert found[0] == found[1] and int(found[0]) >= last
        last = int(found[0])
    thread.join()
    assert json.loads(files[0].read_text()) == 149


def test_files_that_never_stay_the_same_are_an_error_and_a_real_error_is_passed_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(transaction.time, "sleep", lambda _: None)
    file, number = tmp_path / "file", iter(range(10**6))

    def replaced():
        file.write_text("x" * next(number))

    with pytest.raises(OSError, match="replaces it again and again"):
        transaction.open_unchanged(lambda: [file], replaced)

    def fails():
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        transaction.open_unchanged(lambda: [file], fails)


def test_a_writer_that_fails_replaces_nothing(tmp_path):
    (tmp_path / "m.xml").write_text("old")
    with pytest.raises(ValueError, match="own"), transaction.replacing_together(tmp_path) as own:
        (own / "m.xml").write_text("half")
        raise ValueError("own")
    assert os.listdir(tmp_path) == ["m.xml"] and (tmp_path / "m.xml").read_text() == "old"


def test_a_frozen_writer_is_not_waited_for_without_end(tmp_path):
    with transaction.locked(tmp_path):
        with (
            pytest.raises(TimeoutError, match="another process is writing to"),
            transaction.locked(tmp_path, patience=0.05),
        ):
            pass
    with transaction.locked(tmp_path, patience=0.05):
        pass


def test_a_write_that_cannot_be_finished_is_one_line(tmp_path, monkeypatch):
    (tmp_path / transaction.COMMIT).mkdir()
    (tmp_path / transaction.COMMIT / "m.xml").write_text("new")

    def read_only(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(
        WriteError,
        match=(
            "holds files that a killed process was replacing.*Read-only file system.*writable once"
        ),
    ):
        transaction.recover(tmp_path)
    monkeypatch.undo()
    transaction.recover(tmp_path)
    assert os.listdir(tmp_path) == ["m.xml"]

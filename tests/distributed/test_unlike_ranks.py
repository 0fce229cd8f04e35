"""Ranks that were not started alike, or do not go on, end with one line instead of waiting for
ever.
"""

import os
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorflow as tf

from runs.ranks import agree_on_data, agree_on_settings, output_of
from runs.squad.flags import Settings
from runs.squad.two_ranks import mpirun_command
from tests.distributed.ranks import ONE_THREAD, ROOT, needs_ranks, on_ranks
from tfquant.distributed.errors import agree
from tfquant.distributed.group import DivergedError, Single


def refused(size, work, message):
    """Every rank raises DivergedError with the same text, in one line."""
    found = on_ranks(size, work)
    assert all(type(error) is DivergedError for error in found), found
    assert {str(error) for error in found} == {str(found[0])} and message in str(found[0])
    assert str(found[0]).isprintable()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda rank: {"a": rank == 2}, "a is False on rank 0 and True on 2"),
        (lambda rank: {"a": 1} | ({"b": 2} if rank == 1 else {}), "b is None on rank 0 and 2 on 1"),
        (
            lambda rank: {"a": [1.0, None, "x" * rank]},
            "a is [1.0, None, ''] on rank 0 and [1.0, None, 'x'] on 1",
        ),
        (lambda rank: {str(index): rank for index in range(9)}, "and 4 more"),
        (lambda rank: {"a": "x\x1b[31m\n" * rank}, "x\\x1b[31m\\n"),
    ],
)
def test_what_differs_between_ranks_is_named_on_all_of_them(own, message):
    refused(3, lambda group: agree(group, own(group.rank), "flags"), message)


def test_ranks_at_different_places_are_told_so():
    found = on_ranks(2, lambda group: agree(group, {}, f"flags of {group.rank}"))
    assert all(
        type(error) is DivergedError and "is not where rank" in str(error) for error in found
    )
    found = on_ranks(
        2, lambda group: group.gather(b"") if group.rank else agree(group, {}, "flags")
    )
    assert type(found[0]) is DivergedError and "rank 1 is not where rank 0 is" in str(found[0])


def test_ranks_that_are_alike_and_one_alone_go_on():
    assert on_ranks(2, lambda group: agree(group, {"a": np.float32(1.0)}, "flags")) == [None, None]
    agree(Single(), {"a": object()}, "flags")


@pytest.mark.parametrize(
    "variables",
    [
        lambda rank: [tf.Variable(tf.zeros([2 + rank]))],
        lambda rank: [tf.Variable(tf.zeros([2]))] * (1 + rank),
        lambda rank: [tf.Variable(tf.zeros([2], tf.float32 if rank else tf.float64))],
    ],
)
def test_other_networks_are_refused_before_they_are_made_equal(variables):
    refused(
        2,
        lambda group: group.broadcast(variables(group.rank)),
        "the ranks have different networks: rank 0 has ",
    )


def test_flags_and_the_content_of_files_are_compared_and_names_of_folders_of_data_are_not(tmp_path):
    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / name).write_text(text)

    def settings(rank, **changes):
        fields = {
            "vocab_file": str(tmp_path / ("two" if rank else "one")),
            "tfds_dir": f"/data/{rank}",
        } | changes
        return Settings(output_dir="out", **fields)

    assert on_ranks(2, lambda group: agree_on_settings(group, "x", settings(group.rank))) == [
        None,
        None,
    ]
    for name, values, message in (
        ("learning_rate", (1e-5, 2e-5), "--learning_rate is 1e-05 on rank 0 and 2e-05 on 1"),
        ("do_predict", (False, True), "--do_predict is False on rank 0 and True on 1"),
        ("save_checkpoints_steps", (10, 20), "--save_checkpoints_steps"),
        ("train_file", (str(tmp_path / "one"), str(tmp_path / "three")), "--train_file"),
        ("predict_file", (str(tmp_path / "one"), str(tmp_path / "three")), "--predict_file"),
    ):
        own = {name: values}
        refused(
            2,
            lambda group, own=own: agree_on_settings(
                group,
                "x",
                settings(group.rank, **{name: values[group.rank] for name, values in own.items()}),
            ),
            message,
        )
    refused(
        2,
        lambda group: agree_on_settings(group, "ab"[group.rank], settings(0)),
        "script is 'a' on rank 0 and 'b' on 1",
    )


def test_other_data_are_refused():
    refused(2, lambda group: agree_on_data(group, np.arange(3 + group.rank)), "training data")
    refused(2, lambda group: agree_on_data(group, np.arange(3) * (1 + group.rank)), "training data")


def test_all_ranks_end_where_the_folder_is_in_use(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "from fileio.locks import folder_in_use\nimport sys\n"
                "with folder_in_use(sys.argv[1]):\n print('held', flush=True)\n sys.stdin.read()"
            ),
            str(tmp_path),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"

    def work(group):
        with output_of(group, tmp_path):
            return "went on"

    found = on_ranks(2, work)
    assert all("in use by another run (process" in str(error) for error in found), found
    holder.communicate()
    assert on_ranks(2, work) == ["went on"] * 2


WATCHED = """
    import sys, time
    from tfquant.distributed.watchdog import Watchdog, identity, silent
    dog = Watchdog(float(sys.argv[1]), 0.0, lambda where, seconds: f"LINE {where} {seconds:g}")
    for _ in range(3):
        with dog.waiting("a short step"):
            time.sleep(0.05)
    time.sleep(0.5)
    with dog.waiting("step 7"), dog.waiting("an exchange inside"):
        time.sleep(float(sys.argv[2]))
    print("FINE")
"""


@pytest.mark.parametrize(
    ("timeout", "sleep", "ends"), [(0.3, 60, True), (0.0, 0.5, False), (30, 0.1, False)]
)
def test_waiting_ends_with_one_line_after_the_time_out_alone(timeout, sleep, ends):
    started = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(WATCHED), str(timeout), str(sleep)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("LINE")]
    assert (done.returncode, lines) == ((1, [f"LINE step 7 {timeout:g}"]) if ends else (0, []))
    assert ("FINE" in done.stdout) != ends and (not ends or time.monotonic() - started < 55)


@pytest.mark.long
@needs_ranks
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("flags", "LINE the ranks were started with different flags or files: --learning_rate is"),
        ("network", "LINE the ranks have different networks: rank 0 has 1 variables"),
        ("frozen", "has waited for the others for 4 s at the start of training: rank 1 (process"),
        ("calls", "LINE at the end the ranks hold [0, 1] variables"),
        ("none", ""),
    ],
)
def test_two_processes_end_with_a_line_each_at_most(case, message):
    command = [
        *mpirun_command(2),
        sys.executable,
        str(pathlib.Path(__file__).with_name("unlike_worker.py")),
        case,
    ]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if message and message in line]
    assert (done.returncode == 0) == (case == "none"), done.stderr[-2000:]
    assert (1 <= len(lines) <= 2) if message else done.stdout.count("FINE") == 2, done.stderr[
        -2000:
    ]

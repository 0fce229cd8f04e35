"""What a user sees of an error, and of a checkpoint's damaged record."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from runs import resume
from runs.errors import EXPECTED, describe
from runs.folders import problem_with
from runs.glue import networks, setting_checks
from runs.glue.settings import Settings as GlueSettings
from runs.settings import FlagError
from runs.squad import flag_checks
from runs.squad.flags import Settings
from runs.training import steps_of
from tasks import glue
from tfquant import checkpoint

NOISE = (
    "{{function_node __wrapped__CreateSummaryFileWriter_device_/job:localhost}} Not a directory"
    " [Op:CreateFileWriter] name: "
)
ERRORS = {
    "TensorFlow": (
        tf.errors.InvalidArgumentError(None, None, NOISE),
        "TensorFlow: Not a directory",
    ),
    "out of memory": (
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating [Op:X]"),
        "out of memory (OOM when alloc",
    ),
    "no memory in Python": (
        MemoryError("Unable to allocate 7.28 TiB"),
        "out of memory (Unable to allocate",
    ),
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "x/y"),
        "No space left on device: x/y",
    ),
    "text alone": (OSError(errno.EIO, "cannot write x"), "cannot write x"),
    "several lines": (ValueError("a\n  b\x1b[31m"), "a\n  b\\x1b[31m"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_expected_errors_are_described_without_internals(case):
    error, said = ERRORS[case]
    assert isinstance(error, EXPECTED) and describe(error).startswith(said)
    assert "{{" not in describe(error) and "[Op" not in describe(error)


def test_a_blocked_tensorboard_folder_is_an_expected_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EXPECTED) as caught:
        tf.summary.create_file_writer(str(tmp_path / "file" / "x"))
    assert "\n" not in describe(caught.value) and "{{" not in describe(caught.value)


RECORDS = [
    "[]",
    "{}",
    "[" * 10**5,
    "{",
    '{"flags": {}}',
    '{"flags": [], "ranks": 1}',
    '{"flags": {}, "ranks": "1"}',
    b"\xff",
]


@pytest.mark.parametrize("text", RECORDS, ids=lambda text: str(text)[:20])
def test_damaged_record_of_a_run_is_said_in_one_line(text, tmp_path):
    checkpoint.write(tmp_path / "model.ckpt-1", {resume.RUN: text, "x": 1.0})
    with pytest.raises((ValueError, OSError)) as caught:
        resume.training_schedule(str(tmp_path / "model.ckpt-1"), Settings(), 1)
    assert "damaged" in str(caught.value) and "\n" not in describe(caught.value)
    assert not resume.is_same_run(str(tmp_path / "model.ckpt-1"), Settings(), 1)


CHANGES = [
    {"train_batch_size": None},
    {"num_accumulation_steps": 0},
    {"learning_rate": "1"},
    {"vocab_file": 5},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_damaged_flags_in_a_record_are_said_in_one_line(change, tmp_path):
    record = resume.record_of(Settings(), 1)
    record["flags"] |= change
    checkpoint.write(tmp_path / "model.ckpt-1", {resume.RUN: json.dumps(record), "x": 1.0})
    with pytest.raises(ValueError, match=f"record of its run is damaged .*{next(iter(change))}"):
        resume.training_schedule(str(tmp_path / "model.ckpt-1"), Settings(), 1)


def test_a_run_is_the_same_with_the_same_flags_alone(tmp_path):
    settings = Settings(learning_rate=1e-3)
    checkpoint.write(
        tmp_path / "model.ckpt-1", {resume.RUN: json.dumps(resume.record_of(settings, 1)), "x": 1.0}
    )
    prefix = str(tmp_path / "model.ckpt-1")
    assert resume.is_same_run(prefix, settings, 1)
    assert not resume.is_same_run(prefix, dataclasses.replace(settings, learning_rate=1e-4), 1)


@pytest.mark.parametrize("steps", [1, 12, 10**9, 2**31 - 1])
def test_batches_of_a_step_are_divided_at_once_however_many_they_are(steps):
    course = resume.training_schedule(None, Settings(num_accumulation_steps=steps), 1)
    assert (course.own, course.parts) == (steps, 1)
    with pytest.raises(ValueError, match="do not make one step"):
        steps_of(1, Settings(num_accumulation_steps=steps), course)


def test_trial_of_a_folder_leaves_nothing(tmp_path):
    assert problem_with(str(tmp_path / "a" / "b")) is None and list(tmp_path.iterdir()) == []
    for bad in ("/proc/x", "/dev/null", "x" * 5000, "a\0b"):
        assert problem_with(str(tmp_path / bad))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is not a folder" in problem_with(str(tmp_path / "link"))


def test_a_fresh_head_is_said_in_one_line(good_glue, tmp_path, capsys):
    settings, task = GlueSettings(task=("rte",), max_seq_length=48), glue.TASKS["rte"]
    model = networks.build(str(good_glue / "model"), task, settings, 1)
    encoder = {
        v.path: v for v in model.weights if v.path.startswith("bert/") and "pooler" not in v.path
    }
    heads = {
        "cls/squad/output_weights": np.ones((2, 16)),
        "cls/squad/output_bias\x1b[31m\n": np.ones(2),
    }
    for file in (good_glue / "model").iterdir():
        shutil.copy(file, tmp_path / file.name)
    checkpoint.write(tmp_path / "model.ckpt", encoder | heads)
    networks.load_float(model, str(tmp_path), new_head=True)
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and "new, not in the checkpoint: bert/pooler/dense/bias, bert/pooler/dense/kernel, output_bias"  # noqa: E501
        in said[0]
    )
    assert (
        "left out, of another task: cls/squad/output_bias\\x1b[31m\\n, cls/squad/output_weights"
        in said[0]
    )
    with pytest.raises(
        ValueError, match="missing: output_bias"
    ):  # nothing is scored with a fresh head
        networks.load_float(model, str(tmp_path), new_head=False)
    with pytest.raises(ValueError, match="has no head for a task"):
        networks.check_head(str(tmp_path), task, "--model-path")


def check_squad_numbers(value):
    flag_checks.check(
        Settings(learning_rate=value, seed=10**12, n_best_size=-(10**12), do_predict=True)
    )


def check_glue_numbers(value):
    settings = GlueSettings(
        mode="train-baseline", learning_rate=value, max_steps=10**12, batch_size=-(10**12)
    )
    setting_checks.check(settings)


NUMBERED = {
    "SQuAD": (check_squad_numbers, ("--learning_rate=", "--seed=", "--n_best_size=")),
    "GLUE": (check_glue_numbers, ("--learning-rate ", "--max-steps ", "--batch-size ")),
}


@pytest.mark.parametrize("script", NUMBERED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_number_that_is_refused_is_named_once(script, value):
    check, flags = NUMBERED[script]
    with pytest.raises(FlagError) as caught:
        check(value)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert [sum(line.startswith(flag) for line in lines) for flag in flags] == [1, 1, 1], lines

"""Runs of several processes that are stopped or killed, and go on."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import run_squad
from runs.squad.command_line import arguments
from runs.squad.flags import Settings
from runs.squad.two_ranks import mpirun_command
from tests.distributed.ranks import MPIRUN, ONE_THREAD, ROOT, found_by_two_ranks, needs_ranks
from tests.test_run_squad import make_files
from tfquant import checkpoint

STEPS = 80
LAUNCHERS = {
    "mpirun": mpirun_command(2),
    "horovodrun": [MPIRUN.with_name("horovodrun"), "--gloo", "-np", "2"],
}


@pytest.fixture
def settings(tmp_path):
    """Of a run in 2 processes without dropout, whose random numbers would be those of each
    process.
    """
    files = make_files(tmp_path / "data")
    config = json.loads(pathlib.Path(files["bert_config_file"]).read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    pathlib.Path(files["bert_config_file"]).write_text(json.dumps(config))
    files |= {
        "train_batch_size": 4,
        "learning_rate": 2e-6,
        "num_train_epochs": STEPS / 5,
        "do_train": True,
    }
    return Settings(**files, output_dir=str(tmp_path / "out"), save_checkpoints_steps=4)


@pytest.fixture
def start():
    """Starts runs; what a failed test leaves of them is killed."""
    runs = []
    yield lambda *given: runs.append(Run(*given)) or runs[-1]
    for run in runs:
        if run.process.poll() is None:
            for process in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
                process.kill()


class Run:
    """run_squad.py in two processes, started as a user does."""

    def __init__(self, launcher: str, settings: Settings):
        given = arguments(settings)
        environment = os.environ | ONE_THREAD | {"PATH": f"{MPIRUN.parent}:{os.environ['PATH']}"}
        self.output = pathlib.Path(settings.output_dir).with_suffix(f".{time.monotonic_ns()}")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [*LAUNCHERS[launcher], sys.executable, "run_squad.py", *given, "--horovod=true"],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def rank(self, number: int) -> psutil.Process:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            environment = process.environ()
            rank = environment.get("OMPI_COMM_WORLD_RANK", environment.get("HOROVOD_RANK"))
            if rank == str(number) and not process.children():
                return process
        pytest.fail(f"rank {number} is not there: {self.text}")

    def send(self, number: signal.Signals, rank: int, after: int) -> None:
        """Sends a signal to a rank once there is a checkpoint of a later step."""
        folder = pathlib.Path(self.output).with_suffix("")
        deadline = time.monotonic() + 300
        while not any(step > after for step, _ in checkpoint.steps(folder)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.02)
        self.rank(rank).send_signal(number)

    def end(self) -> int:
        """Its exit status, waited for at most a minute; nothing of it may be left."""
        left = psutil.Process(self.process.pid).children(recursive=True)
        status = self.process.wait(60)
        assert not psutil.wait_procs(left, timeout=10)[1]
        return status

    @property
    def text(self) -> str:
        return self.output.read_text()


def last_step(settings: Settings) -> int:
    return checkpoint.steps(settings.output_dir)[-1][0]


# test_resume.py and tests/training/test_schedule.py stand for resuming, the test of horovodrun
# for killed ranks.
@pytest.mark.long
@needs_ranks
def test_stopped_then_killed_then_resumed_in_one_process_a_run_ends_as_if_it_had_never_stopped(
    settings, start, capsys
):
    run = start("mpirun", settings)
    run.send(signal.SIGTERM, rank=1, after=0)
    assert run.end() == 0, run.text
    stopped = last_step(settings)
    assert (
        4 <= stopped < STEPS
        and run.text.count(f"stopped by a signal after step {stopped} of {STEPS}") == 1
    )

    run = start("mpirun", settings)
    run.send(signal.SIGKILL, rank=1, after=stopped)
    assert run.end() != 0
    assert f"resuming from step {stopped} of {STEPS}" in run.text
    killed = last_step(settings)
    assert stopped < killed < STEPS

    settings = dataclasses.replace(settings, save_checkpoints_steps=1000)
    figures = run_squad.run(settings)["training"]
    assert (figures["first_step"], figures["last_step"]) == (killed, STEPS)
    assert (
        "started in 2 processes, resumed in 1 process: a step keeps its 8 windows"
        in capsys.readouterr().err
    )
    whole = dataclasses.replace(
        settings, output_dir=settings.output_dir + "_whole", train_batch_size=8, learning_rate=4e-6
    )
    run_squad.run(whole)
    one, two = (
        checkpoint.read(pathlib.Path(s.output_dir) / f"model.ckpt-{STEPS}")
        for s in (settings, whole)
    )
    for name in one:
        if not name.startswith("tfquant/"):
            np.testing.assert_allclose(one[name], two[name], atol=1e-6, err_msg=name)


@needs_ranks
def test_a_killed_rank_ends_horovodrun_too(settings, start):
    run = start("horovodrun", settings)
    run.send(signal.SIGKILL, rank=1, after=0)
    assert run.end() != 0
    assert 4 <= last_step(settings) < STEPS


@pytest.mark.long
@needs_ranks
def test_two_ranks_with_dropout_resume_bit_for_bit_after_a_signal_to_one(tmp_path):
    found = sorted(found_by_two_ranks("resume_worker.py", tmp_path), key=lambda one: one["rank"])
    for one in found:
        assert (one["step"], one["code"], one["restored"]) == (3, 0, 3)
        assert one["equal"] and one["moved"]
        assert one["seeds"][0] == one["seeds"][1]
    assert found[0]["seeds"][0] != found[1]["seeds"][0]  # each rank drops out by itself

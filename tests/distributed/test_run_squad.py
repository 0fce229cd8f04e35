"""run_squad.py in several processes.

Prediction shared out to threads, and both ways to start real processes.
"""

import dataclasses
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import run_squad
from runs.networks import inference_graph
from runs.squad import prediction, two_ranks
from runs.squad.command_line import arguments
from runs.squad.flags import Settings
from runs.training import closing_line
from tasks import squad
from tests.distributed.ranks import MPIRUN, ONE_THREAD, ROOT, needs_ranks, on_ranks
from tests.test_run_squad import make_files
from tfquant import checkpoint
from tfquant.distributed.errors import OtherRankError
from tfquant.distributed.group import Single
from tfquant.training import TrainSummary

WRITTEN = ("predictions.json", "nbest_predictions.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


def network(inputs, training):
    """Logits of some kind, that depend on the shape of the batch in the last bits as a matrix
    product's may.
    """
    ids = tf.cast(inputs["input_ids"], tf.float32)
    noise = 1e-3 * tf.cast(tf.size(inputs["input_ids"]), tf.float32)
    return {"start_logits": tf.sin(ids) + noise, "end_logits": tf.cos(ids) - noise}


def predictor(files, folder, network=network, **changes):
    """What each rank of a group does."""
    settings = Settings(**files, do_predict=True, predict_batch_size=3, **changes)
    tokenizer = squad.Tokenizer(files["vocab_file"])

    def work(group):
        own = dataclasses.replace(settings, output_dir=str(folder / str(group.rank)))
        os.makedirs(own.output_dir)
        forward = prediction.forward_of(inference_graph(network))
        return prediction.predict(forward, 7, tokenizer, own, group)

    return work


@pytest.mark.parametrize("size", [2, 3, 8])
def test_ranks_answer_together_what_one_process_answers_and_rank_0_writes(files, tmp_path, size):
    alone = predictor(files, tmp_path / "alone")(Single())
    shared = on_ranks(size, predictor(files, tmp_path / "shared"))
    for name in WRITTEN:
        assert (tmp_path / "shared" / "0" / name).read_bytes() == (
            tmp_path / "alone" / "0" / name
        ).read_bytes()
    assert not any(list((tmp_path / "shared" / str(rank)).iterdir()) for rank in range(1, size))
    assert shared[0].keys() == alone.keys()
    assert all(
        shared[0][name] == alone[name]
        for name in ("exact_match", "f1", "questions", "windows", "step")
    )
    assert all(one["windows"] == alone["windows"] and "f1" not in one for one in shared[1:])
    assert shared[0]["examples_per_second"] == shared[1]["examples_per_second"] > 0


def test_ranks_without_a_window_wait_for_the_others(files, tmp_path):
    shared = on_ranks(4, predictor(files, tmp_path, num_eval_iterations=1))
    assert [one["questions"] for one in shared] == [3] * 4 and len(
        json.loads((tmp_path / "0" / WRITTEN[0]).read_text())
    ) == 3


def test_what_goes_wrong_on_one_rank_is_raised_on_all(files, tmp_path):
    def broken(inputs, training):
        return {name: logits / 0.0 for name, logits in network(inputs, training).items()}

    for kind, one in (("nan", broken), ("key", lambda inputs, training: {}["logits"])):

        def work(group, one=one, kind=kind):
            return predictor(files, tmp_path / kind, one if group.rank else network)(group)

        first, second = on_ranks(2, work)
        if kind == "nan":
            assert (
                type(first) is type(second) is ValueError
                and str(first) == str(second)
                and "NaN" in str(first)
            )
        else:
            assert str(first) == "rank 1 failed at prediction: KeyError: 'logits'"
            assert type(first) is OtherRankError and type(second) is KeyError


def test_logits_of_other_windows_are_refused(files):
    features = [
        squad.convert(
            examples, squad.Tokenizer(files["vocab_file"]), training=False, progress=False
        )
        for examples in (
            squad.read_squad(files[f], training=False) for f in ("train_file", "predict_file")
        )
    ]
    with pytest.raises(ValueError, match="other windows.*start all processes alike"):
        squad.RawScores(features[0]).join(squad.RawScores(features[1]).packed())


def test_the_closing_line_of_training_tells_the_speed_of_all_and_the_share_of_all_reduce():
    one = TrainSummary(0, 5, 1.0, 2.0, 3.0, 4.0, "")
    assert closing_line(one) == "trained 5 steps in 2 s, 4.0 examples/s after the first"
    two = dataclasses.replace(
        one, ranks=2, total_steady_examples_per_second=8.04, allreduce_share=0.1234
    )
    line = (
        "trained 5 steps in 2 s, 4.0 examples/s after the first (8.0 in all 2 processes), 12.3 % of"
        " that time in all-reduce"
    )
    assert closing_line(two) == line


# Real processes

README_MPIRUN = (
    "-np 2 -H localhost:2 --allow-run-as-root --bind-to none --map-by slot -x PATH --mca pml ob1"
    " --mca btl ^openib"
)


def start(*command) -> str:
    """Runs a command as a user would, with `python` from the PATH; what it wrote to stderr and
    stdout.
    """
    path = f"{MPIRUN.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=os.environ | ONE_THREAD | {"PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def flags(**settings) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.long
@needs_ranks
def test_horovodrun_trains_and_mpirun_predicts_what_one_process_does(files, tmp_path):
    common = ["python", "run_squad.py", *flags(**files), "--horovod"]
    trained = flags(
        output_dir=tmp_path / "trained",
        num_train_epochs=0.8,
        train_batch_size=4,
        horovod_compression="fp16",
    )
    horovodrun = (str(MPIRUN.parent / "horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2")
    output = start(*horovodrun, *common, *trained, "--do_train", "--do_predict", "--use_bf16")
    assert (
        "trained 4 steps" in output
        and "in all 2 processes" in output
        and "of that time in all-reduce" in output
    )
    prefix = checkpoint.latest(tmp_path / "trained")
    assert prefix.endswith("model.ckpt-4")
    figures = json.loads((tmp_path / "trained" / "results.json").read_text())["figures"]["training"]
    assert figures["ranks"] == 2 and np.isfinite(figures["loss"])

    predicted = flags(output_dir=tmp_path / "predicted", init_checkpoint=prefix)
    start(str(MPIRUN), *README_MPIRUN.split(), *common, *predicted, "--do_predict")
    run_squad.run(
        Settings(
            **files, output_dir=str(tmp_path / "alone"), init_checkpoint=prefix, do_predict=True
        )
    )
    answers = [
        json.loads((tmp_path / folder / WRITTEN[0]).read_text())
        for folder in ("predicted", "alone")
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 20


@pytest.mark.long
@needs_ranks
def test_the_example_trains_in_two_processes_what_it_trains_in_one(files, tmp_path, monkeypatch):
    monkeypatch.setattr(two_ranks.os, "cpu_count", lambda: 2)
    settings = Settings(
        **files, do_train=True, do_predict=True, num_train_epochs=0.4, train_batch_size=8
    )
    one = run_squad.run(dataclasses.replace(settings, output_dir=str(tmp_path / "one")))
    two = two_ranks.run(
        two_ranks.launcher(), dataclasses.replace(settings, output_dir=str(tmp_path / "two"))
    )
    assert (
        two["training"]["ranks"] == 2
        and two["training"]["last_step"] == one["training"]["last_step"]
    )
    assert two["prediction"]["questions"] == one["prediction"]["questions"]


def test_the_script_is_found_in_the_repository_and_in_a_wheel(monkeypatch):
    (path,) = two_ranks.script()
    assert path == str(pathlib.Path(__file__).resolve().parents[2] / "run_squad.py")
    monkeypatch.setattr(two_ranks, "__package__", "tfquant.runs.squad")
    assert two_ranks.script() == ["-m", "tfquant.run_squad"]


def test_two_processes_that_fail_are_an_error(files, tmp_path):
    with pytest.raises(RuntimeError, match="false ended with exit code 1"):
        two_ranks.run(["false"], Settings(**files, output_dir=str(tmp_path)))


def test_a_command_line_asks_for_the_settings_it_was_made_from():
    settings = Settings(
        do_train=True, do_lower_case=False, range_learning_rate=1e-3, init_checkpoint="a b"
    )
    expected = [
        "--init_checkpoint=a b",
        "--do_train=true",
        "--do_lower_case=false",
        "--range_learning_rate=0.001",
    ]
    assert arguments(settings) == expected

"""Training that goes on: which flags may differ, and what another number of processes changes."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import run_squad
from runs import resume
from runs.settings import CONTENT, FREE, SAME
from runs.squad import data, flags, training
from runs.squad.flags import Settings
from runs.training import SHARE, by_share
from tasks import squad
from tests.test_run_squad import make_files
from tfquant import checkpoint
from tfquant.distributed.group import Single


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(files, tmp_path_factory):
    """Settings of a run of 2 steps that is done."""
    settings = Settings(
        **files,
        output_dir=str(tmp_path_factory.mktemp("begun")),
        do_train=True,
        num_train_epochs=0.4,
    )
    run_squad.run(settings)
    return settings


def rewritten(settings, folder, **record):
    """The run's folder with another record of its start in the last checkpoint; None takes it
    out.
    """
    shutil.copytree(settings.output_dir, folder)
    prefix = checkpoint.latest(folder)
    found = checkpoint.read(prefix)
    tensors = {name: found[name] for name in found}
    before = json.loads(tensors.pop(resume.RUN))
    if record:
        tensors[resume.RUN] = json.dumps(before | record)
    checkpoint.write(prefix, tensors)
    return dataclasses.replace(settings, output_dir=str(folder))


def other(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other"


DECIDING = [
    field for field in dataclasses.fields(Settings) if field.metadata["resume"] != flags.FREE
]


@pytest.mark.parametrize("field", DECIDING, ids=lambda field: field.name)
def test_each_flag_that_decides_what_is_computed_is_refused_with_another_value(field):
    before = Settings()
    after = dataclasses.replace(before, **{field.name: other(getattr(before, field.name))})
    records = [
        json.loads(json.dumps(resume.record_of(settings, 2))) for settings in (before, after)
    ]
    (problem,) = resume._differences(*records, before, "model.ckpt-3")
    assert (
        problem.startswith(f"--{field.name}={getattr(after, field.name)}: ")
        and "when the run was started" in problem
    )
    assert not resume._differences(records[0], records[0], before, "model.ckpt-3")


def test_every_flag_says_what_it_must_do_when_a_run_goes_on():
    kinds = {field.name: field.metadata["resume"] for field in dataclasses.fields(Settings)}
    assert set(kinds.values()) == {SAME, CONTENT, FREE}
    assert (
        kinds["seed"] == "same"
        and kinds["train_file"] == "content"
        and kinds["output_dir"] == "free"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 2e-3, "seed": 1},
            r"--learning_rate=0.002: was 0.001 [^-]*--seed=1: was 12345 when",
        ),
        (
            {"num_train_epochs": 3.0},
            r"--num_train_epochs=3.0: was 0.4 .* from --init_checkpoint=.*model.ckpt-2 in another",
        ),
        ({"train_batch_size": 4}, "--train_batch_size=4: was 8"),
        ({"max_seq_length": 64}, "--max_seq_length=64: was 96"),
        ({"sparsity": "2x4"}, "--sparsity=2x4: was not given when"),
        ({"if_quant": True}, "--if_quant=True: was False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_contradicting_flag_is_refused_before_the_data_is_read(
    begun, monkeypatch, change, message
):
    monkeypatch.setattr(training, "read_examples", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(flags.FlagError, match=rf"(?s){message}.*or another --output_dir"):
        run_squad.run(dataclasses.replace(begun, **change))


def test_files_are_compared_by_what_they_hold(begun, tmp_path):
    copy = shutil.copy(begun.train_file, tmp_path / "copy.json")
    figures = run_squad.run(dataclasses.replace(begun, train_file=str(copy)))
    assert figures["training"]["first_step"] == 2
    pathlib.Path(copy).write_text(pathlib.Path(begun.train_file).read_text() + " ")
    with pytest.raises(
        flags.FlagError,
        match="copy.json: holds something else than .* did when the run was started",
    ):
        run_squad.run(dataclasses.replace(begun, train_file=str(copy)))
    with pytest.raises(
        flags.FlagError, match="--init_checkpoint=.*model.ckpt-2: was not given when"
    ):
        run_squad.run(
            dataclasses.replace(begun, init_checkpoint=checkpoint.latest(begun.output_dir))
        )


def test_a_checkpoint_is_known_by_its_tensors_and_a_folder_by_its_weights(tmp_path):
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        checkpoint.write(tmp_path / name / "model.ckpt", {"w": tf.fill([1000], value)})
        (tmp_path / name / "model.safetensors").write_bytes(bytes([int(value)]))
    for path in ("model.ckpt", ""):
        one, same, other = (
            resume.content(str(tmp_path / name / path)) for name in ("one", "same", "other")
        )
        assert one == same != other
    assert resume.content("tfds:train") == "tfds:train"


def test_flags_that_change_no_weight_may_differ(begun, capsys):
    free = {"save_checkpoints_steps": 1, "keep_checkpoint_max": 3, "predict_batch_size": 2}
    figures = run_squad.run(dataclasses.replace(begun, **free))
    assert (figures["training"]["first_step"], figures["training"]["last_step"]) == (2, 2)
    assert "already been trained for 2 steps of 2" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_warning(begun, tmp_path, capsys):
    run_squad.run(dataclasses.replace(rewritten(begun, tmp_path / "old"), num_train_epochs=0.6))
    assert "records no flags" in capsys.readouterr().err
    assert resume.RUN in checkpoint.read(tmp_path / "old" / "model.ckpt-3")


def test_a_flag_younger_than_the_checkpoint_must_have_its_default(begun, tmp_path):
    before = json.loads(checkpoint.read(checkpoint.latest(begun.output_dir))[resume.RUN])["flags"]
    younger = rewritten(
        begun,
        tmp_path / "old",
        flags={name: v for name, v in before.items() if name != "loss_scale"},
    )
    assert run_squad.run(younger)["training"]["last_step"] == 2
    with pytest.raises(flags.FlagError, match="--loss_scale=dynamic: was none"):
        run_squad.run(dataclasses.replace(younger, loss_scale="dynamic"))


class Rank(Single):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def dealt(features, settings, start, ranks, now, steps, first=0):
    """Per step.

    (rows of each part, its share), over all ranks; rows are known by their first 20 pieces.
    """
    course = resume._schedule(resume.record_of(start, ranks), settings, now)
    streams = [
        training.training_batches(features, settings, first * course.own, Rank(r, now), course)
        for r in range(now)
    ]
    return [
        [
            (sorted(row[:20].tobytes() for row in batch["input_ids"]), float(batch.get(SHARE, 1.0)))
            for stream in streams
            for batch in (next(stream) for _ in range(course.own))
        ]
        for _ in range(steps)
    ]


@pytest.mark.parametrize(
    ("ranks", "size", "accumulation", "now", "largest"),
    [
        (2, 4, 1, 1, 4),
        (1, 8, 1, 2, 8),
        (2, 2, 2, 4, 2),
        (2, 8, 1, 3, 8),
        (2, 4, 3, 2, 2),
        (4, 2, 1, 1, 8),
    ],
)
def test_another_number_of_processes_makes_each_step_of_the_same_windows(
    files, ranks, size, accumulation, now, largest
):
    start = Settings(**files, train_batch_size=size, num_accumulation_steps=accumulation)
    examples = data.read_examples(files["train_file"], start, training=True)
    features = data.to_features(
        examples, squad.Tokenizer(files["vocab_file"]), start, training=True
    )
    steps = 7  # beyond an epoch
    before = dealt(features, start, start, ranks, ranks, steps)
    after = dealt(
        features, dataclasses.replace(start, train_batch_size=largest), start, ranks, now, steps
    )
    later = dealt(
        features,
        dataclasses.replace(start, train_batch_size=largest),
        start,
        ranks,
        now,
        2,
        first=5,
    )
    assert later == after[5:]
    for one, two in zip(before, after, strict=True):
        rows = [sorted(row for part, _ in step for row in part) for step in (one, two)]
        assert rows[0] == rows[1] and len(rows[0]) == ranks * size * accumulation
        assert max(len(part) for part, _ in two) <= largest
        weights = [
            share / len(part) / len(two) for part, share in two
        ]  # of a window in the mean of the parts' means
        np.testing.assert_allclose(weights, 1 / len(rows[0]), rtol=1e-6)


def test_more_processes_than_windows_in_a_batch_are_refused(files):
    with pytest.raises(ValueError, match="3 processes are too many.* batches of 2 windows"):
        resume._schedule(
            resume.record_of(Settings(train_batch_size=2), 1), Settings(train_batch_size=2), 3
        )


def test_parts_of_unequal_size_count_by_their_windows():
    losses = tf.random.stateless_uniform([16], seed=[1, 2])
    weighted = by_share(lambda _, batch: tf.reduce_mean(batch["x"]))
    parts = [losses[part::3] for part in range(3)]
    mean = np.mean([float(weighted(None, {"x": p, SHARE: len(p) * 3 / 16})) for p in parts])
    assert mean == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-6)
    assert float(weighted(None, {"x": losses})) == float(tf.reduce_mean(losses))


def test_a_run_of_two_processes_goes_on_in_one_to_the_same_weights(tmp_path, capsys):
    files = make_files(tmp_path / "data")
    config = json.loads(pathlib.Path(files["bert_config_file"]).read_text())
    config |= {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # its random numbers are those of a process
    pathlib.Path(files["bert_config_file"]).write_text(json.dumps(config))
    # One process with twice the batch and rate is what two compute together.
    twice = {
        "train_batch_size": 8,
        "learning_rate": 1e-4,
        "do_train": True,
        "num_train_epochs": 2.0,
    }
    whole = Settings(
        **files | twice,
        output_dir=str(tmp_path / "whole"),
        save_checkpoints_steps=4,
        keep_checkpoint_max=0,
    )
    run_squad.run(whole)
    for name in ("model.ckpt-10", "model.ckpt-8"):
        for path in (tmp_path / "whole").glob(name + "*"):
            shutil.move(path, tmp_path / path.name)
    two = dataclasses.replace(whole, train_batch_size=4, learning_rate=5e-5)
    two = rewritten(two, tmp_path / "two", **resume.record_of(two, 2))
    assert run_squad.run(two)["training"]["first_step"] == 4
    said = capsys.readouterr().err
    assert (
        "started in 2 processes, resumed in 1 process: a step keeps its 8 windows (2 x 4 in each"
        in said
    )
    ends = [checkpoint.read(folder / "model.ckpt-10") for folder in (tmp_path, tmp_path / "two")]
    assert set(ends[0]) == set(ends[1])
    for name in ends[0]:
        if not name.startswith("tfquant/"):
            np.testing.assert_allclose(ends[0][name], ends[1][name], atol=1e-6, err_msg=name)
    assert (
        json.loads(ends[1][resume.RUN])["ranks"] == 2
    )  # it stays that run, wherever it goes on next

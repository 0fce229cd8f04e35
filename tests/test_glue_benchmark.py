"""Rows of `make glue` are command lines that run_glue.py takes."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import glue, glue_report
from benchmarks.low_bit_glue import LOW_BIT
from benchmarks.scripts import RunQueue
from runs.glue import command_line, setting_checks

PRETRAINED = pathlib.Path("pretrained")


@pytest.mark.parametrize("row", glue.ROWS)
def test_every_command_is_understood_and_starts_from_the_model_it_should(row, monkeypatch):
    monkeypatch.setattr(glue, "pretrained_folder", lambda: PRETRAINED)
    runs = glue.Runs(pathlib.Path("glue_data"), pathlib.Path("output"))
    for task, seed in glue.GLUE.runs():
        settings = command_line.parse(glue.command(row, task, seed, runs), "")
        setting_checks.check(settings)
        assert (settings.tasks, settings.seed, settings.output_dir) == (
            (task,),
            (seed,),
            str(runs.folder(row, task, seed)),
        )
        float_model = (
            pathlib.Path("output")
            / "float"
            / ("stsb" if row == "float" else task)
            / f"seed_{seed}"
            / "out"
        )
        assert settings.model_path == str(
            PRETRAINED if row == "float" and task != "rte" else float_model
        )
        assert settings.num_train_samples == (10000 if task == "sst2" and settings.trains else None)
        if settings.mode == "train-quantized":
            assert (
                settings.num_epochs == (2 if "2-bit" in row and task == "cola" else 1)
                and settings.learn_ranges
            )


@pytest.mark.parametrize("row", LOW_BIT.rows)
def test_every_command_of_the_low_bit_rows_is_understood(row, monkeypatch):
    monkeypatch.setattr(glue, "pretrained_folder", lambda: PRETRAINED)
    runs = glue.Runs(pathlib.Path("glue_data"), pathlib.Path("output"), suite=LOW_BIT)
    assert [task for task, _ in LOW_BIT.runs()] == ["cola", "mrpc", "stsb", "rte"]
    for task, seed in LOW_BIT.runs():
        settings = command_line.parse(glue.command(row, task, seed, runs), "")
        setting_checks.check(settings)
        assert settings.trains and settings.quantizes == (row != "float")
        assert (settings.inq_mode is not None) == row.startswith("INQ")


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Runs that only leave a result; the list gets each in its order."""
    runs, started = glue.Runs(tmp_path / "data", tmp_path / "output"), []

    def run_script(what, script, arguments, directory, log, threads):
        settings = command_line.parse(arguments, "")
        assert (
            settings.model_path == str(PRETRAINED)
            or (pathlib.Path(settings.model_path).parent / "results.json").exists()
        )
        started.append((directory.parent.parent.name, settings.tasks[0], settings.seed[0]))
        directory.mkdir(parents=True)
        size = {"float_bytes": 80, "packed_bytes": 20}
        (directory / "results.json").write_text(
            json.dumps({"final_score": settings.seed[0] / 2000, "size": size})
        )

    monkeypatch.setattr(glue, "pretrained_folder", lambda: PRETRAINED)
    monkeypatch.setattr(glue, "run_script", run_script)
    return runs, started


def test_a_row_starts_what_is_missing_of_it_and_the_float_models_before(pretend):
    runs, started = pretend
    row = "W8A8, running min-max"
    with RunQueue(2) as queue:
        known = {"scores": {"mrpc": {"1000": 70.0, "1001": 71.0}}}
        found = glue.compute(row, known, runs, queue)
        assert found["scores"]["mrpc"] == {"1000": 70.0, "1001": 71.0, "1002": 50.1}
        assert found["medians"]["mrpc"] == 70.0 and found["medians"]["cola"] == 50.0
        assert (
            found["average"] == round(np.mean(list(found["medians"].values())), 2)
            and found["times_smaller"] == 4.0
        )
        assert sorted(started) == sorted(set(started))
        quantized = {one for one in started if one[0] != "float"}
        assert {(task, seed) for _, task, seed in quantized} == set(glue.GLUE.runs()) - {
            ("mrpc", 1000),
            ("mrpc", 1001),
        }
        assert {(task, seed) for name, task, seed in started if name == "float"} == {
            (task, seed) for _, task, seed in quantized
        }
        assert started.index(("float", "stsb", 1000)) < started.index(("float", "rte", 1000))
        assert glue.compute(row, found, runs, queue) == found and len(started) == 18
        assert found["float_scores"]["mrpc"] == {"1002": 50.1} and "float_average" not in found
        assert glue.compute(row, {}, runs, queue)["float_average"] == 50.03


def test_runs_that_have_ended_are_counted_without_starting_others(pretend):
    runs, started = pretend
    row = "W8A8, running min-max"
    glue.run_one(row, "rte", 1001, runs)
    assert [task for _, task, _ in started] == ["stsb", "rte", "rte"]
    found = glue.compute(row, {}, runs, None)
    assert (found["scores"], found["times_smaller"], len(started)) == (
        {"rte": {"1001": 50.05}},
        4.0,
        3,
    )
    assert glue_report.table({row: found}) == "Not measured yet."


def test_a_table_has_medians_means_and_what_they_are_away_from_float():
    scores = dict.fromkeys(glue.TASKS, 80.0)
    rows = {
        "float": {"medians": scores, "average": 80.0},
        "eight": {"medians": scores, "average": 79.5, "times_smaller": 3.9},
    }
    rows["elsewhere"] = rows["eight"] | {"float_average": 79.25}
    lines = glue_report.table(rows).splitlines()
    assert lines[0] == "|  | CoLA | SST-2 | MRPC | STS-B | RTE | mean | to float | smaller |"
    assert lines[2] == "| float | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 |  |  |"
    assert lines[3] == "| eight | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 79.50 | -0.50 | 3.90x |"
    assert (
        lines[4] == "| elsewhere | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 79.50 | +0.25 | 3.90x |"
    )

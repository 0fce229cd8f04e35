"""Rows of `make glue` are command lines that run_glue.py takes."""

import pathlib

import pytest

from benchmarks import glue, glue_report
from glue_run import command_line, setting_checks

PRETRAINED = pathlib.Path("pretrained")


@pytest.mark.parametrize("row", glue.ROWS)
def test_every_command_is_understood_and_starts_from_the_model_it_should(row, monkeypatch):
    monkeypatch.setattr(glue, "pretrained_folder", lambda: PRETRAINED)
    for task, seed in glue.tasks_and_seeds():
        directory, words = glue.command(row, task, seed, pathlib.Path("glue_data"), pathlib.Path("output"))
        settings = command_line.parse(words, "")
        setting_checks.check(settings)
        assert (settings.tasks, settings.seed, settings.output_dir) == ((task,), (seed,), str(directory))
        float_model = pathlib.Path("output") / "float" / ("stsb" if row == "float" else task) / f"seed_{seed}" / "out"
        assert settings.model_path == str(PRETRAINED if row == "float" and task != "rte" else float_model)
        assert settings.num_train_samples == (10000 if task == "sst2" and settings.trains else None)
        if settings.mode == "train-quantized":
            assert settings.num_epochs == 1 and settings.learn_ranges


def test_a_table_has_medians_means_and_what_they_are_away_from_float():
    scores = dict.fromkeys(glue.TASKS, 80.0)
    rows = {"float": {"medians": scores, "average": 80.0}, "eight": {"medians": scores, "average": 79.5, "times_smaller": 3.9}}
    lines = glue_report.table(rows).splitlines()
    assert lines[0] == "|  | CoLA | SST-2 | MRPC | STS-B | RTE | mean | to float | smaller |"
    assert lines[2] == "| float | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 |  |  |"
    assert lines[3] == "| eight | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 79.50 | -0.50 | 3.90x |"

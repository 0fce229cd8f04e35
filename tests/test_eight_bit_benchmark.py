"""Rows of `make eight-bit` are command lines of the run scripts, and their scores are read."""

import json
import pathlib

import pytest

from benchmarks import eight_bit_squad, glue
from benchmarks.eight_bit_mrpc import EIGHT_BIT
from benchmarks.eight_bit_report import mrpc_table
from benchmarks.scripts import RunQueue
from runs.glue import command_line, setting_checks
from runs.squad.command_line import parse


@pytest.mark.parametrize("row", EIGHT_BIT.rows)
def test_a_row_of_mrpc_holds_the_scores_of_all_seeds(row, monkeypatch, tmp_path):
    def run_script(what, script, arguments, directory, log, threads):
        settings = command_line.parse(arguments, "")
        setting_checks.check(settings)
        assert settings.quantizes == (row != "bfloat16") and settings.amp
        assert settings.model_path == "pretrained" and settings.num_epochs == 5
        directory.mkdir(parents=True)
        score = {1000: 0.8, 1001: 0.9, 1002: 0.85}[settings.seed[0]]
        (directory / "results.json").write_text(json.dumps({"final_score": score}))

    monkeypatch.setattr(glue, "pretrained_folder", lambda: pathlib.Path("pretrained"))
    monkeypatch.setattr(glue, "run_script", run_script)
    runs = glue.Runs(pathlib.Path("glue"), tmp_path, suite=EIGHT_BIT)
    with RunQueue(2) as queue:
        found = glue.compute(row, {}, runs, queue)
    assert found["scores"]["mrpc"] == {"1000": 80.0, "1001": 90.0, "1002": 85.0}
    assert found["medians"] == {"mrpc": 85.0}
    assert str(tmp_path) not in found["command"]
    line = mrpc_table({"bfloat16": found}).splitlines()[-1]
    assert line == "| bfloat16 | 85.00 | +0.00 | 10.00 | 80.00, 90.00, 85.00 |"


def test_the_sweep_of_squad_is_understood_and_has_the_formats_of_the_table():
    settings = parse(eight_bit_squad.command(pathlib.Path("shared"), pathlib.Path("out")), "")
    assert settings.sweep
    rows = json.loads(
        (pathlib.Path(__file__).parents[1] / "results/eight_bit_squad.json").read_text()
    )
    assert {"float", *settings.sweep_formats} == set(rows["rows"])

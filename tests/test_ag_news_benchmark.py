"""Rows of the AG News benchmark are command lines of run_ag_news.py, and its results are read."""

import json
import pathlib

import pytest

from benchmarks import ag_news, ag_news_report
from benchmarks.results import Results
from examples.ag_news.settings import Settings
from examples.settings import parse

PRETRAINED = pathlib.Path("pretrained")


@pytest.fixture(autouse=True)
def pretrained(monkeypatch):
    monkeypatch.setattr(ag_news, "pretrained_folder", lambda: PRETRAINED)


def leave_result(name, seed, output, accuracy):
    """What a run of a row leaves behind."""
    folder = ag_news.folder(name, seed, output)
    folder.mkdir(parents=True)
    figures = {key: 1 for key in ag_news.SIZES} | {"test_accuracy": accuracy}
    (folder / "run_results.json").write_text(json.dumps({"figures": figures}))
    (folder / "run_log.csv").write_text(
        ",Epoch,Iteration,Train Loss,Train Acc\n0,0,100,1.25,40.0\n"
    )


@pytest.mark.parametrize("row", ag_news.ROWS)
def test_every_command_is_understood(row, tmp_path):
    words = ag_news.command(ag_news.ROWS[row], 1, tmp_path, tmp_path / "out")
    settings = parse("run_ag_news.py", Settings, words, "")
    assert settings.seed == 1 and settings.amp
    assert (settings.quant_type is None) == row.startswith("baseline")
    assert settings.pre_trained == ("pre-trained" in row) and settings.latent == ("latent" in row)


def test_seeds_are_collected_over_several_machines(tmp_path):
    leave_result("ALL, basic, latent", 0, tmp_path / "one", [90.0, 80.0, 81.111])
    found = ag_news.compute("ALL, basic, latent", {}, tmp_path, tmp_path / "one")
    assert found["best"] == {"0": 81.11}, "the float epoch of a latent run does not count"
    assert found["log"] == [[0.0, 100.0, 1.25, 40.0]] and "median" not in found
    assert ag_news.missing_seeds(found) == [1, 2]
    for seed in (1, 2):
        leave_result("ALL, basic, latent", seed, tmp_path / "other", [90.0, 80.0 + 2 * seed])
    found = ag_news.compute("ALL, basic, latent", found, tmp_path, tmp_path / "other")
    assert found["best"] == {"0": 81.11, "1": 82.0, "2": 84.0}
    assert (found["median"], found["spread"], found["log"][0][1]) == (82.0, 2.89, 100.0)
    assert str(tmp_path) not in found["command"]


def test_a_table_has_the_rows_of_which_all_seeds_ended():
    sizes = dict.fromkeys(ag_news.SIZES, 1_500_000)
    rows = {
        "baseline": {"median": 88.0, "spread": 1.0, **sizes},
        "fully, 8 bits": {"median": 87.5, "spread": 0.25, **sizes},
        "ALL, basic": {"best": {"0": 80.0}},
    }
    names = list(ag_news.EXPERIMENTS[1])
    lines = ag_news_report.table(rows, names).splitlines()
    assert lines[2:] == [
        "| baseline | 88.00 | +0.00 | 1.00 | 91.8 | +0.0 | 1.50 | 1.50 | 1.50 |",
        "| fully, 8 bits | 87.50 | -0.50 | 0.25 | 83.2 | -8.6 | 1.50 | 1.50 | 1.50 |",
    ]
    assert ag_news_report.table({}, names) == "Not measured yet."


def test_a_second_call_takes_what_has_ended_and_starts_the_rest(tmp_path, monkeypatch):
    started = []

    def run_script(what, script, arguments, directory, log, threads, result):
        started.append(what)
        leave_result("baseline", int(what[-1]), tmp_path / "out", [50.0 + int(what[-1])])

    def call(*words):
        words = [f"--shared={tmp_path}", f"--output={tmp_path / 'out'}", *words]
        monkeypatch.setattr("sys.argv", ["ag_news", "--experiment=1", *words])
        ag_news.main()
        return json.loads((tmp_path / "ag_news.json").read_text())["rows"]

    monkeypatch.setattr(ag_news, "run_script", run_script)
    monkeypatch.setattr(ag_news, "EXPERIMENTS", {1: {"baseline": ""}})
    monkeypatch.setattr("benchmarks.results.FOLDER", tmp_path)
    monkeypatch.setattr(ag_news, "FOLDER", tmp_path)
    leave_result("baseline", 1, tmp_path / "out", [70.0])
    assert call("--finished")["baseline"]["best"] == {"1": 70.0} and started == []
    rows = call()
    assert sorted(started) == ["baseline, seed 0", "baseline, seed 2"]
    assert rows["baseline"]["median"] == 52.0
    assert (tmp_path / "ag_news_1.png").stat().st_size > 1000
    assert call() == rows and len(started) == 2
    assert Results("ag_news", seed=0).rows == rows

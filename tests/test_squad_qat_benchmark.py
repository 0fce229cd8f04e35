"""Rows of `make squad-qat` are command lines that run_squad.py takes, each from the step before."""

import pathlib
import types

import pytest

from benchmarks import squad_qat
from runs.squad.command_line import parse

SQUAD = types.SimpleNamespace(
    folder=pathlib.Path("shared"),
    model_dir=pathlib.Path("shared/model"),
    train_file=pathlib.Path("shared/train.json"),
    dev_file=pathlib.Path("shared/dev.json"),
)


@pytest.mark.parametrize("row", squad_qat.ROWS)
def test_every_command_is_understood(row, monkeypatch):
    monkeypatch.setattr(squad_qat, "pretrained_folder", lambda: pathlib.Path("pretrained"))
    way = squad_qat.ROWS[row]
    steps = squad_qat.commands(way, SQUAD, pathlib.Path("out"), bfloat16=True)
    settings = [parse([*flags, f"--output_dir={folder}"], "") for folder, flags in steps]
    assert [one.do_train for one in settings] == [False] * (way.calibrate is not None) + [True] * (
        way.epochs > 0
    )
    assert settings[-1].do_predict and settings[-1].seed == way.seed
    assert settings[-1].distillation == way.distilled
    if len(settings) == 2:
        assert settings[1].init_checkpoint == "out/calibrated/model.ckpt-calibrated"

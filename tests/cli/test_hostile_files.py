"""Damaged and hostile files given to `python -m tfquant`.

One line, exit code 1, and nothing written.
"""

import os
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest

import tfquant
from tfquant.__main__ import main

ROWS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model as a .keras file and as a SavedModel, and a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    x = keras.Input([6], name="features")
    model = keras.Model(x, keras.layers.Dense(3, name="scores")(x))
    model.save(folder / "model.keras")
    model.export(str(folder / "served"), verbose=False)
    tfquant.save(
        tfquant.quantize(model, "int8_residual_float", [ROWS], progress=False),
        folder / "model.ckpt",
    )
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def flip(path, share):
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0xFF
    path.write_bytes(data)


def rewrite(path, change):
    """A .keras file whose members are changed: name, content -> content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def encrypt(path):
    """Sets the flag of encryption of every member, in both of its places."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(signature)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(signature, place + 4)
    path.write_bytes(data)


DAMAGES = {
    "flipped early": ("model.keras", lambda path: flip(path, 0.05)),
    "flipped in the middle": ("model.keras", lambda path: flip(path, 0.5)),
    "flipped late": ("model.keras", lambda path: flip(path, 0.97)),
    "cut": ("model.keras", lambda path: os.truncate(path, 500)),
    "empty": ("model.keras", lambda path: os.truncate(path, 0)),
    "encrypted": ("model.keras", encrypt),
    "deep": (
        "model.keras",
        lambda path: rewrite(path, lambda name, b: b"[" * 100_000 if name == "config.json" else b),
    ),
    "no object": (
        "model.keras",
        lambda path: rewrite(path, lambda name, b: b"[1]" if name == "config.json" else b),
    ),
    "without weights": (
        "model.keras",
        lambda path: rewrite(path, lambda name, b: b"" if name.endswith("h5") else b),
    ),
    "variables cut": (
        "served",
        lambda path: os.truncate(next((path / "variables").glob("*.data*")), 5),
    ),
    "variables flipped": (
        "served",
        lambda path: flip(next((path / "variables").glob("*.data*")), 0.3),
    ),
    "index cut": ("served", lambda path: os.truncate(path / "variables" / "variables.index", 20)),
    "graph flipped": ("served", lambda path: flip(path / "saved_model.pb", 0.5)),
    "graph empty": ("served", lambda path: os.truncate(path / "saved_model.pb", 0)),
    "graph gone": ("served", lambda path: (path / "saved_model.pb").unlink()),
}


def one_error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfquant ")]
    assert len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 600, lines
    return lines[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(folder, capsys, damage):
    name, how = DAMAGES[damage]
    how(folder / name)
    assert main(["export", "model.ckpt", "m.onnx", f"--model={name}", "--mode=float"]) == 1
    assert f"--model={name}: " in one_error(capsys) and not (folder / "m.onnx").exists()


@pytest.mark.parametrize(
    "place",
    ["pipe.keras", "/dev/zero", "nul\0l.keras", "a\x1b[31m\nb.keras", "a\u202eb:build", "x:y\x1b"],
)
def test_models_that_are_no_files_are_one_line(folder, capsys, place):
    os.mkfifo(folder / "pipe.keras")
    assert main(["export", "model.ckpt", "m.onnx", f"--model={place}", "--mode=float"]) == 1
    assert "--model=" in one_error(capsys)


@pytest.mark.parametrize("kind", ["index flipped", "data cut", "data pipe", "index folder", "gone"])
def test_a_damaged_checkpoint_is_one_line(folder, capsys, kind):
    index, data = folder / "model.ckpt.index", folder / "model.ckpt.data-00000-of-00001"
    if kind == "index flipped":
        flip(index, 0.5)
    elif kind == "data cut":
        os.truncate(data, 10)
    elif kind == "data pipe":
        data.unlink()
        os.mkfifo(data)
    else:
        index.unlink()
        if kind == "index folder":
            index.mkdir()
    assert main(["export", "model.ckpt", "m.onnx", "--model=model.keras", "--mode=float"]) == 1
    assert "checkpoint model.ckpt" in one_error(capsys)


@pytest.mark.parametrize("name", ["out[1]", "a\\b", "x*y", "-n"])
def test_folders_of_any_name_are_written_and_read(folder, name):
    (folder / name).mkdir()
    model = keras.models.load_model(folder / "model.keras")
    for step in (1, 2):
        tfquant.save(
            tfquant.quantize(model, "int8_residual_float", [ROWS], progress=False),
            folder / name / f"model.ckpt-{step}",
        )
    tfquant.checkpoint.prune(folder / name, 1)
    assert [step for step, _ in tfquant.checkpoint.steps(folder / name)] == [2]
    latest = tfquant.checkpoint.latest(folder / name)
    assert pathlib.Path(latest) == folder / name / "model.ckpt-2"
    assert main(["export", latest, str(folder / name / "m.onnx"), "--model=model.keras"]) == 0


@pytest.mark.parametrize(
    "stated",
    ["/elsewhere/model.ckpt-1", "../../other/model.ckpt-1", "model.ckpt-9", "\x00", "model.ckpt-1"],
)
def test_the_latest_checkpoint_is_one_of_its_own_folder(folder, stated):
    shutil.copy(folder / "model.ckpt.index", folder / "model.ckpt-1.index")
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{stated}"\n')
    assert tfquant.checkpoint.latest(folder) == str(folder / "model.ckpt-1")


@pytest.mark.parametrize("target", ["/dev/null", "pipe"])
def test_an_export_never_takes_the_place_of_a_device_or_a_pipe(folder, capsys, target):
    os.mkfifo(folder / "pipe")
    (folder / "m.onnx").symlink_to(target)
    before = os.stat(folder / "m.onnx").st_ino
    assert main(["export", "model.ckpt", "m.onnx", "--model=model.keras", "--mode=float"]) == 1
    assert (
        "m.onnx: is a device or a pipe" in one_error(capsys)
        and os.stat(folder / "m.onnx").st_ino == before
    )


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense\x1b[3m"], ["export"], ["benchmark"], ["check", "a", "b", "--what"]]
)
def test_wrong_arguments_are_one_line_and_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].isprintable()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["export", "--help"], ["check", "-h"], ["benchmark", "-h"]]
)
def test_help_ends_with_code_0(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("a\nb\x1b"), 1), (RecursionError("deep"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_that_nobody_foresaw_are_one_line(folder, capsys, monkeypatch, error, code):
    def fails(*_):
        raise error

    monkeypatch.setattr("tfquant.cli.models.load", fails)
    assert main(["export", "model.ckpt", "m.onnx", "--model=model.keras"]) == code
    assert one_error(capsys)
    if code == 1:
        monkeypatch.setenv("TFQUANT_TRACEBACK", "1")
        with pytest.raises(type(error)):
            main(["export", "model.ckpt", "m.onnx", "--model=model.keras"])

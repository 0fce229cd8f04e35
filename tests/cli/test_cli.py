"""`python -m tfquant`: export of a checkpoint and timing of files, from a user's shell."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfquant
from tfquant.__main__ import main

FACTORY = """
import keras

def build():
    x = keras.Input([6], name="features")
    return keras.Model(x, keras.layers.Dense(3, name="scores")(x))

def broken():
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A calibrated checkpoint, the function that builds its model, and rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory_of_this_test.py").write_text(FACTORY)
    (tmp_path / "broken_module.py").write_text("undefined")
    (tmp_path / "empty.keras").touch()
    names: dict = {}
    exec(FACTORY, names)
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    model = names["build"]()
    model.save(tmp_path / "model.keras")
    quantized = tfquant.quantize(model, "int8_residual_float", calibration=[rows], progress=False)
    tfquant.save(quantized, tmp_path / "model.ckpt")
    np.savez(tmp_path / "rows.npz", features=rows)
    return tmp_path


@pytest.mark.representatives(
    "onnx-model.onnx-factory*", "openvino-model.xml-model.keras", "saved_model-*"
)
@pytest.mark.parametrize("model", ["factory_of_this_test:build", "model.keras"])
@pytest.mark.parametrize(
    ("target", "name"),
    [("onnx", "model.onnx"), ("openvino", "model.xml"), ("saved_model", "served")],
)
def test_a_checkpoint_is_exported(folder, capsys, model, target, name):
    flags = [
        "export",
        "model.ckpt",
        name,
        f"--model={model}",
        f"--target={target}",
        "--check_data=rows.npz",
        "--tolerance=0.5",
    ]
    assert main(flags) == 0
    assert (folder / name).exists() and "same answer in" in capsys.readouterr().out


def test_the_command_runs_from_a_shell_and_files_are_timed(folder):
    def shell(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tfquant", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
        )

    done = shell(
        "export", "model.ckpt", "float.onnx", "--model=factory_of_this_test:build", "--mode=float"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("float.onnx: ")
    for file, option in (
        ("quantized.onnx", "--mode=quantized"),
        ("served", "--target=saved_model"),
    ):
        assert main(["export", "model.ckpt", file, "--model=model.keras", option]) == 0
    timed = shell(
        "benchmark", "served", "--batch=2", "--length=1", "--seconds=0.01", "--threads=1", "--json"
    )
    assert json.loads(timed.stdout.splitlines()[-1])["file"] == "served", timed.stderr
    timed = shell(
        "benchmark",
        "float.onnx",
        "quantized.onnx",
        "--batch=1,4",
        "--length=1",
        "--seconds=0.01",
        "--json",
    )
    lines = [json.loads(line) for line in timed.stdout.splitlines()]
    assert [(line["file"], line["batch"]) for line in lines] == [
        ("float.onnx", 1),
        ("quantized.onnx", 1),
        ("float.onnx", 4),
        ("quantized.onnx", 4),
    ]
    assert lines[0]["speed"] == 1.0 and all(line["p50"] > 0 for line in lines)


def test_the_table_has_a_line_for_each_file_batch_and_length(folder, capsys):
    assert main(["export", "model.ckpt", "model.onnx", "--model=model.keras"]) == 0
    assert (
        main(
            [
                "benchmark",
                "model.onnx",
                "--batch=2",
                "--length=1,2",
                "--seconds=0.01",
                "--data=rows.npz",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].split()[:3] == ["file", "batch", "length"] and [
        line.split()[:3] for line in lines[1:]
    ] == [
        ["model.onnx", "2", "1"],
        ["model.onnx", "2", "2"],
    ]


def test_what_was_timed_before_an_error_is_shown(folder, capsys, monkeypatch):
    from tfquant import latency

    assert main(["export", "model.ckpt", "model.onnx", "--model=model.keras"]) == 0
    measure = latency.measure

    def small_alone(sessions, workload, seconds):
        if workload.batch > 2:
            raise MemoryError("no room")
        return measure(sessions, workload, seconds)

    monkeypatch.setattr(latency, "measure", small_alone)
    capsys.readouterr()
    sizes = ["--batch=2,4", "--length=1", "--seconds=0.01"]
    assert main(["benchmark", "model.onnx", *sizes]) == 1
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        ["file", "batch"],
        ["model.onnx", "2"],
    ]
    assert "--batch=4 --length=1: a file cannot take such inputs: no room" in shown.err


def test_a_file_is_checked_against_its_checkpoint(folder, capsys):
    model = ["model.ckpt", "--model=model.keras", "--check_data=rows.npz"]
    assert main(["export", "model.ckpt", "model.onnx", "--model=model.keras"]) == 0
    assert main(["check", *model[:1], "model.onnx", *model[1:], "--tolerance=0.2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("model.onnx: largest difference")
    other = keras.models.load_model(folder / "model.keras")
    other.layers[-1].kernel.assign(-other.layers[-1].kernel)
    rows = np.load(folder / "rows.npz")["features"]
    tfquant.export(
        tfquant.quantize(other, "int8_residual_float", calibration=[rows], progress=False),
        folder / "model.onnx",
    )
    assert main(["check", *model[:1], "model.onnx", *model[1:]]) == 1
    assert "model.onnx answers otherwise than the simulation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere.ckpt", "m.onnx", "--model=model.keras"], "nowhere.ckpt"),
        (
            ["export", "model.ckpt", "m.onnx", "--model=nowhere.keras"],
            "--model=nowhere.keras: there is no such file or folder",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=rows.npz"],
            "--model=rows.npz: must be module:function, a .keras file",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=no_module:build"],
            "--model=no_module:build: cannot import no_module",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=factory_of_this_test:other"],
            "--model=factory_of_this_test:other: factory_of_this_test has no function other",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=factory_of_this_test:broken"],
            "--model=factory_of_this_test:broken: raised RuntimeError: no such thing",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=broken_module:build"],
            "importing broken_module raised NameError",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=empty.keras"],
            "--model=empty.keras: Keras cannot load it",
        ),
        (["export", "model.ckpt", "m.txt", "--model=model.keras"], "m.txt: must end in .onnx"),
        (
            ["export", "model.ckpt", "m.onnx", "--model=model.keras", "--check_data=no.npz"],
            "there is no file no.npz",
        ),
        (
            ["export", "model.ckpt", "m.onnx", "--model=model.keras", "--check_data=model.keras"],
            "model.keras: is no .npz file",
        ),
        (
            [
                "export",
                "model.ckpt",
                "m.onnx",
                "--model=model.keras",
                "--check_data=rows.npz",
                "--batch_size=0",
            ],
            "--batch_size=0",
        ),
        (
            ["check", "model.ckpt", "m.onnx", "--model=model.keras", "--check_data=rows.npz"],
            "there is no file m.onnx",
        ),
        (["benchmark", "nowhere.onnx"], "there is no file nowhere.onnx"),
        (["benchmark", "rows.npz"], "rows.npz: no runtime for files that end in '.npz'"),
        (["benchmark", "rows.npz", "--batch=none"], "--batch: 'none' is no positive number"),
        (["benchmark", "rows.npz", "--length=real"], "--length=real: needs --data"),
        (["benchmark", "rows.npz", "--seconds=0"], "--seconds=0.0: must be positive"),
        (
            ["benchmark", "rows.npz", "--seconds=inf"],
            "--seconds=inf: must be positive, and at most",
        ),
        (
            ["benchmark", "rows.npz", "--seconds=nan"],
            "--seconds=nan: must be positive, and at most",
        ),
        (
            ["benchmark", "rows.npz", "--threads=100000000"],
            "--threads=100000000: must be from 1 to",
        ),
        (["benchmark", "rows.npz", "--threads=0"], "--threads=0: must be from 1 to"),
        (["benchmark", "m.onnx", "--data=empty.keras"], "empty.keras: is no .npz file"),
        *(
            (
                [
                    command,
                    "model.ckpt",
                    "m.onnx",
                    "--model=model.keras",
                    "--check_data=rows.npz",
                    f"--tolerance={share}",
                ],
                f"--tolerance={float(share)}: is a share of rows, from 0 to 1",
            )
            for command, share in (
                ("check", "nan"),
                ("export", "nan"),
                ("export", "inf"),
                ("check", "-1"),
            )
        ),
        (
            [
                "export",
                "model.ckpt",
                "m.onnx",
                "--model=model.keras",
                "--check_data=rows.npz",
                "--check=scores=best",
            ],
            "--check=scores=best: wants OUTPUT=KIND, with a KIND of classes, number",
        ),
        (
            [
                "export",
                "model.ckpt",
                "m.onnx",
                "--model=model.keras",
                "--check_data=rows.npz",
                "--check=other=vector",
            ],
            "check: there is no output 'other', the network has output",
        ),
    ],
)
def test_what_a_user_may_do_wrong_is_one_line(folder, capsys, arguments, message):
    before = sorted(entry.name for entry in folder.iterdir())
    assert main(arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfquant ")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(entry.name for entry in folder.iterdir() if entry.name != "__pycache__") == before


def test_arrays_that_differ_in_rows_are_refused(folder, capsys):
    np.savez(
        folder / "uneven.npz",
        features=np.ones((3, 6), np.float32),
        other=np.ones((2, 6), np.float32),
    )
    assert (
        main(["export", "model.ckpt", "m.onnx", "--model=model.keras", "--check_data=uneven.npz"])
        == 1
    )
    assert "uneven.npz: needs arrays with the same number of rows" in capsys.readouterr().err


def test_an_uncalibrated_checkpoint_is_refused(folder, capsys):
    model = keras.models.load_model(folder / "model.keras")
    tfquant.save(tfquant.quantize(model, "int8_residual_float"), folder / "bare.ckpt")
    assert main(["export", "bare.ckpt", "m.onnx", "--model=model.keras"]) == 1
    assert "has no range" in capsys.readouterr().err and not (folder / "m.onnx").exists()

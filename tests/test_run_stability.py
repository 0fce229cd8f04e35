"""run_squad.py.

What a loss that is not finite does, signals outside of training, checkpoints kept, sparse kernels
held.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import modeling
import run_squad
import tfquant
from runs.squad import networks
from runs.squad.flags import Settings
from tests.test_run_squad import ROOT, make_files, tensors
from tfquant import checkpoint
from tfquant.training import NonFiniteLossError
from tfquant.training.sparsity import check


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sparse(files, tmp_path_factory):
    """(settings, figures) of a sparse float run of 4 steps."""
    folder = tmp_path_factory.mktemp("sparse")
    settings = Settings(
        **files, output_dir=str(folder), do_train=True, num_train_epochs=0.8, sparsity="2x4"
    )
    return settings, run_squad.run(settings)


@pytest.fixture(scope="module")
def calibrated(files, sparse, tmp_path_factory):
    """Prefix of the calibrated checkpoint of that run."""
    start = {
        "init_checkpoint": checkpoint.latest(sparse[0].output_dir),
        "calib_batch": 1,
        "do_calib": True,
    }
    figures = run_squad.run(
        Settings(**files, **start, output_dir=str(tmp_path_factory.mktemp("calibrated")))
    )
    return figures["calibration"]["checkpoint"]


def kernels(prefix):
    return {
        name: value
        for name, value in tensors(prefix).items()
        if name.startswith("bert/encoder/") and name.endswith("/kernel")
    }


def test_training_that_would_fill_the_zeros_of_a_sparse_network_says_so(
    files, sparse, tmp_path, capsys
):
    source = checkpoint.latest(sparse[0].output_dir)
    run_squad.run(
        Settings(
            **files,
            init_checkpoint=source,
            do_train=True,
            num_train_epochs=0.2,
            output_dir=str(tmp_path),
        )
    )
    assert (
        "kernels are 2x4 sparse; this training fills their zeros. To keep them: --sparsity=2x4"
        in capsys.readouterr().err
    )


def exploding(sparse, folder):
    """A checkpoint whose logits overflow."""
    found = tensors(checkpoint.latest(sparse[0].output_dir))
    weights = {
        k: v for k, v in found.items() if k.startswith(("bert/", "cls/")) and "/adam_" not in k
    }
    weights["cls/squad/output_weights"] = np.full_like(weights["cls/squad/output_weights"], 3e38)
    checkpoint.write(folder / "model.ckpt", weights)
    return str(folder / "model.ckpt")


def test_a_loss_that_is_not_finite_ends_the_run_by_name_with_nothing_written(
    files, sparse, tmp_path
):
    start = {
        "init_checkpoint": exploding(sparse, tmp_path),
        "do_train": True,
        "save_checkpoints_steps": 1,
    }
    with pytest.raises(
        NonFiniteLossError,
        match="stopped at step 1: its loss is NaN or Inf. Lower the learning rate",
    ):
        run_squad.run(Settings(**files, **start, output_dir=str(tmp_path / "out")))
    assert not checkpoint.steps(tmp_path / "out")


@pytest.mark.representatives("3e+38*")
@pytest.mark.parametrize(
    ("rate", "message"),
    [(1e30, "stopped at step 3"), (3e38, "step 2 made .* NaN or Inf.*not saved")],
)
def test_an_absurd_learning_rate_stops_with_the_last_good_checkpoint_kept(
    files, tmp_path, rate, message
):
    settings = Settings(
        **files | {"learning_rate": rate},
        output_dir=str(tmp_path),
        do_train=True,
        num_train_epochs=2.0,
        warmup_proportion=0.1,
        save_checkpoints_steps=1,
    )
    with pytest.raises(NonFiniteLossError, match=message):
        run_squad.run(settings)
    ((_, kept),) = checkpoint.steps(tmp_path)
    assert all(
        np.isfinite(value).all()
        for name, value in tensors(kept).items()
        if name.startswith(("bert/", "cls/"))
    )


def test_under_loss_scaling_bad_steps_are_skipped_and_told(files, sparse, tmp_path, capsys):
    source = exploding(sparse, tmp_path)
    settings = Settings(
        **files,
        init_checkpoint=source,
        do_train=True,
        num_train_epochs=0.4,
        loss_scale="dynamic",
        output_dir=str(tmp_path / "out"),
    )
    assert run_squad.run(settings)["training"]["last_step"] == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert said == [
        f"step {step} skipped: its loss is NaN or Inf; loss scale halved to {scale}, weights"
        " unchanged"
        for step, scale in ((1, 16384), (2, 8192))
    ]
    after, before = tensors(tmp_path / "out" / "model.ckpt-2"), tensors(source)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert after["tfquant/state/loss_scale"] == 8192


BUSY = """
import sys, time
import run_squad
from runs.squad import {module}
def busy(*_, **__):
    print("BUSY", flush=True)
    time.sleep(60)
{module}.{name} = busy
run_squad.command()
"""


@pytest.mark.parametrize(
    ("module", "name", "what", "number"),
    [
        ("training", "to_features", ["--do_train"], signal.SIGTERM),
        pytest.param(
            "prediction",
            "window_logits",
            ["--do_predict", "--if_quant"],
            signal.SIGUSR1,
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_signal_outside_of_training_ends_the_run_at_once_with_a_line(
    files, calibrated, tmp_path, module, name, what, number
):
    given = [f"--{flag}={value}" for flag, value in files.items()]
    given += [f"--output_dir={tmp_path / 'out'}", f"--init_checkpoint={calibrated}", *what]
    script = BUSY.format(module=module, name=name)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *given],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != "BUSY\n":
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (
        f"run_squad.py: stopped by {number.name} outside of training" in said
        and "Traceback" not in said
    )
    assert not (tmp_path / "out").exists()


def test_masks_are_held_from_float_training_through_calibration_and_quantized_training(
    files, sparse, calibrated, tmp_path, capsys
):
    settings, figures = sparse
    assert figures["training"]["sparsity"] == {
        "pattern": "2x4",
        "kernels": 6,
        "quantized_kernels": 0,
    }
    float_kernels = kernels(checkpoint.latest(settings.output_dir))
    check(float_kernels, "2x4")
    assert len(float_kernels) == 6
    qat = Settings(
        **files,
        init_checkpoint=calibrated,
        output_dir=str(tmp_path / "qat"),
        do_train=True,
        if_quant=True,
        num_train_epochs=0.8,
        sparsity="2x4",
        save_checkpoints_steps=2,
        keep_checkpoint_max=2,
    )
    figures = run_squad.run(qat)["training"]
    assert figures["sparsity"] == {"pattern": "2x4", "kernels": 6, "quantized_kernels": 6}
    assert "2x4 sparsity verified on 6 kernels" in capsys.readouterr().err
    written = json.loads((tmp_path / "qat" / "results.json").read_text())
    assert written["figures"]["training"]["sparsity"] == figures["sparsity"]
    for name, value in kernels(figures["checkpoint"]).items():
        assert np.array_equal(value == 0, float_kernels[name] == 0) and not np.array_equal(
            value, float_kernels[name]
        )

    # Both checkpoints are whole, masks included, and the file of the latest one names it; resumed
    # from the first they end alike.
    names = {path.name for path in (tmp_path / "qat").iterdir() if path.is_file()} - {
        "results.json",
        ".tfquant-lock",
    }
    assert names == {
        f"model.ckpt-{n}.{s}" for n in (2, 4) for s in ("index", "data-00000-of-00001")
    } | {"checkpoint"}
    assert checkpoint.latest(tmp_path / "qat") == figures["checkpoint"]
    whole = tensors(figures["checkpoint"])
    assert sum(name.startswith("tfquant/masks/") for name in whole) == 6
    for path in (tmp_path / "qat").glob("model.ckpt-4*"):
        path.unlink()
    assert run_squad.run(qat)["training"]["first_step"] == 2
    again = tensors(figures["checkpoint"])
    assert again.keys() == whole.keys() and all(
        np.array_equal(again[name], whole[name]) for name in whole
    )


# tests/test_checkpoint.py stands for it.
@pytest.mark.long
def test_only_the_newest_quantized_checkpoints_are_kept_each_of_them_whole(
    files, calibrated, tmp_path
):
    settings = Settings(
        **files,
        init_checkpoint=calibrated,
        output_dir=str(tmp_path),
        do_train=True,
        if_quant=True,
        num_train_epochs=0.8,
        save_checkpoints_steps=1,
        keep_checkpoint_max=2,
        range_update="lsq",
    )
    run_squad.run(settings)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3, 4]
    assert not [
        path
        for path in tmp_path.glob("model.ckpt*")
        if "-3." not in path.name and "-4." not in path.name
    ]
    assert checkpoint.latest(tmp_path) == str(tmp_path / "model.ckpt-4")
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    for _, prefix in checkpoint.steps(tmp_path):
        assert tfquant.load(prefix, networks.build(config, settings)).calibrated


def test_other_patterns_and_schedules_work_and_too_late_a_begin_is_refused(files, tmp_path):
    settings = Settings(
        **files,
        output_dir=str(tmp_path / "out"),
        do_train=True,
        num_train_epochs=0.6,
        sparsity="1x2",
        sparsity_begin_step=1,
        sparsity_end_step=-1,
        sparsity_frequency=1,
    )
    figures = run_squad.run(settings)["training"]
    assert figures["sparsity"]["pattern"] == "1x2"
    check(kernels(figures["checkpoint"]), "1x2")
    late = dataclasses.replace(settings, output_dir=str(tmp_path / "late"), sparsity_begin_step=3)
    with pytest.raises(ValueError, match="--sparsity_begin_step=3: training has only 3 steps"):
        run_squad.run(late)
    assert not list(pathlib.Path(late.output_dir).glob("model.ckpt*"))

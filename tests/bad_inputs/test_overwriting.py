"""--overwrite-output removes what an earlier run left, and nothing else that may lie in its
folder.
"""

import dataclasses
import os
import pathlib
import pprint
import shutil

import pytest

from runs.glue import overwriting
from runs.glue.settings import Settings
from runs.squad import demo
from tfquant import checkpoint
from tfquant.export import TARGETS

LEFT = (
    "config.out",
    "results.json",
    "final_score.txt",
    "eval_results_rte.txt",
    "checkpoint",
    "model.ckpt-12.index",
    "model.ckpt-12.data-00000-of-00001",
    "out/config.json",
    "out/vocab.txt",
    "out/model.ckpt.index",
    "out/model.ckpt.data-00000-of-00001",
    "out/checkpoint",
    "out/model.onnx",
    "tb_logs/events.out.tfevents.1.host",
    "out/onnxruntime.onnx",
    "out/onnxruntime.onnx.data",
    "out/tensorrt.onnx",
    "out/model.xml",
    "out/model.bin",
    "out/model.tflite",
    "out/model.safetensors",
    "out/saved_model/saved_model.pb",
    "out/saved_model/fingerprint.pb",
    "out/saved_model/variables/variables.index",
    "out/saved_model/variables/variables.data-00000-of-00001",
    "out/fastertransformer/checkpoint",
    "out/fastertransformer/model.ckpt.index",
)
KEPT = (
    "notes.txt",
    "RTE/train.tsv",
    "vocab.txt",
    "config.json",
    "model.safetensors",
    "bert_model.ckpt.index",
    "model.ckpt.index",
    "out/pytorch_model.bin",
    "out/notes.txt",
    "tb_logs/notes.txt",
    "model.ckpt-12.index.bak",
    "my_model.ckpt-3.index",
    "results.json.old",
    "other/results.json",
    "other/model.ckpt-3.index",
    "saved_model/saved_model.pb",
    "out/mine.onnx",
    "out/saved_model/notes.txt",
    "out/saved_model/assets/vocab.txt",
    "out/fastertransformer/model.ckpt-3.index",
)


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run with other files in it."""
    place = tmp_path / "run"
    for name in (*LEFT, *KEPT):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    record(place, save_model=True)
    return place


def record(place, **changes):
    place.mkdir(exist_ok=True)
    settings = Settings(
        mode="train-baseline", output_dir=str(place), overwrite_output=True, **changes
    )
    (place / "config.out").write_text(
        pprint.pformat(dataclasses.asdict(settings), sort_dicts=False) + "\n"
    )
    return settings


def start_over(place):
    overwriting.start_over(
        str(place), Settings(mode="train-baseline", output_dir=str(place), overwrite_output=True), 1
    )


def there(place, names):
    return [name for name in names if os.path.lexists(place / name)]


def test_files_of_the_run_go_and_all_others_stay(folder):
    start_over(folder)
    assert there(folder, LEFT) == [] and there(folder, KEPT) == list(KEPT)


def test_folders_that_become_empty_go_too(tmp_path):
    place = tmp_path / "run"
    (place / "out").mkdir(parents=True)
    (place / "out" / "config.json").write_text("{}")
    for name in (
        "saved_model/variables/variables.index",
        "saved_model/saved_model.pb",
        "fastertransformer/checkpoint",
    ):
        (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out" / name).write_text("x")
    (place / "out" / "saved_model" / "assets").mkdir()
    record(place, save_model=True)
    start_over(place)
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    "text",
    [None, "", "{'bits': 8}", "[" * 5000, "not ours", "{'mode': 1}"],
    ids=lambda text: str(text)[:20],
)
def test_without_the_record_of_a_run_nothing_goes(folder, text):
    (folder / "config.out").unlink() if text is None else (folder / "config.out").write_text(text)
    start_over(folder)
    names = [name for name in (*LEFT, *KEPT) if name != "config.out"]
    assert there(folder, names) == names


def test_checkpoints_that_no_run_of_ours_left_are_refused(folder):
    (folder / "config.out").unlink()
    with pytest.raises(ValueError, match="holds checkpoints and no config.out of a run"):
        overwriting.check(str(folder), {})


def test_a_model_that_the_run_did_not_save_stays(folder):
    record(folder, save_model=False)
    start_over(folder)
    assert there(folder, ["out/config.json", "out/vocab.txt"]) == [
        "out/config.json",
        "out/vocab.txt",
    ]


@pytest.mark.parametrize(
    "linked",
    ["out", "out/saved_model", "out/saved_model/variables", "out/fastertransformer", "tb_logs"],
)
def test_nothing_is_removed_behind_links(folder, linked, tmp_path):
    target = tmp_path / "elsewhere"
    (folder / linked).rename(target)
    (folder / linked).symlink_to(target)
    before = sorted(target.rglob("*"))
    start_over(folder)
    assert sorted(target.rglob("*")) == before and (folder / linked).is_symlink()


def test_every_target_has_a_name_that_is_removed():
    exported = {parts[0] for parts in overwriting._EXPORTED_FOLDERS}
    assert {target.file for target in TARGETS.values() if not target.suffix} == exported


@pytest.mark.parametrize("form", ["plain", "relative", "link", "dots"])
def test_the_model_to_start_from_is_never_removed(folder, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder / "out")
    dots = folder / "tb_logs" / ".." / "out"
    path = {
        "plain": folder / "out",
        "relative": "run/out",
        "link": tmp_path / "link",
        "dots": dots,
    }[form]
    with pytest.raises(ValueError, match="would remove .*, which --model-path reads"):
        overwriting.check(str(folder), {"--model-path": str(path)})
    assert there(folder, LEFT) == list(LEFT)


def test_files_of_a_model_that_link_into_the_run_are_never_removed(folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(folder / "out" / "config.json")
    with pytest.raises(ValueError, match="which --teacher reads"):
        overwriting.check(str(folder), {"--teacher": str(model)})


def test_a_model_beside_the_run_may_be_started_from(folder):
    overwriting.check(str(folder), {"--model-path": str(folder)})
    start_over(folder)
    assert there(folder, ["config.json", "vocab.txt", "model.safetensors"]) == [
        "config.json",
        "vocab.txt",
        "model.safetensors",
    ]


@pytest.mark.parametrize("place", ["/", "~", "."])
def test_great_folders_lose_nothing(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        overwriting.folders,
        "remove",
        lambda files, folders=(): pytest.fail(str(files)) if list(files) else None,
    )
    start_over(pathlib.Path(os.path.expanduser(place)))


def test_a_run_that_was_cut_off_goes_on_with_the_same_command(folder, monkeypatch):
    (folder / "results.json").unlink()
    monkeypatch.setattr(overwriting.resume, "is_same_run", lambda *_: True)
    start_over(folder)
    assert [step for step, _ in checkpoint.steps(folder)] == [12]
    monkeypatch.setattr(overwriting.resume, "is_same_run", lambda *_: False)
    start_over(folder)
    assert checkpoint.steps(folder) == []


def test_the_example_of_run_squad_removes_its_own_files_alone(tmp_path):
    own = (
        "model.ckpt-12.index",
        "model.ckpt-calibrated.data-00000-of-00001",
        "checkpoint",
        "results.json",
        "predictions.json",
        "calibrators.npz",
        "model.onnx",
        "tensorboard/events.out.tfevents.1.host",
    )
    others = (
        "notes.txt",
        "model.ckpt-12.index.bak",
        "train.json",
        "tensorboard/notes.txt",
        "data/train.json",
    )
    for name in (*own, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    demo.remove_run(str(tmp_path))
    assert there(tmp_path, own) == [] and there(tmp_path, others) == list(others)


def test_a_folder_that_is_not_there_is_no_problem(tmp_path):
    start_over(tmp_path / "none")
    overwriting.check(str(tmp_path / "none"), {})
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    assert os.listdir(tmp_path) == []

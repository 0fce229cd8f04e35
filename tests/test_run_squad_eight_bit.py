"""run_squad.py with number formats by op groups: 8-bit inference and training."""

import json
import shutil

import numpy as np
import pytest

import run_squad
import tfquant
from runs.settings import FlagError
from runs.squad import pipeline
from runs.squad.command_line import arguments, parse
from runs.squad.flags import Settings
from tests.test_run_squad import make_files
from tfquant import checkpoint

ERROR = "fp8_e5m2,qs=per_tensor_symmetric,qmax=57344,ahl=3"
FP8 = {
    "activation": "fp8_e4m3",
    "weight": "fp8_e4m3",
    "error": ERROR,
    "quantize_forward": "gemm,residual",
    "quantize_backprop": "gemm,residual",
    "op_fusion": "qa_outputs",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """Folder and figures of a whole run of ten steps with a checkpoint after five."""
    folder = tmp_path_factory.mktemp("trained")
    settings = Settings(
        **files,
        **FP8,
        output_dir=str(folder),
        do_train=True,
        do_predict=True,
        num_train_epochs=2.0,
        save_checkpoints_steps=5,
        keep_checkpoint_max=3,
        record_histogram=True,
    )
    return folder, run_squad.run(settings)


def weights(prefix):
    found = checkpoint.read(prefix)
    return {name: found[name] for name in found}


def test_training_quantizes_gradients_and_saves_their_histories(trained):
    folder, figures = trained
    assert 0 <= figures["prediction"]["f1"] <= 100
    saved = weights(folder / "model.ckpt-10")
    histories = {n: v for n, v in saved.items() if n.endswith("backward/history")}
    assert len(histories) > 10 and all(value.shape == (3,) for value in histories.values())
    assert all(value.all() for value in histories.values())
    assert not any("squad" in name for name in histories)
    recipe = json.loads(str(saved["tfquant/recipe"]))
    assert {rule.get("direction", "forward") for rule in recipe["rules"]} == {"forward", "backward"}


def test_exponents_of_training_are_recorded_in_the_output_folder(trained):
    folder, figures = trained
    histograms = tfquant.ExponentHistograms.load(folder / "exponents.npz")
    assert set(histograms.kinds) == {"activation", "weight", "gradient"}
    assert sum(one.counts.any() for one in histograms.values()) == len(histograms)
    assert set(figures["exponents"]["outside"]) == {"posit8_1", "e4m3"}
    names = ("block_0_distribution", "layer_distribution", "exponent_densities")
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in names)


def test_a_resumed_run_ends_with_the_same_weights_and_histories(files, trained, tmp_path):
    folder, _ = trained
    for part in folder.glob("model.ckpt-5.*"):
        shutil.copy(part, tmp_path)
    settings = Settings(
        **files,
        **FP8,
        output_dir=str(tmp_path),
        do_train=True,
        num_train_epochs=2.0,
        save_checkpoints_steps=5,
    )
    run_squad.run(settings)
    whole, resumed = weights(folder / "model.ckpt-10"), weights(tmp_path / "model.ckpt-10")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_prediction_alone_takes_a_float_checkpoint_without_calibration(files, trained, tmp_path):
    words = [f"--{name}={value}" for name, value in files.items()]
    words += ["--do_predict", f"--init_checkpoint={trained[0]}/model.ckpt-10"]
    words += [f"--output_dir={tmp_path}", "--weight", "posit8_1", "--activation=posit8_1"]
    words += ["--posit-exp-shifted", "--posit_reciprocal"]
    settings = parse(words, "")
    with pytest.raises(ValueError, match="quantized as .*, the flags ask for"):
        pipeline.main(settings)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"activation": "fp9"}, "--activation: .*unknown number format 'fp9'"),
        ({"activation": "int8", "quant_mode": "ft1"}, "--quant_mode describes another quant"),
        ({"error": "e5m2"}, "--error quantizes gradients, which only training has"),
        ({"record_histogram": True, "do_predict": False, "do_export": True}, "needs --do_train or"),
        ({"op_fusion": "x"}, "--op_fusion has no effect without --activation or"),
        ({"weight": "int8", "quantize_forward": "gem"}, "unknown op group 'gem'; known: gemm"),
        ({"lora_rank": 2}, "--lora_rank has no effect without --activation or"),
        ({"weight": "e4m3", "lora_rank": 2}, "--lora_rank has no effect without training"),
        ({"activation": "e4m3", "lora_rank": 2}, "--lora_rank: .* give --weight a spec as well"),
        ({"weight": "e4m3", "lora_rank": -1}, "--lora_rank=-1: must not be negative"),
        ({"weight": "e4m3", "lora_alpha": 4.0}, "--lora_alpha.*--lora_rank"),
        ({"weight": "e4m3", "do_calib": True}, "--do_calib has no effect with --weight"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(files, tmp_path, changes, said):
    settings = Settings(
        **files, output_dir=str(tmp_path / "out"), **({"do_predict": True} | changes)
    )
    with pytest.raises(FlagError, match=said):
        run_squad.run(settings)
    assert not (tmp_path / "out").exists()


def test_the_older_spelling_of_the_source_is_taken(files):
    words = ["--quantize_weights", "--quantize_fwd", "--dtype=FP8.MIXED", "--do_predict"]
    settings = parse(words, "")
    assert (settings.quantize_weight, settings.quantize_fwd) == (True, "gemm")
    assert settings.recipe.rules[0].spec.format == "e4m3"


LORA = {
    "weight": "e4m3",
    "activation": "e4m3",
    "lora_rank": 2,
    "target_modules": "query,value,dense",
    "do_train": True,
    "num_train_epochs": 2.0,
    "save_checkpoints_steps": 5,
}


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """Folder and figures of a training with LoRA, which predicts and exports at its end."""
    folder = tmp_path_factory.mktemp("lora")
    more = {"do_predict": True, "do_export": True, "export_target": "packed", "if_quant": True}
    settings = Settings(**files, **LORA, **more, output_dir=str(folder), keep_checkpoint_max=3)
    return folder, run_squad.run(settings)


def test_lora_trains_updates_and_the_head_and_merges_them_in_the_end(files, adapted, tmp_path):
    folder, figures = adapted
    before, after = weights(folder / "model.ckpt-5"), weights(folder / "model.ckpt-10")
    merged = weights(folder / "model.ckpt-merged")
    factors = {name for name in after if name.endswith(("/lora_a", "/lora_b"))}
    assert len(factors) == 10 and not factors & set(merged)
    slots = {name.removesuffix("/adam_m") for name in after if name.endswith("/adam_m")}
    assert slots == factors | {"cls/squad/output_weights", "cls/squad/output_bias"}
    for name in json.loads(str(merged["tfquant/weights"])):
        equal = np.array_equal(before[name], after[name])
        assert equal == (name not in slots), name
        target = name.endswith(("query/kernel", "value/kernel", "dense/kernel"))
        assert np.array_equal(after[name], merged[name]) != target, name
    assert figures["export"]["size"] > 0
    settings = Settings(
        **files,
        weight="e4m3",
        activation="e4m3",
        do_predict=True,
        init_checkpoint=str(folder / "model.ckpt-10"),
        output_dir=str(tmp_path),
    )
    again = run_squad.run(settings)
    assert again["prediction"]["f1"] == figures["prediction"]["f1"]
    nbest = [json.load(open(d / "nbest_predictions.json")) for d in (folder, tmp_path)]
    assert nbest[0] == nbest[1]


@pytest.mark.long  # a resumed Trainer, and resumed runs with delayed scales, run in `make test`
def test_a_resumed_run_with_lora_ends_with_the_same_weights(files, adapted, tmp_path):
    folder, _ = adapted
    for part in folder.glob("model.ckpt-5.*"):
        shutil.copy(part, tmp_path)
    run_squad.run(Settings(**files, **LORA, output_dir=str(tmp_path)))
    for name in ("model.ckpt-10", "model.ckpt-merged"):
        whole, resumed = weights(folder / name), weights(tmp_path / name)
        assert whole.keys() == resumed.keys()
        for key, value in whole.items():
            np.testing.assert_array_equal(resumed[key], value, err_msg=key)


def test_a_command_line_made_from_settings_asks_for_them(files):
    changes = {"sweep_formats": ("mxfp4", "int8,qs=per_tensor_symmetric"), "sweep": True}
    for more in (changes, {"quantize_fwd": "gemm,act", "posit_exp": True, "max_fwd": 32.0}):
        settings = Settings(**files, **more)
        assert parse(arguments(settings), "") == settings

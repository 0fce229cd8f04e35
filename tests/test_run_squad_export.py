"""run_squad.py writes a network for another runtime, and answers with what it wrote."""

import dataclasses
import json

import pytest

import run_squad
from runs.squad.flags import FlagError, Settings
from tests.test_run_squad import make_files, ptq, train_float
from tfquant.export import ExportError
from tfquant.runtimes import RuntimeFileError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    return train_float(files, tmp_path_factory.mktemp("trained"))


def settings_for(files, trained, folder, **changes):
    start = {"init_checkpoint": str(trained[0] / "model.ckpt-10"), "output_dir": str(folder)}
    return Settings(
        **files
        | start
        | {"do_export": True, "do_predict": True, "predict_with": "onnxruntime"}
        | changes
    )


# The quantized network below stands for it.
@pytest.mark.long
def test_the_exported_float_network_gives_the_answers_of_the_checkpoint(files, trained, tmp_path):
    figures = run_squad.run(settings_for(files, trained, tmp_path))
    written = figures["export"]
    assert (
        written["path"] == str(tmp_path / "model.onnx")
        and written["size"] == (tmp_path / "model.onnx").stat().st_size
    )
    assert tuple(written["sites"]) == (0, 0) and written["same_answers"] == 1.0
    # All 20 questions are fewer than are checked: the score of the check is that of the prediction.
    assert written["agreement"]["scores"] == (figures["prediction"]["f1"],) * 2
    for name in ("predictions.json", "results.json"):
        assert (tmp_path / name).exists()
    assert json.loads((tmp_path / "predictions.json").read_text()) == json.loads(
        (trained[0] / "predictions.json").read_text()
    )
    assert figures["prediction"]["f1"] == trained[1]["prediction"]["f1"]


def test_a_quantized_network_is_calibrated_exported_and_scored_in_one_run(files, trained, tmp_path):
    settings = ptq(
        files,
        trained,
        do_export=True,
        predict_with="onnxruntime",
        export_tolerance=1.0,
        quantize_residual=False,
    )
    figures = run_squad.run(Settings(**settings, output_dir=str(tmp_path)))
    activations, parameters = figures["export"]["sites"]
    assert (
        activations + parameters == figures["calibration"]["sites"]
        and "f1" in figures["prediction"]
    )
    packed = Settings(
        **files,
        output_dir=str(tmp_path),
        do_export=True,
        if_quant=True,
        export_target="packed",
        init_checkpoint=str(tmp_path / "model.ckpt-calibrated"),
    )
    assert (
        run_squad.run(packed)["export"]["size"] == (tmp_path / "model.safetensors").stat().st_size
    )
    engine = {
        "export_target": "fastertransformer",
        "export_sm": 75,
    }  # this network is narrower than its tiles
    with pytest.raises(ExportError, match="query/kernel: has shape .* multiples of 32"):
        run_squad.run(dataclasses.replace(packed, **engine))
    # A later run answers with the file alone, and alike; no checkpoint is asked for.
    again = Settings(
        **files,
        output_dir=str(tmp_path),
        do_predict=True,
        if_quant=True,
        predict_with="onnxruntime",
    )
    assert run_squad.run(again)["prediction"]["f1"] == figures["prediction"]["f1"]


@pytest.mark.representatives("changes0-*")
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"predict_with": "openvino"}, "model.xml"),
        pytest.param(
            {"predict_with": "openvino", "export_target": "onnx"},
            "model.onnx",
            marks=pytest.mark.long,
        ),
        ({"predict_with": "litert"}, "model.tflite"),
        pytest.param(
            {"predict_with": "tensorflow", "export_target": "saved_model"},
            "saved_model",
            marks=pytest.mark.long,
        ),
        ({"predict_with": "tensorflow", "export_target": "tensorrt"}, "tensorrt.onnx"),
    ],
)
def test_each_target_has_its_name_and_each_runtime_gives_the_answers_of_the_checkpoint(
    files, trained, tmp_path, changes, name
):
    figures = run_squad.run(settings_for(files, trained, tmp_path, **changes))
    assert figures["export"]["path"] == str(tmp_path / name) and (tmp_path / name).exists()
    assert figures["prediction"]["f1"] == trained[1]["prediction"]["f1"]


def test_a_file_that_is_not_there_or_broken_is_named(files, trained, tmp_path):
    settings = settings_for(files, trained, tmp_path, do_export=False)
    with pytest.raises(
        FileNotFoundError, match="there is no .*model.onnx: give --do_export as well"
    ):
        run_squad.run(settings)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeFileError, match="model.onnx: ONNX Runtime cannot read it"):
        run_squad.run(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"predict_with": "abacus"},
            "--predict_with=abacus: must be one of tensorflow, onnxruntime",
        ),
        (
            {"export_target": "openvino"},
            "--export_target=openvino: --predict_with=onnxruntime cannot read such a file",
        ),
        ({"do_predict": False}, "--predict_with only applies with --do_predict"),
        ({"export_target": "tflite"}, "--export_target=tflite: must be one of onnx"),
        (
            {"export_target": "packed", "predict_with": "tensorflow"},
            "--export_target=packed stores quantized weights: give --if_q",
        ),
        (
            {"export_target": "fastertransformer", "predict_with": "tensorflow"},
            "--export_target=fastertransformer stores quant",
        ),
        ({"export_opset": 13}, "--export_opset=13: must be at least 17"),
        ({"export_sm": 70}, "--export_sm=70: must be at least 75"),
        ({"export_tolerance": 3.0}, "--export_tolerance=3.0: must be from 0 to 1"),
        ({"do_export": False, "export_opset": 21}, "--export_opset only applies with --do_export"),
        ({"use_bf16": True}, "--use_bf16: exported networks compute in float32"),
        (
            {
                "predict_file": None,
                "train_file": None,
                "do_predict": False,
                "predict_with": "tensorflow",
            },
            "--predict_file or --train_file is required for --do_export",
        ),
    ],
)
def test_flags_that_cannot_be_followed(files, trained, tmp_path, changes, message):
    with pytest.raises(FlagError, match=message):
        run_squad.run(settings_for(files, trained, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()

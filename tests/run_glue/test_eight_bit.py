"""run_glue.py with number formats by op groups: 8-bit inference and training."""

import json

import numpy as np
import pytest

import tfquant
from runs.settings import FlagError
from tfquant import checkpoint

FORMATS = (
    "--activation posit8_1 --weight posit8_1 --error posit8_1,qs=per_tensor_symmetric,qmax=64,ahl=3"
    " --quantize-forward gemm,norm --quantize_backprop gemm --op-fusion classifier"
    " --posit-exp-shifted --posit_reciprocal"
)
TRAINING = "--num-epochs 1 --batch-size 8 --learning-rate 1e-3 --max-seq-length 48 --save-model"


@pytest.fixture(scope="module")
def trained(call, untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = call(
        f"train-quantized --task rte {TRAINING} {FORMATS}", model_path=untrained, output_dir=folder
    )
    return folder, result


def test_training_starts_from_a_float_model_without_calibration(trained):
    folder, result = trained
    assert 0.0 <= result["rte"] <= 100.0
    saved = checkpoint.read(folder / "out" / "model.ckpt")
    histories = [name for name in saved if name.endswith("backward/history")]
    assert len(histories) > 5 and all(saved[name].any() for name in histories)
    recipe = json.loads(str(saved["tfquant/recipe"]))
    assert recipe["softmax"] == {"exponential": "posit_exp_shifted", "posit_reciprocal": True}


def test_the_trained_model_is_validated_as_it_was_saved(call, trained):
    folder, result = trained
    again = call(
        "validate-quantized --task rte --max-seq-length 48 --batch-size 8",
        model_path=folder / "out",
    )
    assert again["rte"] == pytest.approx(result["rte"], abs=0.02)


def test_validation_of_a_float_model_takes_formats_with_and_without_a_scale(
    call, untrained, tmp_path
):
    call(f"train-baseline --task rte {TRAINING}", model_path=untrained, output_dir=tmp_path)
    words = "validate-quantized --task rte --max-seq-length 48 --batch-size 8"
    for spec in ("e4m3", "mxfp8", "int8,qs=per_tensor_symmetric"):
        recorded = spec == "e4m3"
        result = call(
            f"{words} --activation {spec} --weight {spec}{' --record-histogram' * recorded}",
            model_path=tmp_path / "out",
            output_dir=tmp_path / spec,
        )
        assert np.isfinite(result["rte"])
        assert (tmp_path / spec / "layer_distribution.png").is_file() == recorded
    histograms = tfquant.ExponentHistograms.load(tmp_path / "e4m3" / "exponents.npz")
    assert set(histograms.kinds) == {"activation", "weight"}


@pytest.mark.parametrize(
    "words, said",
    [
        ("validate-quantized --error e5m2", "--error quantizes gradients, which only training"),
        ("validate-quantized --weight e4m3 --n-bits 4", "--n-bits describes another quantization"),
        ("validate-quantized --record-histogram", "--record-histogram needs --output-dir"),
        ("validate-quantized --op-fusion x", "--op-fusion has no effect without --activation"),
        ("validate-quantized --weight e4m3 --lora-rank 2", "--lora-rank has no effect without tra"),
        ("train-quantized --weight e4m3 --target-modules key", "--target-modules.*--lora-rank"),
        ("validate-quantized --weight int99", "--weight: .*int99.*bits must lie in"),
    ],
)
def test_wrong_options_are_refused_before_any_work(call, untrained, words, said):
    with pytest.raises(FlagError, match=said):
        call(f"{words} --task rte", model_path=untrained)


def test_a_model_trained_with_lora_is_saved_merged(call, untrained, tmp_path):
    formats = "--activation e4m3 --weight e4m3,qs=per_tensor_symmetric,ahl=3"
    lora = "--lora-rank 2 --lora-alpha 4 --target-modules query,dense --max-steps 4"
    evaluation = "--eval-strategy steps --eval-steps 2 --load-best-model-at-end"
    result = call(
        f"train-quantized --task rte {TRAINING} {formats} {lora} {evaluation}",
        model_path=untrained,
        output_dir=tmp_path,
    )
    saved = checkpoint.read(tmp_path / "out" / "model.ckpt")
    assert not any("lora" in name for name in saved)
    again = call(
        "validate-quantized --task rte --max-seq-length 48 --batch-size 8",
        model_path=tmp_path / "out",
    )
    assert again["rte"] == result["rte"]

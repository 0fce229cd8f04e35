"""KerasHub's backbones and keras.applications through the toolkit, from planning to ONNX."""

import pytest

from benchmarks.compatibility import CHECKS
from benchmarks.compatibility.checks import run_checks
from benchmarks.compatibility.models import all_models
from benchmarks.compatibility.process import run_checks_apart

# Checked in part by every run: one for each kind of architecture.
_IN_EVERY_RUN = (
    "BertBackbone",
    "DebertaV3Backbone",
    "Gemma3Backbone",
    "LlamaBackbone",
    "MixtralBackbone",
    "WhisperBackbone",
    "SwinTransformerBackbone",
    "ViTBackbone",
)
# Checked whole by every run: convolutions, as most other tests are about encoders.
_WHOLE_IN_EVERY_RUN = ("EfficientNetBackbone",)
# Exports that end in a refusal, and a part of it that names the reason.
_NOT_EXPORTED = {
    "FNetBackbone": "FFT",
    "DFineBackbone": "answers otherwise than the simulation",
    "EfficientNetV2B0": "answers otherwise than the simulation",
}


@pytest.mark.filterwarnings("ignore:.*quantized products in integers")  # of convolutions
@pytest.mark.filterwarnings("ignore:padding is counted")  # where DeBERTa joins tokens with others
@pytest.mark.representatives(*_WHOLE_IN_EVERY_RUN)
@pytest.mark.parametrize("name", all_models())
def test_model_passes_every_check(name):
    if name in _WHOLE_IN_EVERY_RUN:
        found = run_checks(all_models()[name])
    else:
        found = run_checks_apart(name)
    failures = {check: value["error"] for check, value in found.items() if isinstance(value, dict)}
    if name in _NOT_EXPORTED:
        assert _NOT_EXPORTED[name] in failures.pop("onnx")
    assert not failures
    assert set(found) == set(CHECKS)


@pytest.mark.filterwarnings("ignore:padding is counted")  # where DeBERTa joins tokens with others
@pytest.mark.parametrize("name", _IN_EVERY_RUN)
def test_model_has_sites_its_own_numbers_in_float_mode_and_an_error_at_eight_bits(name):
    found = run_checks(all_models()[name], ("sites", "float", "8 bits"))
    assert found["sites"] > 0 and found["float"] is True
    assert 0.0 < found["8 bits"] < 1.0

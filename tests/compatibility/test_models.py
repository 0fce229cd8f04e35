"""KerasHub's backbones and keras.applications through the toolkit, from planning to ONNX."""

import pytest

from benchmarks.compatibility import CHECKS
from benchmarks.compatibility.checks import run_checks
from benchmarks.compatibility.models import all_models
from benchmarks.compatibility.process import run_checks_apart

# One for each kind of architecture; the others are alike.
_IN_EVERY_RUN = {
    "BertBackbone",
    "DebertaV3Backbone",
    "EfficientNetBackbone",
    "GPTNeoXBackbone",
    "Gemma3Backbone",
    "LlamaBackbone",
    "MixtralBackbone",
    "SwinTransformerBackbone",
    "T5Backbone",
    "ViTBackbone",
    "WhisperBackbone",
}
# Exports that end in a refusal, and a part of it that names the reason.
_NOT_EXPORTED = {
    "FNetBackbone": "FFT",
    "DFineBackbone": "answers otherwise than the simulation",
    "EfficientNetV2B0": "answers otherwise than the simulation",
}


@pytest.mark.filterwarnings("ignore:.*quantized products in integers")  # of convolutions
@pytest.mark.filterwarnings("ignore:padding is counted")  # where DeBERTa joins tokens with others
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _IN_EVERY_RUN else [pytest.mark.long])
        for name in all_models()
    ],
)
def test_model_passes_every_check(name):
    if name in _IN_EVERY_RUN:
        found = run_checks(all_models()[name])
    else:
        found = run_checks_apart(name)
    failures = {check: value["error"] for check, value in found.items() if isinstance(value, dict)}
    if name in _NOT_EXPORTED:
        assert _NOT_EXPORTED[name] in failures.pop("onnx")
    assert not failures
    assert set(found) == set(CHECKS)

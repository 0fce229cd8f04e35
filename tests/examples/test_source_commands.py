"""Command lines of the README of the source."""

import pytest

from examples.librispeech.settings import Settings as SpeechSettings
from examples.settings import parse
from examples.wikitext.settings import Settings as TextSettings
from tfquant.recipes.spec_strings import parse_spec


@pytest.mark.parametrize("kind", [SpeechSettings, TextSettings])
def test_the_older_spelling_quantizes_weights_and_op_groups(kind):
    words = ["--model_id", "whisper_tiny_en", "--quantize_weight", "--quantize_fwd", "gemm,act"]
    settings = parse("program", kind, words, "")
    assert settings.preset == "whisper_tiny_en"
    rules = settings.quantization().rules
    assert {rule.spec for rule in rules} == {parse_spec("posit8_1")}
    assert {"weight", "linear_input", "activation_input"} <= {r for one in rules for r in one.roles}
    alone = parse("program", kind, ["--model-id=x", "--quantize_fwd"], "").quantization()
    assert {rule.name for rule in alone.rules} == {"gemm", "gemm of heads"}


def test_perplexity_takes_length_and_stride():
    words = ["--model_id", "gpt2_base_en", "--max_length", "512", "--stride", "256"]
    settings = parse("program", TextSettings, words, "")
    assert (settings.max_length, settings.stride, settings.quantizes) == (512, 256, False)

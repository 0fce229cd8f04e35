"""run_wikitext.py on small random presets, against NumPy, and its bad inputs."""

import csv
import dataclasses
import json

import keras_hub
import numpy as np
import pytest

from examples.wikitext import pipeline, sweep, text
from examples.wikitext.checks import check
from examples.wikitext.settings import Settings
from runs.settings import FlagError
from tests.examples import presets
from tests.examples.test_windows import plain_perplexities

RECIPE = "int8_residual_float_asymmetric"


def settings_of(folder, texts, **changes):
    defaults = {
        "preset": folder,
        "text_file": texts[0],
        "max_length": 32,
        "stride": 24,
        "batch_size": 4,
        "calibration_steps": 2,
    }
    return Settings(**{**defaults, **changes})


def plain_losses(model):
    """Return window -> losses, from the logits in float64."""

    def losses(window):
        ids = np.array([window], np.int32)
        batch = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        logits = np.asarray(model(batch), np.float64)[0]
        likelihoods = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return [None] + [-np.log(likelihoods[i - 1, window[i]]) for i in range(1, len(window))]

    return losses


def test_float_and_quantized_perplexity_and_the_result_file(gpt2_preset, texts, tmp_path):
    settings = settings_of(
        gpt2_preset, texts, recipe=RECIPE, calibration_file=texts[1], output_dir=str(tmp_path)
    )
    check(settings)
    figures = pipeline.run(settings)
    model = keras_hub.models.CausalLM.from_preset(gpt2_preset)
    content = text.read(texts[0], join_lines=True)
    ids = [int(one) for one in model.preprocessor.tokenizer(content)]
    by_window, by_token, tokens, windows = plain_perplexities(ids, plain_losses(model), 32, 24)
    assert figures["windows"] == windows
    assert figures["float"]["scored_tokens"] == tokens
    assert figures["float"]["perplexity"] == pytest.approx(by_window, rel=1e-5)
    assert figures["float"]["token_perplexity"] == pytest.approx(by_token, rel=1e-5)
    quantized = figures["quantized"]
    assert (quantized["recipe"], quantized["sites"]) == (RECIPE, 15)
    assert quantized["perplexity"] != figures["float"]["perplexity"]
    assert quantized["perplexity"] == pytest.approx(by_window, rel=0.1)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["figures"] == figures
    assert written["flags"]["stride"] == 24 and "keras-hub" in written["versions"]
    assert pipeline.summary(settings, figures) == {
        "float_perplexity": figures["float"]["perplexity"],
        "float_token_perplexity": figures["float"]["token_perplexity"],
        "quantized_perplexity": quantized["perplexity"],
        "quantized_token_perplexity": quantized["token_perplexity"],
        "results": str(tmp_path / "results.json"),
    }
    assert RECIPE in pipeline.table(figures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": None}, "--preset is missing"),
        ({"preset": "./nowhere"}, "--preset=./nowhere: there is no such folder"),
        ({"text_file": None}, "--text_file is missing"),
        ({"text_file": "nowhere.txt"}, "--text_file=nowhere.txt: there is no such file"),
        ({"text_file": "tfds:wikitext"}, "--text_file=tfds:wikitext: must be written tfds:DATASET"),
        ({"recipe": "int9"}, "--recipe=int9: unknown recipe 'int9'"),
        ({"recipe": "nowhere.yaml"}, "--recipe=nowhere.yaml: there is no recipe file"),
        ({"recipe": RECIPE, "weight": "e4m3"}, "--weight describes another quantization"),
        ({"activation": "e9m9"}, "--activation: quantization spec 'e9m9'"),
        ({"weight": "e4m3", "quantize_forward": "gem"}, "gem"),
        ({"posit_exp": True, "recipe": RECIPE}, "--posit_exp describes another quantization"),
        ({"op_fusion": "query"}, "--op_fusion has no effect without --activation or --weight"),
        ({"sweep": True}, "--sweep: set --output_dir"),
        ({"sweep": True, "weight": "e4m3"}, "--sweep describes several quantizations"),
        ({"sweep": True, "sweep_formats": ("e9m9",)}, "--sweep_formats=e9m9: "),
        ({"sweep_formats": ("e4m3",)}, "--sweep_formats only applies with --sweep"),
        ({"stride": 33}, "--stride=33: must be at most --max_length"),
        ({"stride": 0}, "--stride=0: must be at least 1"),
        ({"max_length": 1}, "--max_length=1: must be at least 2"),
        ({"batch_size": 0}, "--batch_size=0: must be at least 1"),
        ({"dtype": "int8"}, "--dtype=int8: must be one of float32, bfloat16, float16"),
        ({"calibration_file": "SELF"}, "--calibration_file only applies with --recipe"),
        ({"output_dir": "SELF/x"}, "--output_dir=.* cannot be written"),
    ],
)
def test_invalid_options_are_named(gpt2_preset, texts, changes, message):
    changes = {
        name: value.replace("SELF", texts[0]) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    with pytest.raises(FlagError, match=message):
        check(settings_of(gpt2_preset, texts, **changes))


def test_a_folder_that_is_no_preset_is_named(tmp_path, texts):
    with pytest.raises(FlagError, match="holds no config.json"):
        check(settings_of(str(tmp_path), texts))


def test_a_preset_of_another_kind_is_refused(whisper_preset, texts):
    with pytest.raises(ValueError, match="no CausalLM can be loaded from it"):
        pipeline.run(settings_of(whisper_preset, texts))


def test_contents_that_do_not_fit_are_refused(gpt2_preset, texts, tmp_path):
    with pytest.raises(ValueError, match="--max_length=65: the model takes at most 64 tokens"):
        pipeline.load_model(settings_of(gpt2_preset, texts, max_length=65))
    model = pipeline.load_model(settings_of(gpt2_preset, texts))
    short = tmp_path / "short.txt"
    short.write_text("the cat")
    with pytest.raises(ValueError, match="short.txt: the text has . tokens"):
        pipeline.windows_of(model, str(short), settings_of(gpt2_preset, texts))
    with pytest.raises(ValueError, match="needs ranges of activations: set --calibration_file"):
        pipeline.quantized_network(model, settings_of(gpt2_preset, texts, recipe=RECIPE))


def test_a_sweep_writes_a_table_and_keeps_what_is_done(gpt2_preset, texts, tmp_path, monkeypatch):
    quantized, folder = [], str(tmp_path)
    model = object()

    def score(network, windows, settings, cell):
        if len(quantized) == 7:
            raise KeyboardInterrupt
        return {"perplexity": 20.0 + len(quantized)}

    def quantize(network, recipe, batches, source):
        assert network is model
        quantized.append(recipe.name)
        return network, None, None

    monkeypatch.setattr(sweep, "score", score)
    monkeypatch.setattr(sweep, "quantize", quantize)
    options = {"sweep": True, "sweep_formats": ("e4m3", "posit8_1"), "output_dir": folder}
    settings = settings_of(gpt2_preset, texts, **options)
    check(settings)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(model, None, [], settings)
    result = sweep.sweep(model, None, [], settings)
    assert len(quantized) == 11  # ten cells, one of them twice
    assert list(result["e4m3"].values()) == [21.0, 22.0, 23.0, 24.0, 25.0]
    assert list(result["posit8_1"].values()) == [26.0, 28.0, 29.0, 30.0, 31.0]
    rows = list(csv.reader((tmp_path / "perplexity.csv").read_text().splitlines()))
    assert rows[0][:3] == ["Data Type", "no fusion", "gemm + attention scaling"]
    assert rows[0][-1] == "'+ residual fusion"
    assert rows[2] == ["posit8_1", "26.0000", "28.0000", "29.0000", "30.0000", "31.0000"]
    sweep.sweep(model, None, [], dataclasses.replace(settings, stride=16))
    assert len(quantized) == 21  # under other conditions all are computed


@pytest.mark.long
def test_a_sweep_scores_every_level_of_fusion(gpt2_preset, texts, tmp_path):
    settings = settings_of(
        gpt2_preset, texts, sweep=True, sweep_formats=("e4m3",), output_dir=str(tmp_path)
    )
    check(settings)
    figures = pipeline.run(settings)
    assert set(figures["sweep"]) == {"e4m3"}
    values = list(figures["sweep"]["e4m3"].values())
    assert len(set(values)) == 5
    assert values == pytest.approx([figures["float"]["perplexity"]] * 5, rel=0.2)
    assert pipeline.summary(settings, figures)["sweep"] == figures["sweep"]


@pytest.mark.long
def test_llama_presets_are_scored(hub, texts):
    path = str(hub / "llama3")
    presets.llama3().save_to_preset(path)
    settings = settings_of(path, texts, recipe=RECIPE, calibration_file=texts[1])
    figures = pipeline.run(settings)
    model = keras_hub.models.CausalLM.from_preset(path)
    tokenizer = model.preprocessor.tokenizer
    ids = [int(one) for one in tokenizer(text.read(texts[0], join_lines=True))]
    ids = [tokenizer.start_token_id, *ids]
    expected = plain_perplexities(ids, plain_losses(model), 32, 24)[0]
    assert figures["float"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert figures["quantized"]["perplexity"] == pytest.approx(expected, rel=0.1)


@pytest.mark.long
def test_bfloat16_is_near_float32(gpt2_preset, texts):
    low, full = (
        pipeline.run(settings_of(gpt2_preset, texts, dtype=dtype))["float"]["perplexity"]
        for dtype in ("bfloat16", "float32")
    )
    assert low != full and low == pytest.approx(full, rel=0.02)

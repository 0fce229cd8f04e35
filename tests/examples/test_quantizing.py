"""What the examples share: recipes and their data, reports, options and their errors."""

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import pytest

import tfquant
from examples import run_librispeech, run_wikitext
from examples.librispeech.settings import Settings as LibrispeechSettings
from examples.quantizing import quantize, write_results
from examples.settings import ModelSettings
from examples.wikitext.settings import Settings as WikitextSettings
from runs import script

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "examples.md"

POSITS = """
name: posit8
rules:
- role: [weight, linear_input]
  spec: posit8_1
"""


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(4)])


def test_a_recipe_without_ranges_needs_no_calibration_data(model):
    recipe = tfquant.Recipe.from_yaml(POSITS)
    network, _, figures = quantize(model, recipe, [], source="--calibration_file=FILE")
    assert (figures["recipe"], figures["calibration_batches"]) == ("posit8", 0)
    batch = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert 0 < np.abs(np.asarray(network(batch)) - np.asarray(model(batch))).max() < 0.5


def test_a_recipe_with_ranges_names_the_option_that_gives_data(model):
    with pytest.raises(ValueError, match="needs ranges of activations: set --calibration_file"):
        quantize(model, tfquant.recipe("int8_outputs"), [], source="--calibration_file=FILE")


def test_results_are_written_only_where_a_folder_is_set(tmp_path):
    write_results(ModelSettings(), {"perplexity": 2.0})
    write_results(ModelSettings(output_dir=str(tmp_path / "new")), {"perplexity": 2.0})
    result = json.loads((tmp_path / "new" / "results.json").read_text())
    assert result["figures"] == {"perplexity": 2.0} and result["flags"]["dtype"] == "float32"


@pytest.mark.parametrize("kind", [LibrispeechSettings, WikitextSettings])
def test_the_page_about_the_examples_names_every_option(kind):
    names = [f"`--{field.name}`" for field in dataclasses.fields(kind)]
    assert not [name for name in names if name not in PAGE.read_text()]


@pytest.mark.parametrize("program", [run_wikitext, run_librispeech])
def test_options_that_cannot_work_end_with_status_2(program, monkeypatch, capsys):
    monkeypatch.setattr(script, "end_on_signals", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["script", "--preset=./nowhere", "--recipe=int8_outputs"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2 and not shown.out
    assert "  --preset=./nowhere: there is no such folder\n" in shown.err

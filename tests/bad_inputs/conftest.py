"""Small good inputs of both scripts, to be spoilt one at a time."""

import json
import pathlib
import shutil

import pytest

from tasks.glue import synthetic as glue_data
from tasks.squad import synthetic as squad_data

TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="session")
def good_squad(tmp_path_factory):
    """Folder with train.json, dev.json, vocab.txt and bert_config.json."""
    folder = tmp_path_factory.mktemp("squad")
    files = squad_data.write_dataset(folder, train_questions=8, dev_questions=4)
    config = pathlib.Path(files.config_file)
    config.write_text(json.dumps(json.loads(config.read_text()) | TINY))
    return folder


@pytest.fixture
def squad_folder(good_squad, tmp_path):
    """A copy that a test may spoil."""
    return pathlib.Path(shutil.copytree(good_squad, tmp_path / "squad"))


@pytest.fixture(scope="session")
def good_glue(tmp_path_factory):
    """Folder with glue_data and a model without weights."""
    folder = tmp_path_factory.mktemp("glue")
    files = glue_data.write_dataset(folder / "data", train_rows=16, dev_rows=8)
    (folder / "model").mkdir()
    config = json.loads(pathlib.Path(files.config_file).read_text()) | TINY
    (folder / "model" / "config.json").write_text(json.dumps(config))
    shutil.copy(files.vocab_file, folder / "model" / "vocab.txt")
    return folder


@pytest.fixture
def glue_folder(good_glue, tmp_path):
    """A copy that a test may spoil."""
    return pathlib.Path(shutil.copytree(good_glue, tmp_path / "glue"))

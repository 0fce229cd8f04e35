"""Generated GLUE data, a tiny model, and calls of run_glue.py."""

import json
import shutil

import pytest

import run_glue
from runs.glue import command_line
from tasks.glue import synthetic
from tests.run_glue.tiny import TINY


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write_dataset(tmp_path_factory.mktemp("glue"), train_rows=48, dev_rows=24)


@pytest.fixture(scope="module")
def untrained(data, tmp_path_factory):
    """Folder of a model without weights."""
    folder = tmp_path_factory.mktemp("untrained")
    config = json.loads(open(data.config_file).read()) | TINY
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(data.vocab_file, folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def call(data):
    """Run a command line; return what run_glue.run returns."""

    def run(words: str, **paths):
        flags = [f"--{name.replace('_', '-')}={path}" for name, path in paths.items()]
        return run_glue.run(
            command_line.parse([*words.split(), f"--data-dir={data.data_dir}", *flags], "")
        )

    return run

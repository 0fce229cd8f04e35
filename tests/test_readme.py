"""README.md and docs/: tables match the result files, and code blocks run and print what is
shown.
"""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import tables
from tests.readme_blocks import blocks_of, differences

ROOT = pathlib.Path(__file__).parents[1]
# Their blocks run in this order, in one session: the pages of docs/ go on with README's `model`,
# `batches` and `quantized`.
DOCUMENTS = (
    "README.md",
    "docs/recipes.md",
    "docs/calibration.md",
    "docs/post_training.md",
    "docs/training.md",
    "docs/low_bit.md",
    "docs/export.md",
    "docs/extending.md",
    "docs/squad.md",
    "docs/glue.md",
)
# Beginning of a block that is not run here -> why.
NOT_RUN = {
    "make env": "minutes; `make demo` and `make test` are run by themselves",
    "python run_squad.py --bert_config_file=$BERT/bert_config.json": (
        "needs a checkpoint of BERT and SQuAD; tests/test_run_squad.py and "
        "tests/test_run_squad_export.py have its flags"
    ),
    "python run_squad.py --bert_config_file=$ROBERTA": (
        "needs a checkpoint of RoBERTa and SQuAD; tests/test_run_squad_families.py has its flags"
    ),
    'python -c "from tasks.glue import synthetic': (
        "trains for minutes; tests/run_glue/test_run_glue.py has its options"
    ),
    "python run_glue.py train-quantized": (
        "trains for minutes; tests/run_glue/test_incremental.py has its options"
    ),
    "mpirun": "needs Horovod and SQuAD; tests/distributed has its flags",
}
# Relative difference of printed and shown numbers: processors round differently, and AdaRound and
# searches amplify that.
TOLERANCE = 0.1
# Largest difference of an exported file: that of rounding, or one step of a quantizer where a value
# lies between two codes.
ONE_STEP = 0.03
# Part of a line that is printed on some processors only.
NO_VNNI = re.compile("; this processor has no VNNI.*")


def test_tables_are_those_of_the_result_files():
    text = tables.DOCUMENT.read_text()
    assert tables.filled(text) == text, "run make tables"


def test_every_table_is_in_the_document():
    names = [found["name"] for found in tables.BLOCK.finditer(tables.DOCUMENT.read_text())]
    assert sorted(names) == sorted(tables.TABLES)


# README stands for the pages of docs/, which `make test-long` runs.
@pytest.mark.parametrize(
    "documents",
    [DOCUMENTS[:1], pytest.param(DOCUMENTS, marks=pytest.mark.long)],
    ids=["README", "README and docs"],
)
def test_blocks_run_from_top_to_bottom_and_print_what_is_shown(tmp_path, monkeypatch, documents):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    session = {"__name__": "readme"}
    for document in documents:
        for block in blocks_of((ROOT / document).read_text()):
            if any(block.code.startswith(beginning) for beginning in NOT_RUN):
                continue
            if block.language == "python":
                printed = NO_VNNI.sub("", _python(block.code, session, document))
                step = ONE_STEP if "out/model.onnx" in block.printed else 0.0
                assert not differences(block.printed, printed, TOLERANCE, step), (document, printed)
            elif block.language == "bash":
                # What is shown is a table of times, which differ between machines.
                assert not differences(block.printed, _shell(block.code), float("inf")), document


def test_every_reason_not_to_run_a_block_has_a_block():
    codes = [
        block.code for document in DOCUMENTS for block in blocks_of((ROOT / document).read_text())
    ]
    assert all(any(code.startswith(beginning) for code in codes) for beginning in NOT_RUN)


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        ("a  1.00\n| ... |\nb -2e-3\n", "a 1.05\nmore\nb -2.1e-3", []),
        ("a  1.00\n| ... |\nb -2e-3\n", "a 1.2\nb -2e-3", ["a  1.00"]),
        ("a  1.00\n| ... |\nb -2e-3\n", "b -2e-3\na 1.0", ["b -2e-3"]),  # in another order
        ("a  1.00\n| ... |\nb -2e-3\n", "c 1.0\nb -2e-3", ["a  1.00"]),
    ],
)
def test_differences_are_told(shown, printed, missing):
    assert differences(shown, printed, 0.1) == missing


def _python(code: str, session: dict, document: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, document, "exec"), session)
    return printed.getvalue()


def _shell(code: str) -> str:
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", code],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout

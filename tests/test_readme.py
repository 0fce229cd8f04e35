"""README.md and docs/ hold what the result files say, and README's blocks run as they stand."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import readme
from tests.readme_blocks import blocks_of, differences

ROOT = pathlib.Path(__file__).parents[1]
# Beginning of a shell block that is not run here -> why.
NOT_RUN = {
    "make demo": "minutes; `make demo` and `make test` are run by themselves",
    "python run_squad.py --bert_config_file=$BERT/bert_config.json --vocab_file=$BERT/vocab.txt --init_checkpoint=$BERT": (
        "needs a checkpoint of BERT and SQuAD; tests/test_run_squad.py has its flags"
    ),
    "python run_squad.py --bert_config_file=$BERT/bert_config.json --vocab_file=$BERT/vocab.txt --init_checkpoint=ptq": (
        "needs a checkpoint of BERT and SQuAD; tests/test_run_squad_export.py has its flags"
    ),
    'python -c "from tasks.glue import synthetic': "trains for minutes; tests/test_run_glue.py has its options",
    "mpirun": "needs Horovod and SQuAD; tests/distributed has its flags",
}
# Numbers that are printed may be so far from those that are shown, relative to the larger: processors round differently, and
# AdaRound and searches go on from what they found.
TOLERANCE = 0.1
# The largest difference of an exported file is that of rounding, or one step of a quantizer where a value lies between two codes.
ONE_STEP = 0.03
NO_VNNI = "; this processor has no VNNI"


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_result_files(document):
    text = document.read_text()
    assert readme.filled(text) == text, "run python -m benchmarks.readme"


def test_every_table_stands_somewhere():
    names = [found["name"] for document in readme.DOCUMENTS for found in readme.BLOCK.finditer(document.read_text())]
    assert sorted(names) == sorted(readme.TABLES)


def test_blocks_run_from_top_to_bottom_and_print_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    session = {"__name__": "readme"}
    for block in blocks_of((ROOT / "README.md").read_text()):
        if block.language == "python":
            printed = _python(block.code, session)
            shown, step = block.printed, ONE_STEP if "out/model.onnx" in block.printed else 0.0
            if NO_VNNI not in printed:
                shown = shown.replace(NO_VNNI + shown.partition(NO_VNNI)[2], "\n") if NO_VNNI in shown else shown
            assert not differences(shown, printed, TOLERANCE, step), printed
        elif block.language == "bash" and not any(block.code.startswith(beginning) for beginning in NOT_RUN):
            # It ends with a table of times, which no other machine has.
            assert not differences(block.printed, _shell(block.code), float("inf"))


def test_every_block_that_is_not_run_stands_in_the_readme():
    blocks = [block.code for block in blocks_of((ROOT / "README.md").read_text()) if block.language == "bash"]
    assert all(sum(code.startswith(beginning) for code in blocks) == 1 for beginning in NOT_RUN)


def test_differences_are_told():
    shown = "a  1.00\n| ... |\nb -2e-3\n"
    assert not differences(shown, "a 1.05\nmore\nb -2.1e-3", 0.1)
    assert differences(shown, "a 1.2\nb -2e-3", 0.1) == ["a  1.00"]
    assert differences(shown, "b -2e-3\na 1.0", 0.1) == ["b -2e-3"]  # in another order
    assert differences(shown, "c 1.0\nb -2e-3", 0.1) == ["a  1.00"]


def _python(code: str, session: dict) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), session)
    return printed.getvalue()


def _shell(code: str) -> str:
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", code], env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout

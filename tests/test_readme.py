"""README.md and docs/ hold what the result files say."""

import pytest

from benchmarks import readme


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_result_files(document):
    text = document.read_text()
    assert readme.filled(text) == text, "run python -m benchmarks.readme"


def test_every_table_stands_somewhere():
    names = [found["name"] for document in readme.DOCUMENTS for found in readme.BLOCK.finditer(document.read_text())]
    assert sorted(names) == sorted(readme.TABLES)

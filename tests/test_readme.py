"""README.md holds what the result files say."""

from benchmarks import readme


def test_tables_are_those_of_the_result_files():
    text = readme.README.read_text()
    names = [found["name"] for found in readme.BLOCK.finditer(text)]
    assert sorted(names) == sorted(readme.TABLES)
    assert readme.filled(text) == text, "run python -m benchmarks.readme"

"""A small vocabulary and a few questions shared by the tests of SQuAD processing."""

import pytest

from tasks.squad import Tokenizer

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a in of was it tower built stands paris cafe un ##want ##ed"
    " running 18 ##89 where when is what ? . , ( ) ' - one two three four five six seven eight"
    " nine ten"
).split()


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file):
    return Tokenizer(vocab_file)

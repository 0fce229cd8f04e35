"""Small vocabularies of both kinds, and a writer of files in the layout of `glue_data`."""

import json

import pytest

from tasks import glue

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d one two three ##s the cat sat mat , . ? yes no".split()
)
# Byte-level BPE, by hand: "low", " low" and " er" are merged, everything else is spelled letter by
# letter.
MERGES = ("l o", "lo w", "Ġ low", "e r")
BYTES = (
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "<mask>",
    *"abcdefghijklmnopqrstuvwxyz<>/[]",
    "Ġ",
    "Ã",
    "©",
)


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file):
    return glue.load_tokenizer(vocab_file)


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    pieces = (*BYTES, *(merge.replace(" ", "") for merge in MERGES))
    (folder / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)})
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def save(tmp_path):
    """Write bytes or text to a file below `tmp_path`; returns `tmp_path`, the folder to read
    from.
    """

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return tmp_path

    return write

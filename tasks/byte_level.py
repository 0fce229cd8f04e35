"""Byte-level BPE, RoBERTa's tokenization (Liu et al., 2019, with GPT-2's vocabulary), run by the
`tokenizers` library.
"""

from __future__ import annotations

import os
from typing import Any

from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, pre_tokenizers, processors

from fileio.messages import printable
from tasks.files import read_json
from tasks.sequences import LibraryTokenizer
from tasks.vocabulary import MISSING, VOCABULARY, check_ids

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


class ByteLevelTokenizer(LibraryTokenizer):
    """RoBERTa's tokenizer over a `vocab.json` with the `merges.txt` beside it, or over a
    `tokenizer.json`.

    It is cased, and spells every text: what is not in the vocabulary is written in bytes. Words
    that look like special tokens ("<mask>" written in a text) are split like any other text. Pieces
    as strings are in GPT-2's printable alphabet (a blank is "Ġ"). Offsets are those of RoBERTa's
    tokenizer in the library: without the blanks of a piece, and the whole character for each of the
    pieces that its bytes are split into.

    Args:
        vocab_file: the one JSON file or the other, told apart by what is in it.

    Raises:
        FileNotFoundError: no such file, or no merges.txt beside vocab.json.
        ValueError: a file does not have its form, or the vocabulary lacks one of <pad> <unk> <s>
          </s>.
    """

    separators = 2
    two_segments = False

    def __init__(self, vocab_file: str | os.PathLike[str]):
        path = os.fspath(vocab_file)
        content = read_json(path, VOCABULARY, hint=MISSING)
        rust = (
            _from_tokenizer_json(path, content)
            if "model" in content
            else _from_vocab_and_merges(path)
        )
        vocab: dict[str, int] = rust.get_vocab()
        check_ids(vocab, path)
        missing = [token for token in SPECIAL if token not in vocab]
        if missing:
            raise ValueError(
                f"{path}: no {' '.join(missing)} in it; is this a vocabulary of RoBERTa?"
            )
        rust.encode_special_tokens = True  # "encode" as text, that is
        rust.no_padding()
        rust.no_truncation()
        super().__init__(rust, vocab, SPECIAL)
        # <s> a </s></s> b </s>
        rust.post_processor = processors.RobertaProcessing(
            ("</s>", self.sep_id),
            ("<s>", self.cls_id),
            trim_offsets=True,
            add_prefix_space=_adds_prefix_space(content),
        )


def _from_vocab_and_merges(path: str) -> _RustTokenizer:
    merges = os.path.join(os.path.dirname(path), "merges.txt")
    if not os.path.isfile(merges):
        raise FileNotFoundError(
            f"{merges} not found; a byte-level vocabulary needs the merges.txt that came with"
            f" {path}"
        )
    try:
        model = models.BPE.from_file(path, merges)
    except Exception as error:  # The library raises plain Exceptions.
        raise ValueError(
            f"{path} and {merges} make no BPE vocabulary: {printable(error, 300)}"
        ) from error
    tokenizer = _RustTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _from_tokenizer_json(path: str, content: dict[str, Any]) -> _RustTokenizer:
    kind = content["model"].get("type") if isinstance(content["model"], dict) else None
    if kind != "BPE":
        named = printable(str(kind), 60) if kind else "of no named type"
        raise ValueError(f"{path}: its model is {named}, not BPE or WordPiece")
    try:
        return _RustTokenizer.from_file(path)
    except Exception as error:  # The library raises plain Exceptions.
        raise ValueError(f"{path} is no tokenizer.json: {printable(error, 300)}") from error


def _adds_prefix_space(content: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json puts a blank, which is no character of it, before a text."""
    step = content.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    return any(bool(one.get("add_prefix_space")) for one in steps)

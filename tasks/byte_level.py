"""Byte-level BPE, RoBERTa's tokenization (Liu et al., 2019, with GPT-2's vocabulary), run by the
`tokenizers` library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, pre_tokenizers

from fileio.messages import printable
from tasks.files import read_json
from tasks.sequences import ROBERTA, Encoded, encode_sequences, use_layout
from tasks.vocabulary import MISSING, VOCABULARY, check_ids

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


class ByteLevelTokenizer:
    """RoBERTa's tokenizer over a `vocab.json` with the `merges.txt` beside it, or over a
    `tokenizer.json`.

    It is cased, and spells every text: what is not in the vocabulary is written in bytes. Words
    that look like special tokens ("<mask>" written in a text) are split like any other text.

    Args:
        vocab_file: the one JSON file or the other, told apart by what is in it.

    Raises:
        FileNotFoundError: no such file, or no merges.txt beside vocab.json.
        ValueError: a file does not have its form, or the vocabulary lacks one of <pad> <unk> <s>
          </s>.
    """

    def __init__(self, vocab_file: str | os.PathLike[str]):
        path = os.fspath(vocab_file)
        content = read_json(path, VOCABULARY, hint=MISSING)
        self._rust = (
            _from_tokenizer_json(path, content)
            if "model" in content
            else _from_vocab_and_merges(path)
        )
        self.vocab: dict[str, int] = self._rust.get_vocab()
        check_ids(self.vocab, path)
        missing = [token for token in SPECIAL if token not in self.vocab]
        if missing:
            raise ValueError(
                f"{path}: no {' '.join(missing)} in it; is this a vocabulary of RoBERTa?"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            self.vocab[token] for token in SPECIAL
        )
        self._rust.encode_special_tokens = True  # "encode" as text, that is
        self._rust.no_padding()
        use_layout(self._rust, ROBERTA)

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def num_ids(self) -> int:
        """Rows that an embedding table needs: the highest id and 1."""
        return max(self.vocab.values()) + 1

    def encode_sequences(
        self, firsts: Sequence[str], seconds: Sequence[str] | None, max_length: int
    ) -> list[Encoded]:
        """Encode texts as <s> a </s>, or pairs as <s> a </s></s> b </s>; see
        `tasks.sequences.encode_sequences`.
        """
        return encode_sequences(self._rust, firsts, seconds, max_length)

    def decode_ids(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the pieces of `ids` as strings, bytes in GPT-2's printable alphabet (a blank is
        "Ġ").
        """
        return [self._rust.id_to_token(int(index)) for index in ids]


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


def _from_tokenizer_json(path: str, content: dict) -> _RustTokenizer:
    kind = content["model"].get("type") if isinstance(content["model"], dict) else None
    if kind != "BPE":
        raise ValueError(f"{path}: its model is {kind or 'of no named type'}, not BPE")
    try:
        return _RustTokenizer.from_file(path)
    except Exception as error:  # The library raises plain Exceptions.
        raise ValueError(f"{path} is no tokenizer.json: {printable(error, 300)}") from error

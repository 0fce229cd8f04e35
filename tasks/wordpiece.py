"""WordPiece tokenization with character offsets: BERT's rules, run by the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from tasks.sequences import BERT, Encoded, encode_sequences, use_layout

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A longer word becomes [UNK]; the bound of Google's tokenizer (the library's own default is 100).
MAX_WORD_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Pieces:
    """One tokenized text.

    Attributes:
        ids: int32 [pieces], indices into the vocabulary.
        starts: int32 [pieces], index of the first character of each piece in the text given.
        ends: int32 [pieces], index behind its last character.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Tokenizer:
    """BERT's tokenizer over a `vocab.txt`.

    Words that look like special tokens ("[SEP]" written in a text) are split like any other text, as Google's
    tokenizer does; only `encode_sequences` adds special tokens.

    Args:
        vocab_file: one piece a line, the line number being its id; or a `tokenizer.json`, of which the vocabulary is
            taken.
        lower_case: lower-case and strip accents, for uncased models.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not UTF-8, has a piece twice, or lacks one of [PAD] [UNK] [CLS] [SEP].
    """

    def __init__(self, vocab_file: str | os.PathLike[str], *, lower_case: bool = True):
        self.vocab = read_vocab(vocab_file)
        self.lower_case = lower_case
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (self.vocab[token] for token in SPECIAL)
        model = models.WordPiece(self.vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
        self._rust = _RustTokenizer(model)
        # strip_accents=None: follows lower_case, as in BERT.
        self._rust.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
        )
        self._rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        use_layout(self._rust, BERT)

    def __len__(self) -> int:
        return len(self.vocab)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokenize many texts (on all cores), offsets counted in characters of each text."""
        return [_to_pieces(encoding) for encoding in self._rust.encode_batch(list(texts), add_special_tokens=False)]

    def encode_sequences(self, firsts: Sequence[str], seconds: Sequence[str] | None, max_length: int) -> list[Encoded]:
        """Encode texts as [CLS] a [SEP], or pairs as [CLS] a [SEP] b [SEP]; see `tasks.sequences.encode_sequences`."""
        return encode_sequences(self._rust, firsts, seconds, max_length)

    def decode_ids(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of `ids` as strings."""
        return [self._rust.id_to_token(int(index)) for index in ids]


def _to_pieces(encoding) -> Pieces:
    offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return Pieces(np.asarray(encoding.ids, np.int32), offsets[:, 0].copy(), offsets[:, 1].copy())


def read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read `vocab.txt`, or the vocabulary of a `tokenizer.json`: piece -> id. Errors as listed at `Tokenizer`."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"vocabulary file {path} not found; give the vocab.txt that came with the checkpoint")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"vocabulary file {path} is not UTF-8 text: {error}") from error
    vocab = _from_json(text, path) if path.endswith(".json") else _from_lines(text, path)
    missing = [token for token in SPECIAL if token not in vocab]
    if missing:
        raise ValueError(f"{path}: no {' '.join(missing)} in it; is this a BERT WordPiece vocabulary?")
    return vocab


def _from_lines(text: str, path: str) -> dict[str, int]:
    # Only line feeds end a line: some vocabularies hold pieces that Python's splitlines would cut at.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        piece = line.strip()
        if piece in vocab:
            raise ValueError(f"{path}: line {number + 1}: piece {piece!r} was on line {vocab[piece] + 1} already")
        vocab[piece] = number
    return vocab


def _from_json(text: str, path: str) -> dict[str, int]:
    try:
        model = json.loads(text)["model"]
        if model["type"] != "WordPiece":
            raise ValueError(f"its model is {model['type']}, not WordPiece")
        return {str(piece): int(index) for piece, index in model["vocab"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no vocabulary of WordPiece in it: {error}") from error

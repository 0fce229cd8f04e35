"""WordPiece tokenization with character offsets: BERT's rules, run by the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from fileio.messages import printable
from tasks.sequences import BERT, Encoded, encode_sequences, use_layout
from tasks.vocabulary import read_vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A longer word becomes [UNK]; the bound of Google's tokenizer (the library's own default is 100).
MAX_WORD_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenized text.

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

    Words that look like special tokens ("[SEP]" written in a text) are split like any other text,
    as Google's tokenizer does; only `encode_sequences` adds special tokens.

    Args:
        vocab_file: one piece a line, the line number being its id; or a `tokenizer.json`, of which
          the vocabulary is
            taken (see `tasks.vocabulary`).
        lower_case: lower-case and strip accents, for uncased models.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not UTF-8, or lacks one of [PAD] [UNK] [CLS] [SEP].
    """

    def __init__(self, vocab_file: str | os.PathLike[str], *, lower_case: bool = True):
        self.vocab = read_vocab(vocab_file)
        self.lower_case = lower_case
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            self.vocab[token] for token in SPECIAL
        )
        model = models.WordPiece(
            self.vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS
        )
        self._rust = _RustTokenizer(model)
        # strip_accents=None: follows lower_case, as in BERT.
        self._rust.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
        )
        self._rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        use_layout(self._rust, BERT)

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def num_ids(self) -> int:
        """Rows that an embedding table needs: the highest id and 1."""
        return num_ids(self.vocab)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokenize many texts (on all cores), offsets counted in characters of each text."""
        return [
            _to_pieces(encoding)
            for encoding in self._rust.encode_batch(list(texts), add_special_tokens=False)
        ]

    def encode_sequences(
        self, firsts: Sequence[str], seconds: Sequence[str] | None, max_length: int
    ) -> list[Encoded]:
        """Encode texts as [CLS] a [SEP], or pairs as [CLS] a [SEP] b [SEP]; see
        `tasks.sequences.encode_sequences`.
        """
        return encode_sequences(self._rust, firsts, seconds, max_length)

    def decode_ids(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of `ids` as strings."""
        return [self._rust.id_to_token(int(index)) for index in ids]


def _to_pieces(encoding) -> Pieces:
    offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return Pieces(np.asarray(encoding.ids, np.int32), offsets[:, 0].copy(), offsets[:, 1].copy())


def read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read `vocab.txt`, or the vocabulary of a `tokenizer.json`.

    Piece -> id. Errors as listed at `Tokenizer`.
    """
    vocab = read_vocabulary(path)
    missing = [token for token in SPECIAL if token not in vocab]
    if missing:
        raise ValueError(
            f"{printable(os.fspath(path))}: no {' '.join(missing)} in it; is this a BERT WordPiece"
            " vocabulary?"
        )
    return vocab


def num_ids(vocab: Mapping[str, int]) -> int:
    """Return how many rows an embedding table needs for a vocabulary: the highest id and 1."""
    return max(vocab.values()) + 1

"""Tokenizers of the `tokenizers` library: pieces with character offsets, and sequences of one or
two texts with special tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from fileio.messages import printable


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenized text.

    Attributes:
        ids: int32 [pieces], indices into the vocabulary.
        starts: int32 [pieces], index of the first character of each piece in the original text.
        ends: int32 [pieces], index behind its last character.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded sequence.

    Attributes:
        ids: int32 [length], special tokens included.
        second_offset: where the second segment begins; `length` where there is none.
    """

    ids: np.ndarray
    second_offset: int


class LibraryTokenizer:
    """Base class of tokenizers that the `tokenizers` library runs.

    Args:
        rust: tokenizer of the library; its post-processor adds special tokens.
        vocab: piece -> id.
        special: names of the padding, unknown, first and separating token, in this order.

    Attributes:
        separators: number of separators between two texts.
        two_segments: whether a second text is in a segment of its own.
    """

    separators: ClassVar[int]
    two_segments: ClassVar[bool]

    def __init__(self, rust: Tokenizer, vocab: dict[str, int], special: Sequence[str]):
        self._rust = rust
        self.vocab = vocab
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (vocab[token] for token in special)

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def num_ids(self) -> int:
        """Rows that an embedding table needs: the highest id and 1."""
        return max(self.vocab.values()) + 1

    @property
    def num_special(self) -> int:
        """Number of special tokens in a sequence of two texts."""
        return 2 + self.separators

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Tokenize many texts (on all cores), offsets counted in characters of each text.

        Raises:
            ValueError: the vocabulary cannot encode text.
        """
        return [_to_pieces(encoding) for encoding in self._encode_batch(texts, special=False)]

    def encode_sequences(
        self, firsts: Sequence[str], seconds: Sequence[str] | None, max_length: int
    ) -> list[Encoded]:
        """Encode texts, or pairs of texts, with special tokens, on all cores.

        What is too long loses pieces at its end, of a pair the longer text first: once both are
        equally long, each keeps half of the room ("longest_first" of Hugging Face's fast
        tokenizers).

        Args:
            firsts: the first or only texts.
            seconds: the second ones, as many, or None.
            max_length: what no sequence exceeds, special tokens included.

        Returns:
            One sequence per row.

        Raises:
            ValueError: max_length leaves no room for a piece of every text, or the vocabulary
              cannot encode text.
        """
        texts = 1 if seconds is None else 2
        special = self._rust.num_special_tokens_to_add(texts == 2)
        if max_length < special + texts:
            raise ValueError(
                f"max_seq_length {max_length} must be at least {special + texts}: {special} special"
                f" tokens and a piece of {'the text' if texts == 1 else 'each text'}"
            )
        self._rust.enable_truncation(max_length, strategy="longest_first")
        try:
            rows = firsts if seconds is None else zip(firsts, seconds, strict=True)
            encodings = self._encode_batch(rows, special=True)
        finally:
            self._rust.no_truncation()  # texts encoded by themselves keep their length
        return [
            Encoded(np.asarray(result.ids, np.int32), len(result.ids) - sum(result.type_ids))
            for result in encodings
        ]

    def _encode_batch(self, rows: Iterable[Any], *, special: bool) -> list[Any]:
        try:
            return self._rust.encode_batch(list(rows), add_special_tokens=special)
        except Exception as error:  # The library raises plain Exceptions.
            raise ValueError(
                f"the tokenizer cannot encode text: {printable(error, 200)}"
            ) from error

    def decode_ids(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the pieces of `ids` as strings."""
        return [self._rust.id_to_token(int(index)) or "" for index in ids]


def _to_pieces(encoding) -> Pieces:
    offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return Pieces(np.asarray(encoding.ids, np.int32), offsets[:, 0].copy(), offsets[:, 1].copy())

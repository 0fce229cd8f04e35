"""WordPiece tokenization with character offsets: BERT's rules, run by the `tokenizers` library."""

from __future__ import annotations

import os

from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from fileio.messages import printable
from tasks.sequences import LibraryTokenizer
from tasks.vocabulary import read_vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A longer word becomes [UNK]; the bound of Google's tokenizer (the library's own default is 100).
MAX_WORD_CHARACTERS = 200


class Tokenizer(LibraryTokenizer):
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

    separators = 1
    two_segments = True

    def __init__(self, vocab_file: str | os.PathLike[str], *, lower_case: bool = True):
        vocab = read_vocab(vocab_file)
        self.lower_case = lower_case
        rust = _RustTokenizer(
            models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
        )
        # strip_accents=None: follows lower_case, as in BERT.
        rust.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
        )
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        super().__init__(rust, vocab, SPECIAL)
        # [CLS] a [SEP] b [SEP]
        rust.post_processor = processors.BertProcessing(
            ("[SEP]", self.sep_id), ("[CLS]", self.cls_id)
        )


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

"""Sequences of word pieces from one or two texts.

Truncation and special tokens, done by the `tokenizers` library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, processors

from fileio.messages import printable


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of special tokens, in the notation of `tokenizers.processors.TemplateProcessing`.

    Attributes:
        single: of one text, `$A`.
        pair: of two, `$A` and `$B`; `:1` puts a piece into the second segment.
    """

    single: str
    pair: str


BERT = Layout("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
# RoBERTa knows one segment only.
ROBERTA = Layout("<s> $A </s>", "<s> $A </s> </s> $B </s>")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded sequence.

    Attributes:
        ids: int32 [length], special tokens included.
        second_offset: where the second segment begins; `length` where there is none.
    """

    ids: np.ndarray
    second_offset: int


def use_layout(tokenizer: Tokenizer, layout: Layout) -> None:
    """Make a tokenizer of the library put special tokens where `layout` says; they must be in its
    vocabulary.
    """
    names = {part.split(":")[0] for part in layout.pair.split()} - {"$A", "$B"}
    special = [(name, tokenizer.token_to_id(name)) for name in sorted(names)]
    tokenizer.post_processor = processors.TemplateProcessing(layout.single, layout.pair, special)


def encode_sequences(
    tokenizer: Tokenizer, firsts: Sequence[str], seconds: Sequence[str] | None, max_length: int
) -> list[Encoded]:
    """Encode texts, or pairs of texts, with special tokens, on all cores.

    What is too long loses pieces at its end, of a pair the longer text first: once both are equally
    long, each keeps half of the room ("longest_first" of Hugging Face's fast tokenizers).

    Args:
        tokenizer: prepared by `use_layout`.
        firsts: the first or only texts.
        seconds: the second ones, as many, or None.
        max_length: what no sequence exceeds, special tokens included.

    Returns:
        One sequence per row.

    Raises:
        ValueError: max_length leaves no room for a piece of every text, or the vocabulary cannot
          encode text.
    """
    texts = 1 if seconds is None else 2
    special = tokenizer.num_special_tokens_to_add(texts == 2)
    if max_length < special + texts:
        raise ValueError(
            f"max_seq_length {max_length} must be at least {special + texts}: {special} special"
            f" tokens and a piece of {'the text' if texts == 1 else 'each text'}"
        )
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        rows = list(firsts) if seconds is None else list(zip(firsts, seconds, strict=True))
        encodings = tokenizer.encode_batch(rows)
    except Exception as error:  # The library raises plain Exceptions.
        raise ValueError(f"the tokenizer cannot encode text: {printable(error, 200)}") from error
    finally:
        tokenizer.no_truncation()  # texts encoded by themselves keep their length
    return [
        Encoded(np.asarray(result.ids, np.int32), len(result.ids) - sum(result.type_ids))
        for result in encodings
    ]

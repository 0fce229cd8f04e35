"""The tokenizer of a model, found by the files that lie beside it."""

from __future__ import annotations

import os

from tasks.byte_level import ByteLevelTokenizer
from tasks.files import read_json
from tasks.vocabulary import MISSING, VOCABULARY
from tasks.wordpiece import Tokenizer

# The first one there decides; a tokenizer.json may be of either kind.
VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.json")


def load_tokenizer(
    path: str | os.PathLike[str], *, lower_case: bool | None = None
) -> Tokenizer | ByteLevelTokenizer:
    """Load a tokenizer: BERT's WordPiece from vocab.txt, RoBERTa's byte-level BPE from vocab.json
    and merges.txt.

    A tokenizer.json serves for both, WordPiece or BPE.

    Args:
        path: one of these files, or a model's folder that holds one.
        lower_case: of WordPiece (byte-level BPE is cased): lower-case and strip accents. None: what
          a tokenizer.json or a tokenizer_config.json beside the vocabulary says, else True.

    Raises:
        FileNotFoundError: no such file, or a folder without one.
        ValueError: a file does not have its form, or holds another kind of tokenizer.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        result = [name for name in VOCABULARIES if os.path.isfile(os.path.join(path, name))]
        if not result:
            raise FileNotFoundError(
                f"no vocabulary in folder {path}: looked for {', '.join(VOCABULARIES)}"
            )
        path = os.path.join(path, result[0])
    if not path.endswith(".json"):
        return Tokenizer(
            path, lower_case=_lower_case(path, {}) if lower_case is None else lower_case
        )
    content = read_json(path, VOCABULARY, hint=MISSING)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        return ByteLevelTokenizer(path)
    return Tokenizer(
        path, lower_case=_lower_case(path, content) if lower_case is None else lower_case
    )


def _lower_case(path: str, content: dict) -> bool:
    """Return what the model's files say about case."""
    normalizer = content.get("normalizer")
    if isinstance(normalizer, dict) and "lowercase" in normalizer:
        return bool(normalizer["lowercase"])
    beside = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    return (
        bool(read_json(beside, "tokenizer configuration").get("do_lower_case", True))
        if os.path.isfile(beside)
        else True
    )

"""Vocabularies.

`vocab.txt` as Google's and Hugging Face's loaders read it, and ids that a model can have.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from fileio.messages import printable
from tasks.files import parse_json, read_text

logger = logging.getLogger(__name__)

VOCABULARY = "vocabulary file"
MISSING = "; give the one that came with the checkpoint"
MAX_BYTES = 256 << 20
MAX_ID = 2**31 - 1  # ids are int32


def read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read `vocab.txt`, or the vocabulary of a WordPiece `tokenizer.json`.

    The id of a piece is the number of its line, from 0, white space around it aside. Where a piece
    occurs on several lines the last one counts, with one warning; a line with white space alone has
    a number and holds no piece, which some vocabularies in circulation have.

    Args:
        path: the file; one that ends in `.json` is read as `tokenizer.json`.

    Returns:
        Piece -> id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, not of that form, or an id that no model has.
    """
    path = os.fspath(path)
    text = read_text(path, VOCABULARY, limit=MAX_BYTES, hint=MISSING)
    shown = printable(path)
    return _from_tokenizer_json(text, shown) if path.endswith(".json") else _from_lines(text, shown)


def check_ids(vocabulary: Mapping[str, Any], path: str) -> None:
    """Raise ValueError where an id is not a whole number from 0 to `MAX_ID`."""
    for piece, index in vocabulary.items():
        if type(index) is not int or not 0 <= index <= MAX_ID:
            raise ValueError(
                f"{printable(path)}: id of {printable(repr(piece), 60)} must be a whole number from"
                f" 0 to {MAX_ID}, got {printable(repr(index), 60)}"
            )


def _from_lines(text: str, path: str) -> dict[str, int]:
    # Only line ends of files end a line: some vocabularies hold pieces that Python's splitlines
    # would cut at.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    vocabulary: dict[str, int] = {}
    repeated: list[str] = []
    for number, line in enumerate(lines):
        piece = line.strip()
        if piece in vocabulary:
            repeated.append(piece)
        if piece:
            vocabulary[piece] = number
    if repeated:
        logger.warning(
            "%s: %d lines repeat an earlier piece, the last line of each counts (first: %s, id %d)",
            path,
            len(repeated),
            printable(repr(repeated[0]), 60),
            vocabulary[repeated[0]],
        )
    return vocabulary


def _from_tokenizer_json(text: str, path: str) -> dict[str, int]:
    model = parse_json(text, path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError(
            f"{path}: no vocabulary of WordPiece in it: key 'model' must be an object with key"
            " 'vocab'"
        )
    if model.get("type") != "WordPiece":
        raise ValueError(
            f"{path}: its model is {printable(repr(model.get('type')), 60)}, not WordPiece"
        )
    check_ids(model["vocab"], path)
    return model["vocab"]

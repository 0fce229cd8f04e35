"""Logits to answers: n-best search over the windows of a question, text cut from the original
paragraph.

Rules are those of BERT's SQuAD script (reference 7), with two differences. Its decoder glues word
pieces together and then searches the original words for that string, falling back to whole words
where accents or odd characters defeat the search; the tokenizer used here tells for each piece
which characters it stands for, so the answer is cut from the paragraph directly. And padding does
not compete for a place among the best positions, so that answers do not depend on how the windows
were batched.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.files import write_json
from tasks.squad.examples import SquadExample, squeeze
from tasks.squad.features import FIRST_UNIQUE_ID, Features

PLACEHOLDER = "empty"


class RawScores:
    """Start and end logits of all windows, gathered batch by batch in any order.

    Attributes:
        start, end: float32 [positions], flat as the columns of `features`.
    """

    def __init__(self, features: Features):
        self.features = features
        positions = int(features.bounds[-1])
        self.start = np.zeros(positions, np.float32)
        self.end = np.zeros(positions, np.float32)
        self._seen = np.zeros(len(features), bool)

    def add(self, unique_ids: np.ndarray, start_logits: np.ndarray, end_logits: np.ndarray) -> None:
        """File the logits ([B, S], S at least the length of each window) of the windows
        `unique_ids` ([B]).

        Raises:
            ValueError: an id that is not of these features, logits too short, or a non-finite
              logit.
        """
        start_logits, end_logits = (
            np.asarray(start_logits, np.float32),
            np.asarray(end_logits, np.float32),
        )
        rows = np.asarray(unique_ids, np.int64) - FIRST_UNIQUE_ID
        if ((rows < 0) | (rows >= len(self.features))).any():
            raise ValueError(
                f"unique ids outside these {len(self.features)} windows; were they converted again?"
            )
        for number, row in enumerate(rows):
            window = self.features.window(int(row))
            length = window.stop - window.start
            if start_logits.shape[1] < length or end_logits.shape != start_logits.shape:
                raise ValueError(
                    f"window {int(row)} has {length} positions, its logits are {start_logits.shape}"
                    f" and {end_logits.shape}"
                )
            self.start[window] = start_logits[number, :length]
            self.end[window] = end_logits[number, :length]
            if not (np.isfinite(self.start[window]).all() and np.isfinite(self.end[window]).all()):
                raise ValueError(
                    f"NaN or infinity in the logits of window {int(row)}: the model or its ranges"
                    " are bad"
                )
        self._seen[rows] = True

    def packed(self) -> bytes:
        """Return the logits added so far as bytes, for `join`."""
        file = io.BytesIO()
        positions = self._positions(self._seen)
        np.savez(file, seen=self._seen, start=self.start[positions], end=self.end[positions])
        return file.getvalue()

    def join(self, packed: bytes) -> None:
        """Add what `packed` holds of windows of the same features, collected in another process.

        Raises:
            ValueError: it is of other features.
        """
        with np.load(io.BytesIO(packed), allow_pickle=False) as part:
            seen, start, end = part["seen"], part["start"], part["end"]
        alike = len(seen) == len(self._seen)
        positions = self._positions(seen) if alike else np.zeros(0, bool)
        if not alike or positions.sum() != len(start):
            raise ValueError(
                f"logits of {len(seen)} other windows than these {len(self._seen)}: start all"
                " processes alike"
            )
        self.start[positions], self.end[positions] = start, end
        self._seen |= seen

    def _positions(self, windows: np.ndarray) -> np.ndarray:
        """bool [positions]: those of some windows, which are bool [windows]."""
        return np.repeat(windows, np.diff(self.features.bounds))

    def check_complete(self) -> None:
        """Raise ValueError when the logits of some window were never added."""
        missing = np.flatnonzero(~self._seen)
        if missing.size:
            raise ValueError(
                f"no logits for {missing.size} of {len(self.features)} windows (first:"
                f" {missing[0]})"
            )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Decoded answers, in the order of the questions.

    Attributes:
        answers: id -> text ("" for no answer in SQuAD 2.0).
        nbest: id -> list of {"text", "probability", "start_logit", "end_logit"}, best first.
        null_odds: id -> score of no answer minus score of the best answer; None for SQuAD 1.1.
    """

    answers: dict[str, str]
    nbest: dict[str, list[dict[str, Any]]]
    null_odds: dict[str, float] | None

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write `predictions.json`, `nbest_predictions.json` and, for SQuAD 2.0,
        `null_odds.json`.
        """
        write_json(os.path.join(directory, "predictions.json"), self.answers)
        write_json(os.path.join(directory, "nbest_predictions.json"), self.nbest)
        if self.null_odds is not None:
            write_json(os.path.join(directory, "null_odds.json"), self.null_odds)


class _Span(NamedTuple):
    """A candidate: flat position of first and last piece (-1 for no answer) and their logits."""

    first: int
    last: int
    start_logit: float
    end_logit: float


def decode(
    examples: Sequence[SquadExample],
    scores: RawScores,
    *,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    version_2: bool = False,
    null_score_diff_threshold: float = 0.0,
) -> Predictions:
    """Find the best answers.

    Args:
        examples: the questions that were converted.
        scores: the logits of all their windows.
        n_best_size: starts and ends tried per window, and answers kept per question.
        max_answer_length: in pieces.
        version_2: allow no answer.
        null_score_diff_threshold: answer nothing when the score of no answer is better by more than
          this.

    Returns:
        The answers. A question without any admissible span, or without a window, gets the text
        "empty".

    Raises:
        ValueError: a parameter below 1, or windows without logits.
    """
    if n_best_size < 1 or max_answer_length < 1:
        raise ValueError(
            f"n_best_size {n_best_size} and max_answer_length {max_answer_length} must be at"
            " least 1"
        )
    scores.check_complete()
    features = scores.features
    indices = np.arange(len(examples))
    begins = np.searchsorted(features.example_index, indices, side="left")
    ends = np.searchsorted(features.example_index, indices, side="right")
    answers, nbest, null_odds = {}, {}, {}
    for example, begin, end in zip(examples, begins, ends, strict=True):
        spans = [
            span
            for row in range(begin, end)
            for span in window_candidates(scores, row, n_best_size, max_answer_length)
        ]
        null = _null_span(scores, begin, end) if version_2 and begin < end else None
        entries = _entries(example, features, spans, null, n_best_size)
        nbest[example.id] = _with_probabilities(entries)
        if version_2:
            answers[example.id], null_odds[example.id] = _choose(
                entries, null, null_score_diff_threshold
            )
        else:
            answers[example.id] = entries[0]["text"]
    return Predictions(answers, nbest, null_odds if version_2 else None)


def window_candidates(
    scores: RawScores, row: int, n_best_size: int, max_answer_length: int
) -> list[_Span]:
    """Return the admissible spans of one window.

    Best starts x best ends, by rank of the start, then of the end.
    """
    features = scores.features
    window = features.window(row)
    start_logits, end_logits = scores.start[window], scores.end[window]
    starts = _best(start_logits, n_best_size)
    ends = _best(end_logits, n_best_size)
    in_context = features.char_starts[window] >= 0
    start_ok = in_context[starts] & features.max_context[window][starts]
    length = ends[None, :] - starts[:, None] + 1
    allowed = (
        (length >= 1)
        & (length <= max_answer_length)
        & start_ok[:, None]
        & in_context[ends][None, :]
    )
    base = window.start
    return [
        _Span(
            base + int(starts[i]),
            base + int(ends[j]),
            float(start_logits[starts[i]]),
            float(end_logits[ends[j]]),
        )
        for i, j in zip(*np.nonzero(allowed), strict=True)
    ]


def _best(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the largest values, best first, the earlier of equals first."""
    return np.argsort(-logits, kind="stable")[:count]


def _null_span(scores: RawScores, begin: int, end: int) -> _Span:
    """Return the weakest `[CLS]` span over the windows.

    No answer means that none of them holds one.
    """
    firsts = scores.features.bounds[begin:end]
    weakest = int(firsts[np.argmin(scores.start[firsts] + scores.end[firsts])])
    return _Span(-1, -1, float(scores.start[weakest]), float(scores.end[weakest]))


def _entries(
    example: SquadExample, features: Features, spans: list[_Span], null: _Span | None, limit: int
) -> list[dict[str, Any]]:
    """Return the best distinct texts, best first; never empty."""
    entries: list[dict[str, Any]] = []
    seen: set[str] = set()
    candidates = spans if null is None else [*spans, null]
    for span in sorted(
        candidates, key=lambda span: span.start_logit + span.end_logit, reverse=True
    ):
        if len(entries) == limit:
            break
        text = "" if span is null else _text(example, features, span)
        # Byte-level BPE has pieces of white space alone, which are no answer.
        if text not in seen and (text or span is null):
            seen.add(text)
            entries.append(_entry(text, span))
    if null is not None and "" not in seen:
        entries.append(_entry("", null))
    return entries or [_entry(PLACEHOLDER, _Span(-1, -1, 0.0, 0.0))]


def _text(example: SquadExample, features: Features, span: _Span) -> str:
    """Cut the answer from the paragraph, white space squeezed as the original's rejoined words have
    it.
    """
    return squeeze(
        example.context[features.char_starts[span.first] : features.char_ends[span.last]]
    )


def _entry(text: str, span: _Span) -> dict[str, Any]:
    return {
        "text": text,
        "probability": 0.0,
        "start_logit": span.start_logit,
        "end_logit": span.end_logit,
    }


def _with_probabilities(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fill in the softmax over the total scores."""
    total = np.array([entry["start_logit"] + entry["end_logit"] for entry in entries])
    weights = np.exp(total - total.max())
    return [
        entry | {"probability": float(weight)}
        for entry, weight in zip(entries, weights / weights.sum(), strict=True)
    ]


def _choose(
    entries: Sequence[Mapping[str, Any]], null: _Span | None, threshold: float
) -> tuple[str, float]:
    """Return the answer of a SQuAD 2.0 question and how much better no answer scores than it."""
    best = next((entry for entry in entries if entry["text"]), None)
    if null is None:
        return "", 0.0
    null_score = null.start_logit + null.end_logit
    if best is None:
        # No span was admissible: nothing to weigh the null answer against.
        return "", null_score
    difference = null_score - best["start_logit"] - best["end_logit"]
    return ("" if difference > threshold else best["text"]), difference

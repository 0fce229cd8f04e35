"""Questions to model inputs: windows over long paragraphs, labels, and the way back to characters.

A window is `[CLS] question [SEP] part of the paragraph [SEP]` of WordPiece and
`<s> question </s></s> part of the paragraph </s>` of byte-level BPE. Everything is kept in flat
NumPy columns without padding, so that a hundred thousand windows cost little and are batched at any
length.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from fileio.messages import printable
from tasks.sequences import LibraryTokenizer, Pieces
from tasks.squad.examples import SquadExample

logger = logging.getLogger(__name__)

FIRST_UNIQUE_ID = 1_000_000_000
TEXTS_PER_CALL = 512


@dataclasses.dataclass(frozen=True)
class Features:
    """Windows as columns. Window `i` owns positions `bounds[i]:bounds[i + 1]` of the flat columns.

    Attributes:
        unique_ids: int32 [windows], `FIRST_UNIQUE_ID` + row.
        example_index: int32 [windows], the question in the list that was converted; ascending.
        bounds: int64 [windows + 1], ascending.
        input_ids: int32 [positions], flat.
        context_offset: int32 [windows], where the context begins: the length of
          `[CLS] question [SEP]`.
        char_starts, char_ends: int32 [positions], flat: the characters of the context that a
          position stands for, -1 where it is not a piece of the context.
        max_context: bool [positions], flat: no other window shows this piece with more context
          around it.
        start_positions, end_positions: int32 [windows], labels, or None: position of the first and
          last piece of the answer; both 0 (`[CLS]`) when the window does not hold all of it.
        max_seq_length: what no window exceeds.
        pad_id: id that fills up a batch.
        two_segments: whether the context is in a segment of its own.
    """

    unique_ids: np.ndarray
    example_index: np.ndarray
    bounds: np.ndarray
    input_ids: np.ndarray
    context_offset: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray
    max_context: np.ndarray
    start_positions: np.ndarray | None
    end_positions: np.ndarray | None
    max_seq_length: int
    pad_id: int
    two_segments: bool

    def __len__(self) -> int:
        return len(self.unique_ids)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [windows], positions of each window."""
        return np.diff(self.bounds)

    @property
    def second_offset(self) -> np.ndarray:
        """int [windows], where the second segment begins; the length of a window without one."""
        return self.context_offset if self.two_segments else self.lengths

    def window(self, row: int) -> slice:
        """Return the place of window `row` in the flat columns."""
        return slice(int(self.bounds[row]), int(self.bounds[row + 1]))


@dataclasses.dataclass
class _Columns:
    """Features under construction: a list of parts for each column."""

    example_index: list[int] = dataclasses.field(default_factory=list)
    input_ids: list[np.ndarray] = dataclasses.field(default_factory=list)
    context_offset: list[int] = dataclasses.field(default_factory=list)
    char_starts: list[np.ndarray] = dataclasses.field(default_factory=list)
    char_ends: list[np.ndarray] = dataclasses.field(default_factory=list)
    max_context: list[np.ndarray] = dataclasses.field(default_factory=list)
    start_positions: list[int] = dataclasses.field(default_factory=list)
    end_positions: list[int] = dataclasses.field(default_factory=list)


def convert(
    examples: Sequence[SquadExample],
    tokenizer: LibraryTokenizer,
    *,
    training: bool,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    progress: bool = True,
) -> Features:
    """Convert questions to windows.

    Args:
        examples: from `read_squad` or `from_tfds`.
        tokenizer: of the model.
        training: make labels from the first answer. A question whose answer holds no piece (only
          control characters, say) is left out with a warning.
        max_seq_length: longest window, in pieces.
        doc_stride: pieces from the start of one window to the start of the next.
        max_query_length: longer questions are cut. White space in front of a question is left out:
          it would take pieces of byte-level BPE.
        progress: show a bar.

    Returns:
        The windows, those of one question together and in order of the text.

    Raises:
        ValueError: the lengths leave no room for the paragraph, or there is no question.
    """
    if max_query_length < 1 or doc_stride < 1:
        raise ValueError(
            f"max_query_length {max_query_length} and doc_stride {doc_stride} must be at least 1"
        )
    special = tokenizer.num_special
    if max_seq_length <= max_query_length + special:
        raise ValueError(
            f"max_seq_length {max_seq_length} must be greater than max_query_length"
            f" {max_query_length} + {special} (special tokens); raise the one or lower the other"
        )
    if not examples:
        raise ValueError("no questions to convert")
    columns = _Columns()
    documents = _Documents(tokenizer)
    unusable: list[str] = []
    with tqdm(total=len(examples), desc="features", unit=" questions", disable=not progress) as bar:
        for begin in range(0, len(examples), TEXTS_PER_CALL):
            part = examples[begin : begin + TEXTS_PER_CALL]
            questions = tokenizer.encode([example.question.lstrip() for example in part])
            contexts = documents.encode([example.context for example in part])
            for number, (example, question, context) in enumerate(
                zip(part, questions, contexts, strict=True)
            ):
                answer = None
                if training and not example.impossible:
                    answer = answer_pieces(example, context)
                    if answer is None:
                        unusable.append(example.id)
                        continue
                query = question.ids[:max_query_length]
                budget = max_seq_length - len(query) - special
                spans = window_spans(len(context.ids), budget, doc_stride)
                _add_windows(columns, begin + number, query, context, spans, answer, tokenizer)
            bar.update(len(part))
    if unusable:
        logger.warning(
            "left out %d of %d questions: no piece in the answer (first id %s)",
            len(unusable),
            len(examples),
            printable(unusable[0]),
        )
    return _finish(columns, training, max_seq_length, tokenizer)


class _Documents:
    """Tokenizes contexts, each run of questions about the same one once."""

    def __init__(self, tokenizer: LibraryTokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, Pieces] = {}

    def encode(self, contexts: Sequence[str]) -> list[Pieces]:
        new = [context for context in dict.fromkeys(contexts) if context not in self._known]
        # Questions of a paragraph are neighbours: keep only what this part of the data needs.
        self._known = {
            context: self._known[context] for context in set(contexts) & set(self._known)
        }
        self._known.update(zip(new, self._tokenizer.encode(new), strict=True))
        return [self._known[context] for context in contexts]


def window_spans(pieces: int, budget: int, stride: int) -> list[tuple[int, int]]:
    """Return (first piece, length) of each window over a text of so many pieces; the last one
    reaches the end.
    """
    spans = []
    start = 0
    while start < pieces:
        length = min(budget, pieces - start)
        spans.append((start, length))
        if start + length == pieces:
            break
        start += min(length, stride)
    return spans


def answer_pieces(example: SquadExample, context: Pieces) -> tuple[int, int] | None:
    """Return first and last piece that touch the first answer, or None when there is none.

    Cutting by character offsets gives the tightest span at once; the original takes whole words and
    then searches for a shorter run of pieces that spells the answer.
    """
    answer = example.answers[0]
    # Pieces of byte-level BPE that are blanks alone stand for no character: without blanks at its
    # ends an answer begins and ends with another piece.
    text = answer.text.strip(" ")
    start = answer.end - len(answer.text.lstrip(" "))
    if not text:
        return None
    first = int(np.searchsorted(context.ends, start, side="right"))
    last = int(np.searchsorted(context.starts, start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def max_context(spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return, for each window, which of its pieces it shows best.

    A piece in several windows is judged by the smaller of the pieces to its left and right there,
    plus 0.01 of the window's length; the first of equals wins.
    """
    if len(spans) == 1:
        return [np.ones(spans[0][1], bool)]
    pieces = spans[-1][0] + spans[-1][1]
    best_score = np.full(pieces, -1.0)
    best_window = np.zeros(pieces, np.int64)
    for number, (start, length) in enumerate(spans):
        left = np.arange(length)
        score = np.minimum(left, left[::-1]) + 0.01 * length
        here = slice(start, start + length)
        better = score > best_score[here]
        best_score[here] = np.where(better, score, best_score[here])
        best_window[here] = np.where(better, number, best_window[here])
    return [
        best_window[start : start + length] == number
        for number, (start, length) in enumerate(spans)
    ]


def _add_windows(
    columns: _Columns,
    index: int,
    query: np.ndarray,
    context: Pieces,
    spans: Sequence[tuple[int, int]],
    answer: tuple[int, int] | None,
    tokenizer: LibraryTokenizer,
) -> None:
    """Append the windows of one question."""
    between = [tokenizer.sep_id] * tokenizer.separators
    head = np.concatenate([[tokenizer.cls_id], query, between]).astype(np.int32)
    offset = len(head)
    outside = np.full(offset, -1, np.int32)
    for (start, length), best in zip(spans, max_context(spans) if spans else (), strict=True):
        here = slice(start, start + length)
        columns.example_index.append(index)
        columns.context_offset.append(offset)
        columns.input_ids.append(np.concatenate([head, context.ids[here], [tokenizer.sep_id]]))
        columns.char_starts.append(np.concatenate([outside, context.starts[here], [-1]]))
        columns.char_ends.append(np.concatenate([outside, context.ends[here], [-1]]))
        columns.max_context.append(np.concatenate([np.zeros(offset, bool), best, [False]]))
        labels = (0, 0)
        if answer is not None and start <= answer[0] and answer[1] < start + length:
            labels = (answer[0] - start + offset, answer[1] - start + offset)
        columns.start_positions.append(labels[0])
        columns.end_positions.append(labels[1])


def _finish(
    columns: _Columns, training: bool, max_seq_length: int, tokenizer: LibraryTokenizer
) -> Features:
    windows = len(columns.input_ids)
    if not windows:
        raise ValueError(
            "no window could be made: every context is empty or no answer can be labelled"
        )

    def flat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate(parts).astype(dtype, copy=False)

    return Features(
        unique_ids=np.arange(FIRST_UNIQUE_ID, FIRST_UNIQUE_ID + windows, dtype=np.int32),
        example_index=np.asarray(columns.example_index, np.int32),
        bounds=np.concatenate([[0], np.cumsum([len(ids) for ids in columns.input_ids])]).astype(
            np.int64
        ),
        input_ids=flat(columns.input_ids, np.int32),
        context_offset=np.asarray(columns.context_offset, np.int32),
        char_starts=flat(columns.char_starts, np.int32),
        char_ends=flat(columns.char_ends, np.int32),
        max_context=flat(columns.max_context, bool),
        start_positions=np.asarray(columns.start_positions, np.int32) if training else None,
        end_positions=np.asarray(columns.end_positions, np.int32) if training else None,
        max_seq_length=max_seq_length,
        pad_id=tokenizer.pad_id,
        two_segments=tokenizer.two_segments,
    )

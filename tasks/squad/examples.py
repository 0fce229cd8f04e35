"""Questions of a SQuAD data set, read from JSON or from TensorFlow Datasets, checked while
reading.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fileio.messages import printable
from tasks.files import read_json
from tasks.tfds_builder import check_split, tfds_builder

logger = logging.getLogger(__name__)

# What SQuAD processing counts as white space (reference 7): the last one is the narrow no-break
# space.
WHITESPACE = " \t\r\n\u202f"
TFDS_SOURCE = "https://rajpurkar.github.io"
_SPACES = re.compile(f"[{WHITESPACE}]+")


class SquadFormatError(ValueError):
    """The data set does not have the form of SQuAD; the message names the file, the place and the
    key.
    """


@dataclasses.dataclass(frozen=True)
class Answer:
    """A ground truth: its text and the index of its first character in the context."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Index behind the last character."""
        return self.start + len(self.text)


@dataclasses.dataclass(frozen=True)
class SquadExample:
    """A question about a paragraph.

    Attributes:
        id: unique in the data set; predictions are filed under it.
        question: as written.
        context: the paragraph, as written; answers are cut from it.
        answers: ground truths; empty when unknown or when the question has none.
        impossible: SQuAD 2.0: the paragraph does not hold an answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    impossible: bool = False


def squeeze(text: str) -> str:
    """Return `text` with each run of white space as one blank and none at the ends."""
    return _SPACES.sub(" ", text).strip(" ")


def read_squad(
    path: str | os.PathLike[str], *, training: bool, version_2: bool = False
) -> list[SquadExample]:
    """Read a SQuAD 1.1 or 2.0 JSON file.

    An answer whose span leaves the context is an error in either use. In training, a question whose
    first answer is inside the context but is not the text found there (white space aside) cannot be
    labelled: it is skipped, and one warning says how many were; when none is left, that is an
    error. For prediction, answers are optional.

    Args:
        path: the JSON file.
        training: answers are needed (the first one becomes the label).
        version_2: honour `is_impossible`; without it every training question must have an answer.

    Returns:
        The questions in file order.

    Raises:
        FileNotFoundError: no such file.
        SquadFormatError: not JSON, missing or mistyped keys, answers outside the context, an id
          used twice.
    """
    try:
        dataset = read_json(path, "SQuAD file", kind=None)
    except ValueError as error:
        raise SquadFormatError(str(error)) from error
    source = printable(os.fspath(path))
    return _collect(_parse(dataset, source, training, version_2), source, training)


def from_tfds(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    training: bool | None = None,
    version_2: bool = False,
) -> list[SquadExample]:
    """Read SQuAD through TensorFlow Datasets, preparing it (from the network) when it is not on
    disk yet.

    SQuAD 1.1 is looked for under its first name there, `squad/plain_text`, and then under the
    present one, `squad/v1.1`; SQuAD 2.0 is `squad/v2.0`.

    Args:
        split: "train", "validation", or a slice such as "train[:1%]".
        data_dir: where TFDS keeps prepared data sets; None for its default.
        training: check answers as `read_squad` does; None: for splits that begin with "train".
        version_2: read SQuAD 2.0.

    Returns:
        The questions.

    Raises:
        FileNotFoundError: the data set is neither on disk nor to be had.
        ValueError: no such split.
        SquadFormatError: as for `read_squad`.
    """
    import tensorflow_datasets as tfds

    builder = check_tfds(split, data_dir, version_2=version_2)
    rows = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    if training is None:
        training = split.startswith("train")
    return _collect(_parse_tfds(rows), f"{builder.info.full_name}:{split}", training)


def check_tfds(
    split: str, data_dir: str | os.PathLike[str] | None = None, *, version_2: bool = False
) -> Any:
    """Return the builder that `from_tfds` reads from, without reading any question.

    Args and errors: see there.
    """
    names = ("squad/v2.0",) if version_2 else ("squad/plain_text", "squad/v1.1")
    builder = tfds_builder(names, data_dir, source=TFDS_SOURCE, instead="a SQuAD JSON file")
    check_split(builder, split)
    return builder


def to_dataset(examples: Iterable[SquadExample], *, version: str = "1.1") -> dict[str, Any]:
    """Return the questions in the layout of a SQuAD JSON file, for instance to evaluate what came
    from TFDS.
    """
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        answers = [
            {"answer_start": answer.start, "text": answer.text} for answer in example.answers
        ]
        question: dict[str, Any] = {
            "id": example.id,
            "question": example.question,
            "answers": answers,
        }
        if version.startswith("v2"):
            question["is_impossible"] = example.impossible
        paragraphs.setdefault(example.context, []).append(question)
    listed = [{"context": context, "qas": questions} for context, questions in paragraphs.items()]
    return {"version": version, "data": [{"title": "", "paragraphs": listed}]}


def _parse(
    dataset: Any, path: str, training: bool, version_2: bool
) -> Iterator[tuple[str, SquadExample]]:
    """Yield (place, question) from the JSON tree, checking each level."""
    for article_number, article in enumerate(_get(dataset, "data", list, path)):
        place = f"{path}: article {article_number}"
        for paragraph_number, paragraph in enumerate(_get(article, "paragraphs", list, place)):
            inner = f"{place}, paragraph {paragraph_number}"
            context = _get(paragraph, "context", str, inner)
            for question_number, question in enumerate(_get(paragraph, "qas", list, inner)):
                where = f"{inner}, question {question_number}"
                example = _parse_question(question, context, where, training, version_2)
                yield f"{where} (id {printable(example.id)})", example


def _parse_question(
    question: Any, context: str, place: str, training: bool, version_2: bool
) -> SquadExample:
    identifier = _get(question, "id", str, place)
    place = f"{place} (id {printable(identifier)})"
    text = _get(question, "question", str, place)
    impossible = (
        version_2 and "is_impossible" in question and _get(question, "is_impossible", bool, place)
    )
    answers: tuple[Answer, ...] = ()
    if not impossible and (training or "answers" in question):
        answers = tuple(
            Answer(_get(answer, "text", str, where), _get(answer, "answer_start", int, where))
            for where, answer in (
                (f"{place}, answer {number}", answer)
                for number, answer in enumerate(_get(question, "answers", list, place))
            )
        )
    if training and not impossible and not answers:
        hint = (
            ""
            if version_2
            else "; for a SQuAD 2.0 file switch version 2 on (--version_2_with_negative)"
        )
        raise SquadFormatError(f"{place}: no answer to train on: key 'answers' is empty{hint}")
    return SquadExample(identifier, text, context, answers, impossible)


def _parse_tfds(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, SquadExample]]:
    """Yield (place, question) from rows of TFDS, whose strings are bytes."""
    for number, row in enumerate(rows):
        answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        identifier = row["id"].decode()
        yield (
            f"TFDS squad, row {number} (id {printable(identifier)})",
            SquadExample(
                identifier,
                row["question"].decode(),
                row["context"].decode(),
                tuple(Answer(text.decode(), int(start)) for text, start in answers),
                bool(row.get("is_impossible", False)),
            ),
        )


def _collect(
    found: Iterable[tuple[str, SquadExample]], source: str, training: bool
) -> list[SquadExample]:
    """Check ids and answer spans; leave out what cannot be labelled."""
    examples: list[SquadExample] = []
    seen: set[str] = set()
    skipped: list[str] = []
    for place, example in found:
        if example.id in seen:
            raise SquadFormatError(
                f"{place}: key 'id': {printable(example.id)} is used by an earlier question"
            )
        seen.add(example.id)
        for answer in example.answers:
            if answer.start < 0 or answer.end > len(example.context):
                raise SquadFormatError(
                    f"{place}: answer outside the context: {printable(repr(answer.text), 100)} at"
                    f" answer_start {answer.start} in a context of {len(example.context)}"
                    " characters"
                )
        if training and example.answers and not _is_labelled(example):
            skipped.append(example.id)
            continue
        examples.append(example)
    if skipped:
        if not examples:
            raise SquadFormatError(
                f"{source}: no answer is found at its answer_start (first id"
                f" {printable(skipped[0])})"
            )
        logger.warning(
            "%s: skipped %d of %d questions whose answer is not the text at its answer_start (first"
            " id %s)",
            source,
            len(skipped),
            len(seen),
            printable(skipped[0]),
        )
    if not examples:
        raise SquadFormatError(f"{source}: no question in it")
    return examples


def _is_labelled(example: SquadExample) -> bool:
    answer = example.answers[0]
    text = squeeze(answer.text)
    return bool(text) and squeeze(example.context[answer.start : answer.end]) == text


_KINDS = {list: "a list", str: "a string", int: "a whole number", bool: "true or false"}


def _get(node: Any, key: str, kind: type, place: str) -> Any:
    """Return `node[key]`, or say what is wrong with it."""
    if not isinstance(node, Mapping):
        raise SquadFormatError(
            f"{place}: expected an object with key {key!r}, found {type(node).__name__}"
        )
    if key not in node:
        raise SquadFormatError(f"{place}: key {key!r} is missing (found {_listed(node)})")
    value = node[key]
    # bool is a subclass of int: true is no position.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SquadFormatError(
            f"{place}: key {key!r} must be {_KINDS[kind]}, found {type(value).__name__}"
        )
    if kind is str and not _is_text(value):
        raise SquadFormatError(
            f"{place}: key {key!r} holds half a surrogate pair (\\ud800 to \\udfff), which is no"
            " text"
        )
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _listed(keys: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(printable(repr(key), 60) for key in list(keys)[:6]) or "none"

"""Exact match and F1 of SQuAD predictions: `python squad_evaluate.py DATASET PREDICTIONS`.

Prints the official JSON line. SQuAD 1.1 gives `exact_match` and `f1`; SQuAD 2.0 gives the keys of
its own official script (`exact`, `f1`, `total`, then the same for questions with and without an
answer). All scores are percentages. Needs nothing but the standard library and `tasks/` beside it.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fileio.messages import printable, printable_lines
from tasks.files import read_json

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower-case, drop punctuation and the articles a, an, the, and squeeze white space."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match_score(prediction: str, truth: str) -> float:
    """Return 1.0 when both texts are the same once normalized, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(truth))


def f1_score(prediction: str, truth: str) -> float:
    """Return the F1 of the two bags of normalized words, in 0..1; 1 when both are empty.

    The official SQuAD 1.1 script gives 0 for two empty bags, that of 2.0 gives 1, which only then
    can matter: see `evaluate`.
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(truth).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate(dataset: Mapping[str, Any], predictions: Mapping[str, str]) -> dict[str, float]:
    """Score predictions.

    Args:
        dataset: the parsed JSON of a SQuAD file.
        predictions: question id -> answer. A question without one counts 0; a warning on stderr
          names it. Questions of
            SQuAD 1.1 that come without a truth are left out, with one warning.

    Returns:
        {"exact_match", "f1"} for SQuAD 1.1; for SQuAD 2.0 (version "v2..." or "2...", or a question
        marked `is_impossible`) {"exact", "f1", "total", "HasAns_exact", ...}. Percentages, and
        counts under "total".

    Raises:
        ValueError: the data set or the predictions do not have the expected form.
    """
    questions, version_2 = _with_truth(dataset)
    scores = _scored(questions, version_2, predictions)
    exact, f1 = [score for _, score, _ in scores], [score for _, _, score in scores]
    if not version_2:
        return {"exact_match": _percent(exact), "f1": _percent(f1)}
    return _version_2_scores(questions, exact, f1)


def score_questions(
    dataset: Mapping[str, Any], predictions: Mapping[str, str]
) -> list[tuple[str, float, float]]:
    """(id, exact match, F1), 0 to 1, of each question, in the order of the data set.

    See `evaluate`.
    """
    questions, version_2 = _with_truth(dataset)
    return _scored(questions, version_2, predictions)


def _with_truth(dataset: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Return the questions that can be scored, and whether they are of SQuAD 2.0, where no answer
    is a truth too.
    """
    questions = list(_questions(dataset))
    if not questions:
        raise ValueError("the data set has no question")
    version_2 = _is_version_2(dataset, questions)
    known = questions if version_2 else [question for question in questions if question["answers"]]
    if not known:
        raise ValueError(
            f"{_named(questions[0])}: no ground truth under key 'answers', nor for any other"
            " question"
        )
    if len(known) < len(questions):
        first = next(question for question in questions if not question["answers"])
        count = f"{len(questions) - len(known)} of {len(questions)} questions"
        print(f"Left out {count} without a ground truth (first: {_named(first)}).", file=sys.stderr)
    return known, version_2


def _named(question: Mapping[str, Any]) -> str:
    return f"{question['place']} (id {printable(question['id'])})"


def _scored(
    questions: Sequence[Mapping[str, Any]], version_2: bool, predictions: Mapping[str, str]
) -> list[tuple[str, float, float]]:
    if not isinstance(predictions, Mapping):
        raise ValueError(
            f"predictions must map question ids to answers, found {type(predictions).__name__}"
        )
    scores = []
    for question in questions:
        prediction = predictions.get(question["id"])
        if prediction is None:
            print(
                f"Unanswered question {printable(question['id'])} will receive score 0.",
                file=sys.stderr,
            )
            scores.append((question["id"], 0.0, 0.0))
            continue
        if not isinstance(prediction, str):
            raise ValueError(
                f"prediction of {printable(question['id'])} must be a string, found"
                f" {type(prediction).__name__}"
            )
        truths = _truths(question, version_2)
        f1 = _best(f1_score if version_2 else _f1_version_1, prediction, truths)
        scores.append((question["id"], _best(exact_match_score, prediction, truths), f1))
    return scores


def _f1_version_1(prediction: str, truth: str) -> float:
    """Return `f1_score`, with the 0 that the SQuAD 1.1 script gives when no word is left of either
    text.
    """
    return f1_score(prediction, truth) if normalize_answer(prediction) else 0.0


def _best(score: Callable[[str, str], float], prediction: str, truths: Sequence[str]) -> float:
    return max(score(prediction, truth) for truth in truths)


def _percent(scores: Sequence[float]) -> float:
    return 100.0 * sum(scores) / len(scores)


def _version_2_scores(
    questions: Sequence[Mapping[str, Any]], exact: list[float], f1: list[float]
) -> dict[str, float]:
    scores = {"exact": _percent(exact), "f1": _percent(f1), "total": len(exact)}
    for name, answerable in (("HasAns", True), ("NoAns", False)):
        rows = [
            row for row, question in enumerate(questions) if bool(question["answers"]) == answerable
        ]
        if rows:
            scores[f"{name}_exact"] = _percent([exact[row] for row in rows])
            scores[f"{name}_f1"] = _percent([f1[row] for row in rows])
            scores[f"{name}_total"] = len(rows)
    return scores


def _questions(dataset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions, each with its `id` and `answers`; name the place where the form is
    broken.
    """
    for article_number, article in enumerate(_get(dataset, "data", list, "data set")):
        place = f"article {article_number}"
        for paragraph_number, paragraph in enumerate(_get(article, "paragraphs", list, place)):
            inner = f"{place}, paragraph {paragraph_number}"
            for question_number, question in enumerate(_get(paragraph, "qas", list, inner)):
                where = f"{inner}, question {question_number}"
                answers = _get(question, "answers", list, where)
                yield {
                    "id": _get(question, "id", str, where),
                    "answers": [
                        _get(answer, "text", str, f"{where}, answers") for answer in answers
                    ],
                    "is_impossible": question.get("is_impossible"),
                    "place": where,
                }


def _get(node: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(node, Mapping) or key not in node:
        raise ValueError(f"{place}: key {key!r} is missing; is this a SQuAD file?")
    if not isinstance(node[key], kind):
        wanted = "a list" if kind is list else "a string"
        raise ValueError(
            f"{place}: key {key!r} must be {wanted}, found {type(node[key]).__name__}; is this a"
            " SQuAD file?"
        )
    return node[key]


def _is_version_2(dataset: Mapping[str, Any], questions: Sequence[Mapping[str, Any]]) -> bool:
    version = str(dataset.get("version", ""))
    if version.startswith(("v2", "2")) or any(
        question["is_impossible"] is not None for question in questions
    ):
        return True
    if version != "1.1":
        print(
            f"Evaluation expects v-1.1, but got dataset with v-{printable(version)}",
            file=sys.stderr,
        )
    return False


def _truths(question: Mapping[str, Any], version_2: bool) -> list[str]:
    if version_2:
        # Texts with nothing left once normalized are no answers; without any, the right answer is
        # the empty one.
        return [text for text in question["answers"] if normalize_answer(text)] or [""]
    return question["answers"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Exact match and F1 of SQuAD predictions, as one JSON line."
    )
    parser.add_argument("dataset_file", help="SQuAD JSON file with the ground truths")
    parser.add_argument("prediction_file", help="JSON object: question id -> answer")
    options = parser.parse_args(arguments)
    try:
        dataset, predictions = (
            read_json(path, kind=None, pipes=True)
            for path in (options.dataset_file, options.prediction_file)
        )
        scores = evaluate(dataset, predictions)
    except (OSError, ValueError) as error:
        print(f"squad_evaluate.py: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    print(json.dumps(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The scores of squad_evaluate.py.

Known values, the official corner cases, and the command line.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from squad_evaluate import evaluate, f1_score, main, normalize_answer

SCRIPT = pathlib.Path(__file__).parents[2] / "squad_evaluate.py"


def dataset(truths, version="1.1", **more):
    questions = [
        {
            "id": identifier,
            "question": "?",
            "answers": [{"text": text, "answer_start": 0} for text in texts],
            **more,
        }
        for identifier, texts in truths.items()
    ]
    return {
        "version": version,
        "data": [{"title": "", "paragraphs": [{"context": "", "qas": questions}]}],
    }


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a an the", ""),
        ("theatre and Anna", "theatre and anna"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),
        ("$1,000 (net)", "1000 net"),
        ("“quoted” text", "“quoted” text"),
        ("tab\tand\u00a0blank", "tab and blank"),
    ],
)
def test_normalization_follows_the_official_script(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    "prediction, truth, expected",
    [
        ("the cat", "a cat", 1.0),
        ("big cat", "cat", 2 / 3),
        ("cat cat dog", "cat dog dog", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("one two three four", "three five", 2 * (1 / 4) * (1 / 2) / (3 / 4)),
    ],
)
def test_f1_is_the_overlap_of_word_bags(prediction, truth, expected):
    assert f1_score(prediction, truth) == pytest.approx(expected, abs=1e-15)


def test_best_truth_counts_and_averages_are_percentages_in_full_precision(capsys):
    scores = evaluate(
        dataset({"a": ["Paris", "in Paris"], "b": ["the black cat"], "c": ["1889"]}),
        {"a": "In Paris.", "b": "cat", "c": "1890"},
    )
    assert list(scores) == ["exact_match", "f1"]
    assert scores == {"exact_match": 100.0 * 1 / 3, "f1": 100.0 * (1 + 2 / 3 + 0) / 3}
    assert capsys.readouterr().err == ""


def test_unanswered_questions_count_zero_with_a_warning(capsys):
    scores = evaluate(dataset({"a": ["x"], "b": ["y"]}), {"b": "y"})
    assert scores == {"exact_match": 50.0, "f1": 50.0}
    assert capsys.readouterr().err == "Unanswered question a will receive score 0.\n"


def test_another_version_only_warns(capsys):
    assert evaluate(dataset({"a": ["x"]}, version="1.0"), {"a": "x"})["f1"] == 100.0
    assert "Evaluation expects v-1.1, but got dataset with v-1.0" in capsys.readouterr().err


def test_two_texts_of_articles_alone_match_exactly_but_have_no_f1_in_squad_1():
    assert evaluate(dataset({"a": ["the"]}), {"a": "an"}) == {"exact_match": 100.0, "f1": 0.0}


def test_squad_2_scores_answerable_and_impossible_questions_apart():
    data = dataset({"a": ["black cat"], "b": [], "c": []}, version="v2.0")
    scores = evaluate(data, {"a": "cat", "b": "", "c": "dog"})
    assert scores == {
        "exact": 100.0 / 3,
        "f1": 100.0 * (2 / 3 + 1) / 3,
        "total": 3,
        "HasAns_exact": 0.0,
        "HasAns_f1": pytest.approx(200 / 3),
        "HasAns_total": 1,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }
    assert list(scores)[:3] == ["exact", "f1", "total"]


def test_squad_2_is_recognised_by_its_questions_too():
    assert "HasAns_f1" in evaluate(
        dataset({"a": ["x"]}, version="1.1", is_impossible=False), {"a": "x"}
    )


@pytest.mark.parametrize(
    "data, predictions, message",
    [
        ({}, {}, "data set: key 'data' is missing; is this a SQuAD file"),
        ([], {}, "data set: key 'data' is missing"),
        ({"data": [{}]}, {}, "article 0: key 'paragraphs' is missing"),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": "a"}]}]}]},
            {},
            "paragraph 0, question 0: key 'answers' is missing",
        ),
        ({"data": []}, {}, "no question"),
        (dataset({"a": []}), {"a": "x"}, r"question 0 \(id a\): no ground truth"),
        ({"data": 1}, {}, "data set: key 'data' must be a list, found int"),
        ({"data": float("inf")}, {}, "key 'data' must be a list, found float"),
        ({"data": {"paragraphs": []}}, {}, "key 'data' must be a list, found dict"),
        (
            {"data": [{"paragraphs": "text"}]},
            {},
            "article 0: key 'paragraphs' must be a list, found str",
        ),
        (
            {"data": [{"paragraphs": [{"qas": 1}]}]},
            {},
            "paragraph 0: key 'qas' must be a list, found int",
        ),
        ({"data": [None]}, {}, "article 0: key 'paragraphs' is missing"),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": ["a"], "answers": []}]}]}]},
            {},
            "key 'id' must be a string, found list",
        ),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": "a", "answers": [{"text": 3}]}]}]}]},
            {},
            "'text' must be a string",
        ),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": "a", "answers": {"text": "x"}}]}]}]},
            {},
            "'answers' must be a list",
        ),
        (dataset({"a": ["x"]}), ["x"], "predictions must map question ids to answers, found list"),
        (dataset({"a": ["x"]}), {"a": 1}, "prediction of a must be a string, found int"),
    ],
)
def test_bad_input_is_refused_in_one_line(data, predictions, message):
    with pytest.raises(ValueError, match=message):
        evaluate(data, predictions)


@pytest.fixture
def files(tmp_path):
    data, predictions = tmp_path / "dev.json", tmp_path / "predictions.json"
    data.write_text(
        json.dumps(dataset({"a": ["Zürich"], "b": ["two"], "c": ["three"]})), encoding="utf-8"
    )
    predictions.write_text(
        json.dumps({"a": "zürich", "b": "one or two", "c": "four"}), encoding="utf-8"
    )
    return str(data), str(predictions)


def test_command_prints_one_json_line_with_the_official_keys(files):
    done = subprocess.run(
        [sys.executable, SCRIPT, *files], capture_output=True, text=True, check=True
    )
    assert done.stdout == '{"exact_match": 33.333333333333336, "f1": 50.0}\n'
    assert done.stderr == ""


def test_command_reports_bad_files_in_one_line(files, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert main([str(tmp_path / "none.json"), files[1]]) == 1
    assert main([str(broken), files[1]]) == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == "" and "none.json" in first and "broken.json: not a JSON text" in second


def test_questions_without_a_truth_are_left_out_with_one_warning(capsys):
    scores = evaluate(dataset({"a": ["x"], "b": [], "c": ["z"], "d": []}), {"a": "x", "c": "y"})
    assert scores == {"exact_match": 50.0, "f1": 50.0}
    assert capsys.readouterr().err.splitlines() == [
        "Left out 2 of 4 questions without a ground truth (first: article 0, paragraph 0, question"
        " 1 (id b))."
    ]


def test_both_files_may_begin_with_a_byte_order_mark(files, capsys):
    assert main(list(files)) == 0
    plain = capsys.readouterr().out
    for path in map(pathlib.Path, files):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main(list(files)) == 0 and capsys.readouterr().out == plain


def test_predictions_may_come_through_a_pipe(files):
    script = f"{sys.executable} {SCRIPT}"
    command = (
        f"cat {files[1]} | {script} {files[0]} /dev/stdin && {script} <(cat {files[0]}) {files[1]}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second == '{"exact_match": 33.333333333333336, "f1": 50.0}'


@pytest.mark.parametrize(
    "kind", ["device", "pipe", "folder", "deep", "deep object", "digits", "not UTF-8", "escapes"]
)
@pytest.mark.parametrize("position", [0, 1])
def test_what_is_no_json_file_ends_in_one_line(kind, position, files, tmp_path, capsys):
    path = tmp_path / ("\x1b[31m\nforged" if kind == "escapes" else "bad.json")
    content = {"deep": b"[" * 10**5, "deep object": b'{"a":' * 10**5, "digits": b"9" * 5000}
    content |= {"not UTF-8": b'{"a": "\xff"}', "escapes": b"{"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in content:
        path.write_bytes(content[kind])
    arguments = list(files)
    arguments[position] = "/dev/zero" if kind == "device" else str(path)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("squad_evaluate.py: ") and err.rstrip("\n").isprintable()


def test_ids_are_shown_escaped(capsys):
    evaluate(dataset({"a\x1b[2J\nforged": ["x"], "b": ["y"]}), {"b": "y"})
    assert (
        capsys.readouterr().err == "Unanswered question a\\x1b[2J\\nforged will receive score 0.\n"
    )

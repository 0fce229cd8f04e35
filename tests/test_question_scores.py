"""Rows of a benchmark are compared question by question."""

import json

import pytest

from benchmarks import question_scores


@pytest.fixture
def scores(tmp_path, monkeypatch):
    monkeypatch.setattr(question_scores, "FOLDER", tmp_path)
    texts = {"a": "red", "b": "blue", "c": "green", "d": "grey"}
    questions = [
        {"id": i, "question": "?", "answers": [{"text": t, "answer_start": 0}]}
        for i, t in texts.items()
    ]
    dataset = tmp_path / "dev.json"
    dataset.write_text(
        json.dumps(
            {"version": "1.1", "data": [{"paragraphs": [{"context": "", "qas": questions}]}]}
        )
    )
    found = question_scores.QuestionScores("made")

    def keep(row, **wrong):
        predictions = tmp_path / "predictions.json"
        predictions.write_text(json.dumps(texts | wrong))
        found.keep(row, dataset, predictions)

    return found, keep


def test_the_difference_is_that_of_the_means_and_its_error_that_of_pairs(scores):
    found, keep = scores
    keep("float", a="wrong")
    keep("same", a="wrong")
    keep("other", b="wrong", c="wrong")
    beside = found.beside({"float": "float", "same": "float", "other": "float"})
    assert "float" not in beside
    assert beside["same"] == {"to_float": 0.0, "to_float_error": 0.0}
    # +100, -100, -100, 0: mean -25, standard deviation of a sample 95.74, over the root of 4
    assert beside["other"] == pytest.approx({"to_float": -25.0, "to_float_error": 47.871}, abs=1e-3)


def test_a_row_that_is_kept_again_is_replaced_and_others_stay(scores):
    found, keep = scores
    keep("float", a="wrong")
    keep("other")
    keep("float")
    assert set(found.read()) == {"float", "other"}
    assert found.beside({"other": "float"})["other"]["to_float"] == 0.0


def test_without_the_base_there_is_nothing_to_compare(scores):
    found, keep = scores
    assert found.beside({"other": "float"}) == {}
    keep("other")
    assert found.beside({"other": "float"}) == {}

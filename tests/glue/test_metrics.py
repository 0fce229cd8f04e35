"""Scores are those computed by hand."""

import logging

import numpy as np
import pytest

from tasks import glue
from tasks.glue.metrics import WITHOUT_WNLI

# Reference, FP32 row of table 1: final scores in percent, and their mean.
PAPER = {
    "cola": 57.27,
    "sst2": 93.12,
    "mrpc": 88.36,
    "stsb": 89.09,
    "qqp": 89.72,
    "mnli": 84.91,
    "qnli": 91.58,
    "rte": 70.40,
}


def test_classification_scores_are_those_counted_by_hand():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    predicted = np.array([1, 1, 0, 0, 0, 1, 0, 0])
    # True positives 2, false positives 1, false negatives 2, true negatives 3.
    assert glue.score("rte", predicted, labels) == {"accuracy": 5 / 8}
    f1 = 2 * 2 / (2 * 2 + 1 + 2)
    assert glue.score("mrpc", predicted, labels) == pytest.approx(
        {"accuracy": 5 / 8, "f1": f1, "combined_score": (5 / 8 + f1) / 2}
    )
    assert glue.score("qqp", predicted, labels) == glue.score("mrpc", predicted, labels)
    matthews = (2 * 3 - 1 * 2) / np.sqrt((2 + 1) * (2 + 2) * (3 + 1) * (3 + 2))
    assert glue.score("cola", predicted, labels) == pytest.approx(
        {"matthews_correlation": matthews}
    )


def test_three_classes_are_scored_by_their_number():
    assert glue.score("mnli", np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])) == {"accuracy": 0.5}


def test_correlations_are_those_of_their_formulas():
    labels = np.array([0.0, 1.0, 2.5, 5.0], np.float32)
    predicted = np.array([0.2, 0.1, 3.0, 3.5], np.float32)
    x, y = labels - labels.mean(), predicted - predicted.mean()
    pearson = (x @ y) / np.sqrt((x @ x) * (y @ y))
    # Ranks 1 2 3 4 against 2 1 3 4: squared differences 1 + 1.
    spearman = 1 - 6 * 2 / (4 * (4**2 - 1))
    found = glue.score("stsb", predicted, labels)
    assert found == pytest.approx(
        {"pearson": pearson, "spearmanr": spearman, "combined_score": (pearson + spearman) / 2}
    )


def test_ties_share_their_rank():
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2.
    found = glue.score("stsb", np.array([1.0, 1.0, 2.0]), np.array([0.0, 1.0, 4.0]))
    assert found["spearmanr"] == pytest.approx(1.5 / np.sqrt(1.5 * 2))


@pytest.mark.parametrize("constant", ["predictions", "labels"])
def test_a_constant_regression_scores_0_with_a_warning(caplog, constant):
    values = [np.full(5, 2.5, np.float32), np.arange(5, dtype=np.float32)]
    with caplog.at_level(logging.WARNING):
        found = glue.score("stsb", *(values if constant == "predictions" else values[::-1]))
    assert found == {"pearson": 0, "spearmanr": 0, "combined_score": 0}
    assert [f"all 5 {constant} are 2.5" in record.getMessage() for record in caplog.records] == [
        True,
        True,
    ]


def test_one_class_predicted_throughout_scores_0(recwarn):
    labels = np.array([1, 0, 1, 1])
    assert glue.score("cola", np.ones(4, int), labels) == {"matthews_correlation": 0}
    assert glue.score("mrpc", np.zeros(4, int), labels) == {
        "accuracy": 0.25,
        "f1": 0,
        "combined_score": 0.125,
    }
    assert not recwarn.list


def test_predictions_are_the_largest_logit_or_the_value():
    logits = np.array([[0.1, 0.3, -1.0], [2.0, 1.0, 1.5]], np.float32)
    assert glue.predictions("mnli", logits).tolist() == [1, 0]
    values = np.array([[6.5], [-0.5]], np.float32)
    assert (
        glue.predictions("stsb", values).tolist()
        == glue.predictions("stsb", values[:, 0]).tolist()
        == [6.5, -0.5]
    )
    assert glue.clamp_similarity(glue.predictions("stsb", values)).tolist() == [5.0, 0.0]


def test_the_final_score_is_the_tasks_own_metric_and_the_mean_of_both_parts_of_mnli():
    assert (
        glue.final_score(
            "mrpc", {"validation": {"accuracy": 0.8, "f1": 0.9, "combined_score": 0.85}}
        )
        == 0.85
    )
    assert glue.final_score("cola", {"validation": {"matthews_correlation": -0.1}}) == -0.1
    parts = {"validation_matched": {"accuracy": 0.84}, "validation_mismatched": {"accuracy": 0.85}}
    assert glue.final_score("mnli", parts) == pytest.approx(0.845)
    assert glue.final_score("mnli", {"validation_matched": {"accuracy": 0.84}}) == 0.84


def test_final_metrics_are_the_references():
    combined = {"mrpc", "stsb", "qqp"}
    assert {name: task.final_metric for name, task in glue.TASKS.items()} == {
        name: (
            "matthews_correlation"
            if name == "cola"
            else "combined_score"
            if name in combined
            else "accuracy"
        )
        for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    }
    assert [task.num_labels for task in glue.TASKS.values()] == [2, 2, 2, 1, 2, 3, 2, 2, 2]


def test_averages_are_the_papers():
    assert set(WITHOUT_WNLI) == set(PAPER)
    assert glue.averages(PAPER) == {"glue": pytest.approx(83.05625)}
    assert glue.averages(PAPER | {"wnli": 56.34}) == {
        "glue": pytest.approx(83.05625),
        "glue_with_wnli": pytest.approx((8 * 83.05625 + 56.34) / 9),
    }
    assert glue.averages({"cola": 0.5, "wnli": 0.5}) == {}


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match=r"rte: \(2,\) predictions for \(3,\) labels"):
        glue.score("rte", np.array([0, 1]), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match=r"rte: \(0,\) predictions"):
        glue.score("rte", np.array([]), np.array([]))
    with pytest.raises(ValueError, match="stsb: predictions or labels are NaN"):
        glue.score("stsb", np.array([0.0, np.nan]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"logits of 1 of 2 rows are NaN or infinite \(first: 1\)"):
        glue.predictions("rte", np.array([[0, 1], [np.inf, 1]]))
    with pytest.raises(ValueError, match=r"mnli: logits have shape \(2, 2\), expected \[rows, 3\]"):
        glue.predictions("mnli", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="rte: scores of validation_matched, expected validation"):
        glue.final_score("rte", {"validation_matched": {"accuracy": 1.0}})

"""Rows of the public loaders give the same examples as local files."""

import numpy as np
import pytest

from tasks import glue, tfds_builder


def prepare_for_tfds(directory, task, splits):
    """Write prepared TFDS data the way TFDS itself would, without its network."""
    tfds = pytest.importorskip("tensorflow_datasets")
    task = glue.TASKS[task]
    features = {field: tfds.features.Text() for field in task.fields}
    # TFDS hides labels of test splits as -1, which its own class of labels takes as "no label".
    features["label"] = (
        np.float32 if task.regression else tfds.features.ClassLabel(names=task.labels)
    )
    features["idx"] = np.int32
    target = directory / "glue" / task.name / "2.0.0"
    target.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="glue",
        config_name=task.name,
        version="2.0.0",
        data_dir=str(target),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(ds_info=info, max_examples_per_shard=100)
    writer.initialize_splits(list(splits))
    writer.add_examples(
        {name: [row | {"idx": n} for n, row in enumerate(rows)] for name, rows in splits.items()}
    )
    writer.close_all()


def test_tfds_gives_texts_and_class_numbers(tmp_path):
    prepare_for_tfds(
        tmp_path,
        "mnli",
        {
            "train": [
                {"premise": "Für alle.", "hypothesis": "Für viele.", "label": "contradiction"}
            ],
            "validation_mismatched": [
                {"premise": "a", "hypothesis": "b", "label": n} for n in (0, 1, 2)
            ],
            "test_matched": [{"premise": "a", "hypothesis": "b", "label": -1}],
        },
    )
    train = glue.from_tfds("mnli", "train", tmp_path)
    assert (train.firsts, train.seconds, train.labels.tolist()) == (
        ["Für alle."],
        ["Für viele."],
        [2],
    )
    assert glue.from_tfds("mnli", "validation_mismatched", tmp_path).labels.tolist() == [0, 1, 2]
    assert glue.from_tfds("mnli", "test_matched", tmp_path).labels is None
    with pytest.raises(ValueError, match="nonsense"):
        glue.from_tfds("mnli", "nonsense", tmp_path)


def test_tfds_gives_the_values_of_a_regression(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": value} for value in (0.0, 3.8, 5.0)]
    prepare_for_tfds(tmp_path, "stsb", {"validation": rows})
    found = glue.from_tfds("stsb", "validation", tmp_path)
    assert found.labels.dtype == np.float32 and found.labels.tolist() == pytest.approx(
        [0.0, 3.8, 5.0]
    )


def test_tfds_without_data_and_network_says_what_to_do(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def offline(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds_builder, "unreachable", lambda address: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        FileNotFoundError, match="glue/rte is not prepared in .*no route to host.*RTE/train.tsv"
    ):
        glue.from_tfds("rte", "train", tmp_path)


def test_rows_may_have_names_or_numbers_as_labels():
    rows = [
        {"question": "When?", "sentence": "In 1889.", "label": label}
        for label in (0, "not_entailment", b"entailment", np.int64(1))
    ]
    assert glue.from_rows("qnli", rows).labels.tolist() == [0, 1, 0, 1]


def test_labels_are_unknown_where_all_are_missing():
    for hidden in ({}, {"label": -1}, {"label": None}):
        assert glue.from_rows("cola", [{"sentence": "one", **hidden}] * 2).labels is None


def test_the_first_rows_can_be_taken():
    examples = glue.from_rows(
        "qqp", [{"question1": str(n), "question2": f"{n}?", "label": n % 2} for n in range(5)]
    )
    head = examples.head(3)
    assert (head.firsts, head.seconds, head.labels.tolist()) == (
        ["0", "1", "2"],
        ["0?", "1?", "2?"],
        [0, 1, 0],
    )
    assert len(examples.head(9)) == 5
    with pytest.raises(ValueError, match="count is 0"):
        examples.head(0)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "rows: no row in it"),
        (
            [{"sentence": "one", "label": 0}, {"text": "two", "label": 0}],
            r"row 1: no field 'sentence' \(found 'text', 'label'\)",
        ),
        ([{"sentence": "one", "label": 2}], "row 0: label '2' of cola"),
        (
            [{"sentence": "one", "label": 0}, {"sentence": "two"}],
            "row 1: some rows have a label and others have none",
        ),
        (
            [{"sentence": "one"}, {"sentence": "two", "label": 0}],
            "row 1: some rows have a label and others have none",
        ),
        ([{"sentence": b"\xff", "label": 0}], "row 0: not UTF-8"),
    ],
)
def test_malformed_rows_are_refused_with_their_number(rows, message):
    with pytest.raises(glue.GlueFormatError, match=message):
        glue.from_rows("cola", rows)

"""Reading SQuAD: what is accepted, what is skipped, and how bad files are reported."""

import copy
import json
import logging

import numpy as np
import pytest

from squad_evaluate import evaluate
from tasks import tfds_builder
from tasks.squad import Answer, SquadFormatError, from_tfds, read_squad, to_dataset

CONTEXT = "The tower was built in 1889. It stands in  Paris."


def dataset():
    questions = [
        {"id": "a", "question": "When?", "answers": [{"text": "1889", "answer_start": 23}]},
        {"id": "b", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 43}]},
    ]
    return {
        "version": "1.1",
        "data": [{"title": "Tower", "paragraphs": [{"context": CONTEXT, "qas": questions}]}],
    }


@pytest.fixture
def save(tmp_path):
    def write(value):
        path = tmp_path / "squad.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def questions_of(data):
    return data["data"][0]["paragraphs"][0]["qas"]


def test_questions_come_in_file_order_with_their_answers(save):
    first, second = read_squad(save(dataset()), training=True)
    assert (first.id, first.question, first.context) == ("a", "When?", CONTEXT)
    assert first.answers == (Answer("1889", 23),)
    assert second.context[second.answers[0].start : second.answers[0].end] == "Paris"


def test_prediction_needs_no_answers(save):
    data = dataset()
    del questions_of(data)[0]["answers"]
    questions_of(data)[1]["answers"] = []
    assert [example.answers for example in read_squad(save(data), training=False)] == [(), ()]
    with pytest.raises(SquadFormatError, match=r"question 0 \(id a\): key 'answers' is missing"):
        read_squad(save(data), training=True)


def remove(*path):
    def change(data):
        node = data
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


def put(value, *path):
    def change(data):
        node = data
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


QAS = ("data", 0, "paragraphs", 0, "qas")


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("data"), r"key 'data' is missing \(found 'version'\)"),
        (remove("data", 0, "paragraphs"), "article 0: key 'paragraphs' is missing"),
        (
            remove("data", 0, "paragraphs", 0, "context"),
            "article 0, paragraph 0: key 'context' is missing",
        ),
        (remove(*QAS), "article 0, paragraph 0: key 'qas' is missing"),
        (remove(*QAS, 1, "id"), "paragraph 0, question 1: key 'id' is missing"),
        (remove(*QAS, 1, "question"), r"question 1 \(id b\): key 'question' is missing"),
        (
            remove(*QAS, 1, "answers", 0, "text"),
            r"question 1 \(id b\), answer 0: key 'text' is missing",
        ),
        (
            remove(*QAS, 0, "answers", 0, "answer_start"),
            r"question 0 \(id a\), answer 0: key 'answer_start' is missing",
        ),
        (
            put("23", *QAS, 0, "answers", 0, "answer_start"),
            "'answer_start' must be a whole number, found str",
        ),
        (
            put(True, *QAS, 0, "answers", 0, "answer_start"),
            "'answer_start' must be a whole number, found bool",
        ),
        (put(7, *QAS, 0, "id"), "key 'id' must be a string, found int"),
        (put([1], "data"), "article 0: expected an object with key 'paragraphs', found int"),
        (
            put("b", *QAS, 0, "id"),
            r"question 1 \(id b\): key 'id': b is used by an earlier question",
        ),
        (
            put("half \ud800", *QAS, 0, "question"),
            "question 0 .*key 'question' holds half a surrogate pair",
        ),
        (put([], *QAS), "no question in it"),
        (
            put(46, *QAS, 0, "answers", 0, "answer_start"),
            r"\(id a\): answer outside the context: '1889' at answer_start 46",
        ),
        (
            put(-1, *QAS, 0, "answers", 0, "answer_start"),
            "answer outside the context: '1889' at answer_start -1",
        ),
        (
            put(999, *QAS, 0, "answers", 0, "answer_start"),
            "answer outside the context.* of 49 characters",
        ),
    ],
)
def test_malformed_file_is_one_line_with_file_place_and_key(save, change, message):
    data = dataset()
    change(data)
    path = save(data)
    with pytest.raises(SquadFormatError, match=message) as caught:
        read_squad(path, training=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_answer_outside_the_context_is_refused_for_prediction_too(save):
    data = dataset()
    questions_of(data)[0]["answers"].append({"text": "1889", "answer_start": 48})
    with pytest.raises(SquadFormatError, match="outside the context"):
        read_squad(save(data), training=False)


def test_byte_order_mark_is_allowed(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(dataset()), encoding="utf-8-sig")
    assert len(read_squad(path, training=True)) == 2


@pytest.mark.parametrize("text", ["", "{", '{"data": [', "version 1.1", "[" * 100_000])
def test_text_that_is_not_json_is_said_to_be_so(save, text):
    with pytest.raises(SquadFormatError, match="not a JSON text"):
        read_squad(save(text), training=False)


def test_bytes_that_are_not_utf8_are_said_to_be_so(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"data": "\xe9"}')
    with pytest.raises(SquadFormatError, match="not UTF-8 text"):
        read_squad(path, training=False)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json not found"):
        read_squad(tmp_path / "nowhere.json", training=True)


def test_training_skips_answers_that_are_not_in_place_and_warns_once(save, caplog):
    data = dataset()
    questions_of(data)[0]["answers"][0]["answer_start"] = 20
    with caplog.at_level(logging.WARNING):
        assert [example.id for example in read_squad(save(data), training=True)] == ["b"]
    assert (
        len(caplog.records) == 1
        and "skipped 1 of 2 questions" in caplog.text
        and "id a" in caplog.text
    )
    assert len(read_squad(save(data), training=False)) == 2


def test_training_accepts_answers_that_differ_in_white_space(save):
    data = dataset()
    questions_of(data)[1]["answers"] = [{"text": "in\u202fParis", "answer_start": 39}]
    data["data"][0]["paragraphs"][0]["context"] = CONTEXT.replace("in  Paris", "in\nParis")
    examples = read_squad(save(data), training=True)
    assert [example.id for example in examples] == ["a", "b"]


def test_training_with_no_usable_answer_is_an_error(save):
    data = dataset()
    for question in questions_of(data):
        question["answers"][0]["answer_start"] = 1
    with pytest.raises(SquadFormatError, match="no answer is found at its answer_start"):
        read_squad(save(data), training=True)


def version_2():
    data = dataset()
    data["version"] = "v2.0"
    questions_of(data)[0]["is_impossible"] = False
    questions_of(data)[1] |= {"is_impossible": True, "answers": []}
    return data


def test_squad_2_keeps_impossible_questions_without_answers(save):
    possible, impossible = read_squad(save(version_2()), training=True, version_2=True)
    assert not possible.impossible and possible.answers
    assert impossible.impossible and impossible.answers == ()


def test_squad_2_file_read_as_squad_1_says_which_flag_helps(save):
    with pytest.raises(SquadFormatError, match="id b.*--version_2_with_negative"):
        read_squad(save(version_2()), training=True)


@pytest.mark.parametrize("data, version", [(dataset(), "1.1"), (version_2(), "v2.0")])
def test_to_dataset_scores_like_the_file(save, data, version):
    examples = read_squad(save(data), training=False, version_2=version != "1.1")
    predictions = {"a": "in 1889", "b": "Paris"}
    assert evaluate(to_dataset(examples, version=version), predictions) == evaluate(
        data, predictions
    )


def prepare_for_tfds(directory, config, rows):
    """Write prepared TFDS data the way TFDS itself would, without its network."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text
    features = {"id": np.str_, "title": text(), "context": text(), "question": text()}
    features["answers"] = tfds.features.Sequence({"text": text(), "answer_start": np.int32})
    if config == "v2.0":
        features["is_impossible"] = np.bool_
    target = directory / "squad" / config / "3.0.0"
    target.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="squad",
        config_name=config,
        version="3.0.0",
        data_dir=str(target),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(ds_info=info, max_examples_per_shard=100)
    writer.initialize_splits(list(rows))
    writer.add_examples(rows)
    writer.close_all()


def row(identifier, answers, **more):
    answers = {
        "text": [text for text, _ in answers],
        "answer_start": [start for _, start in answers],
    }
    return {
        "id": identifier,
        "title": "",
        "context": "Über den Fluss",
        "question": "Wo?",
        "answers": answers,
        **more,
    }


def test_tfds_plain_text_gives_the_same_questions_as_json(tmp_path):
    prepare_for_tfds(
        tmp_path,
        "plain_text",
        {
            "train": [row("a", [("Fluss", 9)])],
            "validation": [row("b", [("Fluss", 9), ("den Fluss", 5)])],
        },
    )
    (train,) = from_tfds("train", tmp_path)
    assert (train.id, train.context, train.answers) == (
        "a",
        "Über den Fluss",
        (Answer("Fluss", 9),),
    )
    (dev,) = from_tfds("validation", tmp_path)
    assert dev.answers == (Answer("Fluss", 9), Answer("den Fluss", 5))
    with pytest.raises(ValueError, match="nonsense"):
        from_tfds("nonsense", tmp_path)


def test_tfds_squad_2_marks_impossible_questions(tmp_path):
    rows = [row("a", [("Fluss", 9)], is_impossible=False), row("b", [], is_impossible=True)]
    prepare_for_tfds(tmp_path, "v2.0", {"train": rows})
    assert [example.impossible for example in from_tfds("train", tmp_path, version_2=True)] == [
        False,
        True,
    ]


def test_tfds_without_data_and_network_says_what_to_do(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def offline(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds_builder, "unreachable", lambda address: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        FileNotFoundError, match="squad/plain_text or squad/v1.1.*no route to host.*JSON file"
    ):
        from_tfds("train", tmp_path)


def test_the_data_given_is_not_changed_by_reading(save):
    data = dataset()
    before = copy.deepcopy(data)
    read_squad(save(data), training=True)
    assert data == before


@pytest.mark.needs_shared
def test_real_files_are_read_completely(shared_dir, caplog):
    train = read_squad(shared_dir / "data/squad/train-v1.1-subset.json", training=True)
    dev = read_squad(shared_dir / "data/squad/dev-v1.1-part.json", training=False)
    assert (len(train), len(dev)) == (11877, 4961)
    assert not caplog.records

"""The generated data set is well formed, reproducible, and cannot be answered without reading."""

import collections
import dataclasses
import json
import os

import pytest

import modeling
from squad_evaluate import evaluate
from tasks.squad import Tokenizer, convert, read_squad, synthetic


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return synthetic.write_dataset(
        tmp_path_factory.mktemp("synthetic"), train_questions=301, dev_questions=100
    )


@pytest.fixture(scope="module")
def train(files):
    return read_squad(files.train_file, training=True)


def test_every_question_has_its_answer_in_place(files, train):
    assert len(train) == 301 and len(read_squad(files.dev_file, training=True)) == 100
    for example in train:
        (answer,) = example.answers
        assert example.context[answer.start : answer.end] == answer.text


def test_the_truth_scores_a_hundred(files, train):
    with open(files.train_file, encoding="utf-8") as file:
        data = json.load(file)
    truth = {example.id: example.answers[0].text for example in train}
    assert evaluate(data, truth) == {"exact_match": 100.0, "f1": 100.0}


def test_same_seed_gives_the_same_files_and_another_seed_does_not(tmp_path):
    def content(name, seed):
        files = synthetic.write_dataset(
            tmp_path / name, train_questions=20, dev_questions=10, seed=seed
        )
        return [open(path, encoding="utf-8").read() for path in dataclasses.astuple(files)]

    first, again, other = content("a", 5), content("b", 5), content("c", 6)
    assert first == again
    assert first[:2] != other[:2] and first[2:] == other[2:]


def test_train_and_dev_share_no_paragraph(files, train):
    dev = read_squad(files.dev_file, training=False)
    assert not {example.context for example in train} & {example.context for example in dev}


def test_vocabulary_spells_everything_with_some_words_in_pieces(files, train):
    tokenizer = Tokenizer(files.vocab_file)
    texts = [text for example in train for text in (example.context, example.question)]
    found = collections.Counter(
        index for pieces in tokenizer.encode(texts) for index in pieces.ids.tolist()
    )
    assert tokenizer.unk_id not in found
    assert any(piece.startswith("##") for piece in tokenizer.decode_ids(list(found)))
    # Plain text beyond the data set can be spelled too, letter by letter.
    (other,) = tokenizer.encode(["A zebra, 42!"])
    assert tokenizer.unk_id not in other.ids
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} <= set(tokenizer.vocab)


def test_windows_are_short_and_answers_of_several_pieces_occur(files, train):
    features = convert(train, Tokenizer(files.vocab_file), training=True, progress=False)
    assert len(features) == len(train) and features.lengths.max() <= 96
    sizes = features.end_positions - features.start_positions + 1
    assert (features.start_positions > 0).all() and set(sizes) >= {1, 2}


def test_each_choice_names_one_value_of_the_paragraph_among_three_of_its_kind(train):
    choices = 0
    for example in train:
        (relation,) = (r for r in synthetic.RELATIONS if example.answers[0].text in r.values)
        offered = [value for value in relation.values if value in example.question]
        told = [value for value in relation.values if value in example.context]
        if offered:
            choices += 1
            assert len(offered) == 2 and len(told) == 3
            assert set(offered) & set(told) == {example.answers[0].text}
        else:
            assert told == [example.answers[0].text]
    assert choices > len(train) / 3


def test_squad_2_has_about_a_third_of_impossible_questions(tmp_path):
    files = synthetic.write_dataset(tmp_path, train_questions=300, dev_questions=30, version_2=True)
    examples = read_squad(files.train_file, training=True, version_2=True)
    impossible = [example for example in examples if example.impossible]
    assert 0.2 < len(impossible) / len(examples) < 0.47
    for example in impossible:
        offered = [
            v for relation in synthetic.RELATIONS for v in relation.values if v in example.question
        ]
        assert not any(value in example.context for value in offered)
    with open(files.train_file, encoding="utf-8") as file:
        data = json.load(file)
    assert data["version"] == "v2.0"
    truth = {
        example.id: "" if example.impossible else example.answers[0].text for example in examples
    }
    assert evaluate(data, truth)["NoAns_f1"] == evaluate(data, truth)["f1"] == 100.0


def test_the_configuration_fits_the_vocabulary_and_loads(files):
    config = modeling.BertConfig.from_json_file(files.config_file)
    assert config.vocab_size == len(Tokenizer(files.vocab_file))
    assert config.max_position_embeddings >= 384


def test_bad_sizes_and_places_are_refused(tmp_path):
    with pytest.raises(ValueError, match="questions is 0"):
        synthetic.write_dataset(tmp_path, train_questions=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*train.json"):
        synthetic.write_dataset(tmp_path / "file", train_questions=2, dev_questions=2)
    assert os.listdir(tmp_path) == ["file"]

"""The generated data is read back by every task's reader, is reproducible, and cannot be solved
word by word.
"""

import os

import numpy as np
import pytest
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

import modeling
from tasks import glue
from tasks.glue import synthetic

SPLITS = [(task, split) for task in glue.TASKS for split in glue.TASKS[task].splits]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return synthetic.write_dataset(
        tmp_path_factory.mktemp("synthetic"), train_rows=1500, dev_rows=300
    )


@pytest.mark.parametrize("task, split", SPLITS)
def test_every_split_of_every_task_is_read_back(files, task, split):
    found = glue.read(task, files.data_dir, split)
    number = glue.TASKS[task].splits.index(split)
    rows = synthetic.make_rows(task, 1500 if split == "train" else 300, seed=number)
    assert list(zip(found.firsts, found.seconds or found.firsts, strict=True)) == [
        (texts[0], texts[-1]) for texts, _ in rows
    ]
    if split in glue.TASKS[task].test_splits:
        assert found.labels is None
    else:
        assert found.labels.tolist() == [label for _, label in rows]


@pytest.mark.parametrize("task", glue.TASKS)
def test_labels_are_balanced(files, task):
    labels = glue.read(task, files.data_dir, "train").labels
    counts = np.bincount(labels.astype(int))
    assert len(counts) == (6 if task == "stsb" else glue.TASKS[task].num_labels)
    assert counts.min() > 0.8 * len(labels) / len(counts)


def test_the_vocabulary_spells_everything_and_fits_the_configuration(files):
    tokenizer = glue.load_tokenizer(files.vocab_file)
    config = modeling.BertConfig.from_json_file(files.config_file)
    assert config.vocab_size == len(tokenizer)
    for task in glue.TASKS:
        features = glue.convert(glue.read(task, files.data_dir, "train"), tokenizer, progress=False)
        assert tokenizer.unk_id not in features.input_ids
        assert features.lengths.max() <= 48


def test_same_seed_gives_the_same_files_and_another_seed_does_not(tmp_path):
    def content(name, seed):
        files = synthetic.write_dataset(tmp_path / name, train_rows=20, dev_rows=10, seed=seed)
        paths = [
            os.path.join(folder, file)
            for folder, _, names in sorted(os.walk(files.data_dir))
            for file in sorted(names)
        ]
        return [open(path, encoding="utf-8").read() for path in paths]

    first, again, other = content("a", 5), content("b", 5), content("c", 6)
    assert len(first) == len(SPLITS) and first == again
    assert not any(ours == theirs for ours, theirs in zip(first, other, strict=True))


@pytest.mark.parametrize("task", [name for name in glue.TASKS if name != "stsb"])
def test_no_class_can_be_told_from_words_alone(files, task):
    parts = [
        glue.read(task, files.data_dir, split)
        for split in ("train", glue.TASKS[task].eval_splits[0])
    ]
    train, dev = bags_of_words(*parts)
    accuracy = (
        LogisticRegression(C=0.1, max_iter=500)
        .fit(train, parts[0].labels)
        .score(dev, parts[1].labels)
    )
    assert accuracy < 1.25 / glue.TASKS[task].num_labels


def test_no_similarity_can_be_told_from_words_alone(files):
    parts = [glue.read("stsb", files.data_dir, split) for split in ("train", "validation")]
    train, dev = bags_of_words(*parts)
    predicted = Ridge(10).fit(train, parts[0].labels).predict(dev)
    assert abs(stats.pearsonr(predicted, parts[1].labels).statistic) < 0.25


def bags_of_words(train, dev):
    """Count the words of each text, those of the second apart from those of the first."""
    blocks = []
    for column in ("firsts", "seconds")[: 1 if train.seconds is None else 2]:
        counter = CountVectorizer(token_pattern=r"\w+").fit(getattr(train, column))
        blocks.append([counter.transform(getattr(part, column)).toarray() for part in (train, dev)])
    return [np.concatenate(bags, axis=1) for bags in zip(*blocks, strict=True)]


def test_bad_sizes_and_places_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the number of rows of cola is 0"):
        synthetic.write_dataset(tmp_path, train_rows=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*CoLA.train.tsv"):
        synthetic.write_dataset(tmp_path / "file", train_rows=2, dev_rows=2)
    assert os.listdir(tmp_path) == ["file"]

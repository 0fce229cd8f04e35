"""Files of all nine tasks are read as they are in circulation, and what is malformed is named with
its line.
"""

import logging

import numpy as np
import pytest

from tasks import glue

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label\n"
)
MNLI_DEV = MNLI.replace("label1\t", "label1\tlabel2\tlabel3\tlabel4\tlabel5\t")
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"

# Task, split, file, content in the real format, first texts, second texts, labels.
FILES = [
    (
        "cola",
        "train",
        "CoLA/train.tsv",
        'gj04\t1\t\tIt\'s "one".\ngj04\t0\t*\tThey drank the pub.\n',
        ['It\'s "one".', "They drank the pub."],
        None,
        [1, 0],
    ),
    (
        "cola",
        "test",
        "CoLA/test.tsv",
        "index\tsentence\n0\tBill whistled.\n",
        ["Bill whistled."],
        None,
        None,
    ),
    (
        "sst2",
        "train",
        "SST-2/train.tsv",
        'sentence\tlabel\nhide new secretions \t0\n" good \t1\n',
        ["hide new secretions ", '" good '],
        None,
        [0, 1],
    ),
    (
        "mrpc",
        "validation",
        "MRPC/dev.tsv",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t13\t14\t" He said .\tHe .\n',
        ['" He said .'],
        ["He ."],
        [1],
    ),
    (
        "stsb",
        "train",
        "STS-B/train.tsv",
        STSB + "0\tmain\tMSRvid\t2012\t0001\tnone\tnone\tA plane.\tAn air plane.\t3.800\n",
        ["A plane."],
        ["An air plane."],
        [3.8],
    ),
    (
        "qqp",
        "train",
        "QQP/train.tsv",
        QQP + "133273\t213221\t213222\tHow is life?\tWhat is it?\t0\n1\t2\t3\tWhy?\tWhy?\t1\n",
        ["How is life?", "Why?"],
        ["What is it?", "Why?"],
        [0, 1],
    ),
    (
        "mnli",
        "train",
        "MNLI/train.tsv",
        MNLI
        + "0\t3\t3n\tgov\t( a )\t( b )\t(R a)\t(R b)\tCream skims.\tIt sinks.\tneutral\tneutral\n",
        ["Cream skims."],
        ["It sinks."],
        [1],
    ),
    (
        "mnli",
        "validation_matched",
        "MNLI/dev_matched.tsv",
        MNLI_DEV
        + "0\t3\t3n\tf\t(a)\t(b)\t(R a)\t(R b)\tOh no.\tYes.\tneutral\te\tc\tc\tc\tcontradiction\n",
        ["Oh no."],
        ["Yes."],
        [2],
    ),
    (
        "mnli",
        "validation_mismatched",
        "MNLI/dev_mismatched.tsv",
        MNLI_DEV
        + "0\t3\t3n\tf\t(a)\t(b)\t(R a)\t(R b)\tOh.\tOh!\tneutral\te\te\te\te\tentailment\n",
        ["Oh."],
        ["Oh!"],
        [0],
    ),
    (
        "qnli",
        "validation",
        "QNLI/dev.tsv",
        (
            "index\tquestion\tsentence\tlabel\n0\tWhen?\tIn 1889.\tentailment\n1\tWho?\tIt"
            " rained.\tnot_entailment\n"
        ),
        ["When?", "Who?"],
        ["In 1889.", "It rained."],
        [0, 1],
    ),
    (
        "rte",
        "train",
        "RTE/train.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tNo arms.\tArms.\tnot_entailment\n",
        ["No arms."],
        ["Arms."],
        [1],
    ),
    (
        "rte",
        "test",
        "RTE/test.tsv",
        "index\tsentence1\tsentence2\n0\tNo arms.\tArms.\n",
        ["No arms."],
        ["Arms."],
        None,
    ),
    (
        "wnli",
        "train",
        "WNLI/train.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tI stuck a pin.\tThe pin hurt.\t1\n",
        ["I stuck a pin."],
        ["The pin hurt."],
        [1],
    ),
]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "task, split, name, content, firsts, seconds, labels", FILES, ids=[row[2] for row in FILES]
)
def test_each_file_is_read_with_either_line_ending(
    save, task, split, name, content, firsts, seconds, labels, ending
):
    found = glue.read(task, save(name, content.replace("\n", ending)), split)
    assert (found.firsts, found.seconds) == (firsts, seconds)
    if labels is None:
        assert found.labels is None
    else:
        np.testing.assert_array_equal(found.labels, np.asarray(labels, found.labels.dtype))
        assert found.labels.dtype == (np.float32 if task == "stsb" else np.int32)


def test_a_file_may_lack_its_last_line_end_and_have_empty_lines_behind(save):
    assert (
        len(
            glue.read(
                "sst2", save("SST-2/dev.tsv", "sentence\tlabel\none\t1\ntwo\t0"), "validation"
            )
        )
        == 2
    )
    assert (
        len(
            glue.read(
                "sst2",
                save("SST-2/dev.tsv", "sentence\tlabel\none\t1\ntwo\t0\n\r\n\n"),
                "validation",
            )
        )
        == 2
    )


def test_texts_keep_characters_that_other_readers_cut_lines_at(save):
    text = "one\u2028two\x0bthree\x85four"
    (found,) = glue.read("cola", save("CoLA/dev.tsv", f"x\t1\t\t{text}\n"), "validation").firsts
    assert found == text


@pytest.mark.parametrize("folder", ["CoLA", "cola", "COLA", "."])
def test_folders_are_found_in_any_case_and_may_be_given_themselves(save, folder):
    assert glue.read("cola", save(f"{folder}/dev.tsv", "x\t1\t\tone\n"), "validation").firsts == [
        "one"
    ]


@pytest.mark.parametrize("folder", ["sst-2", "sst2", "SST_2"])
def test_folders_are_found_with_any_punctuation(save, folder):
    assert (
        len(glue.read("sst2", save(f"{folder}/train.tsv", "sentence\tlabel\none\t1\n"), "train"))
        == 1
    )


@pytest.mark.parametrize(
    "task, name, content, seconds, label",
    [
        ("cola", "CoLA/validation.tsv", "sentence\tlabel\tidx\nno\t1\t0\n", None, 1),
        ("mrpc", "MRPC/dev.tsv", "idx\tlabel\tsentence1\tsentence2\n0\t1\tno\tyes\n", ["yes"], 1),
        (
            "stsb",
            "STS-B/dev.tsv",
            "sentence1\tsentence2\tlabel\tidx\nno\tyes\t2.5\t0\n",
            ["yes"],
            2.5,
        ),
        ("rte", "RTE/dev.tsv", "sentence1\tsentence2\tlabel\tidx\nno\tyes\t1\t0\n", ["yes"], 1),
    ],
)
def test_columns_may_have_the_names_of_the_public_loaders(
    save, task, name, content, seconds, label
):
    found = glue.read(task, save(name, content), "validation")
    assert (found.firsts, found.seconds, found.labels.tolist()) == (["no"], seconds, [label])


def test_broken_lines_of_qqp_are_left_out_with_a_count(save, caplog):
    content = QQP + "1\t2\t3\tWhy?\tHow?\t1\n2\t3\t4\tWhat is\nthis?\tIt?\t0\n3\t4\t5\tWho?\t\t0\n"
    with caplog.at_level(logging.WARNING):
        found = glue.read("qqp", save("QQP/dev.tsv", content), "validation")
    assert (found.firsts, found.seconds, found.labels.tolist()) == (
        ["Why?", "Who?"],
        ["How?", ""],
        [1, 0],
    )
    (record,) = caplog.records
    assert "skipped 2 of 4 lines" in record.getMessage() and "line 3" in record.getMessage()


MALFORMED = [
    (
        "cola",
        "CoLA/dev.tsv",
        "x\t1\t\tone\nx\t1\tone\n",
        r"CoLA/dev.tsv: line 2: 3 columns where 4 are expected",
    ),
    ("cola", "CoLA/dev.tsv", "x\t1\t\tone\n\nx\t1\t\tone\n", r"CoLA/dev.tsv: line 2: 1 columns"),
    (
        "cola",
        "CoLA/dev.tsv",
        "x\t2\t\tone\n",
        r"line 1: label '2' of cola is none of 0 or unacceptable, 1 or acceptable",
    ),
    ("cola", "CoLA/dev.tsv", "x\t1\t\t \n", r"line 1: no text in sentence"),
    (
        "sst2",
        "SST-2/dev.tsv",
        "text\tlabel\none\t1\n",
        r"line 1: no column 'sentence' \(found 'text', 'label'\)",
    ),
    ("sst2", "SST-2/dev.tsv", "sentence\tlabel\none\tgood\n", r"line 2: label 'good' of sst2"),
    ("sst2", "SST-2/dev.tsv", "sentence\tlabel\none\t-1\n", r"line 2: label '-1' of sst2"),
    ("sst2", "SST-2/dev.tsv", "sentence\tlabel\n", r"SST-2/dev.tsv: no row in it"),
    ("sst2", "SST-2/dev.tsv", "", r"SST-2/dev.tsv: the file is empty"),
    (
        "sst2",
        "SST-2/dev.tsv",
        b"sentence\tlabel\none\t1\ncaf\xe9\t1\n",
        r"SST-2/dev.tsv: line 3: not UTF-8 text",
    ),
    (
        "stsb",
        "STS-B/dev.tsv",
        "sentence1\tsentence2\tscore\none\ttwo\t5.1\n",
        r"line 2: label '5.1' .* from 0 to 5",
    ),
    (
        "stsb",
        "STS-B/dev.tsv",
        "sentence1\tsentence2\tscore\none\ttwo\tnan\n",
        r"line 2: label 'nan'",
    ),
    ("stsb", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\none\ttwo\t\n", r"line 2: label ''"),
    (
        "qqp",
        "QQP/dev.tsv",
        QQP + "1\t2\t3\tWhy?\tHow?\tx\t1\n",
        r"line 2: 7 columns where 6 are expected",
    ),
    ("qqp", "QQP/dev.tsv", QQP + "1\t2\t3\tWhy?\n", r"QQP/dev.tsv: no row in it"),
    (
        "rte",
        "RTE/dev.tsv",
        "index\tsentence1\tsentence2\n0\tone\ttwo\n",
        r"line 1: no column 'label' \(found",
    ),
]


@pytest.mark.parametrize("task, name, content, message", MALFORMED)
def test_malformed_files_are_refused_with_file_and_line(save, task, name, content, message):
    with pytest.raises(glue.GlueFormatError, match=message) as caught:
        glue.read(task, save(name, content), "validation")
    assert "\n" not in str(caught.value)


def test_missing_files_say_where_they_were_looked_for_and_how_to_get_them(save, tmp_path):
    with pytest.raises(FileNotFoundError, match="GLUE data folder .*nowhere cannot be read"):
        glue.read("cola", tmp_path / "nowhere", "train")
    folder = save("CoLA/train.tsv", "x\t1\t\tone\n")
    with pytest.raises(
        FileNotFoundError,
        match=r"no dev.tsv or validation.tsv of cola in .*CoLA or .*; unpack CoLA.zip",
    ):
        glue.read("cola", folder, "validation")
    with pytest.raises(
        FileNotFoundError, match=r"no train.tsv of rte in .*; unpack RTE.zip .* TensorFlow Datasets"
    ):
        glue.read("rte", folder, "train")


def test_the_folder_of_another_task_is_not_taken_for_that_of_the_task(save):
    folder = (
        save(
            "RTE/train.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\tNo arms.\tArms.\tnot_entailment\n",
        )
        / "RTE"
    )
    assert len(glue.read("rte", folder, "train")) == 1
    with pytest.raises(FileNotFoundError, match="no train.tsv of wnli in .*RTE; unpack WNLI.zip"):
        glue.read("wnli", folder, "train")


def test_unknown_tasks_and_splits_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="no GLUE task 'ax'; there are cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli",
    ):
        glue.read("ax", tmp_path, "train")
    with pytest.raises(
        ValueError, match="mnli has no split 'validation'; it has train, validation_matched"
    ):
        glue.read("mnli", tmp_path, "validation")


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    "task, train, dev",
    [
        ("cola", 8551, 1043),
        ("mrpc", 3667, 408),
        ("rte", 2490, 277),
        ("sst2", 67349, 872),
        ("stsb", 5749, 1500),
    ],
)
def test_real_files_are_read_completely(shared_dir, caplog, task, train, dev):
    folder = shared_dir / "data/glue"
    assert (len(glue.read(task, folder, "train")), len(glue.read(task, folder, "validation"))) == (
        train,
        dev,
    )
    assert not caplog.records

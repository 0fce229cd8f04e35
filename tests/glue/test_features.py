"""Sequences have the special tokens of their architecture and are cut as Hugging Face cuts them."""

import json

import numpy as np
import pytest

from tasks import glue
from tasks.glue.features import ROWS_PER_CALL


def examples(task, rows):
    fields = glue.TASKS[task].fields
    return glue.from_rows(task, [dict(zip(fields, row, strict=True), label=0) for row in rows])


def tokens(tokenizer, task, *texts, length=32):
    features = glue.convert(
        examples(task, [texts]), tokenizer, max_seq_length=length, progress=False
    )
    return tokenizer.decode_ids(features.input_ids), int(features.second_offset[0])


def test_wordpiece_puts_the_second_text_into_the_second_segment(tokenizer):
    assert tokens(tokenizer, "sst2", "The cats") == (["[CLS]", "the", "cat", "##s", "[SEP]"], 5)
    assert tokens(tokenizer, "rte", "The cat sat.", "Yes") == (
        ["[CLS]", "the", "cat", "sat", ".", "[SEP]", "yes", "[SEP]"],
        6,
    )


def test_byte_level_bpe_has_two_separators_and_one_segment(bpe_folder):
    tokenizer = glue.load_tokenizer(bpe_folder)
    assert tokens(tokenizer, "sst2", "low lower") == (["<s>", "low", "Ġlow", "er", "</s>"], 5)
    assert tokens(tokenizer, "rte", "low", "é low") == (
        ["<s>", "low", "</s>", "</s>", "Ã", "©", "Ġlow", "</s>"],
        8,
    )
    # Ids as written into the vocabulary: <s> 0, <pad> 1, </s> 2.
    features = glue.convert(examples("rte", [("low", "er")]), tokenizer, progress=False)
    vocab = json.loads((bpe_folder / "vocab.json").read_text())
    assert features.input_ids.tolist() == [0, vocab["low"], 2, 2, vocab["er"], 2]
    assert features.pad_id == 1


def test_an_empty_text_leaves_its_special_tokens(tokenizer, bpe_folder):
    assert tokens(tokenizer, "qqp", "yes", "") == (["[CLS]", "yes", "[SEP]", "[SEP]"], 3)
    assert tokens(glue.load_tokenizer(bpe_folder), "qqp", "", "low")[0] == [
        "<s>",
        "</s>",
        "</s>",
        "low",
        "</s>",
    ]


def test_special_tokens_written_in_a_text_are_plain_text(tokenizer, bpe_folder):
    assert tokens(tokenizer, "sst2", "no [SEP]")[0].count("[SEP]") == 1
    assert tokens(glue.load_tokenizer(bpe_folder), "sst2", "a<mask>")[0] == [
        "<s>",
        "a",
        *"<mask>",
        "</s>",
    ]


# Pieces of both texts, room for both, what is left of each. By hand: the longer text gives way
# until both are equal, then each gets half, and the odd piece goes to the longer one, at a tie to
# the second.
CUTS = [
    (2, 3, 6, (2, 3)),
    (3, 3, 6, (3, 3)),
    (2, 10, 6, (2, 4)),
    (10, 2, 6, (4, 2)),
    (10, 10, 6, (3, 3)),
    (10, 4, 6, (3, 3)),
    (5, 6, 7, (3, 4)),
    (6, 5, 7, (4, 3)),
    (6, 6, 7, (3, 4)),
    (1, 9, 2, (1, 1)),
    (0, 9, 4, (0, 4)),
]


@pytest.mark.parametrize("first, second, room, left", CUTS)
def test_pairs_are_cut_longest_first(tokenizer, bpe_folder, first, second, room, left):
    found, _ = tokens(tokenizer, "rte", "a " * first, "b " * second, length=room + 3)
    assert (found.count("a"), found.count("b")) == left and len(found) == sum(left) + 3
    found, _ = tokens(
        glue.load_tokenizer(bpe_folder), "rte", "a" * first, "b" * second, length=room + 4
    )
    assert (found.count("a"), found.count("b")) == left and len(found) == sum(left) + 4


def test_single_texts_lose_their_end(tokenizer):
    assert tokens(tokenizer, "sst2", "one two three", length=4)[0] == [
        "[CLS]",
        "one",
        "two",
        "[SEP]",
    ]


def test_too_short_a_length_is_refused(tokenizer):
    with pytest.raises(
        ValueError,
        match="max_seq_length 4 must be at least 5: 3 special tokens and a piece of each text",
    ):
        tokens(tokenizer, "rte", "a", "b", length=4)
    with pytest.raises(
        ValueError,
        match="max_seq_length 2 must be at least 3: 2 special tokens and a piece of the text",
    ):
        tokens(tokenizer, "sst2", "a", length=2)


def test_cutting_pairs_leaves_plain_encoding_alone(tokenizer):
    tokens(tokenizer, "rte", "a a a a", "b", length=5)
    (pieces,) = tokenizer.encode(["a a a a a a a a"])
    assert len(pieces.ids) == 8


def test_rows_keep_their_order_and_labels_over_many_calls(tokenizer):
    words = ("one", "two", "three")
    rows = [
        {"sentence": " ".join([words[n % 3]] * (1 + n % 5)), "label": n % 2}
        for n in range(2 * ROWS_PER_CALL + 7)
    ]
    features = glue.convert(glue.from_rows("sst2", rows), tokenizer, progress=False)
    assert len(features) == len(rows)
    assert features.labels.tolist() == [row["label"] for row in rows]
    for number in (0, 1, ROWS_PER_CALL - 1, ROWS_PER_CALL, 2 * ROWS_PER_CALL + 6):
        expected = ["[CLS]", *rows[number]["sentence"].split(), "[SEP]"]
        assert tokenizer.decode_ids(features.input_ids[features.row(number)]) == expected
    assert features.lengths.tolist() == [3 + n % 5 for n in range(len(rows))]
    assert features.input_ids.dtype == features.second_offset.dtype == np.int32

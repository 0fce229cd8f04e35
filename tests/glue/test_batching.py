"""Batches hold every row once with its label, padded as asked, in an order that seed and epoch
alone decide.
"""

import numpy as np
import pytest

from tasks import glue


@pytest.fixture(scope="module")
def features(tokenizer):
    rng = np.random.default_rng(0)
    rows = [
        {
            "sentence1": " ".join(rng.choice(["one", "two", "three"], rng.integers(1, 30))),
            "sentence2": " ".join(["cat"] * rng.integers(1, 15)),
            "label": number % 6 / 2,
        }
        for number in range(101)
    ]
    return glue.convert(glue.from_rows("stsb", rows), tokenizer, max_seq_length=40, progress=False)


def ids(found):
    return [tuple(batch["unique_ids"]) for batch in found]


def test_arrays_show_their_rows(features, tokenizer):
    for batch in glue.batches(features, 8, training=True):
        assert {name: array.dtype for name, array in batch.items()} == {
            "unique_ids": np.int32,
            "input_ids": np.int32,
            "input_mask": np.int32,
            "segment_ids": np.int32,
            "labels": np.float32,
        }
        for number, row in enumerate(batch["unique_ids"]):
            expected = features.input_ids[features.row(row)]
            length = len(expected)
            assert np.array_equal(batch["input_ids"][number, :length], expected)
            assert (batch["input_ids"][number, length:] == tokenizer.pad_id).all()
            assert (
                batch["input_mask"][number].sum() == length
                and batch["input_mask"][number, :length].all()
            )
            first_sep = int(np.flatnonzero(expected == tokenizer.sep_id)[0])
            segments = batch["segment_ids"][number]
            assert not segments[: first_sep + 1].any() and segments[first_sep + 1 : length].all()
            assert not segments[length:].any()
            assert batch["labels"][number] == row % 6 / 2


def test_byte_level_batches_are_filled_with_the_models_own_pad(bpe_folder):
    rows = [
        {"sentence1": "low", "sentence2": "er", "label": 1},
        {"sentence1": "a", "sentence2": "bcdefgh", "label": 0},
    ]
    features = glue.convert(
        glue.from_rows("rte", rows), glue.load_tokenizer(bpe_folder), progress=False
    )
    (batch,) = glue.batches(features, 2, training=False, bucket_by_length=False)
    assert (
        batch["input_ids"][0, 6:].tolist() == [1] * 6
        and batch["input_mask"][0].tolist() == [1] * 6 + [0] * 6
    )
    assert not batch["segment_ids"].any()
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == np.int32


def test_width_is_that_of_the_longest_row_a_multiple_or_the_maximum(features):
    for batch in glue.batches(features, 8, training=False):
        assert batch["input_ids"].shape[1] == batch["input_mask"].sum(axis=1).max()
    for batch in glue.batches(features, 8, training=False, length_multiple=16):
        longest = batch["input_mask"].sum(axis=1).max()
        assert batch["input_ids"].shape[1] == min(40, -(-longest // 16) * 16)
    widths = {
        batch["input_ids"].shape[1]
        for batch in glue.batches(features, 8, training=True, pad_to_max_length=True)
    }
    assert widths == {40}


def test_evaluation_holds_every_row_once_and_unbucketed_in_order(features):
    found = list(glue.batches(features, 8, training=False))
    assert sorted(np.concatenate([batch["unique_ids"] for batch in found])) == list(range(101))
    found = glue.batches(features, 8, training=False, bucket_by_length=False)
    assert np.concatenate([batch["unique_ids"] for batch in found]).tolist() == list(range(101))
    assert found.rows == 101


def test_order_depends_on_seed_and_epoch_alone(features):
    first = ids(glue.batches(features, 8, training=True, seed=3, epoch=1))
    assert first == ids(glue.batches(features, 8, training=True, seed=3, epoch=1))
    assert first != ids(glue.batches(features, 8, training=True, seed=3, epoch=2))
    assert first != ids(glue.batches(features, 8, training=True, seed=4, epoch=1))


@pytest.mark.parametrize("bucket", [False, True])
def test_two_ranks_see_together_what_one_sees(features, bucket):
    def layout():
        return glue.batches(features, 8, training=True, seed=1, epoch=2, bucket_by_length=bucket)

    one = ids(layout())
    halves = [ids(layout().shard(rank, 2)) for rank in range(2)]
    assert [len(rows) for half in halves for rows in half] == [4] * 2 * len(one)
    together = [
        tuple(row for pair in zip(*rows, strict=True) for row in pair)
        for rows in zip(*halves, strict=True)
    ]
    assert together == one
    dealt = [ids(layout().shard_by_cost(rank, 2)) for rank in range(2)]
    assert dealt[0] == one[0::2] and dealt[1] == one[1::2]


def test_a_pass_continues_from_any_batch(features):
    whole = ids(glue.batches(features, 8, training=True, seed=7))
    assert ids(glue.batches(features, 8, training=True, seed=7, start=5)) == whole[5:]


def test_rows_without_labels_make_batches_for_prediction_only(tokenizer):
    features = glue.convert(
        glue.from_rows("sst2", [{"sentence": "one"}]), tokenizer, progress=False
    )
    (batch,) = glue.batches(features, 4, training=False)
    assert set(batch) == {"unique_ids", "input_ids", "input_mask", "segment_ids"}
    with pytest.raises(ValueError, match="no labels to train on"):
        glue.batches(features, 1, training=True)


def test_bad_arguments_are_refused(features):
    with pytest.raises(ValueError, match="batch_size is 0"):
        glue.batches(features, 0, training=True)
    with pytest.raises(ValueError, match="101 rows do not fill one batch of 500"):
        glue.batches(features, 500, training=True)
    with pytest.raises(ValueError, match="start 99 is outside"):
        glue.batches(features, 8, training=True, start=99)
    with pytest.raises(ValueError, match="length_multiple is 0"):
        glue.batches(features, 8, training=True, length_multiple=0)

"""Batches hold every window once, padded no wider than needed, in an order that seed and epoch
alone decide.
"""

import numpy as np
import pytest

from tasks.batching import padded_length, plan_batches
from tasks.squad import Answer, SquadExample, batches, convert


@pytest.fixture(scope="module")
def features(tokenizer):
    rng = np.random.default_rng(0)
    examples = []
    for number in range(101):
        context = " ".join(rng.choice(["one", "two", "three"], rng.integers(5, 150))) + " 1889"
        examples.append(
            SquadExample(str(number), "when?", context, (Answer("1889", len(context) - 4),))
        )
    return convert(
        examples, tokenizer, training=True, max_seq_length=128, max_query_length=16, progress=False
    )


def ids(found):
    return [tuple(batch["unique_ids"]) for batch in found]


def test_arrays_are_int32_and_show_the_window(features, tokenizer):
    for batch in batches(features, 8, training=True):
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
        for number, row in enumerate(batch["unique_ids"] - features.unique_ids[0]):
            expected = features.input_ids[features.window(row)]
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
            assert batch["start_positions"][number] == features.start_positions[row]
            assert batch["end_positions"][number] == features.end_positions[row]


def test_prediction_pass_holds_every_window_once_without_labels(features):
    found = list(batches(features, 8, training=False))
    assert (
        sorted(np.concatenate([batch["unique_ids"] for batch in found]))
        == features.unique_ids.tolist()
    )
    assert set(found[0]) == {"unique_ids", "input_ids", "input_mask", "segment_ids"}
    assert {len(batch["unique_ids"]) for batch in found[:-1]} == {8}


def test_batches_are_no_wider_than_their_longest_window_needs(features):
    for batch in batches(features, 8, training=False):
        longest = int(batch["input_mask"].sum(axis=1).max())
        assert batch["input_ids"].shape[1] == min(128, -(-longest // 32) * 32)


def test_bucketing_computes_less_padding_than_fixed_width(features):
    bucketed = sum(batch["input_ids"].size for batch in batches(features, 8, training=True))
    fixed = sum(
        batch["input_ids"].size
        for batch in batches(features, 8, training=True, bucket_by_length=False)
    )
    assert bucketed < 0.85 * fixed


def test_without_bucketing_windows_keep_order_and_full_width(features):
    found = list(batches(features, 10, training=False, bucket_by_length=False))
    assert (
        np.concatenate([batch["unique_ids"] for batch in found]).tolist()
        == features.unique_ids.tolist()
    )
    assert {batch["input_ids"].shape[1] for batch in found} == {128}


def test_same_seed_and_epoch_give_the_same_batches_and_others_differ(features):
    first = ids(batches(features, 8, training=True, seed=3, epoch=1))
    assert first == ids(batches(features, 8, training=True, seed=3, epoch=1))
    assert first != ids(batches(features, 8, training=True, seed=3, epoch=2))
    assert first != ids(batches(features, 8, training=True, seed=4, epoch=1))


def test_a_pass_can_be_iterated_again(features):
    found = batches(features, 8, training=True)
    assert ids(found) == ids(found) and len(ids(found)) == len(found)


@pytest.mark.parametrize("start", [0, 1, 5, 12])
def test_a_pass_continues_from_any_batch(features, start):
    whole = ids(batches(features, 8, training=True, seed=7, epoch=2))
    rest = batches(features, 8, training=True, seed=7, epoch=2, start=start)
    assert ids(rest) == whole[start:] and rest.rows == 8 * (len(whole) - start)


def test_training_drops_another_remainder_each_epoch(features):
    dropped = []
    for epoch in range(6):
        found = batches(features, 8, training=True, epoch=epoch)
        assert len(found) == len(features) // 8
        dropped.append(
            set(features.unique_ids) - set(np.concatenate([batch["unique_ids"] for batch in found]))
        )
    assert all(len(rows) == len(features) % 8 for rows in dropped)
    assert len({frozenset(rows) for rows in dropped}) > 3
    # Not always the longest ones: a bucketed pass must not lose long windows in every epoch.
    lengths = features.lengths
    medians = [
        np.median([lengths[row - features.unique_ids[0]] for row in rows]) for rows in dropped
    ]
    assert min(medians) < lengths.max()


def test_remainder_is_kept_when_asked(features):
    found = batches(features, 8, training=True, drop_remainder=False)
    assert found.rows == len(features)


def test_training_order_is_mixed_in_length():
    lengths = np.arange(6400)
    plan = plan_batches(lengths, 8, shuffle=True, seed=0)
    means = np.array([lengths[rows].mean() for rows in plan])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    spread = np.mean([np.ptp(lengths[rows]) for rows in plan])
    assert spread < 6400 / 20


def test_widths_are_multiples_up_to_the_limit():
    assert [padded_length(longest, 100, 32) for longest in (1, 32, 33, 96, 97, 100)] == [
        32,
        32,
        64,
        96,
        100,
        100,
    ]


def test_bad_arguments_are_refused(features, tokenizer):
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches(features, 0, training=True)
    with pytest.raises(ValueError, match="do not fill one batch of 5000"):
        batches(features, 5000, training=True)
    with pytest.raises(ValueError, match="start 99 is outside"):
        batches(features, 8, training=True, start=99)
    unlabelled = convert([SquadExample("a", "?", "one")], tokenizer, training=False, progress=False)
    with pytest.raises(ValueError, match="no labels"):
        batches(unlabelled, 1, training=True)

"""Windows, labels and the max-context rule, checked against slow direct readings of the rules."""

import logging

import numpy as np
import pytest

from tasks.squad import Answer, SquadExample, convert
from tasks.squad.features import FIRST_UNIQUE_ID, answer_pieces, max_context, window_spans

CONTEXT = "One two three four five six seven eight nine ten."


def example(question="Where is it?", context=CONTEXT, answer="five six", **more):
    answers = (Answer(answer, context.index(answer)),) if answer else ()
    return SquadExample("q", question, context, answers, **more)


def convert_one(tokenizer, value, training=True, **sizes):
    return convert([value], tokenizer, training=training, progress=False, **sizes)


def pieces(tokenizer, features, row):
    return tokenizer.decode_ids(features.input_ids[features.window(row)])


def test_short_text_is_one_window(tokenizer):
    features = convert_one(tokenizer, example())
    assert (
        pieces(tokenizer, features, 0)
        == "[CLS] where is it ? [SEP] one two three four five six seven eight nine ten . [SEP]".split()  # noqa: E501
    )
    assert (
        len(features) == 1
        and features.context_offset[0] == 6
        and features.unique_ids[0] == FIRST_UNIQUE_ID
    )
    assert (features.start_positions[0], features.end_positions[0]) == (10, 11)
    assert features.max_context.tolist() == [False] * 6 + [True] * 11 + [False]


def test_long_text_slides_by_the_stride_and_only_whole_answers_are_labelled(tokenizer):
    # 4 pieces of question, 3 special, so 5 of context a window.
    features = convert_one(
        tokenizer, example(), max_seq_length=12, doc_stride=2, max_query_length=4
    )
    shown = [" ".join(pieces(tokenizer, features, row)[6:-1]) for row in range(len(features))]
    assert shown == [
        "one two three four five",
        "three four five six seven",
        "five six seven eight nine",
        "seven eight nine ten .",
    ]
    assert features.start_positions.tolist() == [0, 8, 6, 0]
    assert features.end_positions.tolist() == [0, 9, 7, 0]
    assert features.example_index.tolist() == [0, 0, 0, 0]
    assert features.unique_ids.tolist() == [1_000_000_000 + row for row in range(4)]


def test_long_question_is_cut(tokenizer):
    features = convert_one(
        tokenizer, example(question="where " * 70), max_seq_length=32, max_query_length=5
    )
    assert pieces(tokenizer, features, 0)[:7] == ["[CLS]"] + ["where"] * 5 + ["[SEP]"]
    assert features.lengths.max() <= 32


@pytest.mark.parametrize(
    "length, budget, stride", [(1, 5, 2), (5, 5, 2), (6, 5, 2), (23, 7, 3), (40, 8, 8), (9, 4, 9)]
)
def test_windows_cover_all_pieces_and_stop_at_the_end(length, budget, stride):
    spans = window_spans(length, budget, stride)
    covered = {piece for start, size in spans for piece in range(start, start + size)}
    assert covered == set(range(length))
    assert all(size <= budget for _, size in spans)
    assert sum(start + size == length for start, size in spans) == 1
    assert all(b[0] - a[0] == min(stride, budget) for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("length, budget, stride", [(5, 5, 2), (23, 7, 3), (40, 9, 2), (11, 6, 5)])
def test_each_piece_has_its_best_window_by_the_rule(length, budget, stride):
    spans = window_spans(length, budget, stride)
    flags = max_context(spans)
    for piece in range(length):
        scores = {}
        for number, (start, size) in enumerate(spans):
            if start <= piece < start + size:
                scores[number] = min(piece - start, start + size - 1 - piece) + 0.01 * size
        best = max(scores, key=lambda number, scores=scores: (scores[number], -number))
        marked = [number for number in scores if flags[number][piece - spans[number][0]]]
        assert marked == [best]


def test_answer_is_tightened_to_the_pieces_that_hold_it(tokenizer):
    context = 'It was "built" in 1889, (unwanted).'
    for answer, wanted in [
        ("1889", "18 ##89"),
        ("want", "##want"),
        ("unwanted", "un ##want ##ed"),
        ("89", "##89"),
    ]:
        features = convert_one(tokenizer, example(context=context, answer=answer))
        start, end = features.start_positions[0], features.end_positions[0]
        assert " ".join(pieces(tokenizer, features, 0)[start : end + 1]) == wanted


def test_labels_are_the_pieces_that_touch_the_answer_whatever_its_bounds(tokenizer):
    context = 'It was "built" in 1889, (unwanted) — Où? The Café.'
    (pieces_found,) = tokenizer.encode([context])
    rng = np.random.default_rng(0)
    for start, end in np.sort(rng.integers(0, len(context) + 1, (300, 2)), axis=1).tolist():
        touched = [
            index
            for index, (first, last) in enumerate(
                zip(pieces_found.starts, pieces_found.ends, strict=True)
            )
            if any(start <= character < end for character in range(first, last))
        ]
        value = SquadExample("q", "?", context, (Answer(context[start:end], start),))
        expected = (touched[0], touched[-1]) if touched else None
        assert answer_pieces(value, pieces_found) == expected


def test_offsets_lead_from_positions_back_to_characters(tokenizer):
    context = "Où?  The Café was built."
    features = convert_one(tokenizer, example(context=context, answer=""), training=False)
    window = features.window(0)
    inside = features.char_starts[window] >= 0
    spans = zip(
        features.char_starts[window][inside], features.char_ends[window][inside], strict=True
    )
    assert [context[start:end] for start, end in spans] == [
        "Où",
        "?",
        "The",
        "Café",
        "was",
        "built",
        ".",
    ]
    assert features.start_positions is None and features.end_positions is None


def test_impossible_questions_point_to_cls(tokenizer):
    features = convert_one(tokenizer, example(answer="", impossible=True))
    assert (features.start_positions[0], features.end_positions[0]) == (0, 0)


def test_answer_without_pieces_is_left_out_with_a_warning(tokenizer, caplog):
    odd = example(context="One \u0000 two", answer="\u0000")
    with caplog.at_level(logging.WARNING):
        features = convert([odd, example()], tokenizer, training=True, progress=False)
    assert features.example_index.tolist() == [1]
    assert "left out 1 of 2 questions" in caplog.text


def test_empty_context_makes_no_window(tokenizer):
    features = convert(
        [example(context=" ", answer=""), example()], tokenizer, training=False, progress=False
    )
    assert features.example_index.tolist() == [1]
    with pytest.raises(ValueError, match="no window could be made"):
        convert_one(tokenizer, example(context=" ", answer=""), training=False)


def test_many_questions_give_what_single_ones_give(tokenizer):
    examples = [example(answer=word) for word in CONTEXT.rstrip(".").lower().split()[1:]] * 100
    together = convert(examples, tokenizer, training=True, progress=False)
    assert len(together) == 900
    for index in (0, 8, 550, 899):
        alone = convert_one(tokenizer, examples[index])
        assert np.array_equal(together.input_ids[together.window(index)], alone.input_ids)
        assert together.start_positions[index] == alone.start_positions[0]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"max_seq_length": 67},
            r"max_seq_length 67 must be greater than max_query_length 64 \+ 3",
        ),
        ({"doc_stride": 0}, "doc_stride 0 must be at least 1"),
        ({"max_query_length": 0}, "max_query_length 0"),
    ],
)
def test_impossible_sizes_are_refused(tokenizer, sizes, message):
    with pytest.raises(ValueError, match=message):
        convert_one(tokenizer, example(), **sizes)


def test_no_question_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no questions"):
        convert([], tokenizer, training=False)


@pytest.mark.needs_shared
def test_real_training_file_gives_the_published_number_of_windows(shared_dir):
    from tasks.squad import Tokenizer, read_squad

    examples = read_squad(shared_dir / "data/squad/train-v1.1-subset.json", training=True)
    real = Tokenizer(shared_dir / "models/minilm_squad/vocab.txt")
    features = convert(examples, real, training=True, progress=False)
    assert len(features) == 12032
    assert features.lengths.max() == 384

"""Decoding, checked against a direct reading of the rules with plain loops."""

import json
import math
import os

import numpy as np
import pytest

from tasks.squad import RawScores, SquadExample, convert, decode

WORDS = "one two three four five six seven eight nine ten".split()
LONG = " ".join(WORDS * 2) + "."


def setup(tokenizer, contexts, **sizes):
    examples = [
        SquadExample(f"q{number}", "where is it?", context)
        for number, context in enumerate(contexts)
    ]
    features = convert(examples, tokenizer, training=False, progress=False, **sizes)
    return examples, features


def scores_of(features, start, end):
    """Logits given as flat columns."""
    scores = RawScores(features)
    for row in range(len(features)):
        window = features.window(row)
        scores.add(features.unique_ids[row : row + 1], start[None, window], end[None, window])
    return scores


def flat(features, fill=-10.0):
    return np.full(int(features.bounds[-1]), fill, np.float32)


def position(features, row, index):
    """Flat position of context piece `index` of window `row`."""
    return int(features.bounds[row] + features.context_offset[row] + index)


def random_scores(features, seed=0):
    rng = np.random.default_rng(seed)
    size = int(features.bounds[-1])
    return rng.normal(size=size).astype(np.float32), rng.normal(size=size).astype(np.float32)


def slow_nbest(example, features, rows, start, end, n_best, longest, version_2):
    """Reference: every rule as one loop over all spans of the best positions."""
    found = []
    null = (math.inf, 0.0, 0.0)
    for row in rows:
        base, stop = int(features.bounds[row]), int(features.bounds[row + 1])
        if start[base] + end[base] < null[0]:
            null = (start[base] + end[base], start[base], end[base])
        best_starts = sorted(range(base, stop), key=lambda p: (-start[p], p))[:n_best]
        best_ends = sorted(range(base, stop), key=lambda p: (-end[p], p))[:n_best]
        for first in best_starts:
            for last in best_ends:
                if features.char_starts[first] < 0 or features.char_starts[last] < 0:
                    continue
                if not features.max_context[first] or last < first or last - first + 1 > longest:
                    continue
                text = example.context[features.char_starts[first] : features.char_ends[last]]
                found.append((float(start[first]) + float(end[last]), " ".join(text.split())))
    if version_2:
        found.append((float(null[1]) + float(null[2]), ""))
    found.sort(key=lambda pair: -pair[0])
    kept, seen = [], set()
    for score, text in found:
        if len(kept) < n_best and text not in seen:
            kept.append((score, text))
            seen.add(text)
    if version_2 and "" not in seen:
        kept.append((float(null[1]) + float(null[2]), ""))
    return kept


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("n_best, longest", [(20, 30), (5, 3), (1, 30)])
def test_nbest_equals_the_rules_spelled_out(tokenizer, n_best, longest, version_2):
    examples, features = setup(
        tokenizer,
        [LONG, "one Café.", LONG + " " + LONG],
        max_seq_length=18,
        doc_stride=4,
        max_query_length=4,
    )
    start, end = random_scores(features)
    found = decode(
        examples,
        scores_of(features, start, end),
        n_best_size=n_best,
        max_answer_length=longest,
        version_2=version_2,
    )
    for index, example in enumerate(examples):
        rows = np.flatnonzero(features.example_index == index)
        expected = slow_nbest(example, features, rows, start, end, n_best, longest, version_2)
        entries = found.nbest[example.id]
        if not expected:
            assert [entry["text"] for entry in entries] == ["empty"]
            continue
        assert [entry["text"] for entry in entries] == [text for _, text in expected]
        totals = np.array([score for score, _ in expected])
        assert np.allclose(
            [entry["start_logit"] + entry["end_logit"] for entry in entries], totals, atol=1e-6
        )
        softmax = np.exp(totals) / np.exp(totals).sum()
        assert np.allclose([entry["probability"] for entry in entries], softmax, atol=1e-6)
        if not version_2:
            assert found.answers[example.id] == entries[0]["text"]


def test_answer_is_cut_from_the_text_as_written(tokenizer):
    context = "It was (the  Café)\nbuilt in 1889."
    examples, features = setup(tokenizer, [context])
    start, end = flat(features), flat(features)
    start[position(features, 0, 3)] = 5  # the
    end[position(features, 0, 6)] = 5  # built, behind a closing bracket and a line feed
    assert decode(examples, scores_of(features, start, end)).answers == {"q0": "the Café) built"}


def test_a_piece_of_a_word_can_be_an_answer(tokenizer):
    examples, features = setup(tokenizer, ["One unwanted tower"])
    start, end = flat(features), flat(features)
    start[position(features, 0, 2)] = end[position(features, 0, 2)] = 5
    assert decode(examples, scores_of(features, start, end)).answers == {"q0": "want"}


def test_positions_outside_the_paragraph_never_answer(tokenizer):
    examples, features = setup(tokenizer, ["one two"])
    start, end = flat(features), flat(features)
    start[0] = end[0] = start[2] = end[2] = start[-1] = end[-1] = (
        50  # [CLS], the question, the last [SEP]
    )
    start[position(features, 0, 1)] = end[position(features, 0, 1)] = 1
    assert decode(examples, scores_of(features, start, end)).answers == {"q0": "two"}


def test_start_counts_only_in_the_window_with_most_context(tokenizer):
    examples, features = setup(
        tokenizer, [LONG], max_seq_length=18, doc_stride=4, max_query_length=4
    )
    # "five" (piece 4) begins window 1 and is in the middle of window 0.
    start, end = flat(features), flat(features)
    start[position(features, 1, 0)] = end[position(features, 1, 0)] = 9
    start[position(features, 0, 4)] = end[position(features, 0, 4)] = 3
    nbest = decode(examples, scores_of(features, start, end)).nbest["q0"]
    assert (nbest[0]["text"], nbest[0]["start_logit"]) == ("five", 3.0)


def test_equal_texts_from_several_places_are_kept_once(tokenizer):
    examples, features = setup(tokenizer, ["one two One"])
    start, end = flat(features), flat(features)
    for piece, value in ((0, 3), (2, 4)):
        start[position(features, 0, piece)] = end[position(features, 0, piece)] = value
    texts = [
        entry["text"] for entry in decode(examples, scores_of(features, start, end)).nbest["q0"]
    ]
    assert texts[0] == "One" and len(texts) == len(set(texts)) and {"one", "One"} <= set(texts)
    examples, features = setup(tokenizer, ["one two one"])
    start, end = random_scores(features)
    texts = [
        entry["text"] for entry in decode(examples, scores_of(features, start, end)).nbest["q0"]
    ]
    assert sorted(texts) == sorted({"one", "two", "one two", "two one", "one two one"})


def test_padding_and_order_of_batches_do_not_change_answers(tokenizer):
    examples, features = setup(
        tokenizer, [LONG, "one two."], max_seq_length=18, doc_stride=4, max_query_length=4
    )
    start, end = random_scores(features)
    scores = RawScores(features)
    for row in reversed(range(len(features))):
        window = features.window(row)
        length = window.stop - window.start
        padded = np.full((2, 1, 40), 99.0, np.float32)  # padding with the highest logits of all
        padded[0, 0, :length], padded[1, 0, :length] = start[window], end[window]
        scores.add(features.unique_ids[[row]], padded[0], padded[1])
    assert decode(examples, scores) == decode(examples, scores_of(features, start, end))


def test_a_question_without_window_or_span_gets_the_placeholder(tokenizer):
    examples, features = setup(tokenizer, ["  ", "one two"])
    start, end = flat(features), flat(features)
    found = decode(examples, scores_of(features, start, end))
    assert found.answers["q0"] == "empty"
    assert found.nbest["q0"] == [
        {"text": "empty", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}
    ]
    start[position(features, 0, 1)] = end[position(features, 0, 0)] = 5  # backwards
    assert decode(examples, scores_of(features, start, end), n_best_size=1).answers["q1"] == "empty"


def test_squad_2_weighs_no_answer_by_the_weakest_window(tokenizer):
    examples, features = setup(
        tokenizer, [LONG], max_seq_length=18, doc_stride=4, max_query_length=4
    )
    start, end = flat(features), flat(features)
    firsts = features.bounds[:-1]
    start[firsts] = end[firsts] = 4.0
    start[firsts[1]], end[firsts[1]] = 1.5, 2.0  # the weakest null score: 3.5
    start[position(features, 0, 1)] = end[position(features, 0, 1)] = 1.0  # the best span: 2.0
    scores = scores_of(features, start, end)
    found = decode(examples, scores, version_2=True)
    assert found.null_odds == {"q0": 1.5} and found.answers == {"q0": ""}
    entries = {entry["text"]: entry for entry in found.nbest["q0"]}
    assert (entries[""]["start_logit"], entries[""]["end_logit"]) == (1.5, 2.0)
    assert decode(examples, scores, version_2=True, null_score_diff_threshold=1.4).answers == {
        "q0": ""
    }
    assert decode(examples, scores, version_2=True, null_score_diff_threshold=1.6).answers == {
        "q0": "two"
    }
    assert (
        decode(examples, scores).answers == {"q0": "two"}
        and decode(examples, scores).null_odds is None
    )


def test_files_are_json_with_indent_four(tokenizer, tmp_path):
    examples, features = setup(tokenizer, ["one Café"])
    start, end = flat(features), flat(features)
    start[position(features, 0, 1)] = end[position(features, 0, 1)] = 5
    target = tmp_path / "new" / "folder"
    decode(examples, scores_of(features, start, end), version_2=True).write(target)
    assert sorted(os.listdir(target)) == [
        "nbest_predictions.json",
        "null_odds.json",
        "predictions.json",
    ]
    text = (target / "predictions.json").read_text(encoding="utf-8")
    assert text.startswith('{\n    "q0": ') and json.loads(text) == {"q0": "Café"}
    nbest = json.loads((target / "nbest_predictions.json").read_text(encoding="utf-8"))
    assert list(nbest["q0"][0]) == ["text", "probability", "start_logit", "end_logit"]
    decode(examples, scores_of(features, start, end)).write(tmp_path)
    assert not (tmp_path / "null_odds.json").exists()


def test_where_files_cannot_go_is_said_in_one_line(tokenizer, tmp_path):
    examples, features = setup(tokenizer, ["one"])
    found = decode(examples, scores_of(features, flat(features), flat(features)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*file/predictions.json"):
        found.write(tmp_path / "file")


def test_bad_logits_are_refused(tokenizer):
    examples, features = setup(tokenizer, ["one two", "one"])
    logits = np.zeros((1, 40), np.float32)
    scores = RawScores(features)
    with pytest.raises(ValueError, match="no logits for 2 of 2 windows"):
        decode(examples, scores)
    with pytest.raises(ValueError, match="outside these 2 windows"):
        scores.add(np.array([5]), logits, logits)
    with pytest.raises(ValueError, match="window 0 has 9 positions"):
        scores.add(features.unique_ids[:1], logits[:, :3], logits[:, :3])
    with pytest.raises(ValueError, match="NaN or infinity in the logits of window 0"):
        scores.add(features.unique_ids[:1], logits, np.full_like(logits, np.nan))
    scores.add(features.unique_ids, np.zeros((2, 40)), np.zeros((2, 40)))
    with pytest.raises(ValueError, match="n_best_size 0"):
        decode(examples, scores, n_best_size=0)

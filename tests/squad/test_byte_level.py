"""Windows of byte-level BPE, compared with the `tokenizers` library and with slow readings of the
rules.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from squad_evaluate import evaluate
from tasks.byte_level import ByteLevelTokenizer
from tasks.squad import (
    Answer,
    RawScores,
    SquadExample,
    batches,
    convert,
    decode,
    read_squad,
    to_dataset,
)
from tasks.squad.examples import squeeze
from tasks.squad.features import answer_pieces
from tests.squad_families import byte_level_vocabulary

CORPUS = (
    "Low lower lowest, the tower was built in 1889.",
    " the unwanted café of Zürich — naïve  coöperation",
    "東京タワー is in 東京 😀 and 👩\u200d👩\u200d👧 e\u0301",
)
# Several bytes a character, combining marks, joined emoji, and white space of all kinds.
ALPHABET = "ab éüß e\u0301ñ\u0303東京ー😀👩\u200d\ufe0f \t\n\u00a0\u3000.,'s19"
TEXTS = st.text(alphabet=ALPHABET, max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("byte_level")
    byte_level_vocabulary(made, CORPUS * 5, size=420)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ByteLevelTokenizer(folder / "vocab.json")


@pytest.fixture(scope="module")
def reference(folder):
    """The library's own RoBERTa tokenizer, as Hugging Face makes it from these files."""
    return roberta(folder / "tokenizer.json")


def roberta(path, add_prefix_space=False):
    made = Tokenizer.from_file(str(path))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    return made


def example(context, question="Where is it?", answer=None, version_2=False):
    answers = (Answer(context[slice(*answer)], answer[0]),) if answer else ()
    return SquadExample("q", question, context, answers)


def windows_of(tokenizer, value, training=False, **sizes):
    return convert([value], tokenizer, training=training, progress=False, **sizes)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_pieces_and_offsets_are_those_of_the_library(texts, tokenizer, reference):
    for text, pieces in zip(texts, tokenizer.encode(texts), strict=True):
        expected = reference.encode(text, add_special_tokens=False)
        assert pieces.ids.tolist() == expected.ids
        offsets = zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True)
        assert list(offsets) == expected.offsets
        assert (np.diff(pieces.starts) >= 0).all() and (np.diff(pieces.ends) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(
    question=TEXTS.map(str.lstrip).filter(bool),
    context=TEXTS.filter(str.strip),
    room=st.integers(1, 12),
    stride=st.integers(1, 12),
)
def test_windows_are_those_of_the_library(question, context, room, stride, tokenizer, reference):
    pieces = len(reference.encode(question, add_special_tokens=False).ids)
    stride = min(stride, room)
    length = pieces + 4 + room
    reference.enable_truncation(length, stride=room - stride, strategy="only_second")
    try:
        whole = reference.encode(question, context)
    finally:
        reference.no_truncation()
    features = windows_of(
        tokenizer,
        example(context, question),
        max_seq_length=length,
        doc_stride=stride,
        max_query_length=pieces,
    )
    expected = [whole, *whole.overflowing]
    assert len(features) == len(expected)
    for row, one in enumerate(expected):
        window = features.window(row)
        assert features.input_ids[window].tolist() == one.ids
        inside = [place for place, index in enumerate(one.sequence_ids) if index == 1]
        assert features.context_offset[row] == inside[0]
        assert features.second_offset[row] == len(one.ids)  # one segment
        shown = zip(
            features.char_starts[window].tolist(), features.char_ends[window].tolist(), strict=True
        )
        for place, offsets in enumerate(shown):
            assert offsets == (one.offsets[place] if place in inside else (-1, -1))


@settings(max_examples=150, deadline=None)
@given(context=TEXTS.filter(str.strip), ends=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_labels_are_the_pieces_that_touch_the_answer(context, ends, tokenizer):
    start, end = sorted(min(place, len(context)) for place in ends)
    (pieces,) = tokenizer.encode([context])
    touched = [
        index
        for index, (first, last) in enumerate(zip(pieces.starts, pieces.ends, strict=True))
        if any(start <= character < end for character in range(first, last))
    ]
    if not context[start:end].strip(" "):
        touched = []
    expected = (touched[0], touched[-1]) if touched else None
    assert answer_pieces(example(context, answer=(start, end)), pieces) == expected
    if touched:  # and the way back leads to text that holds the answer
        text = context[pieces.starts[touched[0]] : pieces.ends[touched[-1]]]
        assert squeeze(context[start:end]) in squeeze(text)


@pytest.mark.parametrize(
    ("context", "answer", "text"),
    [
        ("It was unwanted.", "wanted", "unwanted"),  # one piece
        ("It was unmerged.", "merged", "merged"),
        ("The 😀 face", "😀", "😀"),  # several pieces of one character
        ("The café", "é", "café"),
        ("It is  Zürich", "Zürich", "Zürich"),
        ("It is  Zürich", " Zürich", "Zürich"),
        ("in e\u0301t", "e\u0301", "e\u0301"),
        (" leading", "leading", "leading"),
        ("in 東京 now", "京", "東京"),
        ("in 京都 now", "京", "京"),
    ],
)
def test_answer_is_labelled_and_cut_from_the_original_text(context, answer, text, tokenizer):
    at = context.index(answer)
    value = example(context, answer=(at, at + len(answer)))
    features = windows_of(tokenizer, value, training=True)
    scores = RawScores(features)
    logits = np.zeros((2, 1, int(features.lengths[0])), np.float32)
    logits[0, 0, features.start_positions] = logits[1, 0, features.end_positions] = 5
    scores.add(features.unique_ids, *logits)
    assert decode([value], scores).answers == {"q": text}


def test_white_space_alone_is_no_answer(tokenizer):
    value = example("one\n\n  two")
    features = windows_of(tokenizer, value)
    scores = RawScores(features)
    logits = np.zeros((1, int(features.lengths[0])), np.float32)
    blank = [
        place
        for place in range(int(features.context_offset[0]), logits.shape[1] - 1)
        if not value.context[features.char_starts[place] : features.char_ends[place]].strip()
    ]
    assert blank
    logits[0, blank] = 9
    scores.add(features.unique_ids, logits, logits)
    for version_2 in (False, True):
        found = decode([value], scores, version_2=version_2)
        texts = [entry["text"] for entry in found.nbest["q"]]
        assert texts.count("") == version_2 and "two" in texts


def test_blanks_before_a_question_are_left_out_and_a_long_question_is_cut(tokenizer):
    plain, padded = (
        windows_of(tokenizer, example("in 1889", question)).input_ids.tolist()
        for question in ("was it", " \t was it")
    )
    assert plain == padded
    cut = windows_of(tokenizer, example("in 1889", "was " * 50), max_query_length=5)
    assert cut.context_offset.tolist() == [1 + 5 + 2]


def test_special_tokens_in_a_text_are_plain_text(tokenizer):
    features = windows_of(tokenizer, example("a <s> <mask></s>", "is <pad> it?"))
    ids = features.input_ids.tolist()
    assert [ids.count(index) for index in (0, 1, 2, 4)] == [1, 0, 3, 0]


def test_batches_have_one_segment_and_the_models_own_padding(tokenizer):
    values = [example("in 1889"), example("the tower was built in 1889. " * 3)]
    features = convert(values, tokenizer, training=False, progress=False)
    (batch,) = batches(features, 2, training=False)
    assert not batch["segment_ids"].any()
    assert (batch["input_ids"][batch["input_mask"] == 0] == 1).all()
    assert batch["input_mask"].sum(axis=1).tolist() == sorted(features.lengths.tolist())[::-1]


def test_a_window_needs_room_for_four_special_tokens(tokenizer):
    value, sizes = example("in 1889"), {"max_query_length": 8}
    with pytest.raises(ValueError, match=r"max_seq_length 12 must be greater than .* 8 \+ 4"):
        windows_of(tokenizer, value, max_seq_length=12, **sizes)
    assert windows_of(tokenizer, value, max_seq_length=13, **sizes).lengths.max() <= 13


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("in_sequence", [False, True])
def test_a_tokenizer_json_is_read_with_its_prefix_space_and_without_its_truncation(
    add_prefix_space, in_sequence, folder, tmp_path
):
    content = json.loads((folder / "tokenizer.json").read_text())
    step = {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": True,
    }
    content["pre_tokenizer"] = (
        {"type": "Sequence", "pretokenizers": [step]} if in_sequence else step
    )
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    reference = roberta(folder / "tokenizer.json", add_prefix_space)
    for text in ("low lower  lowest", " low", "é", "\nlow", "  "):
        (pieces,) = ByteLevelTokenizer(tmp_path / "tokenizer.json").encode([text])
        expected = reference.encode(text, add_special_tokens=False)
        assert pieces.ids.tolist() == expected.ids
        offsets = zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True)
        assert list(offsets) == expected.offsets


@pytest.mark.needs_shared
def test_labels_of_real_questions_lead_back_to_the_answers(shared_dir, tmp_path):
    examples = read_squad(shared_dir / "data/squad/dev-v1.1-part.json", training=True)
    byte_level_vocabulary(tmp_path, [example.context for example in examples], size=8000)
    tokenizer = ByteLevelTokenizer(tmp_path / "vocab.json")
    features = convert(examples, tokenizer, training=True, progress=False)
    scores = RawScores(features)
    for row in range(len(features)):
        logits = np.zeros((2, 1, int(features.lengths[row])), np.float32)
        labels = int(features.start_positions[row]), int(features.end_positions[row])
        if labels != (0, 0):
            logits[0, 0, labels[0]] = logits[1, 0, labels[1]] = 9
        scores.add(features.unique_ids[row : row + 1], *logits)
    answers = decode(examples, scores, max_answer_length=400).answers
    result = evaluate(to_dataset(examples), answers)
    assert result["exact_match"] > 99.0 and result["f1"] > 99.5
    reference = roberta(tmp_path / "tokenizer.json")
    reference.enable_truncation(384, stride=200, strategy="only_second")
    for index in range(0, len(examples), 50):
        example = examples[index]
        question = len(reference.encode(example.question, add_special_tokens=False).ids)
        own = convert(
            [example],
            tokenizer,
            training=False,
            doc_stride=384 - 4 - question - 200,
            progress=False,
        )
        whole = reference.encode(example.question.lstrip(), example.context)
        windows = [own.input_ids[own.window(row)].tolist() for row in range(len(own))]
        assert windows == [one.ids for one in (whole, *whole.overflowing)]

"""The tokenizer follows BERT's rules and knows which characters each piece stands for."""

import pytest
from tokenizers import models

from tasks.wordpiece import Tokenizer, read_vocab


def pieces_of(tokenizer, text):
    (pieces,) = tokenizer.encode([text])
    spans = [text[start:end] for start, end in zip(pieces.starts, pieces.ends, strict=True)]
    return tokenizer.decode_ids(pieces.ids), spans


def test_words_are_cut_into_the_longest_pieces(tokenizer):
    assert pieces_of(tokenizer, "unwanted running") == (
        ["un", "##want", "##ed", "running"],
        ["un", "want", "ed", "running"],
    )


def test_offsets_count_characters_not_bytes_and_skip_accents(tokenizer):
    assert pieces_of(tokenizer, "“Café” in 1889") == (
        ["[UNK]", "cafe", "[UNK]", "in", "18", "##89"],
        ["“", "Café", "”", "in", "18", "89"],
    )
    # The accent as a character of its own (decomposed form) belongs to the letter before it or to
    # nothing.
    assert pieces_of(tokenizer, "Cafe\u0301 in")[0] == ["cafe", "in"]


def test_all_kinds_of_white_space_separate_words(tokenizer):
    assert pieces_of(tokenizer, "the\u202ftower\t\r\nin\u00a0Paris")[0] == [
        "the",
        "tower",
        "in",
        "paris",
    ]


def test_special_tokens_in_a_text_are_plain_text(tokenizer):
    ids, _ = pieces_of(tokenizer, "the [SEP] tower")
    assert "[SEP]" not in ids and ids[0] == "the" and ids[-1] == "tower"


def test_cased_tokenizer_keeps_case_and_accents(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nParis\nparis\nCafé\n", encoding="utf-8")
    assert pieces_of(Tokenizer(path, lower_case=False), "Paris Café")[0] == ["Paris", "Café"]
    assert pieces_of(Tokenizer(path, lower_case=True), "Paris Café")[0] == ["paris", "[UNK]"]


def test_empty_text_has_no_pieces(tokenizer):
    (pieces,) = tokenizer.encode([" \n"])
    assert pieces.ids.shape == pieces.starts.shape == pieces.ends.shape == (0,)


def test_words_of_up_to_200_characters_are_spelled(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\n##x\n", encoding="utf-8")
    tokenizer = Tokenizer(path)
    assert len(pieces_of(tokenizer, "x" * 200)[0]) == 200
    assert pieces_of(tokenizer, "x" * 201)[0] == ["[UNK]"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"no \[PAD\] \[UNK\] \[CLS\] \[SEP\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n", r"no \[SEP\] in it; is this a BERT WordPiece vocabulary"),
        (b"[PAD]\n\xff\n", "not UTF-8"),
    ],
)
def test_bad_vocabulary_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_vocab(path)
    assert str(path) in str(caught.value)


def test_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.txt not found"):
        Tokenizer(tmp_path / "nothing.txt")


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nword\r\n")
    assert read_vocab(path)["word"] == 4


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"
# Content -> pieces and ids as Google's loader has them: the number of the line, the last of several
# lines, no empty piece.
VOCABULARIES = {
    "repeated": (f"{SPECIAL}a\nb\na\n", {"a": 6, "b": 5}),
    "repeated three times": (f"{SPECIAL}a\na\nb\na\n", {"a": 7, "b": 6}),
    "repeated special piece": (f"{SPECIAL}a\n[UNK]\n", {"a": 4, "[UNK]": 5}),
    "blank line": (f"{SPECIAL}\na\n", {"a": 5}),
    "blank lines at the end": (f"{SPECIAL}a\n\n\n", {"a": 4}),
    "lines with white space alone": (f"{SPECIAL}\u2028\n\u00a0\n\u3000\n \t\na\n", {"a": 8}),
    "white space around a piece": (f"{SPECIAL} a \nb\t\n", {"a": 4, "b": 5}),
    "byte order mark": (f"\ufeff{SPECIAL}a\n", {"[PAD]": 0, "a": 4}),
    "Windows": (f"\ufeff{SPECIAL}a\n".replace("\n", "\r\n"), {"[PAD]": 0, "a": 4}),
    "no line end at the end": (f"{SPECIAL}a", {"a": 4}),
    "separators of lines in pieces": (f"{SPECIAL}x\u2028y\n\x0b\na\n", {"x\u2028y": 4, "a": 6}),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_ids_are_numbers_of_lines_as_googles_loader_counts_them(case, tmp_path, caplog):
    content, expected = VOCABULARIES[case]
    path = tmp_path / "vocab.txt"
    path.write_bytes(content.encode())
    vocab = read_vocab(path)
    assert {piece: vocab[piece] for piece in expected} == expected and "" not in vocab
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == ("repeated" in case) and all(
        "repeat an earlier piece" in text for text in warned
    )
    pieces, _ = pieces_of(Tokenizer(path), "a b")
    assert pieces[0] == "a" and Tokenizer(path).num_ids == max(vocab.values()) + 1


def test_repeated_pieces_read_as_hugging_faces_library_reads_them(tmp_path):
    content, _ = VOCABULARIES["repeated three times"]
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    assert read_vocab(path) == models.WordPiece.read_file(str(path))

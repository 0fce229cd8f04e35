"""The tokenizer is found by the files of a model, whichever of the usual ones are there."""

import json
import shutil

import pytest
from tokenizers import ByteLevelBPETokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from tasks.byte_level import ByteLevelTokenizer
from tasks.tokenizer import load_tokenizer
from tasks.wordpiece import Tokenizer

TEXTS = ["Low lower lowest", " the café, twice", "", "1,000 <s> cats\n"]


def first_ids(tokenizer, text, length=64):
    (found,) = tokenizer.encode_sequences([text], None, length)
    return found.ids.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level vocabulary trained by the library's own class for it."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        TEXTS * 20, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False
    )
    tokenizer.save_model(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, tokenizer


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", ""])
def test_byte_level_pieces_are_the_librarys_from_every_file(trained, name):
    folder, reference = trained
    tokenizer = load_tokenizer(folder / name)
    assert (
        isinstance(tokenizer, ByteLevelTokenizer) and len(tokenizer) == reference.get_vocab_size()
    )
    for text in ("Low lower lowest", " the café, twice", "", "thé Ωmega 12"):
        assert first_ids(tokenizer, text) == [0, *reference.encode(text).ids, 2]
    assert first_ids(tokenizer, "a <s>").count(0) == 1  # the one in front


def test_a_tokenizer_json_alone_serves_for_both_kinds(trained, tmp_path, vocab_file):
    shutil.copy(trained[0] / "tokenizer.json", tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteLevelTokenizer)
    for lower in (True, False):
        BertWordPieceTokenizer(str(vocab_file), lowercase=lower).save(
            str(tmp_path / "tokenizer.json")
        )
        tokenizer = load_tokenizer(tmp_path)
        assert isinstance(tokenizer, Tokenizer) and tokenizer.lower_case is lower
        assert tokenizer.vocab == load_tokenizer(vocab_file).vocab
        assert first_ids(tokenizer, "the cats") == first_ids(load_tokenizer(vocab_file), "the cats")


def test_case_is_what_the_caller_or_the_models_files_say(tmp_path, vocab_file):
    shutil.copy(vocab_file, tmp_path / "vocab.txt")
    assert load_tokenizer(tmp_path).lower_case is True
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).lower_case is False
    assert load_tokenizer(tmp_path, lower_case=True).lower_case is True


def test_missing_and_malformed_files_are_named(tmp_path, vocab_file, bpe_folder):
    with pytest.raises(
        FileNotFoundError,
        match="no vocabulary in folder .*looked for vocab.txt, vocab.json, tokenizer.json",
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="vocabulary file .*none.json not found"):
        load_tokenizer(tmp_path / "none.json")
    shutil.copy(bpe_folder / "vocab.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="merges.txt not found"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o w\n")
    with pytest.raises(ValueError, match="vocab.json and .*merges.txt make no BPE vocabulary"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}')
    with pytest.raises(ValueError, match="vocab.json: no <pad> <unk> <s> </s> in it"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1")
    with pytest.raises(ValueError, match="vocab.json: not a JSON text"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, found list"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "Unigram", "vocab": []}})
    )
    with pytest.raises(
        ValueError, match="tokenizer.json: its model is Unigram, not BPE or WordPiece"
    ):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": [1]}})
    )
    with pytest.raises(ValueError, match="no vocabulary of WordPiece in it"):
        load_tokenizer(tmp_path / "tokenizer.json")

"""run_squad.py refuses what it cannot use.

In one clear line for each problem, before any work, and without leaving anything.
"""

import dataclasses
import json
import math
import os

import pytest

import run_squad
from runs.errors import EXPECTED, describe
from runs.squad import pipeline
from runs.squad.flags import Settings

FILES = {
    "bert_config_file": "bert_config.json",
    "vocab_file": "vocab.txt",
    "train_file": "train.json",
    "predict_file": "dev.json",
}
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000


@pytest.fixture
def refused(squad_folder, tmp_path, monkeypatch):
    """Runs with changed settings; the message, which leaves no output folder behind."""

    def build(*args, **kwargs):
        raise AssertionError("the network is built: the input was not refused")

    monkeypatch.setattr(pipeline, "build", build)

    def run(**changes) -> str:
        files = {name: str(squad_folder / file) for name, file in FILES.items()}
        lengths = {"max_seq_length": 96, "max_query_length": 24}
        output = str(tmp_path / "output")
        settings = Settings(
            **files
            | lengths
            | {"do_train": True, "do_predict": True, "output_dir": output}
            | changes
        )
        with pytest.raises(EXPECTED) as caught:
            run_squad.run(settings)
        assert not os.path.lexists(output)
        said = describe(caught.value)
        assert all(c.isprintable() or c == "\n" for c in said)
        return said

    return run


CONFIGURATIONS = {
    "hidden_act ['gelu']": ({"hidden_act": ["gelu"]}, "hidden_act must be a string, got ['gelu']"),
    "hidden_act {}": ({"hidden_act": {}}, "hidden_act must be a string, got {}"),
    "hidden_act 3": ({"hidden_act": 3}, "hidden_act must be a string, got 3"),
    "vocab_size 1e12": ({"vocab_size": 10**12}, "vocab_size must be at most 2147483647"),
    "hidden_size 1e7": ({"hidden_size": 10**7}, "GiB of memory"),
    "layers 1e5": ({"num_hidden_layers": 10**5}, "num_hidden_layers must be at most 1000"),
    "positions 2e9": (
        {"max_position_embeddings": 2 * 10**9},
        "max_position_embeddings must be at most 1048576",
    ),
    "intermediate_size 2e9": (
        {"intermediate_size": 2 * 10**9, "hidden_size": 1600},
        "GiB of memory",
    ),
    "segments": ({"type_vocab_size": 1}, "type_vocab_size 1 has no segment for the paragraph"),
    "hidden_size inf": (
        {"hidden_size": math.inf},
        "hidden_size must be a positive integer, got inf",
    ),
    "hidden_size -1": ({"hidden_size": -1}, "hidden_size must be a positive integer, got -1"),
    "hidden_size '16'": ({"hidden_size": "16"}, "hidden_size must be a positive integer"),
    "initializer_range inf": ({"initializer_range": math.inf}, "initializer_range must be at most"),
    "layer_norm_eps nan": ({"layer_norm_eps": math.nan}, "layer_norm_eps must be above 0"),
    "dropout 1e300": ({"hidden_dropout_prob": 1e300}, "hidden_dropout_prob must be in [0, 1)"),
    "vocab_size below the vocabulary": ({"vocab_size": 20}, "pieces, the model of"),
    "positions below the length": ({"max_position_embeddings": 64}, "has only 64 positions"),
    "escapes": ({"hidden_act": "\x1b[31m\ngelu"}, r"unknown hidden_act '\x1b[31m\ngelu'"),
    "model_type []": ({"model_type": [1]}, "model_type [1] is not supported"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configuration_is_refused_by_its_key(case, refused, squad_folder):
    changes, message = CONFIGURATIONS[case]
    path = squad_folder / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in refused()


TEXTS = {
    "deep list": (DEEP, "nested deeper than"),
    "deep object": (DEEP_OBJECT, "nested deeper than"),
    "deeper than any file": ('{"data":' + "[" * 300 + "]" * 300 + "}", "nested deeper than"),
    "half": ('{"data": [', "not a JSON text"),
    "empty": ("", "not a JSON text"),
    "list": ("[1]", "found list"),
    "null": ("null", "found null"),
    "integer of 5000 digits": ("9" * 5000, "not a JSON text"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", ["bert_config.json", "train.json", "dev.json"])
def test_json_is_refused_by_its_file_whatever_it_is_for(name, case, refused, squad_folder):
    text, message = TEXTS[case]
    (squad_folder / name).write_text(text)
    said = refused()
    assert name in said
    # SQuAD's reader names types as Python does.
    assert message.replace("found null", "found N") in said.replace(
        "found NoneType", "found N"
    ).replace("found null", "found N")


VOCABULARIES = {
    "id beyond the model": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": 10**6},
        "pieces, the model of",
    ),
    "negative id": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": -1},
        "id of 'x' must be a whole number",
    ),
    "huge id": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": 10**30},
        "id of 'x' must be a whole number",
    ),
    "infinite id": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": math.inf},
        "id of 'x' must be a whole number",
    ),
    "id 1.5": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": 1.5},
        "id of 'x' must be a whole number",
    ),
    "id true": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": True},
        "id of 'x' must be a whole number",
    ),
    "id 'a'": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"x": "a"},
        "id of 'x' must be a whole number",
    ),
    "escapes in a piece": (
        '{"model": {"type": "WordPiece", "vocab": %s}}',
        {"\x1b[2J\n": -1},
        r"id of '\x1b[2J\n' must be",
    ),
    "another model": (
        '{"model": {"type": "BPE", "vocab": %s}}',
        {},
        "is no tokenizer.json: Missing vocab/merges",
    ),
    "type is a list": (
        '{"model": {"type": ["WordPiece"], "vocab": %s}}',
        {},
        "not BPE or WordPiece",
    ),
    "model is a list": ('{"model": [%s]}', {}, "its model is of no named type, not BPE"),
    "deep": (DEEP + "%s", {}, "nested deeper than"),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_ids_that_no_model_has_are_refused(case, refused, squad_folder):
    form, more, message = VOCABULARIES[case]
    pieces = (squad_folder / "vocab.txt").read_text().split()
    path = squad_folder / "tokenizer.json"
    path.write_text(
        form % json.dumps({piece: number for number, piece in enumerate(pieces)} | more)
    )
    assert message in refused(vocab_file=str(path))


@pytest.mark.parametrize("name", [*FILES, "teacher_config_file", "init_checkpoint"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder", "nowhere\x1b[31m\n", "zero\0byte"])
def test_what_is_no_regular_file_is_refused_at_once(name, kind, refused, tmp_path):
    path = kind if "/" in kind or "\0" in kind else str(tmp_path / kind)
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        os.mkdir(path)
    assert f"--{name}=" in refused(
        **{name: path}, **({"distillation": True, "teacher": "x"} if "teacher" in name else {})
    )


NUMBERS = [
    field
    for field in dataclasses.fields(Settings)
    if any(kind in str(field.type) for kind in ("int", "float"))
]
HUGE = {"int": [10**12, 2**63, 10**400], "float": [math.nan, math.inf, 1e308]}


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_numbers_beyond_all_use_are_refused_by_their_flag(field, refused):
    whole = "float" not in str(field.type)
    for value in HUGE["int" if whole else "float"]:
        assert f"--{field.name}" in refused(**{field.name: value})


def test_every_number_far_too_small_is_refused_too(refused):
    for field in NUMBERS:
        for value in (-(10**12),) if "float" not in str(field.type) else (-math.inf, -1e308):
            assert f"--{field.name}" in refused(**{field.name: value})


PLACES = {
    "/proc/nowhere": "cannot be written",
    "file": "is not a folder",
    "file/below": "is not a folder",
    "/dev/null": "is not a folder",
}


@pytest.mark.parametrize("place", PLACES)
def test_output_folder_that_cannot_be_written_is_refused(place, refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert PLACES[place] in refused(output_dir=place if place[0] == "/" else str(tmp_path / place))


def test_blocked_tensorboard_folder_is_refused_before_any_work(refused, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").write_text("")
    assert "tensorboard is not a folder" in refused(output_dir=str(tmp_path / "other"))


def test_prepared_data_that_is_not_there_is_said_at_once(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tfds_builder.unreachable", lambda address: "offline")
    for value in ("tfds:train", "tfds:", "tfds:nonsense"):
        said = refused(train_file=value, tfds_dir=str(tmp_path))
        assert (
            f"--train_file={value}: squad/plain_text or squad/v1.1 is not prepared in {tmp_path}"
            in said
        )


def test_terminal_escapes_of_questions_are_shown_escaped(refused, squad_folder):
    content = json.loads((squad_folder / "dev.json").read_text())
    question = content["data"][0]["paragraphs"][0]["qas"][0]
    question |= {
        "id": "a\x1b[31m\nrun_squad.py: all good\u202e",
        "answers": [{"text": "x", "answer_start": -5}],
    }
    (squad_folder / "dev.json").write_text(json.dumps(content))
    said = refused()
    assert r"(id a\x1b[31m\nrun_squad.py: all good\u202e)" in said and "\x1b" not in said


def test_results_never_replace_what_the_run_reads(squad_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "build", None)
    (squad_folder / "dev.json").rename(squad_folder / "predictions.json")
    files = {name: str(squad_folder / file) for name, file in FILES.items()}
    files["predict_file"] = str(squad_folder / "predictions.json")
    lengths = {"max_seq_length": 96, "max_query_length": 24}
    (squad_folder / "link").symlink_to(squad_folder)
    for place in (
        squad_folder,
        squad_folder / "link",
        squad_folder / "link" / ".." / squad_folder.name,
    ):
        with pytest.raises(
            EXPECTED, match="predictions.json of this run would replace --predict_file"
        ):
            run_squad.run(
                Settings(**files | lengths, do_train=True, do_predict=True, output_dir=str(place))
            )


@pytest.mark.parametrize("content", [b"x" * 100, b""], ids=["noise", "empty"])
def test_a_checkpoint_that_cannot_be_read_leaves_no_output_folder(content, squad_folder, tmp_path):
    files = {name: str(squad_folder / file) for name, file in FILES.items()} | {
        "max_seq_length": 96,
        "max_query_length": 24,
    }
    (tmp_path / "model.ckpt.index").write_bytes(content)
    output = tmp_path / "new" / "output"
    with pytest.raises(EXPECTED, match="model.ckpt cannot be read, it is damaged or incomplete"):
        run_squad.run(
            Settings(
                **files,
                do_train=True,
                init_checkpoint=str(tmp_path / "model.ckpt"),
                output_dir=str(output),
            )
        )
    assert not (tmp_path / "new").exists()

"""run_glue.py refuses what it cannot use.

In one clear line for each problem, before any work, and without leaving anything.
"""

import dataclasses
import json
import math
import os

import pytest

import run_glue
from runs.errors import EXPECTED, describe
from runs.glue import networks
from runs.glue.settings import TRAINING, Settings

DEEP = "[" * 100_000
BPE = {
    "model": {
        "type": "BPE",
        "vocab": {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "a": 4},
        "merges": [],
    }
}


@pytest.fixture
def refused(glue_folder, tmp_path, monkeypatch):
    """Runs with changed settings; the message, which leaves no output folder behind."""

    def build(*args, **kwargs):
        raise AssertionError("the network is built: the input was not refused")

    monkeypatch.setattr(networks, "build", build)

    def run(**changes) -> str:
        paths = {
            "data_dir": str(glue_folder / "data" / "glue_data"),
            "model_path": str(glue_folder / "model"),
        }
        output = str(tmp_path / "output")
        settings = Settings(
            **paths | {"task": ("rte",), "max_seq_length": 48, "output_dir": output} | changes
        )
        with pytest.raises(EXPECTED) as caught:
            run_glue.run(settings)
        assert not os.path.lexists(output)
        said = describe(caught.value)
        assert all(c.isprintable() or c == "\n" for c in said)
        return said

    return run


def put(path, **changes):
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


CONFIGURATIONS = {
    "hidden_act": ({"hidden_act": ["gelu"]}, "hidden_act must be a string"),
    "positions": (
        {"max_position_embeddings": 10**9},
        "max_position_embeddings must be at most 1048576",
    ),
    "segments beyond memory": ({"type_vocab_size": 10**9, "hidden_size": 1600}, "GiB of memory"),
    "vocabulary": ({"vocab_size": 20}, "ids up to"),
    "length": ({"max_position_embeddings": 40}, "--max-seq-length 48: the model of"),
    "segments": ({"type_vocab_size": 1}, "has no segment for the second text"),
    "architecture": ({"model_type": {"a": 1}}, "model_type {'a': 1} is not supported"),
    "layers": ({"num_hidden_layers": 10**5}, "num_hidden_layers must be at most 1000"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configuration_is_refused_by_its_key(case, refused, glue_folder):
    changes, message = CONFIGURATIONS[case]
    put(glue_folder / "model" / "config.json", **changes)
    assert message in refused()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize(
    "text",
    [DEEP, '{"a":' * 100_000, "{", "[1]", "9" * 5000],
    ids=["deep", "objects", "half", "list", "int"],
)
def test_json_of_a_model_is_refused_by_its_file(name, text, refused, glue_folder):
    (glue_folder / "model" / name).write_text(text)
    if "index" in name:  # which is read where weights are wanted
        (glue_folder / "model" / "part.safetensors").write_text("x")
    assert name in refused(mode="validate-baseline" if "index" in name else "train-baseline")


INDEXES = {
    "numbers": {"a": 5},
    "null": {"a": None},
    "a list": {"a": ["x.safetensors"]},
    "outside": {"a": "../other.safetensors"},
    "absolute": {"a": "/etc/other.safetensors"},
    "no such format": {"a": "pytorch_model.bin"},
    "zero byte": {"a": "x\0.safetensors"},
    "escapes": {"a\x1b[31m\n": 5},
    "empty": {},
    "not there": {"a": "x.safetensors"},
}


@pytest.mark.parametrize("case", INDEXES)
def test_shard_index_names_files_beside_it_and_nothing_else(case, refused, glue_folder):
    model = glue_folder / "model"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": INDEXES[case]}))
    (model / "part.safetensors").write_text("x")
    said = refused(mode="validate-baseline")
    assert "model.safetensors.index.json" in said and "\x1b" not in said


TOKENIZERS = {
    "id beyond the model": ({"b": 10**6}, "ids up to 1000000"),
    "negative id": ({"b": -1}, "tokenizer.json"),
    "infinite id": ({"b": math.inf}, "tokenizer.json"),
    "id a list": ({"b": [5]}, "tokenizer.json"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_byte_level_vocabulary_beyond_the_model_is_refused(case, refused, glue_folder):
    more, message = TOKENIZERS[case]
    (glue_folder / "model" / "vocab.txt").unlink()
    model = BPE["model"] | {"vocab": BPE["model"]["vocab"] | more}
    (glue_folder / "model" / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    assert message in refused()


QUANT_DICTS = [
    "{5: 8}",
    "{None: 8}",
    "{('x',): 8}",
    "{[1]: 8}",
    "{'x': [8]}",
    "{'x': None}",
    "{'x': 1e999}",
    "{'': 8}",
    "[" * 5000,
    "{1, 2}",
]


@pytest.mark.parametrize("text", QUANT_DICTS)
def test_quant_dict_maps_letters_to_bits_or_names(text, refused):
    assert "--quant-dict: quant dict" in refused(
        mode="validate-quantized", qmethod="symmetric_uniform", quant_dict=text
    )


NUMBERS = [
    f for f in dataclasses.fields(Settings) if any(kind in str(f.type) for kind in ("int", "float"))
]


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_numbers_beyond_all_use_are_refused_by_their_option(field, refused):
    for value in (
        (math.nan, math.inf, 1e308) if "float" in str(field.type) else (10**12, -(10**12), 10**400)
    ):
        several = (value, value) if "tuple" in str(field.type) else value
        assert f"--{field.name.replace('_', '-')}" in refused(
            mode=field.metadata["modes"][0], **{field.name: several}
        )


def test_adaround_is_told_what_it_can_do_before_ranges_are_estimated(refused):
    rounding = {"mode": "validate-quantized", "qmethod": "symmetric_uniform", "adaround": "all"}
    values = {
        "iters": 0,
        "lr": -1.0,
        "num_samples": 0,
        "warmup": 1.0,
        "annealing": (0.0, 1.0),
        "decay_shape": -1.0,
    }
    for name, value in values.items():
        assert "--adaround" in refused(**rounding, **{f"adaround_{name}": value})


def test_gptq_is_told_what_it_can_do_before_ranges_are_estimated(refused):
    rounding = {"mode": "validate-quantized", "qmethod": "symmetric_uniform", "gptq": "all"}
    for name, value in {"percdamp": 0.0, "num_samples": 0}.items():
        assert "--gptq" in refused(**rounding, **{f"gptq_{name}": value})
    assert "leave one of them out" in refused(**rounding, adaround="all")


def test_prepared_data_that_is_not_there_is_said_at_once(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tfds_builder.unreachable", lambda address: "offline")
    said = refused(data_dir=f"tfds:{tmp_path}", task=("rte", "mrpc"))
    assert f"glue/rte is not prepared in {tmp_path}" in said and "glue/mrpc is not prepared" in said


@pytest.mark.parametrize("length", [-1, 0, 2, 4])
def test_length_without_room_for_two_texts_is_refused(length, refused):
    assert "max_seq_length" in refused(max_seq_length=length).replace(
        "max-seq-length", "max_seq_length"
    )


@pytest.mark.parametrize(
    "changes",
    [{"output_dir": "/proc/x"}, {"tb_logging_dir": "/proc/x"}, {"tb_logging_dir": "file"}],
    ids=str,
)
def test_folders_that_cannot_be_written_are_refused(changes, refused, tmp_path):
    (tmp_path / "file").write_text("")
    changes = {
        name: str(tmp_path / place) if place == "file" else place for name, place in changes.items()
    }
    assert "cannot be written" in refused(**changes)


@pytest.mark.parametrize("mode", TRAINING)
def test_pipes_and_devices_as_data_are_no_files(mode, refused, glue_folder):
    path = glue_folder / "data" / "glue_data" / "RTE" / "dev.tsv"
    path.unlink()
    os.mkfifo(path)
    assert "no dev.tsv" in refused(
        mode=mode, **({"qmethod": "symmetric_uniform"} if "quantized" in mode else {})
    )

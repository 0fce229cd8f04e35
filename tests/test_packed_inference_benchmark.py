"""`python -m benchmarks.packed_inference` on a tiny encoder: rows, table, refusals."""

import json

import pytest

from benchmarks import packed_inference, packed_inference_report, results

FILES = "float32;binary, float inputs"


def run(folder, *flags):
    packed_inference.main(["--models=tiny", f"--output={folder / 'files'}", "--threads=1", *flags])


def test_one_command_writes_sizes_and_latencies_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    run(tmp_path, f"--files={FILES}", "--lengths=8", "--seconds=0.01")
    found = json.loads((tmp_path / "packed_inference.json").read_text())
    assert found["seed"] == packed_inference.SEED and "onnxruntime" in found["versions"]
    assert isinstance(found["machine"]["features"], list)
    sizes, times = found["rows"]["tiny, sizes"], found["rows"]["tiny, batch 1, length 8"]
    first, binary = FILES.split(";")
    assert sizes["bytes"][binary] < sizes["bytes"][first]
    assert times["speed"][first] == 1.0 and times["p50"][binary] > 0 and times["threads"] == 1
    table = packed_inference_report.table(found["rows"], "tiny")
    assert table in capsys.readouterr().out and len(table.splitlines()) == 4
    assert f"({times['speed'][binary]:.2f}x)" in table
    assert packed_inference_report.table(found["rows"], "MiniLM") == "Not measured yet."
    # Nothing is measured twice.
    monkeypatch.setattr(packed_inference, "timed", lambda *_: pytest.fail("measured again"))
    run(tmp_path, f"--files={FILES}", "--lengths=8")


def test_heads_are_rounded_apart_and_recipes_suit_the_operation():
    recipe = packed_inference.packed(packed_inference.TERNARY, 128)(32)
    sizes = [rule.spec.layout.block_size for rule in recipe.rules if rule.role == "linear_input"]
    assert sizes == [128, 32]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--models=none", "--models: unknown name 'none'; known: MiniLM; BERT-base; tiny"),
        ("--files=int5", "--files: unknown name 'int5'"),
        ("--lengths=128,x", "--lengths=128,x: must be whole numbers above 0"),
    ],
)
def test_wrong_flags_end_with_one_line(flag, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, flag)
    assert end.value.code == 2 and message in capsys.readouterr().err

"""run_squad.py with RoBERTa, DistilBERT and MobileBERT: every stage of a run, and combinations of
files that are refused.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors

import run_squad
from runs.resume import content
from runs.squad import flag_checks
from runs.squad.flags import FlagError, Settings
from tasks.squad import read_squad
from tasks.squad.examples import squeeze
from tests import test_run_squad
from tests.squad_families import FAMILIES, byte_level_vocabulary, make_files, with_config
from tfquant import checkpoint

OTHERS = tuple(family for family in FAMILIES if family != "roberta")


@pytest.fixture(scope="session")
def files_of(tmp_path_factory):
    """Flags of a run with a family, made once."""
    made = {}

    def make(family: str) -> dict:
        if family == "bert":
            made[family] = made.get(family) or test_run_squad.make_files(
                tmp_path_factory.mktemp(family), train_questions=8, dev_questions=4
            )
        elif family not in made:
            made[family] = make_files(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


def run(flags: dict, folder: pathlib.Path, **changes) -> dict:
    return run_squad.run(Settings(**flags | {"output_dir": str(folder)} | changes))


@pytest.mark.parametrize(
    "family", ["roberta", *(pytest.param(other, marks=pytest.mark.long) for other in OTHERS)]
)
def test_a_family_is_trained_calibrated_quantized_and_answers_in_onnx_runtime(
    family, files_of, tmp_path
):
    flags = files_of(family)
    trained = run(flags, tmp_path / "float", do_train=True, num_train_epochs=0.4)["training"]
    assert trained["source"] == flags["init_checkpoint"] and trained["last_step"] == 2
    names = set(checkpoint.read(trained["checkpoint"]))
    assert f"{family}/encoder/layer_0/attention/self/query/kernel" in names
    assert not any("pooler" in name for name in names)
    figures = run(
        flags,
        tmp_path / "int8",
        init_checkpoint=trained["checkpoint"],
        do_calib=True,
        do_export=True,
        do_predict=True,
        if_quant=True,
        calib_batch=2,
        predict_with="onnxruntime",
    )
    agreement = figures["export"]["agreement"]
    assert agreement["same"] > 0.9 and figures["calibration"]["sites"] > 10
    # The check reads all questions, so that its score of the file is that of the prediction.
    assert agreement["scores"][1] == figures["prediction"]["f1"]
    answers = json.loads((tmp_path / "int8" / "predictions.json").read_text())
    for example in read_squad(flags["predict_file"], training=False):
        assert answers[example.id] and answers[example.id] in squeeze(example.context)
    if family == "roberta":
        best = json.loads((tmp_path / "int8" / "nbest_predictions.json").read_text())
        check_against_the_library(flags, tmp_path / "int8" / "model.onnx", best)


def check_against_the_library(flags, file, nbest):
    """Compare answers with those of the exported file to windows that `tokenizers` makes."""
    tokenizer = Tokenizer.from_file(
        str(pathlib.Path(flags["vocab_file"]).parent / "tokenizer.json")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=flags["max_seq_length"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    short = 0
    for example in read_squad(flags["predict_file"], training=False):
        window = tokenizer.encode(example.question, example.context)
        if len(window.ids) > flags["max_seq_length"]:
            continue
        short += 1
        inputs = {
            "input_ids": window.ids,
            "input_mask": window.attention_mask,
            "segment_ids": window.type_ids,
        }
        names = [value.name for value in session.get_outputs()]
        arrays = {name: np.asarray([inputs[name]], np.int32) for name in inputs if name in wanted}
        outputs = dict(zip(names, session.run(None, arrays), strict=True))
        start, end = (
            next(value[0] for name, value in outputs.items() if f"{which}_logits" in name)
            for which in ("start", "end")
        )
        inside = [place for place, index in enumerate(window.sequence_ids) if index == 1]
        best = max(
            float(start[first]) + float(end[last])
            for first in inside
            for last in inside
            if first <= last < first + 30
        )
        entry = nbest[example.id][0]
        assert entry["start_logit"] + entry["end_logit"] == pytest.approx(best, abs=0.02)
    assert short


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_quantized_with_a_teacher_and_resumes(family, files_of, tmp_path):
    flags = files_of(family)
    start = run(flags, tmp_path / "float", do_train=True, num_train_epochs=0.2)["training"]
    calibrated = run(
        flags, tmp_path / "int8", init_checkpoint=start["checkpoint"], do_calib=True, calib_batch=1
    )["calibration"]["checkpoint"]
    training = {
        "init_checkpoint": calibrated,
        "do_train": True,
        "if_quant": True,
        "range_update": "lsq",
        "num_train_epochs": 0.8,
        "save_checkpoints_steps": 2,
        "keep_checkpoint_max": 0,
        "distillation": True,
        "teacher": start["checkpoint"],
        "distillation_hidden_scale": 1.0,
        "distillation_attention_scale": 1.0,
    }
    run(flags, tmp_path / "qat", **training)
    whole = test_run_squad.tensors(tmp_path / "qat" / "model.ckpt-4")
    for path in (tmp_path / "qat").glob("model.ckpt-4.*"):
        path.unlink()
    resumed = run(flags, tmp_path / "qat", **training | {"do_predict": True})
    assert resumed["training"]["first_step"] == 2 and resumed["prediction"]["questions"] == 12
    again = test_run_squad.tensors(tmp_path / "qat" / "model.ckpt-4")
    assert all(np.array_equal(again[name], whole[name]) for name in whole)
    packed = run(
        flags,
        tmp_path / "packed",
        init_checkpoint=str(tmp_path / "qat" / "model.ckpt-4"),
        do_export=True,
        if_quant=True,
        export_target="packed",
    )
    assert packed["export"]["size"] < 4 * packed["export"]["parameters"]


@pytest.mark.long
def test_distilbert_learns_from_a_bert_teacher(files_of, tmp_path):
    student, teacher = files_of("distilbert"), test_run_squad.make_files(tmp_path / "data")
    # The same generated vocabulary.
    trained = run(teacher, tmp_path / "teacher", do_train=True, num_train_epochs=0.2)["training"]
    figures = run(
        student,
        tmp_path / "student",
        do_train=True,
        num_train_epochs=0.4,
        distillation=True,
        teacher=trained["checkpoint"],
        teacher_config_file=teacher["bert_config_file"],
        distillation_hidden_scale=1.0,
        distillation_layers="0:0",
    )
    assert np.isfinite(figures["training"]["loss"])


def refused(flags: dict, tmp_path, **changes) -> str:
    lines = {"output_dir": str(tmp_path / "output"), "do_train": True}
    with pytest.raises(FlagError) as caught:
        flag_checks.check(Settings(**flags | lines | changes))
    assert not (tmp_path / "output").exists()
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(("family", "other"), [("roberta", "bert"), ("distilbert", "roberta")])
def test_a_vocabulary_of_another_kind_is_refused(family, other, files_of, tmp_path):
    flags, vocabulary = files_of(family), files_of(other)["vocab_file"]
    line = refused(flags, tmp_path, vocab_file=vocabulary)
    kinds = ["byte-level BPE", "WordPiece"]
    ours, theirs = kinds if other == "roberta" else reversed(kinds)
    assert f"--vocab_file={vocabulary} is {ours}" in line and f"reads {theirs}" in line


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("roberta", {"vocab_size": 300}, "pieces, the model of .* only 300"),
        ("roberta", {"pad_token_id": 0}, "id of <pad> is 1, pad_token_id of .* is 0"),
        ("roberta", {"max_position_embeddings": 97}, "has only 95 positions"),
        ("distilbert", {"max_position_embeddings": 95}, "has only 95 positions"),
        ("mobilebert", {"type_vocab_size": 1}, "type_vocab_size 1 has no segment"),
        ("roberta", {"model_type": "albert"}, "'albert' is not supported; supported: bert, rob"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(family, changes, message, files_of, tmp_path):
    flags = with_config(files_of(family), "bert_config_file", tmp_path, **changes)
    assert re.search(message, refused(flags, tmp_path))


def test_flags_that_a_family_cannot_follow_are_refused(files_of, tmp_path):
    roberta, mobilebert = files_of("roberta"), files_of("mobilebert")
    line = refused(roberta, tmp_path, max_seq_length=28)
    assert "--max_seq_length=28: must be above --max_query_length (24) + 4" in line
    line = refused(
        roberta, tmp_path, do_export=True, if_quant=True, export_target="fastertransformer"
    )
    assert "--export_target=fastertransformer is for BERT, the model of" in line
    narrow = with_config(
        mobilebert, "bert_config_file", tmp_path, intra_bottleneck_size=10, num_attention_heads=2
    )
    assert "--sparsity=2x4: intra_bottleneck_size 10 is no multiple of 4" in refused(
        narrow, tmp_path, sparsity="2x4"
    )
    odd = with_config(files_of("distilbert"), "bert_config_file", tmp_path, dim=18, n_heads=2)
    assert "--sparsity=2x4: dim 18 is no multiple of 4" in refused(odd, tmp_path, sparsity="2x4")


def test_case_is_a_matter_of_wordpiece_alone(files_of, tmp_path):
    flags, base = files_of("roberta"), tmp_path / "base-cased"
    shutil.copytree(flags["init_checkpoint"], base)
    (base / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    settings = flags | {"init_checkpoint": str(base), "output_dir": str(tmp_path / "output")}
    for lower_case in (True, False):
        flag_checks.check(Settings(**settings, do_train=True, do_lower_case=lower_case))


def test_a_teacher_with_other_pieces_is_refused(files_of, tmp_path):
    roberta, bert = files_of("roberta"), files_of("bert")
    teacher = {"distillation": True, "teacher": roberta["init_checkpoint"]}
    line = refused(bert, tmp_path, **teacher, teacher_config_file=roberta["bert_config_file"])
    assert "a RoBERTa reads byte-level BPE" in line and "the student WordPiece" in line
    # Of the same kind and size, with other pieces.
    folder = shutil.copytree(roberta["init_checkpoint"], tmp_path / "teacher")
    byte_level_vocabulary(folder, ["other words altogether " * 3, "anything else"], size=600)
    line = refused(roberta, tmp_path, **teacher | {"teacher": str(folder)})
    assert f"--teacher={folder}: the vocabulary beside it is not that of --vocab_file" in line
    padded = with_config(
        roberta | {"teacher_config_file": roberta["bert_config_file"]},
        "teacher_config_file",
        tmp_path,
        pad_token_id=0,
    )
    assert "pad_token_id is 0, that of the student 1" in refused(padded, tmp_path, **teacher)


def test_resuming_notices_other_merges(files_of, tmp_path):
    folder = pathlib.Path(files_of("roberta")["vocab_file"]).parent
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, tmp_path)
    before, other = content(str(tmp_path / "vocab.json")), content(str(tmp_path / "merges.txt"))
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(lines[:-1]) + "\n")
    assert content(str(tmp_path / "vocab.json")) != before != other

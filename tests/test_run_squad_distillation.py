"""run_squad.py with a teacher of another size.

What it learns, what it writes, and which flags it refuses.
"""

import json
import pathlib

import numpy as np
import pytest

import modeling
import run_squad
import tfquant
from runs.squad import flag_checks, flags, losses, networks
from runs.squad.flags import Settings
from tests.test_run_squad import make_files, tensors
from tfquant import checkpoint
from tfquant.error_decay import t_at
from tfquant.training import divergence

TEACHER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Flags of a run with a student that is quantized and a teacher that is larger; both have
    random weights.
    """
    folder = tmp_path_factory.mktemp("data")
    made = make_files(folder, dev_questions=8)
    config = json.loads(pathlib.Path(made["bert_config_file"]).read_text())
    (folder / "teacher.json").write_text(json.dumps(config | TEACHER))
    larger = modeling.build_squad_model(
        modeling.BertConfig.from_json_file(folder / "teacher.json"), seed=1
    )
    checkpoint.write(folder / "teacher.ckpt", {v.path: v for v in larger.weights})
    student = modeling.build_squad_model(
        modeling.BertConfig.from_json_file(made["bert_config_file"]), seed=2
    )
    ids = np.random.default_rng(0).integers(5, 50, (4, 12)).astype(np.int32)
    inputs = {"input_ids": ids, "input_mask": 0 * ids + 1, "segment_ids": 0 * ids}
    quantized = tfquant.quantize(
        student, tfquant.recipe("int8_residual").with_method("max"), [inputs], progress=False
    )
    tfquant.save(quantized, folder / "calibrated.ckpt")
    return made | {
        "init_checkpoint": str(folder / "calibrated.ckpt"),
        "if_quant": True,
        "do_train": True,
        "distillation": True,
        "teacher": str(folder / "teacher.ckpt"),
        "teacher_config_file": str(folder / "teacher.json"),
    }


INSIDE = {
    "distillation_loss_scale": 10.0,
    "distillation_hidden_scale": 1.0,
    "distillation_attention_scale": 10.0,
}


# tests/training/test_teaching.py has projections and their start, test_run_squad.py distillation in
# a run.
@pytest.mark.long
def test_a_larger_teacher_teaches_from_inside_resumes_exactly_and_leaves_prediction_alone(
    files, tmp_path, capsys
):
    settings = {
        "num_train_epochs": 0.8,
        "save_checkpoints_steps": 2,
        "keep_checkpoint_max": 0,
    } | INSIDE
    given = files | settings | {"output_dir": str(tmp_path), "do_predict": True}
    run_squad.run(Settings(**given))
    said = capsys.readouterr().err
    assert "layers of the student learn from those of the teacher: 0:1" in said
    assert "1 projections [16, 24]" in said
    whole = tensors(tmp_path / "model.ckpt-4")
    assert {"distillation/projection_0", "distillation/projection_0/adam_m"} <= whole.keys()
    answers = json.loads((tmp_path / "nbest_predictions.json").read_text())

    for path in tmp_path.glob("model.ckpt-4.*"):
        path.unlink()
    assert run_squad.run(Settings(**given | {"do_predict": False}))["training"]["first_step"] == 2
    resumed = tensors(tmp_path / "model.ckpt-4")
    assert resumed.keys() == whole.keys() and all(
        np.array_equal(resumed[name], whole[name]) for name in whole
    )
    plain = {
        name: value for name, value in given.items() if name not in INSIDE and "teacher" not in name
    }
    run_squad.run(
        Settings(**plain | {"do_train": False, "distillation": False, "init_checkpoint": None})
    )
    assert json.loads((tmp_path / "nbest_predictions.json").read_text()) == answers


def test_temperature_direction_and_scales_reach_the_loss(files, tmp_path):
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    rng = np.random.default_rng(2)
    ids = rng.integers(5, 50, (2, 9)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "input_mask": 0 * ids + 1,
        "segment_ids": 0 * ids,
        "start_positions": ids[:, 0] % 9,
        "end_positions": ids[:, 1] % 9,
    }
    changes = {
        "distillation_temperature": 1.5,
        "distillation_direction": "teacher_student",
        "distillation_layers": "0:0",
    }
    settings = Settings(**files | INSIDE | changes, output_dir=str(tmp_path))
    student = networks.build(config, settings, dropout=False)
    loss = losses.distillation(student, config, settings)
    assert loss.pairs == [(0, 0)]
    teacher = losses.load_teacher(config, settings)
    inputs = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    ours, theirs = student(inputs), teacher(inputs)
    parts = {name: float(value) for name, value in loss.parts(batch).items()}
    expected = sum(
        float(divergence(ours[name], theirs[name], 1.5, "teacher_student")) for name in ours
    )
    assert parts["logits"] == pytest.approx(expected, rel=1e-3)
    total = parts["hard"] + 10 * parts["logits"] + parts["hidden"] + 10 * parts["attention"]
    assert float(loss(student, batch)) == pytest.approx(total, rel=1e-5)
    assert not teacher.trainable_variables


BAD = {
    "--distillation_temperature=0.0: must be above 0": {"distillation_temperature": 0.0},
    "--distillation_direction=both: must be one of": {"distillation_direction": "both"},
    "--distillation_hidden_scale=-1.0: must be at least 0": {"distillation_hidden_scale": -1.0},
    "--distillation_loss_scale=nan: must be at least 0": {"distillation_loss_scale": float("nan")},
    "all distillation weights are 0; set at least one": {"distillation_loss_scale": 0.0},
    "--distillation_direction has no effect with --distillation_loss_scale=0": {
        "distillation_loss_scale": 0.0,
        "distillation_hidden_scale": 1.0,
        "distillation_direction": "teacher_student",
    },
    "--distillation_layers has no effect without": {"distillation_layers": "0:0"},
    "--distillation_layers=0-1: must be pairs": {
        "distillation_layers": "0-1",
        "distillation_hidden_scale": 1.0,
    },
    "--distillation_layers=0:0,0:1: must be pairs .* once": {
        "distillation_layers": "0:0,0:1",
        "distillation_hidden_scale": 1.0,
    },
    "--distillation_layers=0:2: 0:2 names layer 2 of the teacher": {
        "distillation_layers": "0:2",
        "distillation_hidden_scale": 1.0,
    },
    "--teacher_config_file=gone: there is no such file": {"teacher_config_file": "gone"},
    "--teacher=gone: there is no gone.index": {"teacher": "gone"},
}


@pytest.mark.parametrize("message", BAD)
def test_flags_about_a_teacher_that_cannot_be_followed_are_refused_by_name(
    message, files, tmp_path
):
    with pytest.raises(flags.FlagError, match=message) as caught:
        flag_checks.check(Settings(**files | {"output_dir": str(tmp_path / "out")} | BAD[message]))
    assert len(str(caught.value).splitlines()) == 1


def misfit(files, tmp_path, changes, **more):
    config = json.loads(pathlib.Path(files["teacher_config_file"]).read_text())
    (tmp_path / "other.json").write_text(json.dumps(config | changes))
    more = {
        "distillation_hidden_scale": 1.0,
        "teacher_config_file": str(tmp_path / "other.json"),
    } | more
    flag_checks.check(Settings(**files | {"output_dir": str(tmp_path / "out")} | more))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("the teacher has 9 word pieces, the student", {"vocab_size": 9}),
        (
            "--max_seq_length=96: the teacher of .* has only 64 positions",
            {"max_position_embeddings": 64},
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(message, changes, files, tmp_path):
    with pytest.raises(flags.FlagError, match=message):
        misfit(files, tmp_path, changes)


def test_a_checkpoint_that_does_not_fit_the_teachers_configuration_is_named_with_its_flag(
    files, tmp_path
):
    wider = json.loads(pathlib.Path(files["teacher_config_file"]).read_text())
    wider["intermediate_size"] *= 2
    (tmp_path / "wider.json").write_text(json.dumps(wider))
    settings = Settings(
        **files
        | {
            "teacher_config_file": str(tmp_path / "wider.json"),
            "output_dir": str(tmp_path / "out"),
        }
    )
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    message = r"--teacher=.* does not fit --teacher_config_file=.*wrong shape: .*; and \d+ more"
    with pytest.raises(ValueError, match=message) as caught:
        losses.load_teacher(config, settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_quantized_teacher_answers_in_float_and_says_so(files, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("runs.networks.log", said.append)
    monkeypatch.setattr("runs.networks.holds_ranges", lambda path: True)
    settings = Settings(**files | {"output_dir": str(tmp_path / "out")})
    losses.load_teacher(modeling.BertConfig.from_json_file(files["bert_config_file"]), settings)
    assert said[-1] == "teacher: its ranges are not used, it answers in float"


def test_a_student_deeper_than_its_teacher_needs_a_mapping(files, tmp_path):
    deeper = json.loads(pathlib.Path(files["bert_config_file"]).read_text()) | {
        "num_hidden_layers": 3
    }
    (tmp_path / "deeper.json").write_text(json.dumps(deeper))
    changes = {"bert_config_file": str(tmp_path / "deeper.json")}
    with pytest.raises(
        flags.FlagError,
        match=r"--distillation_layers=\(not given\): the student has 3 layers and the teacher 2",
    ):
        misfit(files, tmp_path, {}, **changes)
    misfit(files, tmp_path, {}, **changes, distillation_layers="2:1")
    misfit(
        files, tmp_path, {}, **changes, distillation_hidden_scale=0.0
    )  # answers alone need no layers


@pytest.fixture(scope="module")
def w1a8(files, tmp_path_factory):
    """Checkpoint of a student with binary weights and 8-bit activations."""
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    model = modeling.build_squad_model(config, seed=3)
    network = tfquant.quantize(model, "binary_weights_int8", [tokens()], progress=False)
    path = tmp_path_factory.mktemp("w1a8") / "model.ckpt-4"
    tfquant.save(network, path)
    return str(path)


def tokens():
    ids = np.random.default_rng(0).integers(5, 50, (4, 12)).astype(np.int32)
    return {"input_ids": ids, "input_mask": 0 * ids + 1, "segment_ids": 0 * ids}


@pytest.mark.parametrize("quantized", [False, True])
def test_a_quantized_teacher_answers_as_its_checkpoint_says(files, w1a8, capsys, quantized):
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    changes = {"teacher": w1a8, "teacher_config_file": None, "teacher_quantized": quantized}
    teacher = losses.load_teacher(config, Settings(**files | changes))
    model = modeling.build_squad_model(config)
    network = tfquant.load(w1a8, model)
    same = [network(tokens())["start_logits"], model(tokens())["start_logits"]]
    np.testing.assert_array_equal(teacher(tokens())["start_logits"], same[not quantized])
    assert not np.allclose(*same)
    told = "answers quantized (binary_weights_int8)" if quantized else "answers in float"
    assert told in capsys.readouterr().err


def test_a_teacher_without_ranges_cannot_answer_quantized(files):
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    with pytest.raises(ValueError, match="--teacher_quantized: the teacher .* holds no ranges"):
        losses.load_teacher(config, Settings(**files | {"teacher_quantized": True}))


@pytest.mark.long
def test_the_second_step_starts_from_the_student_of_the_first(files, w1a8, tmp_path):
    common = {"teacher_config_file": None, "learning_rate": 1e-3, "train_batch_size": 4}
    start = files | common | {"output_dir": str(tmp_path / "start"), "init_checkpoint": w1a8}
    steps = {"do_train": False, "if_quant": False, "distillation": False, "teacher": None}
    calibration = {"do_calib": True, "quant_recipe": "w1a1"}
    run_squad.run(Settings(**start | steps | calibration))
    calibrated = str(tmp_path / "start" / "model.ckpt-calibrated")
    first, second = tensors(w1a8), tensors(calibrated)
    kernels = [name for name in first if name.endswith("query/kernel")]
    assert kernels and all(np.array_equal(first[name], second[name]) for name in kernels)

    taught = {"teacher": w1a8, "teacher_quantized": True, "distillation_hidden_scale": 1.0}
    train = {"init_checkpoint": calibrated, "num_train_epochs": 0.4} | taught
    settings = Settings(**{**start, **train, "output_dir": str(tmp_path / "w1a1")})
    run_squad.run(settings)
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    last = str(max(tmp_path.glob("w1a1/model.ckpt-*.index")).with_suffix(""))
    network = tfquant.load(last, modeling.build_squad_model(config))
    assert network.recipe.name == "w1a1"
    elastic = [name for name, q in network.quantizers.items() if q.learned is not None]
    assert len(elastic) == 8  # the inputs of four linear layers and of both products


def test_the_error_decay_gradient_is_of_binary_weights_alone():
    recipe = Settings(ste="error_decay").for_training(tfquant.recipe("binary_weights_int8"))
    found = {rule.roles: rule.spec.ste for rule in recipe.rules}
    assert found.pop(("weight",)) == "error_decay"
    assert found and set(found.values()) == {"inclusive"}
    with pytest.raises(ValueError, match="ste: error_decay is for formats that are fitted"):
        Settings(ste="error_decay").for_training(tfquant.recipe("int8_residual"))


@pytest.mark.long
def test_error_decay_advances_t_and_a_resumed_run_goes_on_with_it(files, w1a8, tmp_path):
    given = {name: files[name] for name in files if "teacher" not in name}
    given |= {"init_checkpoint": w1a8, "ste": "error_decay", "distillation": False}
    given |= {"num_train_epochs": 0.8, "save_checkpoints_steps": 2, "keep_checkpoint_max": 0}
    settings = Settings(**given | {"output_dir": str(tmp_path)})
    run_squad.run(settings)
    whole = {step: tensors(prefix) for step, prefix in checkpoint.steps(tmp_path)}
    (name,) = [name for name in whole[4] if "error_decay" in name]
    # t is set before each step, counted from 0.
    assert {step: float(one[name]) for step, one in whole.items()} == {
        step: pytest.approx(t_at(step - 1, 4, 0.1, 10.0)) for step in (2, 4)
    }
    for path in tmp_path.glob("model.ckpt-4.*"):
        path.unlink()
    assert run_squad.run(settings)["training"]["first_step"] == 2
    again = tensors(tmp_path / "model.ckpt-4")
    assert again.keys() == whole[4].keys()
    assert all(np.array_equal(again[name], whole[4][name]) for name in again)

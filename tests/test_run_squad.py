"""run_squad.py end to end on a generated data set and a very small BERT: what each combination of
flags does.
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from safetensors.numpy import save_file

import calib
import modeling
import run_squad
import tfquant
from runs import resume, script
from runs.batches import only
from runs.squad import (
    calibration,
    data,
    demo,
    flag_checks,
    flags,
    losses,
    networks,
    pipeline,
    training,
)
from runs.squad.flags import Settings
from squad_evaluate import score_questions
from tasks import squad
from tasks.squad import synthetic
from tfquant import checkpoint, store
from tfquant.distributed.group import Single
from tfquant.training import divergence

ROOT = pathlib.Path(__file__).parents[1]
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL = {"train_questions": 40, "dev_questions": 20}


def make_files(folder, **changes):
    """A data set with the configuration of a model that traces fast, dropout on."""
    files = synthetic.write_dataset(folder, **(SMALL | changes))
    config = json.loads(pathlib.Path(files.config_file).read_text())
    config |= SIZE | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    pathlib.Path(files.config_file).write_text(json.dumps(config))
    return {
        "bert_config_file": files.config_file,
        "vocab_file": files.vocab_file,
        "train_file": files.train_file,
        "predict_file": files.dev_file,
        "max_seq_length": 96,
        "max_query_length": 24,
        "learning_rate": 1e-3,
    }


def train_float(files, folder):
    """(folder, figures) of a float run: 10 steps in two epochs, then prediction."""
    settings = Settings(
        **files, output_dir=str(folder), do_train=True, do_predict=True, num_train_epochs=2.0
    )
    return folder, run_squad.run(settings)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    return train_float(files, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def calibrated(files, trained, tmp_path_factory):
    """(folder, figures) of post-training quantization of that.

    Calibration, then prediction by the quantized network.
    """
    folder = tmp_path_factory.mktemp("calibrated")
    return folder, run_squad.run(Settings(**ptq(files, trained), output_dir=str(folder)))


def ptq(files, trained, **changes):
    start = {"init_checkpoint": str(trained[0] / "model.ckpt-10"), "calib_batch": 2}
    return files | start | {"do_calib": True, "do_predict": True, "if_quant": True} | changes


def answers(folder) -> dict:
    return json.loads((folder / "nbest_predictions.json").read_text())


def tensors(prefix) -> dict:
    found = checkpoint.read(prefix)
    return {name: found[name] for name in found}


def test_training_and_prediction_leave_everything_a_run_promises(files, trained):
    folder, figures = trained
    names = {path.name for path in folder.iterdir()}
    assert {"predictions.json", "nbest_predictions.json", "results.json", "tensorboard"} <= names
    assert [step for step, _ in checkpoint.steps(folder)] == [10]
    written = json.loads((folder / "results.json").read_text())
    assert written["figures"] == figures
    assert (
        written["flags"]["num_train_epochs"] == 2.0
        and written["versions"]["tensorflow"] == tf.__version__
    )
    assert figures["training"]["last_step"] == 10 and figures["training"]["examples_per_second"] > 0
    assert figures["prediction"]["step"] == 10 and figures["prediction"]["questions"] == 20
    assert figures["prediction"]["latency_ms_50"] <= figures["prediction"]["latency_ms_100"]
    weights = {
        v.path
        for v in networks.build(
            modeling.BertConfig.from_json_file(files["bert_config_file"]), Settings()
        ).weights
    }
    assert weights <= set(checkpoint.read(folder / "model.ckpt-10"))


def test_the_last_line_of_a_run_without_scores_says_where_its_figures_are():
    assert pipeline.summary(Settings(output_dir="out"), {"training": {"loss": 1.0}}) == {
        "results": "out/results.json"
    }


def test_the_score_is_that_of_the_evaluation_script_on_the_written_predictions(files, trained):
    folder, figures = trained
    command = [
        sys.executable,
        "squad_evaluate.py",
        files["predict_file"],
        str(folder / "predictions.json"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {k: figures["prediction"][k] for k in ("exact_match", "f1")}


def test_questions_without_a_truth_are_named_before_any_work_and_left_out_of_the_score(
    files, trained, tmp_path, capsys, monkeypatch
):
    content = json.loads(pathlib.Path(files["predict_file"]).read_text())
    questions = [
        question for paragraph in content["data"][0]["paragraphs"] for question in paragraph["qas"]
    ]
    for number, question in enumerate(questions):
        question["is_impossible"] = number % 4 == 0
        if question["is_impossible"]:
            question["answers"] = []
    (tmp_path / "dev.json").write_text(json.dumps(content))
    changes = {
        "predict_file": str(tmp_path / "dev.json"),
        "init_checkpoint": str(trained[0] / "model.ckpt-10"),
    }
    settings = Settings(**files | changes, output_dir=str(tmp_path / "out"), do_predict=True)
    monkeypatch.setattr(script, "end_on_signals", lambda name: None)
    script.execute("run_squad.py", lambda: pipeline.main(settings))
    said = capsys.readouterr()
    assert (
        said.err.index("5 of 20 questions of") < said.err.index("loaded")
        and "--version_2_with_negative" in said.err
    )
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]["prediction"]
    shown = {name: figures[name] for name in ("exact_match", "f1")}
    (line,) = said.out.splitlines()  # everything else is on stderr
    assert json.loads(line) == shown and figures["scored_questions"] == 15
    known = {question["id"] for question in questions if question["answers"]}
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    whole = json.loads(pathlib.Path(files["predict_file"]).read_text())
    scores = [score for score in score_questions(whole, predictions) if score[0] in known]
    assert len(predictions) == 20 and shown["f1"] == pytest.approx(
        100 * sum(f1 for _, _, f1 in scores) / 15
    )
    assert (tmp_path / "out" / "results.json").is_file()


def test_training_that_was_cut_off_goes_on_to_the_same_weights(
    files, trained, tmp_path, monkeypatch
):
    settings = Settings(
        **files,
        output_dir=str(tmp_path),
        do_train=True,
        num_train_epochs=2.0,
        save_checkpoints_steps=3,
    )

    class Cut(Exception):
        pass

    def cut(*args):
        for number, batch in enumerate(whole(*args)):
            if number == 7:
                raise Cut
            yield batch

    whole = training.training_batches
    monkeypatch.setattr(training, "training_batches", cut)
    with pytest.raises(Cut):
        run_squad.run(settings)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [6]
    monkeypatch.setattr(training, "training_batches", whole)
    figures = run_squad.run(settings)["training"]
    assert (figures["first_step"], figures["last_step"]) == (6, 10)
    ours, theirs = tensors(tmp_path / "model.ckpt-10"), tensors(trained[0] / "model.ckpt-10")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_finished_training_is_not_repeated_silently(files, trained, capsys):
    before = (trained[0] / "model.ckpt-10.index").stat().st_mtime_ns
    figures = run_squad.run(
        Settings(**files, output_dir=str(trained[0]), do_train=True, num_train_epochs=2.0)
    )
    assert figures["training"]["loss"] is None
    assert "already been trained for 10 steps of 10" in capsys.readouterr().err
    assert (trained[0] / "model.ckpt-10.index").stat().st_mtime_ns == before


def test_training_batches_can_start_anywhere_and_shuffle_anew_each_epoch(files):
    settings = Settings(**files)
    tokenizer = squad.Tokenizer(files["vocab_file"])
    examples = data.read_examples(files["train_file"], settings, training=True)
    features = data.to_features(examples, tokenizer, settings, training=True)
    course = resume.training_schedule(None, settings, 1)
    stream = training.training_batches(features, settings, 0, Single(), course)
    first = [next(stream) for _ in range(13)]
    for start in (0, 3, 5, 12):
        later = next(training.training_batches(features, settings, start, Single(), course))
        assert all(np.array_equal(later[name], first[start][name]) for name in later)
    assert first[0].keys() == {
        "input_ids",
        "input_mask",
        "segment_ids",
        "start_positions",
        "end_positions",
    }
    assert not np.array_equal(first[0]["start_positions"], first[5]["start_positions"])


def test_post_training_quantization_leaves_calibration_and_checkpoint(calibrated, files):
    folder, figures = calibrated
    assert (folder / "model.ckpt-calibrated.index").is_file()
    calibration = calib.Calibration.load(folder / "calibrators.npz")
    assert len(calibration) == figures["calibration"]["sites"] > 10
    assert (
        figures["calibration"]["windows"] == 16
        and figures["calibration"]["recipe"] == "int8_residual"
    )
    saved = checkpoint.read(folder / "model.ckpt-calibrated")
    for address, site in calibration.items():
        assert np.array_equal(saved[f"tfquant/ranges/{address}/upper"], site.upper)
    methods = {
        site.method.name for address, site in calibration.items() if not address.endswith(":kernel")
    }
    assert methods == {"percentile"}
    assert len(json.loads((folder / "predictions.json").read_text())) == 20


def test_calibration_in_sequential_order_sees_what_quantizers_make_of_the_windows(
    calibrated, files, trained, tmp_path
):
    changes = {"calib_order": "sequential", "do_predict": False, "if_quant": False}
    figures = run_squad.run(Settings(**ptq(files, trained, **changes), output_dir=str(tmp_path)))
    assert figures["calibration"]["order"] == "sequential"
    parallel, sequential = (
        calib.Calibration.load(folder / "calibrators.npz") for folder in (calibrated[0], tmp_path)
    )
    assert parallel.keys() == sequential.keys()
    differ = {address for address in parallel if not parallel[address].equals(sequential[address])}
    assert differ and not any(parallel[address].statistics.constant for address in differ)


def test_calibrated_weights_are_the_float_ones(calibrated, trained):
    after, before = (
        tensors(calibrated[0] / "model.ckpt-calibrated"),
        tensors(trained[0] / "model.ckpt-10"),
    )
    weights = [
        name for name in before if name.startswith(("bert/", "cls/")) and "/adam_" not in name
    ]
    assert len(weights) > 10 and all(np.array_equal(after[name], before[name]) for name in weights)


def test_a_later_run_predicts_with_the_calibrated_checkpoint_exactly_alike(calibrated, files):
    folder, _ = calibrated
    before = answers(folder)
    (folder / "nbest_predictions.json").unlink()
    run_squad.run(Settings(**files, output_dir=str(folder), do_predict=True, if_quant=True))
    assert answers(folder) == before


def test_without_if_quant_a_calibrated_checkpoint_answers_as_the_float_one(
    calibrated, trained, files, tmp_path
):
    start = {"init_checkpoint": str(calibrated[0] / "model.ckpt-calibrated")}
    run_squad.run(Settings(**files | start, output_dir=str(tmp_path), do_predict=True))
    assert answers(tmp_path) == answers(trained[0]) != answers(calibrated[0])


def test_calibration_alone_writes_no_predictions_and_starts_even_without_a_head(
    files, trained, tmp_path, capsys
):
    encoder = {
        k: v
        for k, v in tensors(trained[0] / "model.ckpt-10").items()
        if k.startswith("bert/") and "adam" not in k
    }
    checkpoint.write(tmp_path / "bert_model.ckpt", encoder)
    changes = {
        "init_checkpoint": str(tmp_path / "bert_model.ckpt"),
        "do_predict": False,
        "if_quant": False,
    }
    output = tmp_path / "out"
    run_squad.run(
        Settings(
            **ptq(files, trained, **changes, quant_mode="ft2", calib_method="mse"),
            output_dir=str(output),
        )
    )
    names = {path.name for path in output.iterdir()}
    assert {
        "calibrators.npz",
        "model.ckpt-calibrated.index",
    } <= names and "predictions.json" not in names
    assert (
        json.loads(checkpoint.read(output / "model.ckpt-calibrated")[store.RECIPE])["name"] == "ft2"
    )
    assert "cls/squad/output_weights" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="cls/squad/output_weights"
    ):  # but nothing is predicted with a random head
        run_squad.run(
            Settings(
                **ptq(files, trained, **changes | {"do_predict": True}), output_dir=str(output)
            )
        )


def test_calibration_sees_random_windows_of_the_training_file_the_same_each_time(files):
    settings = Settings(**files, calib_batch=3, train_batch_size=4)
    tokenizer = squad.Tokenizer(files["vocab_file"])
    one, two = (calibration.calibration_batches(tokenizer, settings) for _ in range(2))
    other = calibration.calibration_batches(tokenizer, dataclasses.replace(settings, seed=1))
    assert [len(batch["input_ids"]) for batch in one] == [4, 4, 4]
    assert all(
        np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, two, strict=True)
    )
    drawn, others = (
        {tuple(row[row > 0]) for b in batches for row in b["input_ids"]} for batches in (one, other)
    )
    assert drawn != others
    examples = data.read_examples(files["train_file"], settings, training=True)
    features = data.to_features(examples, tokenizer, settings, training=True)
    known = {tuple(features.input_ids[features.window(row)]) for row in range(len(features))}
    assert drawn <= known
    with pytest.raises(ValueError, match="need 44 questions.* has 40"):
        calibration.calibration_batches(tokenizer, dataclasses.replace(settings, calib_batch=11))


def test_calibration_with_training_only_calibrates_and_says_so(files, trained, tmp_path, capsys):
    changes = {"do_train": True, "do_predict": False}
    figures = run_squad.run(Settings(**ptq(files, trained, **changes), output_dir=str(tmp_path)))
    assert figures.keys() == {"calibration"} and not checkpoint.steps(tmp_path)
    assert "only calibrates" in capsys.readouterr().err


SCHEDULE = {
    "range_learning_rate": 1e-2,
    "range_start_step": 1,
    "range_freeze_step": 3,
    "quant_start_step": 1,
}


@pytest.mark.parametrize(
    "update, schedule",
    [
        ("lsq", SCHEDULE),
        *(
            pytest.param(update, {}, marks=pytest.mark.long)
            for update in (None, "moving_average", "lsq", "tqt", "pact")
        ),
    ],
)
def test_quantization_aware_training_resumes_exactly_and_moves_ranges_only_when_told(
    calibrated, files, tmp_path, update, schedule
):
    start = {"init_checkpoint": str(calibrated[0] / "model.ckpt-calibrated")}
    settings = Settings(
        **files | start,
        output_dir=str(tmp_path),
        do_train=True,
        do_predict=True,
        if_quant=True,
        num_train_epochs=0.8,
        save_checkpoints_steps=2,
        keep_checkpoint_max=0,
        range_update=update,
        range_decay=0.9 if update == "moving_average" else None,
        **schedule,
    )
    figures = run_squad.run(settings)
    assert figures["training"]["last_step"] == 4
    before, after = (
        tensors(calibrated[0] / "model.ckpt-calibrated"),
        tensors(tmp_path / "model.ckpt-4"),
    )
    ranges = [name for name in before if name.startswith("tfquant/ranges/")]
    same = [np.array_equal(before[name], after[name]) for name in ranges]
    assert (
        all(same) if update is None else not any(same[1::2])
    )  # upper ends; lower ones may be zero
    if update in ("lsq", "tqt", "pact"):
        assert any("/adam_m" in name and name.startswith("ranges/") for name in after)
    kernel = "bert/encoder/layer_0/attention/self/query/kernel"
    assert not np.array_equal(before[kernel], after[kernel]) and kernel + "/adam_m" in after
    nbest = answers(tmp_path)

    # Resumed from step 2: the same again. Then predicted from the file: the same again.
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path, resumed)
    for path in resumed.glob("model.ckpt-4*"):
        path.unlink()
    settings = dataclasses.replace(settings, output_dir=str(resumed), do_predict=False)
    assert run_squad.run(settings)["training"]["first_step"] == 2
    again = tensors(resumed / "model.ckpt-4")
    assert again.keys() == after.keys() and all(
        np.array_equal(again[name], after[name]) for name in again
    )
    only_predict = Settings(**files, output_dir=str(resumed), do_predict=True, if_quant=True)
    run_squad.run(only_predict)
    assert answers(resumed) == nbest


@pytest.mark.parametrize("of", ["weights", "activations"])
def test_ranges_of_weights_or_activations_alone_can_be_learned(of):
    settings = Settings(range_update="tqt", range_update_of=of, ste="strict")
    rules = settings.for_training(tfquant.recipe("int8_residual")).rules
    updates = {
        ("weights" if rule.roles == ("weight",) else "activations", rule.spec.update)
        for rule in rules
    }
    assert updates == {(of, "tqt"), ("weights" if of == "activations" else "activations", "frozen")}
    assert {rule.spec.ste for rule in rules} == {"strict"}


def test_flags_about_ranges_that_no_range_of_the_checkpoint_follows_are_refused_by_name(
    calibrated, files, tmp_path
):
    start = {
        "init_checkpoint": str(calibrated[0] / "model.ckpt-calibrated"),
        "output_dir": str(tmp_path),
    }
    settings = Settings(
        **files | start, do_train=True, if_quant=True, range_learning_rate=1e-4, range_freeze_step=3
    )
    with pytest.raises(
        ValueError,
        match="--range_learning_rate and --range_freeze_step without effect.*--range_update",
    ):
        run_squad.run(settings)
    moving = dataclasses.replace(settings, range_update="moving_average")
    with pytest.raises(ValueError, match="--range_learning_rate without effect.*follow the data"):
        run_squad.run(moving)


def test_a_start_step_that_is_never_reached_is_refused(calibrated, files, tmp_path):
    start = {
        "init_checkpoint": str(calibrated[0] / "model.ckpt-calibrated"),
        "output_dir": str(tmp_path),
    }
    settings = Settings(
        **files | start, do_train=True, if_quant=True, num_train_epochs=0.8, quant_start_step=4
    )
    with pytest.raises(
        ValueError, match="--quant_start_step=4 is never reached: this run has 4 steps"
    ):
        run_squad.run(settings)


def test_quantized_runs_refuse_a_checkpoint_without_ranges_and_say_how_to_get_them(
    files, trained, tmp_path
):
    start = files | {
        "init_checkpoint": str(trained[0] / "model.ckpt-10"),
        "output_dir": str(tmp_path),
        "if_quant": True,
    }
    for what in ("do_predict", "do_train"):
        with pytest.raises(ValueError, match="model.ckpt-10 holds no ranges.*--do_calib"):
            run_squad.run(Settings(**start, **{what: True}))
    with pytest.raises(ValueError, match="give --init_checkpoint"):
        run_squad.run(Settings(**start | {"init_checkpoint": None}, do_train=True))


def test_placement_flags_must_agree_with_the_calibrated_checkpoint(calibrated, files):
    with pytest.raises(
        ValueError,
        match="calibrated for placement int8_residual, the flags ask for int8_residual_float",
    ):
        run_squad.run(
            Settings(
                **files,
                output_dir=str(calibrated[0]),
                do_predict=True,
                if_quant=True,
                quantize_residual=False,
            )
        )


def test_nothing_to_predict_with_or_to_calibrate_is_named(files, tmp_path):
    with pytest.raises(ValueError, match="nothing to predict with.*--init_checkpoint"):
        run_squad.run(Settings(**files, output_dir=str(tmp_path), do_predict=True))
    with pytest.raises(ValueError, match="nothing to calibrate.*--init_checkpoint"):
        run_squad.run(Settings(**files, output_dir=str(tmp_path), do_calib=True))


def test_a_hugging_face_folder_answers_as_the_checkpoint_it_was_made_from(files, trained, tmp_path):
    theirs = {
        "attention/self": "attention.self",
        "attention/output": "attention.output",
        "layer_0": "layer.0",
        "/": ".",
        "kernel": "weight",
        "gamma": "weight",
        "beta": "bias",
        "_embeddings": "_embeddings.weight",
        "cls.squad.output_weights": "qa_outputs.weight",
        "cls.squad.output_bias": "qa_outputs.bias",
    }
    converted = {}
    for name, value in tensors(trained[0] / "model.ckpt-10").items():
        if name.startswith(("bert/", "cls/")) and "adam" not in name:
            new = name
            for ours, other in theirs.items():
                new = new.replace(ours, other)
            converted[new] = np.ascontiguousarray(value.T) if name.endswith("kernel") else value
    save_file(converted, tmp_path / "model.safetensors")
    config = pathlib.Path(files["bert_config_file"]).read_text()
    (tmp_path / "config.json").write_text(config)
    changes = {"bert_config_file": str(tmp_path / "config.json"), "init_checkpoint": str(tmp_path)}
    run_squad.run(
        Settings(
            **files | changes,
            output_dir=str(tmp_path / "out"),
            do_predict=True,
            num_eval_iterations=1,
        )
    )
    assert len(answers(tmp_path / "out")) == 8
    reference = answers(trained[0])
    assert answers(tmp_path / "out") == {
        name: reference[name] for name in answers(tmp_path / "out")
    }


def test_version_2_writes_null_odds_and_both_scores(tmp_path):
    files = make_files(tmp_path / "data", version_2=True)
    settings = Settings(
        **files,
        output_dir=str(tmp_path),
        do_train=True,
        do_predict=True,
        num_train_epochs=0.4,
        version_2_with_negative=True,
        use_bf16=True,
    )
    figures = run_squad.run(settings)["prediction"]
    odds = json.loads((tmp_path / "null_odds.json").read_text())
    assert odds.keys() == answers(tmp_path).keys() and len(odds) == 20
    assert {"exact", "f1", "total", "NoAns_f1"} <= figures.keys()


def test_data_can_come_from_tensorflow_datasets(files, monkeypatch):
    asked = []
    monkeypatch.setattr(
        squad, "from_tfds", lambda split, folder, **how: asked.append((split, folder, how)) or []
    )
    data.read_examples("tfds:train[:1%]", Settings(tfds_dir="somewhere"), training=True)
    assert asked == [("train[:1%]", "somewhere", {"training": True, "version_2": False})]


def test_the_loss_is_the_mean_cross_entropy_of_both_ends_and_ignores_padding():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 3, 7)).astype(np.float32)
    lengths, firsts, lasts = [7, 5, 4], np.array([1, 4, 0]), np.array([2, 4, 3])
    expected = [
        -scipy.special.log_softmax(logits[row, :length])[position]
        for logits, positions in ((start, firsts), (end, lasts))
        for row, (length, position) in enumerate(zip(lengths, positions, strict=True))
    ]
    for padding in (0, 4):
        wider = np.pad([start, end], [(0, 0), (0, 0), (0, padding)], constant_values=9.0)
        batch = {
            "input_mask": (np.arange(7 + padding) < np.array(lengths)[:, None]).astype(np.int32),
            "start_positions": firsts,
            "end_positions": lasts,
        }
        loss = losses.hard_loss({"start_logits": wider[0], "end_logits": wider[1]}, batch)
        assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_divergence_is_that_of_softened_answers_and_moves_only_the_student():
    rng = np.random.default_rng(1)
    student, teacher = (
        tf.Variable(rng.normal(size=(4, 6)).astype(np.float32) * 3) for _ in range(2)
    )
    with tf.GradientTape() as tape:
        found = divergence(student, teacher)
    soft = [
        scipy.special.softmax(x.numpy().astype(np.float64) / 3, axis=-1) for x in (student, teacher)
    ]
    assert float(found) == pytest.approx(
        np.mean(scipy.special.rel_entr(*soft).sum(axis=-1)), rel=1e-5
    )
    gradients = tape.gradient(found, [student, teacher])
    assert np.any(gradients[0].numpy()) and gradients[1] is None


def test_distillation_adds_the_scaled_divergence_from_a_teacher_that_stays_as_it_is(
    files, trained, tmp_path
):
    path = str(trained[0] / "model.ckpt-10")
    before = tensors(path)
    settings = Settings(
        **files,
        output_dir=str(tmp_path),
        do_train=True,
        num_train_epochs=0.6,
        distillation=True,
        teacher=path,
        distillation_loss_scale=10.0,
    )
    config = modeling.BertConfig.from_json_file(files["bert_config_file"])
    teacher, student = (networks.build(config, settings, dropout=False) for _ in range(2))
    networks.load_float(teacher, path, settings)
    rng = np.random.default_rng(2)
    ids = rng.integers(5, 50, (2, 9)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "input_mask": ids * 0 + 1,
        "segment_ids": ids * 0,
        "start_positions": ids[:, 0] % 9,
        "end_positions": ids[:, 0] % 9,
    }
    batch = {name: tf.constant(value) for name, value in batch.items()}
    loss, hard = (
        float(f(student, batch))
        for f in (losses.distillation(student, config, settings), losses.squad_loss)
    )
    soft = [
        {
            k: scipy.special.softmax(v.numpy().astype(np.float64) / 3, axis=-1)
            for k, v in network(only(batch, data.INPUTS), training=False).items()
        }
        for network in (student, teacher)
    ]
    expected = sum(
        np.mean(scipy.special.rel_entr(soft[0][k], soft[1][k]).sum(axis=-1)) for k in soft[0]
    )
    assert expected > 1e-6 and loss - hard == pytest.approx(10.0 * expected, rel=0.05)

    figures = run_squad.run(settings)["training"]
    assert figures["last_step"] == 3 and figures["loss"] > 0
    assert all(np.array_equal(v, before[k]) for k, v in tensors(path).items())


@pytest.mark.long
def test_the_example_shows_a_table_and_returns_its_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.two_ranks, "launcher", lambda: None)
    quick = dataclasses.replace(demo.TRAINING, num_train_epochs=1, train_batch_size=8)
    (tmp_path / "float").mkdir()
    checkpoint.write(tmp_path / "float" / "model.ckpt-99", {"of": "an earlier example"})
    result = demo.demo(run_squad.run, str(tmp_path), quick, train_questions=64, dev_questions=12)
    said = capsys.readouterr()
    assert not said.out
    lines = said.err.splitlines()
    assert {f"{name}_f1" for name in demo.NAMES} <= result.keys() and {
        "qat_f1",
        "qat_residual_f1",
    } <= result.keys()
    table = [line for line in lines if line.startswith(tuple(demo.NAMES.values()))]
    for name, row in zip(demo.NAMES, table, strict=True):
        assert f"{result[f'{name}_f1']:.2f}" in row
    assert {path.name for path in tmp_path.iterdir()} == {"data", *demo.NAMES}
    assert result["onnx_speedup"] > 0 and 0 < result["onnx_size_ratio"] < 1
    assert abs(result["onnx_float_f1"] - result["float_f1"]) < 1e-6


def test_the_example_does_without_onnx(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.exported(None, demo.TRAINING, {}, {}) == {}
    assert "nothing is exported: pip install -e '.[export]'" in capsys.readouterr().err


def test_a_recipe_keeps_its_own_methods_unless_a_flag_names_one(tmp_path):
    own = tfquant.recipe("int8_residual_asymmetric")
    file = tmp_path / "mine.yaml"
    file.write_text(own.to_yaml())
    assert Settings(quant_recipe=str(file)).recipe == own
    assert Settings(quant_recipe=str(file), calib_method="mse").recipe == own.with_method("mse")
    assert Settings(quant_recipe=str(file), percentile=99.0).recipe == own.with_method(
        "percentile", percentile=99.0
    )


BAD_FLAGS = {
    "--quant_recipe has no effect on a float run": {"quant_recipe": "int8_residual"},
    "--quant_recipe=ours: unknown recipe 'ours'; known: binary_weights_int8": {
        "quant_recipe": "ours"
    },
    "--quant_recipe=gone.yaml": {"quant_recipe": "gone.yaml"},
    "--quant_recipe sets the placement": {"quant_recipe": "ft1", "quant_mode": "ft1"},
    "nothing to do": {"do_predict": False},
    "--bert_config_file is required": {"bert_config_file": None},
    "--vocab_file=gone: there is no such file": {"vocab_file": "gone"},
    "--predict_file is required": {"predict_file": None},
    "--train_file is required for --do_calib": {"train_file": None, "do_calib": True},
    "--train_file=gone": {"train_file": "gone", "do_train": True},
    "--init_checkpoint=gone: there is no gone.index": {"init_checkpoint": "gone"},
    "--calib_method=median: must be one of max, percentile": {"calib_method": "median"},
    "--percentile=100.5: .*100": {"percentile": 100.5},
    "--percentile=99.0 only applies with --calib_method=percentile": {
        "percentile": 99.0,
        "calib_method": "mse",
    },
    "--calib_method=cross_entropy: is for logits alone; name it in a rule of --quant_recipe": {
        "calib_method": "cross_entropy"
    },
    "--calib_order=backwards: must be one of parallel, sequential": {"calib_order": "backwards"},
    "--calib_order only applies with --do_calib": {
        "calib_order": "sequential",
        "do_calib": False,
        "do_predict": True,
    },
    "--quant_mode=ft9: must be one of ft1": {"quant_mode": "ft9"},
    "--quant_mode sets the placement": {"quant_mode": "ft1", "quantize_residual": True},
    "--quant_another_add_input needs": {
        "quant_another_add_input": True,
        "quantize_residual": False,
    },
    "--distillation only applies with --teacher": {"distillation": True, "do_train": True},
    "--teacher only applies with --distillation": {"teacher": "gone"},
    "--teacher_config_file only applies with --distillation": {"teacher_config_file": "gone"},
    "--distillation_temperature only applies with --distillation": {
        "distillation_temperature": 2.0
    },
    "--distillation_hidden_scale only applies with --distillation": {
        "distillation_hidden_scale": 1.0
    },
    "--distillation only applies with --do_train": {"distillation": True, "teacher": "gone"},
    "--max_seq_length=1024: the model of .* has only 512": {"max_seq_length": 1024},
    "--max_seq_length=27: must be above --max_query_length": {"max_seq_length": 27},
    "--train_batch_size=0: must be at least 1": {"train_batch_size": 0},
    "--num_eval_iterations=0": {"num_eval_iterations": 0},
    "--learning_rate=nan": {"learning_rate": float("nan")},
    "--num_train_epochs=0": {"num_train_epochs": 0.0},
    "--warmup_proportion=1.0": {"warmup_proportion": 1.0},
    "--keep_checkpoint_max=-1": {"keep_checkpoint_max": -1},
    "--do_lower_case=False, but --vocab_file=.* is uncased: set --do_lower_case=True": {
        "do_lower_case": False
    },
    "--calibrator_file=a/b.npz": {"calibrator_file": "a/b.npz"},
    "--range_update=lsk: must be one of frozen, lsq": {
        "range_update": "lsk",
        "do_train": True,
        "if_quant": True,
    },
    "--range_update_of=inputs: must be one of all, weights, activations": {
        "range_update_of": "inputs"
    },
    "--range_update_of only applies with --range_update": {
        "range_update_of": "weights",
        "do_train": True,
        "if_quant": True,
    },
    "--ste only applies with --do_train and --if_quant": {"ste": "strict"},
    "--horovod_compression only applies with --horovod": {"horovod_compression": "fp16"},
    "--quant_start_step only applies with --do_train and --if_quant": {"quant_start_step": 2},
    "--range_learning_rate=0.0: must be above 0": {
        "range_learning_rate": 0.0,
        "do_train": True,
        "if_quant": True,
    },
    "--range_freeze_step=2: must be above --range_start_step": {
        "range_start_step": 2,
        "range_freeze_step": 2,
        "do_train": True,
        "if_quant": True,
    },
    "--range_decay only applies with --range_update=moving_average": {
        "range_decay": 0.9,
        "do_train": True,
        "if_quant": True,
    },
    "--loss_scale=static: must be one of none, dynamic": {"loss_scale": "static"},
    "--loss_scale only applies with --do_train": {"loss_scale": "dynamic"},
    "--sparsity=4x2: .*fewer zeros": {"sparsity": "4x2", "do_train": True},
    "--sparsity only applies with --do_train": {"sparsity": "2x4"},
    "--sparsity=2x5: hidden_size 16 is no multiple of 5": {"sparsity": "2x5", "do_train": True},
    "--sparsity_begin_step only applies with --sparsity": {
        "sparsity_begin_step": 1,
        "do_train": True,
    },
    "--sparsity_begin_step=-1": {"sparsity": "2x4", "sparsity_begin_step": -1, "do_train": True},
    "--sparsity_frequency=0": {"sparsity": "2x4", "sparsity_frequency": 0, "do_train": True},
    "--sparsity_end_step=1: .*begin_step \\(2\\), or -1": {
        "sparsity": "2x4",
        "sparsity_begin_step": 2,
        "sparsity_end_step": 1,
        "do_train": True,
    },
    "--horovod_compression=int8": {"horovod_compression": "int8"},
    "--output_dir=/proc/nowhere: cannot be written": {"output_dir": "/proc/nowhere"},
}


@pytest.mark.parametrize("message", BAD_FLAGS)
def test_flags_that_cannot_be_followed_are_refused_by_name(message, files, tmp_path):
    output = tmp_path / "out"
    settings = Settings(
        **files | {"output_dir": str(output), "do_predict": True} | BAD_FLAGS[message]
    )
    with pytest.raises(flags.FlagError, match=message):
        flag_checks.check(settings)
    assert not output.exists()


def test_processes_that_would_not_know_of_each_other_are_refused(files, tmp_path, monkeypatch):
    settings = Settings(
        **files | {"output_dir": str(tmp_path), "do_predict": True, "init_checkpoint": None}
    )
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    flag_checks.check(settings)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(
        flags.FlagError, match="--horovod is missing, though this is one of 2 processes"
    ):
        flag_checks.check(settings)
    flag_checks.check(dataclasses.replace(settings, horovod=True))


def test_a_folder_in_place_of_a_prefix_is_refused_with_the_prefix(files, tmp_path):
    settings = Settings(
        **files
        | {
            "output_dir": str(tmp_path / "out"),
            "do_predict": True,
            "init_checkpoint": str(tmp_path),
        }
    )
    with pytest.raises(
        flags.FlagError, match="--init_checkpoint=.*: is a folder: it holds no checkpoint"
    ):
        flag_checks.check(settings)
    checkpoint.write(str(tmp_path / "model.ckpt-7"), {"weight": np.zeros(2)})
    with pytest.raises(
        flags.FlagError,
        match="is a folder: give the prefix of a checkpoint, such as .*model.ckpt-7",
    ):
        flag_checks.check(settings)


def test_all_bad_flags_are_listed_at_once_and_good_ones_pass(files, tmp_path):
    good = files | {"output_dir": str(tmp_path), "do_predict": True, "init_checkpoint": None}
    flag_checks.check(Settings(**good))
    with pytest.raises(flags.FlagError) as caught:
        flag_checks.check(
            Settings(**good | {"doc_stride": 0, "seed": -1, "quant_mode": "int8", "if_quant": True})
        )
    assert [line.split("=")[0].strip() for line in str(caught.value).splitlines()] == [
        "--doc_stride",
        "--seed",
        "--quant_mode",
    ]


def test_a_vocabulary_larger_than_the_model_is_refused(files, tmp_path):
    larger = tmp_path / "vocab.txt"
    larger.write_text(pathlib.Path(files["vocab_file"]).read_text() + "onemore\n")
    with pytest.raises(flags.FlagError, match="pieces, the model of .* only"):
        flag_checks.check(
            Settings(
                **files | {"vocab_file": str(larger)}, output_dir=str(tmp_path), do_predict=True
            )
        )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "int8_residual"),
        ({"quantize_residual": False}, "int8_residual_float"),
        ({"quant_another_add_input": True}, "int8_residual_both"),
        ({"quant_mode": "trt"}, "trt"),
        ({"quant_recipe": "int8_residual_asymmetric"}, "int8_residual_asymmetric"),
    ],
)
def test_placement_flags_name_recipes_that_exist(given, name):
    assert Settings(**given).recipe.name == name
    assert tfquant.recipe(name).name == name


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "run_squad.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_line_tells_errors_in_lines_not_traces(files, tmp_path):
    broken = tmp_path / "dev.json"
    broken.write_text('{"data": [{"paragraphs": [{"qas": []}]}]}')
    names = ("bert_config_file", "vocab_file")
    given = [f"--{name}={files[name]}" for name in names] + [
        f"--output_dir={tmp_path}",
        "--do_predict",
    ]
    checkpoint_less = command(*given, f"--predict_file={files['predict_file']}", "--use_fp16=false")
    assert (
        checkpoint_less.returncode == 1
        and "nothing to predict with" in checkpoint_less.stderr.splitlines()[-1]
    )
    assert "Traceback" not in checkpoint_less.stderr
    flags = command(*given, "--calib_method=median", f"--predict_file={broken}")
    (line,) = flags.stderr.splitlines()
    assert flags.returncode == 2 and "--calib_method: invalid choice: 'median'" in line


# Invalid choices, above, end the process alike.
@pytest.mark.long
def test_the_command_line_tells_contradictions_in_a_line(files, tmp_path):
    broken = tmp_path / "dev.json"
    broken.write_text('{"data": [{"paragraphs": [{"qas": []}]}]}')
    contradiction = command(
        f"--bert_config_file={files['bert_config_file']}",
        f"--vocab_file={files['vocab_file']}",
        f"--output_dir={tmp_path}",
        "--do_predict",
        "--percentile=99.9",
        "--calib_method=mse",
        f"--predict_file={broken}",
    )
    assert (
        contradiction.returncode == 2
        and "--percentile=99.9 only applies with" in contradiction.stderr.splitlines()[-1]
    )


def test_malformed_data_is_one_message_naming_file_and_key(files, trained, tmp_path):
    broken = tmp_path / "dev.json"
    broken.write_text('{"data": [{"paragraphs": [{"qas": []}]}]}')
    start = files | {
        "predict_file": str(broken),
        "init_checkpoint": str(trained[0] / "model.ckpt-10"),
    }
    with pytest.raises(flags.FlagError, match="--predict_file: .*dev.json.*context"):
        run_squad.run(Settings(**start, output_dir=str(tmp_path / "out"), do_predict=True))


@pytest.mark.needs_shared
def test_the_real_model_answers_real_questions(shared_dir, tmp_path):
    model = shared_dir / "models" / "minilm_squad"
    figures = run_squad.run(
        Settings(
            bert_config_file=str(model / "config.json"),
            vocab_file=str(model / "vocab.txt"),
            init_checkpoint=str(model),
            predict_file=str(shared_dir / "data" / "squad" / "dev-v1.1-part.json"),
            output_dir=str(tmp_path),
            do_predict=True,
            num_eval_iterations=8,
        )
    )
    assert figures["prediction"]["questions"] == 64 and figures["prediction"]["f1"] > 55

"""run_glue.py from its command line to its output tree, on generated data and tiny models."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_glue
from runs.glue import command_line, networks, setting_checks
from runs.glue.schedules import schedule
from runs.glue.settings import ARCHITECTURES, MODES, SCHEDULES, Settings
from runs.settings import FlagError
from tests.run_glue.tiny import QUANTIZED
from tfquant import checkpoint

BASELINE = (
    "--num-epochs 2 --batch-size 8 --learning-rate 1e-3 --max-seq-length 48 --save-model"
    " --save-steps 3"
)


@pytest.fixture(scope="module")
def baselines(call, untrained, tmp_path_factory):
    """<task>/out of rte and stsb, as validation finds them."""
    folder = tmp_path_factory.mktemp("baselines")
    call(
        f"train-baseline --task rte --task stsb {BASELINE}", model_path=untrained, output_dir=folder
    )
    return folder


def test_training_leaves_the_output_tree_of_the_source(baselines):
    found = sorted(os.listdir(baselines / "rte"))
    assert {
        "config.out",
        "eval_results_rte.txt",
        "final_score.txt",
        "out",
        "tb_logs",
        "results.json",
    } <= set(found)
    assert {"config.json", "vocab.txt", "model.ckpt.index"} <= set(
        os.listdir(baselines / "rte" / "out")
    )
    score = float((baselines / "rte" / "final_score.txt").read_text())
    assert 0.0 <= score <= 1.0
    assert f"accuracy = {score}" in (baselines / "rte" / "eval_results_rte.txt").read_text()
    assert {"pearson", "spearmanr", "combined_score"} <= {
        line.split(" = ")[0]
        for line in (baselines / "stsb" / "eval_results_stsb.txt").read_text().splitlines()
    }


def test_validation_finds_the_models_of_its_tasks_and_scores_them_as_training_did(
    call, baselines, capsys
):
    found = call(
        "validate-baseline --task rte --task stsb --eval-batch-size 7 --max-seq-length 48",
        model_path=baselines,
    )
    assert not capsys.readouterr().out  # which is for the result alone
    for task in ("rte", "stsb"):
        trained = 100.0 * float((baselines / task / "final_score.txt").read_text())
        assert found[task] == pytest.approx(trained, abs=0.02)


def test_training_goes_on_where_it_stopped_and_ends_with_the_same_weights(
    call, untrained, baselines, tmp_path
):
    words = f"train-baseline --task rte {BASELINE}"
    shutil.copytree(baselines / "rte", tmp_path / "cut")
    steps = [number for number, _ in checkpoint.steps(tmp_path / "cut")]
    for number in steps:
        if number != 3:
            for file in (tmp_path / "cut").glob(f"model.ckpt-{number}.*"):
                file.unlink()
    call(words, model_path=untrained, output_dir=tmp_path / "cut")
    once, twice = (
        checkpoint.read(folder / "out" / "model.ckpt")
        for folder in (baselines / "rte", tmp_path / "cut")
    )
    assert steps[-1] == 12
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])


BEST = (
    "train-baseline --task rte --num-epochs 2 --batch-size 8 --learning-rate 3e-2 --max-seq-length"
    " 48 --save-model --save-steps 3 --eval-strategy steps --eval-steps 2 --load-best-model-at-end"
    " --metric-for-best-model eval_loss --run-name first"
)


@pytest.fixture(scope="module")
def scored(call, untrained, tmp_path_factory):
    """A run of 12 steps at a rate that does harm, scored after every second one."""
    folder = tmp_path_factory.mktemp("scored")
    call(BEST, model_path=untrained, output_dir=folder)
    return folder


def curve(folder, tag):
    """(step, value) of a scalar, each step once."""
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return sorted(
        {
            event.step: float(tf.make_ndarray(event.tensor_proto)) for event in found.Tensors(tag)
        }.items()
    )


def test_training_is_scored_and_ends_with_the_weights_that_scored_best(call, scored):
    losses = curve(scored / "tb_logs" / "first", "validation/loss")
    assert [step for step, _ in losses] == [2, 4, 6, 8, 10, 12]
    step, loss = min(losses, key=lambda pair: pair[1])
    best = json.loads((scored / "results.json").read_text())["training"]["best"]
    assert best["step"] == step != 12
    assert best["score"] == pytest.approx(loss, rel=1e-5)
    accuracy = dict(curve(scored / "tb_logs" / "first", "validation/accuracy"))
    assert float((scored / "final_score.txt").read_text()) == pytest.approx(accuracy[step])
    found = call("validate-baseline --task rte --max-seq-length 48", model_path=scored)
    assert found["rte"] == pytest.approx(100.0 * accuracy[step], abs=0.02)
    if step % 3 == 0:
        kept, saved = (
            checkpoint.read(scored / name) for name in ("out/model.ckpt", f"model.ckpt-{step}")
        )
        for name in kept:
            np.testing.assert_array_equal(kept[name], saved[name])


# test_training_goes_on_where_it_stopped_and_ends_with_the_same_weights stands for it.
@pytest.mark.long
def test_a_run_that_was_cut_off_ends_with_the_same_best_weights(call, untrained, scored, tmp_path):
    shutil.copytree(scored, tmp_path / "cut")
    for number, prefix in checkpoint.steps(tmp_path / "cut"):
        if number > 6:
            for file in (tmp_path / "cut").glob(f"{os.path.basename(prefix)}.*"):
                file.unlink()
    shutil.rmtree(tmp_path / "cut" / "out")
    call(BEST, model_path=untrained, output_dir=tmp_path / "cut")
    once, twice = (
        checkpoint.read(folder / "out" / "model.ckpt") for folder in (scored, tmp_path / "cut")
    )
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])
    best = [
        json.loads((folder / "results.json").read_text())["training"]["best"]
        for folder in (scored, tmp_path / "cut")
    ]
    assert best[0] == best[1]
    with pytest.raises(
        FlagError, match="--metric_for_best_model=accuracy: was eval_loss when the run was started"
    ):
        call(
            BEST.replace("eval_loss", "accuracy"), model_path=untrained, output_dir=tmp_path / "cut"
        )


def test_a_run_that_is_done_has_its_best_weights_still(call, untrained, scored, tmp_path):
    shutil.copytree(scored, tmp_path / "done")
    shutil.rmtree(tmp_path / "done" / "out")
    call(BEST, model_path=untrained, output_dir=tmp_path / "done")
    once, twice = (
        checkpoint.read(folder / "out" / "model.ckpt") for folder in (scored, tmp_path / "done")
    )
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])


# test_training_is_scored_and_ends_with_the_weights_that_scored_best stands for it.
@pytest.mark.long
def test_quantized_training_keeps_the_best_ranges_with_the_weights_and_is_scored_by_epochs(
    call, baselines, tmp_path
):
    found = call(
        f"train-quantized --task stsb {QUANTIZED} --learn-ranges --batch-size 16 --num-epochs 2"
        " --learning-rate 1e-3 --save-steps 3 --max-seq-length 48 --save-model --eval-strategy"
        " epoch --load-best-model-at-end --metric-for-best-model pearson --no-greater-is-better",
        model_path=baselines / "stsb" / "out",
        output_dir=tmp_path,
    )
    scores = curve(tmp_path / "tb_logs", "validation/pearson")
    assert [step for step, _ in scores] == [3, 6]
    best = json.loads((tmp_path / "results.json").read_text())["training"]["best"]
    assert best["step"] == min(scores, key=lambda pair: pair[1])[0]
    kept, saved = (
        checkpoint.read(tmp_path / name)
        for name in ("out/model.ckpt", f"model.ckpt-{best['step']}")
    )
    assert sum(name.startswith("tfquant/ranges/") for name in kept) > 60
    for name in kept:
        np.testing.assert_array_equal(kept[name], saved[name])
    assert call("validate-quantized --task stsb --max-seq-length 48", model_path=tmp_path) == found


# A run with --double above stands for it.
@pytest.mark.long
@pytest.mark.parametrize("mode", ["validate-baseline", "validate-quantized"])
def test_scores_in_float64_are_those_of_float32(call, baselines, monkeypatch, mode):
    """A regression's score moves with every logit."""
    types = []
    build = networks.build
    monkeypatch.setattr(
        networks,
        "build",
        lambda *given: types.append((model := build(*given)).weights[0].dtype) or model,
    )
    words = (
        f"{mode} --task stsb --max-seq-length 48 {QUANTIZED if mode.endswith('quantized') else ''}"
    )
    one, two = (call(f"{words} {double}", model_path=baselines) for double in ("", "--double"))
    assert two["stsb"] == pytest.approx(one["stsb"], abs=0.02)
    assert types == ["float32", "float64"]


def test_several_seeds_give_median_and_spread(call, untrained, tmp_path):
    words = (
        "train-baseline --task rte --seed 1 2 --seed 3 --max-steps 1 --batch-size 4"
        " --num-val-samples 9"
    )
    found = call(words, model_path=untrained, output_dir=tmp_path, tb_logging_dir=tmp_path / "logs")
    assert [
        len(list((tmp_path / "logs" / f"seed_{seed}").glob("events*"))) for seed in (1, 2, 3)
    ] == [1, 1, 1]
    scores = [
        100.0 * float((tmp_path / f"seed_{seed}" / "final_score.txt").read_text())
        for seed in (1, 2, 3)
    ]
    assert found == {
        "rte": round(float(np.median(scores)), 2),
        "rte_spread": round(max(scores) - min(scores), 2),
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == found


def test_validation_of_several_seeds_takes_the_model_of_each(call, baselines, tmp_path):
    for seed in (1, 2):
        shutil.copytree(baselines / "rte" / "out", tmp_path / "runs" / f"seed_{seed}" / "out")
    words = "validate-baseline --task rte --max-seq-length 48 --seed 1 2"
    call(words, model_path=tmp_path / "runs", output_dir=tmp_path / "found")
    results = [
        json.loads((tmp_path / "found" / f"seed_{seed}" / "results.json").read_text())
        for seed in (1, 2)
    ]
    assert [result["source"] for result in results] == [
        str(tmp_path / "runs" / f"seed_{seed}" / "out") for seed in (1, 2)
    ]
    with pytest.raises(FlagError, match="seed_1/out, .*seed_2/out"):
        call("validate-baseline --task rte --seed 3", model_path=tmp_path / "runs")


def test_what_a_later_task_lacks_is_said_before_the_first_starts(data, untrained, tmp_path):
    folder = tmp_path / "data"
    for name in ("RTE", "CoLA"):
        shutil.copytree(os.path.join(data.data_dir, name), folder / name)
    (folder / "RTE" / "dev.tsv").unlink()
    table = folder / "CoLA" / "dev.tsv"
    table.write_text(table.read_text().replace("\t1\t", "\t7\t", 1))
    words = (
        f"train-baseline --task cola rte mrpc --max-steps 1 --data-dir {folder} --model-path"
        f" {untrained} --output-dir"
    )
    with pytest.raises(
        FlagError,
        match=r"(?s)dev.tsv: line .*label '7'.*no train.tsv of mrpc.*validation.tsv of rte",
    ):
        run_glue.run(command_line.parse([*words.split(), str(tmp_path / "out")], ""))
    assert not (tmp_path / "out").exists()


# Two tasks in one run (`baselines`) stand for nine; tests/glue reads the files of all nine.
@pytest.mark.long
def test_all_nine_tasks_run_with_one_option(call, untrained, tmp_path):
    found = call(
        "train-baseline --task all --max-steps 1 --batch-size 2 --num-train-samples 8"
        " --num-val-samples 4 --max-seq-length 24",
        model_path=untrained,
        output_dir=tmp_path,
    )
    assert len([name for name in os.listdir(tmp_path) if name != "summary.json"]) == 9
    assert {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"} < set(found)


def test_a_model_of_another_task_is_refused(call, baselines):
    with pytest.raises(
        ValueError,
        match="--task mrpc: .*config.json says the model was trained on rte: give --task rte",
    ):
        call("validate-baseline --task mrpc", model_path=baselines / "rte" / "out")


def test_training_starts_from_the_encoder_of_another_task(call, baselines, tmp_path):
    words = (
        "train-baseline --task mrpc --max-steps 1 --learning-rate 1e-9 --batch-size 4"
        " --num-val-samples 4 --save-model"
    )
    call(words, model_path=baselines / "stsb" / "out", output_dir=tmp_path)
    before, after = (
        checkpoint.read(folder / "out" / "model.ckpt") for folder in (baselines / "stsb", tmp_path)
    )
    assert (before["output_bias"].shape, after["output_bias"].shape) == ((1,), (2,))
    name = "bert/encoder/layer_0/output/dense/kernel"
    np.testing.assert_allclose(before[name], after[name], atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["finetuning_task"] == "mrpc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--per-groups 5", "--per-groups 5: .*5 groups do not divide the 24 dimensions"),
        (
            "--quant-dict {'q':8,'x':'ng5','y7':16}",
            "--quant-dict: .*unknown letter 'q'.*; .*'ng5': 5 groups.*; .*'y7' is",
        ),
        (
            "--adaround nosuch --adaround-iters 1",
            "--adaround nosuch: 'nosuch' matches no quantized weight; there are ",
        ),
        ("--gptq nosuch", "--gptq nosuch: 'nosuch' matches no quantized weight; there are "),
    ],
)
def test_what_does_not_fit_the_model_is_said_with_its_option(call, baselines, options, message):
    with pytest.raises(FlagError, match=message):
        call(f"{PTQ} {options}", model_path=baselines)


PTQ = (
    f"validate-quantized --task rte {QUANTIZED} --batch-size 8 --no-pad-to-max-length"
    " --est-ranges-no-pad --max-seq-length 48"
)


POST_TRAINING_OPTIONS = [
    # Weights and activations of a network of one layer: 4 + 8 + 2, and 3 + 13 + 2.
    (
        (
            "--act-quant --weight-quant --n-bits 8 --n-bits-act 8 --weight-quant-method MSE"
            " --weight-opt-method golden_section --act-quant-method current_minmax"
            " --est-ranges-batch-size 1 --num-est-batches 1 --quant-setup all"
        ),
        (14, 18),
    ),
    (
        (
            "--no-act-quant --n-bits 4 --weight-quant-method MSE --weight-opt-method grid"
            " --num-candidates 50"
        ),
        (14, 0),
    ),
    (
        "--no-weight-quant --act-quant-method MSE --act-opt-method grid --act-num-candidates 40",
        (0, 18),
    ),
    (
        (
            "--quant-setup FP_logits --act-quant-method running_minmax --act-momentum 0.5"
            " --num-est-batches 3"
        ),
        (14, 17),
    ),
    ("--quant-setup MSE_logits --act-quant-method allminmax --per-channel", (14, 18)),
    (
        "--cross-entropy-layer output_weights --percentile 99.9 --act-quant-method current_minmax",
        (14, 18),
    ),
    (
        (
            "--est-ranges-order sequential --act-quant-method current_minmax --quant-dict"
            " {'y':16,'h':16,'x':16}"
        ),
        (14, 18),
    ),
    ("--quant-dict {'e':'fp32','Et':2,'wC':'fp32'}", (13, 16)),
    ("--per-embd", (14, 18)),
    ("--per-groups 6", (14, 18)),
    ("--per-groups 6 --per-groups-permute", (14, 18)),
    ("--quant-dict {'y':'ng6','h':'ng6','x':'ng6'}", (14, 18)),
    ("--quant-dict {'y':'ngp6','h':'ngp6','x':'ngp6'} --per-groups-permute-shared-h", (14, 18)),
    (
        (
            "--no-act-quant --n-bits 4 --weight-quant-method MSE --weight-opt-method grid"
            " --num-candidates 100 --quant-setup all --adaround all --adaround-num-samples 32"
            " --adaround-init range_estimator --adaround-mode learned_hard_sigmoid --adaround-asym"
            " --adaround-iters 20 --adaround-act-quant no_act_quant"
        ),
        (14, 0),
    ),
    (
        (
            "--n-bits 4 --n-bits-act 8 --adaround kernels --adaround-iters 10 --adaround-annealing"
            " 10 3 --adaround-decay-type power --adaround-decay-shape 4 --adaround-no-act-func"
            " --no-adaround-asym --adaround-mode learned_sigmoid"
        ),
        (14, 18),
    ),
    ("--n-bits 4 --gptq kernels --gptq-num-samples 32 --gptq-percdamp 0.02", (14, 18)),
    ("--export onnx --save-model", (14, 18)),
    ("--dynamic --act-quant-method current_minmax --n-bits-act 6", (14, 18)),
    ("--double --est-ranges-order sequential --act-quant-method MSE --num-est-batches 2", (14, 18)),
    ("--double --per-token", (14, 18)),
    ("--tb --tb-graph --run-name shown --act-quant-method MSE", (14, 18)),
    ("--per-token --quant-setup FP_logits --quant-dict {'y':16} --no-weight-quant", (0, 17)),
]


@pytest.mark.representatives("--export onnx*", "--double --per-token*")
@pytest.mark.parametrize(
    ("options", "sites"),
    POST_TRAINING_OPTIONS,
)
def test_post_training_options_run_and_quantize_what_they_say(
    call, baselines, tmp_path, options, sites
):
    call(f"{PTQ} {options}", model_path=baselines, output_dir=tmp_path)
    ranges = json.loads((tmp_path / "results.json").read_text())["ranges"]
    assert (ranges["weights"], ranges["activations"]) == sites


def test_dynamic_ranges_are_in_the_recipe_and_come_back_with_the_model(call, baselines, tmp_path):
    found = call(f"{PTQ} --per-token --save-model", model_path=baselines, output_dir=tmp_path)
    rules = json.loads((tmp_path / "results.json").read_text())["ranges"]["recipe"]["rules"]
    granularities = {
        rule["spec"]["granularity"]
        for rule in rules
        if rule["spec"] and rule["spec"].get("dynamic")
    }
    assert granularities == {"per_tensor", "per_token"}  # of probabilities, and of hidden states
    stored = [
        name for name in checkpoint.read(tmp_path / "out" / "model.ckpt") if name.endswith("/upper")
    ]
    assert len(stored) == 14
    assert (
        call(
            "validate-quantized --task rte --no-pad-to-max-length --max-seq-length 48",
            model_path=tmp_path,
        )
        == found
    )
    with pytest.raises(FlagError, match="--per-token: the model in .* was saved with its ranges"):
        call("validate-quantized --task rte --per-token", model_path=tmp_path / "out")


# tests/core/test_dynamic.py stands for it.
@pytest.mark.long
def test_padding_changes_nothing_where_ranges_are_dynamic(call, baselines, tmp_path):
    """The logits, and with them the score of a regression, which every logit moves."""
    words = (
        f"validate-quantized --task stsb {QUANTIZED} --dynamic --n-bits 4 --max-seq-length 48"
        " --eval-batch-size 1"
    )
    padded, bare = (
        call(f"{words} {pad}", model_path=baselines)
        for pad in ("--pad-to-max-length", "--no-pad-to-max-length")
    )
    assert padded["stsb"] == pytest.approx(bare["stsb"], abs=0.02)


# test_run_squad.py trains learned ranges.
@pytest.mark.representatives("--n-bits 6 *")
@pytest.mark.parametrize(
    "options",
    [
        "--learn-ranges --weight-quant-method MSE --weight-opt-method golden_section"
        " --act-quant-method current_minmax --n-bits 4 --n-bits-act 8 --attn-dropout 0.0"
        " --hidden-dropout 0.0 --warmup-steps 1 --weight-decay 0.0 --logging-first-step",
        "--learn-ranges --range-update lsq --range-learning-rate 1e-3 --lr-scheduler-type cosine",
        "--n-bits 6 --act-momentum 0.8",
        "--fix-act-ranges --fix-weight-ranges --quant-dict {'Et':2}",
    ],
)
def test_quantized_training_starts_from_the_float_model_and_its_result_is_scored_again_alike(
    call, baselines, tmp_path, options
):
    words = (
        f"train-quantized --task rte {QUANTIZED} --batch-size 8 --max-steps 2 --max-seq-length 48"
        f" --save-model {options}"
    )
    found = call(words, model_path=baselines / "rte" / "out", output_dir=tmp_path)
    again = call("validate-quantized --task rte --max-seq-length 48", model_path=tmp_path)
    assert again == found
    with pytest.raises(FlagError, match="--n-bits: the model in .* was saved with its ranges"):
        call("validate-quantized --task rte --n-bits 7", model_path=tmp_path / "out")
    with pytest.raises(FlagError, match="was saved with its ranges"):
        call(
            f"train-quantized --task rte {QUANTIZED} --max-steps 1",
            model_path=tmp_path / "out",
            output_dir=tmp_path / "two",
        )
    assert not (tmp_path / "two").exists()


@pytest.fixture
def first_loss(call, baselines, tmp_path):
    """Options of quantized training of a task -> loss of the first step."""

    def loss(task, options):
        folder = tmp_path / options.replace("/", "_")[:60]
        call(
            f"train-quantized --task {task} {QUANTIZED} --n-bits 3 --hidden-dropout 0"
            f" --attn-dropout 0 --batch-size 8 --max-steps 1 --no-do-eval {options}",
            model_path=baselines / task / "out",
            output_dir=folder,
        )
        return json.loads((folder / "results.json").read_text())["training"]["loss"]

    return loss


# Distillation of two tasks, below, stands for it; tests/training has the scale of the loss.
@pytest.mark.long
@pytest.mark.parametrize("task", ["stsb", pytest.param("rte", marks=pytest.mark.long)])
def test_the_float_model_teaches_beside_the_labels(first_loss, task):
    alone, once, thrice = (
        first_loss(task, options)
        for options in (
            "",
            *(f"--distillation --distillation-loss-scale {scale}" for scale in (1, 3)),
        )
    )
    assert thrice - alone == pytest.approx(3 * (once - alone), rel=1e-3) and once > alone + 1e-6


@pytest.mark.long
def test_another_model_may_teach_and_from_inside(first_loss, baselines):
    alone, once = (
        first_loss("rte", ""),
        first_loss("rte", "--distillation --distillation-loss-scale 1"),
    )
    assert (
        first_loss(
            "rte",
            f"--distillation --distillation-loss-scale 1 --teacher {baselines / 'rte' / 'out'}",
        )
        == once
    )
    inside = (
        "--distillation --distillation-loss-scale 0 --distillation-hidden-scale 1"
        " --distillation-attention-scale 1"
    )
    assert first_loss("rte", inside) > alone + 1e-6


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def _turn_vocabulary(folder):
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(lines[::-1]))


UNFIT_TEACHERS = {  # options, message, what is done to a copy of the task's model
    "another task": (
        "",
        "teacher: was trained on stsb, not on rte",
        lambda folder: _change_config(folder, finetuning_task="stsb"),
    ),
    "no weights": (
        "",
        "teacher: no weights in it",
        lambda folder: (folder / "model.ckpt.index").unlink(),
    ),
    "another vocabulary": (
        "",
        "teacher: its vocab.txt is not that of .*take a teacher with",
        _turn_vocabulary,
    ),
    "fewer pieces": (
        "",
        "the teacher has 9 word pieces, the student",
        lambda folder: _change_config(folder, vocab_size=9),
    ),
    "fewer positions": (
        "",
        "--max-seq-length 128: the teacher of .* has only 64 positions",
        lambda folder: _change_config(folder, max_position_embeddings=64),
    ),
    "no such layer": (
        "--distillation-hidden-scale 1 --distillation-layers 0:3",
        "--distillation-layers 0:3: 0:3 names layer 3 of the teacher",
        lambda folder: None,
    ),
    "no folder": ("", "--teacher=.*: there is no such folder", shutil.rmtree),
}


@pytest.mark.parametrize("what", UNFIT_TEACHERS)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(
    call, baselines, tmp_path, what
):
    options, message, spoil = UNFIT_TEACHERS[what]
    shutil.copytree(baselines / "rte" / "out", tmp_path / "teacher")
    spoil(tmp_path / "teacher")
    words = (
        f"train-quantized --task rte {QUANTIZED} --max-steps 1 --distillation --teacher"
        f" {tmp_path / 'teacher'} {options}"
    )
    with pytest.raises(FlagError, match=message):
        call(
            words.replace("--max-seq-length 48", ""),
            model_path=baselines / "rte" / "out",
            output_dir=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["model-path", "teacher"])
def test_a_model_with_other_labels_is_refused_whatever_its_configuration_says(
    call, baselines, tmp_path, role
):
    shutil.copytree(baselines / "stsb" / "out", tmp_path / "unnamed")
    _change_config(tmp_path / "unnamed", finetuning_task="")
    folders = {"model-path": baselines / "rte" / "out", role: tmp_path / "unnamed"}
    more = f"--teacher {folders['teacher']}" if "teacher" in folders else ""
    with pytest.raises(FlagError, match=f"--{role}=.*unnamed: scores 1 labels and rte has 2"):
        call(
            f"train-quantized --task rte {QUANTIZED} --max-steps 1 --distillation {more}",
            model_path=folders["model-path"],
            output_dir=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_each_of_several_tasks_is_quantized_and_taught_from_a_folder_of_runs(
    call, baselines, tmp_path
):
    words = (
        f"train-quantized --task rte stsb {QUANTIZED} --batch-size 4 --max-steps 1"
        f" --num-val-samples 8 --distillation --teacher {baselines} --distillation-hidden-scale 1"
        " --distillation-layers 0:0 --save-model"
    )
    found = call(words, model_path=baselines, output_dir=tmp_path)
    assert {"rte", "stsb"} <= set(found)
    for task in ("rte", "stsb"):
        assert json.loads((tmp_path / task / "results.json").read_text())["source"] == str(
            baselines / task / "out"
        )
    with pytest.raises(
        FlagError,
        match="--distillation: .* is quantized, a teacher answers in float: name a float model",
    ):
        call(
            "train-quantized --task rte stsb --max-steps 2 --distillation",
            model_path=tmp_path,
            output_dir=tmp_path / "more",
        )


# test_run_squad.py has ranges that move only when told; setting_checks and the recipes are the
# same.
@pytest.mark.long
def test_ranges_that_are_not_fixed_follow_and_fixed_ones_stay(call, baselines, tmp_path):
    ends = {}
    for name, options in (("fixed", "--fix-act-ranges --fix-weight-ranges"), ("following", "")):
        call(
            f"train-quantized --task rte {QUANTIZED} --batch-size 8 --max-steps 3 --learning-rate"
            f" 1e-2 --max-seq-length 48 --save-steps 1 {options}",
            model_path=baselines / "rte" / "out",
            output_dir=tmp_path / name,
        )
        first, last = (checkpoint.read(tmp_path / name / f"model.ckpt-{step}") for step in (1, 3))
        upper = [
            tensor
            for tensor in first
            if tensor.startswith("tfquant/") and tensor.endswith("/upper")
        ]
        assert len(upper) == 14 + 18
        ends[name] = [np.array_equal(first[tensor], last[tensor]) for tensor in upper]
    assert all(ends["fixed"])
    assert not any(ends["following"])


def test_hyphens_underscores_and_mode_as_an_option_are_the_same():
    hyphens = "validate-quantized --task RTE --n-bits-act 4 --no-weight-quant --est-ranges-no-pad"
    underscores = (
        "--task rte --n_bits_act 4 --no_weight_quant --est_ranges_no_pad --mode validate_quantized"
    )
    one, two = (command_line.parse(words.split(), "") for words in (hyphens, underscores))
    assert one == two
    assert (one.mode, one.task, one.n_bits_act) == ("validate-quantized", ("rte",), 4)
    assert (one.weight_quant, one.est_ranges_pad) == (False, False)


def test_options_of_other_modes_are_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.parse("train-baseline --n-bits 4".split(), "")
    shown = capsys.readouterr().err
    assert (
        "train-baseline has no --n-bits; --n-bits is of train-quantized and validate-quantized"
        in shown
    )
    with pytest.raises(SystemExit):
        command_line.parse("train-baseline --task mprc".split(), "")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_option_has_help_in_each_mode_that_takes_it(capsys):
    for mode in MODES:
        with pytest.raises(SystemExit):
            command_line.parse([mode, "--help"], "")
        assert "--model-path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "train-baseline"}, "train-baseline needs --output-dir"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"n_bits": 1}, "--n-bits 1: must be from 2 to 16"),
        ({"weight_quant": False, "act_quant": False}, "leave nothing to quantize"),
        ({"num_candidates": 5}, "--num-candidates only applies with --weight-quant-method MSE"),
        (
            {"act_momentum": 0.5, "act_quant_method": "MSE"},
            "--act-momentum only applies with --act-quant-method running_minmax",
        ),
        ({"percentile": 0.1}, "--percentile 0.1: is the part of the values"),
        (
            {"mode": "train-baseline", "eval_steps": 5},
            "--eval-steps only applies with --eval-strategy steps",
        ),
        (
            {"mode": "train-baseline", "load_best_model_at_end": True},
            "--load-best-model-at-end only applies with --eval-strategy steps or epoch",
        ),
        (
            {"mode": "train-baseline", "greater_is_better": True},
            "--greater-is-better only applies with --eval-strategy",
        ),
        (
            {"mode": "train-baseline", "eval_strategy": "epoch", "metric_for_best_model": "bleu"},
            "--metric-for-best-model bleu: mrpc has score, loss, accuracy, f1, combined_score",
        ),
        (
            {"mode": "train-baseline", "run_name": "a/b"},
            "--run-name 'a/b': must be the name of a folder",
        ),
        ({"quant_dict": "[1]"}, "--quant-dict: .*mapping from letters"),
        ({"per_groups": 4, "per_embd": True}, "--per-embd and --per-groups: give one"),
        ({"per_groups_permute": True}, "--per-groups-permute: give --per-groups K"),
        ({"export": "tflite"}, "--export tflite: must be one of"),
        ({"export": "fastertransformer"}, "--export fastertransformer: must be one of"),
        (
            {"export": "openvino", "output_dir": "x", "quant_dict": "{'y': 16}"},
            "openvino: 16 bits need --export-opset 21",
        ),
        (
            {"export": "onnx", "output_dir": "x", "quant_dict": "{'y': 'per_token'}"},
            "leave it or 'per_token' of --quant-dict out",
        ),
        (
            {"mode": "train-quantized", "quant_dict": "{'y': 'per_token'}"},
            "'per_token' computes ranges in each batch",
        ),
        (
            {"mode": "train-quantized", "range_update": "lsq"},
            "--range-update only applies with --learn-ranges",
        ),
        ({"mode": "train-quantized", "teacher": "x"}, "--teacher only applies with --distillation"),
        (
            {"mode": "train-quantized", "distillation": True, "distillation_loss_scale": 0.0},
            "all distillation weights are 0",
        ),
        (
            {"mode": "train-quantized", "distillation": True, "distillation_temperature": 0.0},
            "temperature 0.0: must be above 0",
        ),
        (
            {
                "mode": "train-quantized",
                "distillation": True,
                "distillation_loss_scale": 0.0,
                "distillation_hidden_scale": 1.0,
                "distillation_temperature": 2.0,
            },
            "--distillation-temperature has no effect with --distillation-loss-scale 0",
        ),
        (
            {
                "mode": "train-quantized",
                "distillation": True,
                "task": ("stsb",),
                "distillation_temperature": 2.0,
            },
            "--distillation-temperature only applies to classes, and stsb has none",
        ),
        (
            {"mode": "train-quantized", "distillation": True, "distillation_layers": "0:0"},
            "layers has no effect without",
        ),
        ({"output_dir": __file__}, "--output-dir .*: is a file, no folder"),
        (
            {"per_groups_permute_shared_h": True},
            "--per-groups-permute-shared-h: give --per-groups K",
        ),
        ({"tb": True}, "--tb: give --output-dir or --tb-logging-dir"),
        ({"tb_graph": True}, "--tb-graph only applies with --tb"),
        (
            {"double": True, "save_model": True, "output_dir": "x"},
            "--double is for scores alone: leave out it or --save-model",
        ),
        ({"double": True, "amp": True}, "leave out it or --amp"),
        ({"dynamic": True, "act_quant": False}, "--dynamic only applies with --act-quant"),
        (
            {"dynamic": True, "act_quant_method": "MSE"},
            "--dynamic takes the extremes of each batch",
        ),
        (
            {"per_token": True, "quant_setup": "MSE_logits"},
            "--per-token estimates no ranges: leave out --quant-setup MSE_logits",
        ),
        ({"per_token": True, "per_embd": True}, "--per-token and --per-embd: give one"),
        ({"dynamic": True, "per_groups": 4}, "leave out one of --dynamic and --per-groups"),
        ({"dynamic": True, "export": "onnx"}, "leave out one of --dynamic and --export"),
        (
            {"mode": "train-quantized", "weight_quant_method": "MSE"},
            "give --learn-ranges or --fix-weight-ranges",
        ),
        (
            {"mode": "train-quantized", "learn_ranges": True, "fix_act_ranges": True},
            "give one or the other",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    settings = Settings(**({"mode": "validate-quantized"} | changes))
    with pytest.raises(FlagError, match=message):
        setting_checks.check(settings)


def test_quantizing_wants_a_method(call, baselines):
    with pytest.raises(FlagError, match="--qmethod is missing"):
        call("validate-quantized --task rte", model_path=baselines)


def test_packages_that_an_export_needs_are_looked_for_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(
        FlagError, match=r"--export openvino needs tf2onnx: pip install -e '.\[export\]'"
    ):
        setting_checks.check(Settings(mode="validate-quantized", export="openvino", output_dir="x"))


def test_a_model_without_weights_is_refused(call, untrained):
    with pytest.raises(
        FlagError,
        match="--model-path=.*: no weights in it, neither model.safetensors nor model.ckpt.index",
    ):
        call("validate-baseline --task rte", model_path=untrained)


def test_letters_and_layers_that_do_not_take_a_choice_are_named(call, baselines):
    with pytest.raises(
        FlagError,
        match=(
            "--quant-dict: .*'p': 'ng4': .*has no embedding axis: give a number of bits or 'fp32'"
        ),
    ):
        call(
            f"validate-quantized --task rte {QUANTIZED} --quant-dict {{'p':'ng4'}}",
            model_path=baselines,
        )
    with pytest.raises(
        FlagError,
        match=(
            "--cross-entropy-layer clasifier: no layer .* behind the encoder there are .*_weights"
        ),
    ):
        call(
            f"validate-quantized --task rte {QUANTIZED} --cross-entropy-layer clasifier",
            model_path=baselines,
        )


def test_a_run_goes_on_with_its_own_seed_alone_and_keeps_the_record_of_its_start(
    call, untrained, baselines, tmp_path
):
    shutil.copytree(baselines / "rte", tmp_path / "run")
    before = (tmp_path / "run" / "config.out").read_text()
    with pytest.raises(FlagError, match=r"--seed=\[7\]: was \[1000\] when the run was started"):
        call(
            f"train-baseline --task rte {BASELINE} --seed 7",
            model_path=untrained,
            output_dir=tmp_path / "run",
        )
    assert (tmp_path / "run" / "config.out").read_text() == before


def test_a_folder_with_no_or_two_models_for_a_task_is_refused(call, baselines, tmp_path):
    with pytest.raises(
        FlagError,
        match=r"no config.json in it, nor out or cola/\*\*/out with it: name a model's folder",
    ):
        call("validate-baseline --task cola", model_path=baselines)
    for name in ("a", "b"):
        shutil.copytree(baselines / "rte" / "out", tmp_path / "rte" / name / "out")
    with pytest.raises(FlagError, match="no config.json in it; name one of .*a/out, .*b/out"):
        call("validate-baseline --task rte", model_path=tmp_path)
    with pytest.raises(FlagError, match="there is no such folder"):
        call("validate-baseline --task rte", model_path=tmp_path / "none")


def test_a_name_that_is_not_of_the_folders_architecture_is_refused(call, baselines):
    assert ARCHITECTURES["distilroberta_base"] == "roberta"
    assert (
        call("validate-baseline --task rte --model-name bert_base_uncased", model_path=baselines)
        is not None
    )
    folder = baselines / "rte" / "out"
    with pytest.raises(ValueError, match="mobilebert_uncased is a mobilebert, .* holds a bert"):
        call("validate-baseline --task rte --model-name mobilebert_uncased", model_path=folder)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        OSError,
        match=(
            r"--model-name=roberta_base: cannot get roberta-base \(no network\); give --model-path"
        ),
    ):
        networks.from_hub(Settings(model_name="roberta_base"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_to_the_peak_and_follow_their_curve(name):
    rates = [float(schedule(name, 1e-3, 100, 10)(step)) for step in (0, 5, 10, 55, 100)]
    after = {
        "linear": (1.0, 0.5, 0.0),
        "cosine": (1.0, 0.5, 0.0),
        "cosine_with_restarts": (1.0, 1.0, 1.0),
        "polynomial": (1.0, 0.25, 0.0),
        "constant": (1.0, 1.0, 1.0),
        "constant_with_warmup": (1.0, 1.0, 1.0),
    }[name]
    before = (1.0, 1.0) if name == "constant" else (0.0, 0.5)
    np.testing.assert_allclose(np.array(rates) / 1e-3, [*before, *after], atol=1e-6)


POST_TRAINING = (
    "validate-quantized --act-quant --weight-quant --no-pad-to-max-length --est-ranges-no-pad"
    " --eval-batch-size 16 --seed 1000 --model-path models --task rte --n-bits 8 --n-bits-act 8"
    " --qmethod symmetric_uniform --qmethod-act asymmetric_uniform --weight-quant-method MSE"
    " --weight-opt-method golden_section --act-quant-method current_minmax --est-ranges-batch-size"
    " 1 --num-est-batches 1 --quant-setup all"
)
TRAINED = (
    "train-quantized --cuda --do-eval --logging-first-step --weight-quant --act-quant"
    " --pad-to-max-length --learn-ranges --tqdm --batch-size 8 --seed 1000 --model-name"
    " bert_base_uncased --learning-rate 5e-05 --num-epochs 6 --warmup-steps 186 --weight-decay 0.0"
    " --attn-dropout 0.0 --hidden-dropout 0.0 --max-seq-length 128 --n-bits 4 --n-bits-act 8"
    " --qmethod symmetric_uniform --qmethod-act asymmetric_uniform --weight-quant-method MSE"
    " --weight-opt-method golden_section --act-quant-method current_minmax --est-ranges-batch-size"
    " 16 --num-est-batches 1 --quant-setup all --model-path out --task rte --output-dir qat"
)


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (
            (
                "train-baseline --cuda --save-model --model-name bert_base_uncased --task rte"
                " --learning-rate 3e-05 --batch-size 8 --eval-batch-size 8 --num-epochs 3"
                " --max-seq-length 128 --seed 1000 --output-dir out"
            ),
            (),
        ),
        (
            (
                "validate-baseline --eval-batch-size 32 --seed 1000 --model-name bert_base_uncased"
                " --model-path models --task rte"
            ),
            (),
        ),
        ("validate-baseline --model-path models --task rte --task cola", ()),
        (POST_TRAINING, ()),
        (POST_TRAINING, ("--quant-dict", "{'y': 16, 'h': 16, 'x': 16}")),
        (
            POST_TRAINING,
            (
                "--quant-dict",
                "{'y': 16, 'h': 16, 'x': 16, 'P': 16, 'C': 16}",
                "--quant-setup",
                "MSE_logits",
            ),
        ),
        (POST_TRAINING, ("--per-embd",)),
        (POST_TRAINING, ("--per-groups", "6")),
        (POST_TRAINING, ("--per-groups", "6", "--per-groups-permute")),
        (POST_TRAINING, ("--quant-dict", "{'y': 'ng6', 'h': 'ng6', 'x': 'ng6'}")),
        (
            POST_TRAINING,
            (
                "--quant-dict",
                "{'y': 'ngp6', 'h': 'ngp6', 'x': 'ngp6'}",
                "--per-groups-permute-shared-h",
            ),
        ),
        (
            (
                "validate-quantized --weight-quant --no-act-quant --no-pad-to-max-length"
                " --est-ranges-no-pad --eval-batch-size 16 --seed 1000 --model-path models --task"
                " rte --qmethod symmetric_uniform --qmethod-act asymmetric_uniform --n-bits 4"
                " --weight-quant-method MSE --weight-opt-method grid --num-candidates 100"
                " --quant-setup all --adaround all --adaround-num-samples 1024 --adaround-init"
                " range_estimator --adaround-mode learned_hard_sigmoid --adaround-asym"
                " --adaround-iters 10000 --adaround-act-quant no_act_quant"
            ),
            (),
        ),
        (TRAINED, ()),
        (TRAINED, ("--quant-dict", "{'Et': 2}")),
    ],
)
def test_the_command_lines_of_the_source_are_understood(line, more):
    setting_checks.check(command_line.parse([*line.split(), *more], ""))

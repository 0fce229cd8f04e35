"""run_glue.py with incremental quantization, its sweep, and Q8BERT; commands of INQ-pytorch."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

import run_glue
import tfquant
from runs.glue import command_line, sweep
from runs.glue.pipeline import runs_of
from runs.settings import FlagError
from tasks.files import write_json
from tfquant import checkpoint
from tfquant.distributed.group import Single

TRAINING = "--batch-size 8 --learning-rate 1e-3 --max-seq-length 48 --save-model"
INQ = f"train-quantized --task rte {TRAINING} --num-epochs 2 --inq-mode p2 --nbits 5"
SEED_INQ = (
    "train-quantized --inq_mode {mode} --nbits {bits} --task_name mrpc --do_eval"
    " --max_seq_length 128 --per_gpu_eval_batch_size=8 --per_gpu_train_batch_size=8"
    " --learning_rate 2e-5 --num_train_epochs 9.0 --save_steps 100000 --overwrite_output_dir"
    " --inq-fractions 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1 --no-reset-lr"
)


@pytest.fixture(scope="module")
def trained(call, untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = call(f"{INQ} --save-steps 4", model_path=untrained, output_dir=folder)
    return folder, result


def is_level(values, amax):
    powers = {0.0, *(2.0**-k for k in range(8))}
    return set(np.abs(values).ravel() / amax) <= powers


def test_saved_kernels_hold_powers_of_two_alone_and_are_validated_as_they_were_trained(
    call, trained
):
    folder, result = trained
    saved = checkpoint.read(folder / "out" / "model.ckpt")
    kernels = [name for name in saved if name.endswith(("query/kernel", "word_embeddings"))]
    assert len(kernels) == 2
    for name in kernels:
        values = saved[name]
        assert is_level(values, np.abs(values).max()) and len(np.unique(values)) > 4
    assert len(np.unique(saved["output_weights"])) == saved["output_weights"].size  # in float
    again = call(
        "validate-quantized --task rte --max-seq-length 48 --batch-size 8",
        model_path=folder / "out",
    )
    assert again["rte"] == pytest.approx(result["rte"], abs=0.02)
    figures = json.loads((folder / "results.json").read_text())
    assert figures["size"]["packed_bytes"] < figures["size"]["float_bytes"] / 2


# tests/training/test_inq.py stands for it.
@pytest.mark.long
def test_a_run_that_was_cut_off_ends_with_the_same_weights(call, untrained, trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "cut")
    steps = [number for number, _ in checkpoint.steps(folder)]
    assert len(steps) > 1
    for number in steps[1:]:
        for file in (tmp_path / "cut").glob(f"model.ckpt-{number}.*"):
            file.unlink()
    shutil.rmtree(tmp_path / "cut" / "out")
    call(f"{INQ} --save-steps 4", model_path=untrained, output_dir=tmp_path / "cut")
    one, other = (
        checkpoint.read(place / "out" / "model.ckpt") for place in (folder, tmp_path / "cut")
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# The test of the recipe's places in tests/recipes stands for it.
@pytest.mark.long
def test_the_q8bert_recipe_is_trained_with_moving_averages(call, trained, tmp_path):
    call(
        f"train-quantized --task rte {TRAINING} --num-epochs 1 --quant-recipe q8bert"
        " --quant-start-step 2",
        model_path=_float(trained[0], tmp_path),
        output_dir=tmp_path / "out",
    )
    recipe = json.loads(
        str(checkpoint.read(tmp_path / "out" / "out" / "model.ckpt")["tfquant/recipe"])
    )
    assert recipe["name"] == "q8bert"
    assert recipe["rules"][1]["spec"]["update"] == "moving_average"


def _float(folder, place):
    """The trained model's folder without its recipe and ranges."""
    saved = checkpoint.read(folder / "out" / "model.ckpt")
    shutil.copytree(folder / "out", place / "float")
    for file in (place / "float").glob("model.ckpt.*"):
        file.unlink()
    weights = {n: saved[n] for n in saved if not n.startswith("tfquant/") and ":" not in n}
    checkpoint.write(str(place / "float" / "model.ckpt"), weights)
    return place / "float"


def settings_of(words):
    return command_line.parse(words.split(), "")


@pytest.mark.parametrize(("mode", "bits"), [("lin", 8), ("p2", 5), ("mb", 2)])
def test_the_command_of_inq_pytorch_is_understood(mode, bits):
    settings = settings_of(SEED_INQ.format(mode=mode, bits=bits) + " --model_name_or_path m")
    assert (settings.inq_mode, settings.n_bits, settings.task) == (mode, bits, ("mrpc",))
    assert (settings.batch_size, settings.eval_batch_size, settings.num_epochs) == (8, 8, 9.0)
    assert settings.model_path == "m" and settings.overwrite_output and not settings.reset_lr
    assert settings.inq_fractions == tuple(n / 10 for n in range(1, 11))


def test_the_commands_of_nlp_architect_are_understood():
    settings = settings_of(
        "train-quantized --quant-recipe q8bert --task_name cola --model_name_or_path m"
        " --learning_rate 2e-5 --num_train_epochs 1 --output_dir tmp/cola-8bit --save-model"
        " --eval-strategy steps --data_dir d --overwrite_output_dir"
    )
    assert settings.quant_recipe == "q8bert" and settings.task == ("cola",)
    settings = settings_of(
        "validate-quantized --model-path tmp/cola-8bit/out --task_name cola"
        " --output_dir tmp_out/cola-8bit --data_dir glue_data"
    )
    assert settings.model_path == "tmp/cola-8bit/out"


@pytest.mark.long
def test_the_commands_of_nlp_architect_run(call, trained, tmp_path):
    call(
        f"train-quantized --quant-recipe q8bert --task_name rte {TRAINING} --num_train_epochs 1"
        " --eval-strategy steps --eval-steps 3 --overwrite_output_dir",
        model_name_or_path=_float(trained[0], tmp_path),
        output_dir=tmp_path / "8bit",
    )
    found = call(
        "validate-quantized --task_name rte --max-seq-length 48",
        model_path=tmp_path / "8bit" / "out",
        output_dir=tmp_path / "evaluated",
    )
    written = float((tmp_path / "evaluated" / "final_score.txt").read_text())
    assert written == pytest.approx(100 * found["rte"], abs=0.005)


@pytest.mark.long
def test_the_command_of_inq_pytorch_runs(call, untrained, tmp_path):
    words = SEED_INQ.format(mode="lin", bits=4).replace("128", "48")
    call(words, model_path=untrained, output_dir=tmp_path / "out")
    masks = checkpoint.read(checkpoint.steps(tmp_path / "out")[-1][1])
    shares = [1.0 - masks[n].mean() for n in masks if n.startswith("tfquant/inq/masks/")]
    assert shares == pytest.approx([0.9] * len(shares), abs=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--inq-mode p2 --nbits 1", "--inq-mode p2 --n-bits 1: p2 has 2 to 8 bits, got 1"),
        ("--inq-mode mb --nbits 5", "--inq-mode mb --n-bits 5: mb has 1 to 4 bits, got 5"),
        ("--inq-mode mb", "mb has 1 to 4 bits, got 8"),
        (
            "--inq-mode p2 --inq-fractions 0.5 0.9",
            "--inq-fractions: the last fraction is 0.9: it must be 1",
        ),
        ("--inq-mode p2 --inq-fractions 0.5 0.4 1", "--inq-fractions: fraction 0.4 after 0.5"),
        ("--inq-mode p2 --inq-stage-epochs 1.5", "3 stages before the last share need 4.5 epochs"),
        ("--inq-fractions 0.5 1", "--inq-fractions only applies with --inq-mode"),
        ("--no-reset-lr", "--reset-lr only applies with --inq-mode"),
        ("--inq-mode p2 --per-channel", "--per-channel describes another quantization"),
        ("--inq-mode p2 --quant-recipe q8bert", "--quant-recipe describes another"),
        ("--inq-mode p2 --activation e4m3", "--activation describes another"),
        ("--inq-mode lin_fixed --granularity row", "lin_fixed has one grid for all weights"),
        (
            "--inq-mode p2 --eval-strategy epoch --load-best-model-at-end",
            "weights before the last stage are not quantized",
        ),
        ("--sweep --nbits 4", "--sweep tries every number of bits: leave out --n-bits"),
        ("--sweep --seed 1 2", "--sweep takes one seed"),
        ("--sweep --no-do-eval", "--sweep is a table of scores"),
        ("--quant-recipe q8bert --per-channel", "--per-channel describes another quantization"),
        ("--quant-recipe q9bert", "--quant-recipe q9bert: unknown recipe 'q9bert'"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_in_one_line(words, message, tmp_path):
    with pytest.raises(FlagError, match="(?s).*") as error:
        run_glue.run(
            settings_of(f"train-quantized --output-dir {tmp_path / 'o'} --model-path x {words}")
        )
    assert message in str(error.value)
    assert not (tmp_path / "o").exists()


def fake(calls, stop=None):
    """A run that writes scores which tell its cell."""

    def run_task(task, settings, group, *, directory, seed):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append((settings.inq_mode, settings.n_bits))
        os.makedirs(directory, exist_ok=True)
        score = settings.n_bits / 10
        scores = {"validation": {"accuracy": score, "f1": score / 2}}
        write_json(os.path.join(directory, "results.json"), {"scores": scores})
        return score

    return run_task


def test_a_sweep_writes_the_three_blocks_and_continues(tmp_path):
    settings = settings_of(f"train-quantized --sweep --task rte --output-dir {tmp_path}")
    calls = []
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(settings, Single(), runs_of, fake(calls, stop=5))
    assert not (tmp_path / sweep.TABLE).exists()
    finals = sweep.sweep(settings, Single(), runs_of, fake(calls))
    assert len(calls) == len(set(calls)) == len(finals) == 7 + 7 + 4
    lines = (tmp_path / sweep.TABLE).read_text().splitlines()
    assert lines[:3] == [
        "Power of 2,8,7,6,5,4,3,2,1,Bits",
        "rte (accuracy),0.800,0.700,0.600,0.500,0.400,0.300,0.200,,",
        "rte (f1),0.400,0.350,0.300,0.250,0.200,0.150,0.100,,",
    ]
    assert lines[4].startswith("Linear,8") and lines[8].startswith("mbq,8")
    assert lines[9] == "rte (accuracy),,,,,0.400,0.300,0.200,0.100,"
    assert (tmp_path / sweep.FIGURE).read_bytes().startswith(b"\x89PNG")
    changed = dataclasses.replace(settings, learning_rate=1e-4, inq_mode="mb")
    again = []
    sweep.sweep(changed, Single(), runs_of, fake(again))
    assert again == [("mb", bits) for bits in (4, 3, 2, 1)]


@pytest.mark.long
def test_a_sweep_of_multi_bit_codes_trains_every_number_of_bits(call, untrained, tmp_path):
    words = f"train-quantized --sweep --inq-mode mb --task rte {TRAINING} --num-epochs 2"
    result = call(words, model_path=untrained, output_dir=tmp_path)
    assert list(result) == [f"rte mb {bits}" for bits in (4, 3, 2, 1)]
    saved = tfquant.checkpoint.read(tmp_path / "mb_2" / "out" / "model.ckpt")
    kernel = next(saved[name] for name in saved if name.endswith("query/kernel"))
    assert max(len(np.unique(column)) for column in kernel.T) <= 4

"""run_glue.py: distillation in two steps, and the schedule of the error-decay gradient."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from runs.glue.networks import CONFIG, NAME
from runs.settings import FlagError
from tfquant import checkpoint
from tfquant.error_decay import t_at

SHORT = "--batch-size 8 --max-seq-length 24 --num-est-batches 1 --no-do-eval"


@pytest.fixture(scope="module")
def w1a8(untrained, tmp_path_factory):
    """Folder of a student with binary weights and 8-bit activations."""
    folder = tmp_path_factory.mktemp("w1a8")
    shutil.copytree(untrained, folder, dirs_exist_ok=True)
    model = modeling.build_classifier(modeling.config_from_file(str(folder / CONFIG)), 2, seed=1)
    ids = np.random.default_rng(0).integers(5, 50, (4, 12)).astype(np.int32)
    batch = {"input_ids": ids, "input_mask": 0 * ids + 1, "segment_ids": 0 * ids}
    network = tfquant.quantize(model, "binary_weights_int8", [batch], progress=False)
    tfquant.save(network, folder / NAME)
    return folder


SECOND = "--distillation --teacher-quantized --distillation-loss-scale 1"


@pytest.mark.long
def test_the_student_of_the_first_step_is_start_and_teacher_of_the_second(
    call, w1a8, tmp_path, capsys
):
    words = f"train-quantized --task rte {SHORT} --quant-recipe w1a1 --requantize {SECOND}"
    words += " --range-learning-rate 1e-3"
    call(f"{words} --max-steps 1 --save-model", model_path=w1a8, output_dir=tmp_path)
    said = capsys.readouterr().err
    assert "it answers quantized (binary_weights_int8)" in said
    out = tmp_path / "out"
    model = modeling.build_classifier(modeling.config_from_file(str(out / CONFIG)), 2)
    assert tfquant.load(out / NAME, model).recipe.name == "w1a1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--quant-recipe w1a1", "was saved with its ranges"),
        ("--requantize", "--requantize"),
        (
            "--quant-recipe w1a1 --requantize --distillation",
            "--distillation: .* is quantized.*--teacher-quantized",
        ),
        (
            "--quant-recipe irnet --requantize --range-learning-rate 1e-3",
            "--range-learning-rate only applies with --learn-ranges, or with a --quant-recipe that",
        ),
    ],
)
def test_a_second_step_that_lacks_an_option_is_refused(call, w1a8, tmp_path, words, message):
    with pytest.raises(FlagError, match=message):
        call(
            f"train-quantized --task rte {SHORT} --max-steps 1 {words}",
            model_path=w1a8,
            output_dir=tmp_path / "out",
        )


def t_of(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if "error_decay" in name]
    assert len(names) == 1
    return float(reader.get_tensor(names[0]))


@pytest.mark.long
def test_irnet_advances_t_and_a_resumed_run_goes_on_with_it(call, w1a8, tmp_path):
    words = (
        f"train-quantized --task rte {SHORT} --quant-recipe irnet --requantize --max-steps 4"
        " --save-steps 2 --save-total-limit 5"
    )
    call(words, model_path=w1a8, output_dir=tmp_path)
    folder = tmp_path
    steps = dict(checkpoint.steps(folder))
    # t is set before each step, counted from 0.
    found = {step: t_of(prefix) for step, prefix in steps.items()}
    assert found == {step: pytest.approx(t_at(step - 1, 4, 0.1, 10.0)) for step in (2, 4)}
    whole = checkpoint.latest(folder)
    weights = tensors(whole)
    for path in folder.glob("model.ckpt-4.*"):
        path.unlink()
    call(words, model_path=w1a8, output_dir=tmp_path)
    assert json.loads((folder / "results.json").read_text())["training"]["first_step"] == 2
    assert t_of(whole) == found[4]
    again = tensors(whole)
    assert all(np.array_equal(again[name], weights[name]) for name in weights)


def tensors(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

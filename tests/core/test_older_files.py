"""Checkpoints and calibrations of versions that told fewer sites apart keep loading."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import calib
import tfquant
from tfquant import QuantSpec, Recipe, Rule, checkpoint, store


def split_kernel():
    """A network with two kernels cut from one variable, and a batch."""
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32) * np.repeat(
        [1, 50], 8
    ).astype(np.float32)
    w, x = (
        tf.Variable(values, name="layer/kernel"),
        np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32),
    )
    return tf.function(lambda x: [tf.matmul(x, part) for part in tf.split(w, 2, axis=1)]), x


def as_older(model, prefix, dropped: str, wrong: str = "") -> None:
    """Write a checkpoint without sites whose address holds `dropped`; the range of the site `wrong`
    fits another kernel.
    """
    tensors = {
        name: value for name, value in store.named_tensors(model).items() if dropped not in name
    }
    tensors[store.SITES] = json.dumps(
        [entry for entry in json.loads(tensors[store.SITES]) if dropped not in entry[0]]
    )
    for end in ("lower", "upper") if wrong else ():
        name = store.range_name(wrong, end)
        tensors[name] = tensors[name].numpy() * 50
    checkpoint.write(prefix, tensors)


def test_ranges_of_kernels_that_shared_one_are_found_anew(tmp_path):
    network, x = split_kernel()
    model = tfquant.quantize(network, calibration=[(x,)], progress=False)
    as_older(model, tmp_path / "model", "#2:weight", wrong="layer:weight:kernel")
    again = tfquant.load(tmp_path / "model", network, inputs=(x,))
    assert all(np.array_equal(a, b) for a, b in zip(model(x), again(x), strict=True))


def test_a_calibration_with_one_range_for_all_kernels_is_applied():
    network, x = split_kernel()
    model = tfquant.quantize(network, calibration=[(x,)], progress=False)
    expected, found = model.ranges(), model.calibration
    older = calib.Calibration(
        {address: entry for address, entry in found.items() if "#2:weight" not in address}
    )
    again = tfquant.quantize(network, inputs=(x,))
    tfquant.apply(again, older)
    for address, ends in again.ranges().items():
        np.testing.assert_array_equal(ends, expected[address])


@pytest.mark.parametrize("role", ["layernorm_input", "layernorm_output"])
def test_calls_that_were_left_in_float_stay_there(tmp_path, role):
    norm, x = keras.layers.LayerNormalization(name="norm"), keras.Input((8,))
    original = keras.Model(x, norm(10 * norm(x) + 1))
    batch = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    recipe = Recipe((Rule(QuantSpec("int4"), role=role),))
    model = tfquant.quantize(original, recipe, calibration=[batch], progress=False)
    as_older(model, tmp_path / "model", "#2:")
    again = tfquant.load(tmp_path / "model", original)
    assert [site.path for site in again.plan.sites] == ["norm"] and len(model.plan.sites) == 2


def test_a_file_of_another_model_is_refused_still(tmp_path):
    network, x = split_kernel()
    as_older(
        tfquant.quantize(network, calibration=[(x,)], progress=False),
        tmp_path / "model",
        "#2:weight",
    )
    with pytest.raises(ValueError, match="differ from the model's"):
        tfquant.load(
            tmp_path / "model",
            keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="other")]),
        )

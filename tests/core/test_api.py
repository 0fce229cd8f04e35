"""What `plan` and `quantize` accept, beyond what the other files need of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant

ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
WEIGHTS = tf.Variable(
    np.random.default_rng(1).normal(size=(4, 3)), dtype=tf.float32, name="weights"
)
RECIPE = tfquant.Recipe((tfquant.Rule(tfquant.QuantSpec(), role=("weight", "linear_input")),))


def product(x):
    return tf.matmul(x, WEIGHTS)


def two_inputs() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    return keras.Model([left, right], keras.layers.Dense(2)(left + right))


def test_a_list_of_specs_is_one_for_each_argument():
    quantized = tfquant.quantize(
        product, RECIPE, [(ROWS,)], signature=[tf.TensorSpec([None, 4])], progress=False
    )
    assert np.allclose(quantized(ROWS), product(ROWS), atol=0.1)


def test_a_quantized_model_is_not_quantized_again():
    quantized = tfquant.quantize(product, RECIPE, [(ROWS,)], progress=False)
    with pytest.raises(TypeError, match="quantized already"):
        tfquant.quantize(quantized, RECIPE)


def test_inputs_of_a_list_are_taken_by_name_and_a_missing_one_is_named():
    model = two_inputs()
    by_name = {"left": ROWS, "right": ROWS}
    quantized = tfquant.quantize(model, RECIPE, [by_name], progress=False)
    assert np.array_equal(quantized(by_name), quantized([ROWS, ROWS]))
    with pytest.raises(ValueError, match="input 'right' is missing; the model takes left, right"):
        tfquant.calibrate(quantized, [{"left": ROWS}], progress=False)


def test_named_inputs_with_targets_calibrate_on_the_inputs():
    quantized = tfquant.quantize(two_inputs(), RECIPE)
    calibration = tfquant.calibrate(
        quantized, [({"left": ROWS, "right": ROWS}, np.zeros(8))], progress=False
    )
    assert calibration.samples == 8


def test_a_recipe_file_is_taken_where_a_name_is(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.to_yaml())
    assert tfquant.plan(product, str(file), inputs=(ROWS,)).recipe == RECIPE
    with pytest.raises(FileNotFoundError, match="no recipe file gone.yaml"):
        tfquant.recipe("gone.yaml")


def test_a_model_without_products_has_nothing_to_quantize():
    with pytest.raises(ValueError, match="nothing to quantize"):
        tfquant.plan(lambda x: x + 1.0, RECIPE, inputs=(ROWS,))


def test_a_rule_with_a_path_that_matches_nothing_is_told_the_paths_there_are():
    recipe = RECIPE.with_rules(tfquant.Rule(None, role="weight", path="*/layer_0/*"))
    with pytest.raises(ValueError, match="matches nothing.*Paths: weights"):
        tfquant.plan(product, recipe, inputs=(ROWS,))


def test_a_plan_shows_which_roles_share_a_range():
    inputs = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(4, name="dense")(inputs)
    model = keras.Model(inputs, inputs + hidden)
    recipe = RECIPE.with_rules(tfquant.Rule(tfquant.QuantSpec(), role="residual"))
    assert "input (+1 residual)" in str(tfquant.plan(model, recipe))


def test_another_percentile_is_estimated_without_data():
    quantized = tfquant.quantize(product, RECIPE, [(ROWS,)], progress=False)
    calibration = tfquant.calibrate(quantized, [(ROWS,)], progress=False)
    address = "weights:linear_input:input"
    assert (
        calibration.reestimate("percentile", percentile=50)[address].upper
        < calibration[address].upper
    )

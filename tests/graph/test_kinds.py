"""What is particular to one kind of model.

Arguments of functions, bfloat16, open shapes, equal names, models in models.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfquant
from tests.graph import models
from tests.graph.models import floats
from tfquant.graph.arguments import ArgumentError
from tfquant.graph.model_adapter import TraceError
from tfquant.model import engine_of

LENGTH = models.LENGTH

# Functions.


@pytest.fixture(scope="module")
def function():
    case = models.function_without_signature()
    return case, tfquant.quantize(case.model, calibration=case.batches, progress=False)


def test_a_function_is_called_by_position_or_by_name(function):
    case, quantized = function
    quantized.set_mode("float")
    x, offset = case.batches[0]
    want = case.model(x, offset).numpy()
    for got in (
        quantized(x, offset),
        quantized(x, offset=offset),
        quantized(offset=offset, x=x),
        quantized(x, offset, 2.0),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_another_number_than_at_the_trace_is_refused(function):
    case, quantized = function
    with pytest.raises(
        ArgumentError, match="'scale' was 2.0 when the function was traced, now it is 3.0"
    ):
        quantized(*case.batches[0], scale=3.0)


def test_a_missing_argument_is_named(function):
    case, quantized = function
    with pytest.raises(ArgumentError, match="offset"):
        quantized(case.batches[0][0])
    with pytest.raises(ValueError, match="batch 0.*offset"):
        tfquant.calibrate(quantized, [case.batches[0][:1]], progress=False)


def test_a_number_in_the_batch_becomes_a_constant_of_the_graph(function):
    case, _ = function
    x, offset = case.batches[0]
    quantized = tfquant.quantize(case.model, inputs=(x, offset, 0.5))
    quantized.set_mode("float")
    np.testing.assert_allclose(
        quantized(x, offset, 0.5), case.model(x, offset, 0.5), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ArgumentError, match="'scale' was 0.5"):
        quantized(x, offset, 2.0)


@pytest.fixture(scope="module")
def keyword_function():
    kernel = tf.Variable(floats((8, 4))[0], name="layer/kernel")

    @tf.function
    def network(input_ids, *, input_mask, bias=None):
        h = tf.one_hot(input_ids, 8) * tf.cast(input_mask, tf.float32)[..., None]
        return tf.tanh(h) @ kernel + (0.0 if bias is None else bias)

    return network


def test_arguments_that_go_by_name_only_are_given_as_mappings(keyword_function):
    (batch,) = models.tokens(("input_ids", "input_mask"), (2, 5))
    batch["input_ids"] %= 8
    quantized = tfquant.quantize(keyword_function, calibration=[batch, batch], progress=False)
    assert [s.path for s in quantized.plan.sites] == ["layer", "layer"]
    quantized.set_mode("float")
    np.testing.assert_allclose(quantized(**batch), keyword_function(**batch), atol=1e-6)


def test_a_mask_among_the_arguments_is_found_by_its_name(keyword_function):
    (batch,) = models.tokens(("input_ids", "input_mask"), (2, 5))
    quantized = tfquant.quantize(keyword_function, inputs=batch)
    assert engine_of(quantized).inference.input_names == ("input_ids", "input_mask")


def test_a_signature_may_be_given_instead_of_data(keyword_function):
    signature = {
        name: tf.TensorSpec([None, None], tf.int32) for name in ("input_ids", "input_mask")
    }
    assert len(tfquant.plan(keyword_function, signature=signature).sites) == 2


def test_one_argument_that_is_itself_a_mapping_stays_one():
    kernel = tf.Variable(floats((8, 4))[0], name="layer/kernel")
    batch = {"left": floats((2, 8))[0], "right": floats((2, 8))[0]}

    def network(features):
        return (features["left"] - 2.0 * features["right"]) @ kernel

    quantized = tfquant.quantize(network, calibration=[batch], progress=False)
    assert engine_of(quantized).inference.input_names == ("features/left", "features/right")
    np.testing.assert_allclose(quantized(batch), network(batch), atol=0.1)


def test_a_concrete_function_and_a_signature_of_a_saved_model_are_functions(tmp_path):
    module = models.Module()
    x = floats((3, 8))[0]
    want = module(x)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))  # held here: its signatures do not keep it alive
    concrete = tfquant.quantize(
        module.__call__.get_concrete_function(), calibration=[x], progress=False
    )
    restored = tfquant.quantize(
        loaded.signatures["serving_default"], calibration=[{"x": x}], progress=False
    )
    np.testing.assert_array_equal(concrete(x), restored(x=x)["output_0"])
    np.testing.assert_allclose(concrete(x), want, atol=0.1 * np.abs(want).max())


def test_a_function_that_does_not_say_its_arguments_asks_for_them():
    with pytest.raises(TraceError, match="network.*pass inputs=.*signature="):
        tfquant.plan(models.function_without_signature().model)
    with pytest.raises(TraceError, match="no tensor"):
        tfquant.plan(lambda x: x, inputs=(3.0,))


def test_an_error_in_the_users_code_names_the_inputs_and_the_error():
    def network(x):
        raise RuntimeError("too bad")

    with pytest.raises(TraceError, match=r"x: float32\[None, 3\].*too bad"):
        tfquant.plan(network, signature=tf.TensorSpec([None, 3]))


def test_a_matrix_made_from_the_shape_of_an_input_is_no_weight():
    kernel = tf.Variable(floats((8, 4))[0], name="layer/kernel")

    def network(x):
        lower = tf.linalg.band_part(tf.ones([tf.shape(x)[1]] * 2), -1, 0)
        return tf.matmul(lower, x @ kernel)

    batches, signature = floats((2, 5, 8), (2, 7, 8)), tf.TensorSpec([None, None, 8])
    quantized = tfquant.quantize(network, calibration=batches, signature=signature, progress=False)
    roles = {(s.path, s.role, s.port) for s in quantized.plan.sites}
    assert roles == {
        ("layer", "weight", "kernel"),
        ("layer", "linear_input", "input"),
        ("layer/matmul", "matmul_input", "a"),
        ("layer/matmul", "matmul_input", "b"),
    }
    x = floats((3, 6, 8))[0]
    np.testing.assert_allclose(quantized(x), network(x), atol=0.5)


def test_a_product_of_two_layers_outside_attention_is_called_after_them():
    left = tf.Variable(floats((8, 4))[0], name="block/left/kernel")
    right = tf.Variable(floats((8, 4))[0], name="block/right/kernel")

    def network(x):
        gate = tf.matmul(x @ left, tf.nn.relu(x @ right), transpose_a=True)
        return tf.matmul(tf.tanh(x @ left), tf.sigmoid(x @ right), transpose_b=True), gate

    plan = tfquant.plan(network, signature=tf.TensorSpec([None, 5, 8]))
    assert {s.path for s in plan.sites if s.role == "matmul_input"} == {
        "block/matmul",
        "block/matmul#2",
    }


def test_a_product_nothing_uses_is_skipped():
    kernel = tf.Variable(floats((8, 4))[0], name="layer/kernel")

    def network(x):
        _ = tf.sin(x) @ kernel
        return x @ kernel

    plan = tfquant.plan(network, signature=tf.TensorSpec([None, 8]))
    assert {s.path for s in plan.sites} == {"layer"}
    assert [s.reason for s in plan.skipped] == ["nothing uses its values"]


# Types and shapes.


@pytest.fixture(scope="module")
def bfloat16():
    case = models.mixed_bfloat16()
    return case, tfquant.quantize(case.model, calibration=case.batches, progress=False)


def test_quantization_computes_in_float32_around_a_bfloat16_network(bfloat16):
    case, quantized = bfloat16
    graph = engine_of(quantized).function("quantized").graph
    operations = graph.get_operations()
    rounding = [
        op for op in operations if op.type.startswith("QuantizeAndDequantize") or op.type == "Round"
    ]
    assert len(rounding) >= len(quantized.plan.sites)
    assert {op.inputs[0].dtype for op in rounding} == {tf.float32}
    products = [op for op in operations if op.type in ("Einsum", "MatMul", "BatchMatMulV2")]
    assert {op.inputs[0].dtype for op in products} == {tf.bfloat16}


def test_weights_of_a_bfloat16_network_are_rounded_before_they_are_cast(bfloat16):
    case, quantized = bfloat16
    dtypes = {e.tensor.dtype for s, e in engine_of(quantized).placements() if s.role == "weight"}
    assert dtypes == {tf.float32}


# mixed_bfloat16 of test_pool.py stands for it.
@pytest.mark.long
def test_fit_under_mixed_bfloat16_lowers_the_loss(bfloat16):
    case, quantized = bfloat16
    quantized.compile(keras.optimizers.Adam(0.01), "mse")
    history = quantized.fit(
        case.batches[0], np.eye(3, dtype=np.float32), epochs=12, verbose=0
    ).history["loss"]
    assert history[-1] < 0.7 * history[0]
    assert {v.dtype for v in quantized.trainable_variables} == {"float32"}


@pytest.fixture(scope="module")
def own_bert():
    case = models.own_bert(1)
    return case, tfquant.quantize(case.model, calibration=case.batches, progress=False)


@pytest.mark.parametrize("size", [(1, 2), (5, 3), (2, 31)])
def test_any_batch_size_and_length_runs(own_bert, size):
    case, quantized = own_bert
    (batch,) = models.tokens(("input_ids", "input_mask"), size, segments="segment_ids")
    want = case.model(batch)
    for mode, tolerance in (("float", 1e-6), ("quantized", 0.2)):
        quantized.set_mode(mode)
        for name, value in quantized(batch).items():
            np.testing.assert_allclose(value, want[name], atol=tolerance)


def test_a_fixed_length_is_kept_and_said():
    case = models.own_bert(1, sequence_length=LENGTH)
    quantized = tfquant.quantize(case.model)
    quantized.set_mode("float")
    (batch,) = models.tokens(("input_ids", "input_mask"), (2, LENGTH), segments="segment_ids")
    assert quantized(batch)["start_logits"].shape == (2, LENGTH)
    (batch,) = models.tokens(("input_ids", "input_mask"), (2, LENGTH + 1), segments="segment_ids")
    with pytest.raises(
        ValueError,
        match=rf"'input_ids' has shape \[2, {LENGTH + 1}\], the model takes \[None, {LENGTH}\]",
    ):
        quantized(batch)


# Models.


def tower(name: str) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(
        inputs, keras.layers.Dense(4, activation="tanh", name="dense")(inputs), name=name
    )


@pytest.fixture(scope="module")
def two_towers():
    left, right = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    towers = tower("first"), tower("second")
    model = keras.Model(
        [left, right], keras.layers.Dense(2, name="head")(towers[0](left) * towers[1](right))
    )
    data = floats((3, 4), (3, 4))
    return towers, model, data, tfquant.quantize(model, calibration=[data], progress=False)


def test_layers_of_equal_names_have_sites_of_their_own(two_towers):
    towers, model, data, quantized = two_towers
    assert {s.path for s in quantized.plan.sites} == {"dense", "dense_1", "head"}
    ranges = quantized.ranges()
    for path, one in zip(("dense", "dense_1"), towers, strict=True):
        kernel = one.get_layer("dense").kernel.numpy()
        np.testing.assert_array_equal(
            ranges[f"{path}:weight:kernel"][1], np.abs(kernel).max(axis=0)
        )


def test_inputs_in_a_list_or_a_tuple_are_the_same(two_towers):
    _, _, data, quantized = two_towers
    np.testing.assert_array_equal(quantized(list(data)), quantized(tuple(data)))


def test_inputs_of_a_model_may_be_given_by_their_names(two_towers):
    _, _, data, quantized = two_towers
    np.testing.assert_array_equal(quantized({"b": data[1], "a": data[0]}), quantized(data))
    with pytest.raises(ValueError, match="input 'b' is missing; the model takes a, b"):
        quantized({"a": data[0], "c": data[1]})


def test_a_quantized_model_is_a_layer_of_another_model(two_towers):
    towers, _, data, quantized = two_towers
    left, right = keras.Input((4,)), keras.Input((4,))
    outer = keras.Model([left, right], keras.layers.Dense(1, name="top")(quantized([left, right])))
    assert len(outer.trainable_variables) == len(quantized.trainable_variables) + 2
    before = towers[1].get_layer("dense").kernel.numpy()
    outer.compile("sgd", "mse")
    outer.fit(data, np.ones((3, 1)), verbose=0)
    assert (towers[1].get_layer("dense").kernel.numpy() != before).any()


def test_dropout_and_moving_statistics_of_a_subclassed_tf_keras_model():
    class Network(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.first = tf_keras.layers.Dense(16, activation="relu", name="first")
            self.norm = tf_keras.layers.BatchNormalization(name="norm")
            self.dropout = tf_keras.layers.Dropout(0.5)
            self.second = tf_keras.layers.Dense(2, name="second")

        def call(self, x, training=False):
            x = self.norm(self.first(x), training=training)
            return self.second(self.dropout(x, training=training))

    model, data = Network(), floats((6, 8))[0]
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    assert {s.path for s in quantized.plan.sites} == {"net/first", "net/second"}
    before = model.norm.moving_mean.numpy()
    outputs = [quantized(data, training=True).numpy() for _ in range(2)]
    assert (outputs[0] != outputs[1]).any()
    assert (model.norm.moving_mean.numpy() != before).any()
    np.testing.assert_array_equal(quantized(data), quantized(data))


def test_regularization_of_the_original_is_part_of_the_loss():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, kernel_regularizer="l2")(inputs))
    quantized = tfquant.quantize(model)
    assert float(sum(quantized.losses)) == pytest.approx(float(sum(model.losses)))


def test_a_layer_alone_is_a_model():
    data = floats((3, 4))[0]
    layer = keras.layers.Dense(2, name="alone")
    quantized = tfquant.quantize(layer, calibration=[data], progress=False)
    assert {s.path for s in quantized.plan.sites} == {"alone"}
    np.testing.assert_allclose(quantized(data), layer(data), atol=0.1)

"""What a graph does besides computing its output survives.

Random numbers, moving statistics, side effects, order, loops.
"""

import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.graph import replay
from tfquant.graph.model_adapter import source_of
from tfquant.graph.replay import NO_EDITS, Edits
from tfquant.graph.trace import trace
from tfquant.model import engine_of


def replayed(function, *specs, edits=NO_EDITS):
    """`function` as traced and replayed once more, callable on tensors."""
    graph = trace(source_of(function, signature=specs))
    return tf.function(
        lambda *args: graph.emit(list(args), edits)[0], autograph=False, input_signature=specs
    )


VECTOR = tf.TensorSpec([None], tf.float32)
ONE = np.ones(4, np.float32)


# Models in training.


@pytest.fixture(scope="module")
def convolutional():
    case = models.build("convolutional", "")
    return case, tfquant.quantize(case.model, calibration=case.batches, progress=False)


@pytest.mark.parametrize("mode", ["float", "quantized"])
def test_dropout_draws_anew_in_every_training_call_and_is_off_otherwise(convolutional, mode):
    case, model = convolutional
    model.set_mode(mode)
    first, second = (model(case.batches[0], training=True).numpy() for _ in range(2))
    assert (first != second).any()
    first, second = (model(case.batches[0], training=False).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_dropout_follows_the_seed_state_of_the_original(convolutional):
    case, model = convolutional
    model.set_mode("float")
    state = case.model.get_layer("dropout").seed_generator.state
    moving = [(v, v.numpy()) for v in case.model.get_layer("bn").non_trainable_variables]
    state.assign([1, 2])
    got, after = model(case.batches[0], training=True).numpy(), state.numpy()
    for variable, value in moving:
        variable.assign(value)
    state.assign([1, 2])
    want = case.model(case.batches[0], training=True).numpy()
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(state.numpy(), after)


@pytest.mark.parametrize("mode", ["float", "quantized"])
def test_moving_statistics_follow_training_batches_and_no_others(convolutional, mode):
    case, model = convolutional
    model.set_mode(mode)
    norm = case.model.get_layer("bn")
    before = norm.moving_mean.numpy()
    model(case.batches[0], training=False)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)
    model(case.batches[0], training=True)
    after = norm.moving_mean.numpy()
    assert (after != before).any()
    if mode == "float":
        mean = case.model.get_layer("conv")(case.batches[0]).numpy().mean(axis=(0, 1, 2))
        np.testing.assert_allclose(after, 0.5 * before + 0.5 * mean, rtol=1e-5, atol=1e-6)


def test_fit_with_dropout_and_batch_norm_learns(convolutional):
    case, model = convolutional
    model.set_mode("quantized")
    model.compile(keras.optimizers.Adam(0.05), "mse")
    targets = np.eye(3, dtype=np.float32)
    before = model.evaluate(case.batches[0], targets, verbose=0)
    model.fit(case.batches[0], targets, epochs=60, verbose=0)
    assert model.evaluate(case.batches[0], targets, verbose=0) < 0.8 * before


def test_training_graph_has_the_dropout_that_the_inference_graph_lacks(convolutional):
    engine = engine_of(convolutional[1])
    random = [
        any("Random" in op.type for op in g.operations) for g in (engine.inference, engine.training)
    ]
    assert random == [False, True]


def test_the_users_code_runs_once_for_each_of_inference_and_training():
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, x, training=False):
            calls.append(bool(training))
            return 2.0 * x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(Counting()(inputs)))
    calls.clear()
    data = np.ones((2, 4), np.float32)
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    for mode in ("float", "quantized", "float", "quantized"):
        quantized.set_mode(mode)
        quantized(data)
        quantized.predict(data, verbose=0)
    assert calls == [False]
    quantized.compile("sgd", "mse")
    quantized.fit(data, np.ones((2, 3)), verbose=0)
    assert calls == [False, True]


# Side effects and their order.


def test_an_assignment_happens_once_per_call():
    counter = tf.Variable(0.0)
    function = replayed(lambda x: x + counter.assign_add(1.0), VECTOR)
    function(ONE), function(ONE)
    assert counter.numpy() == 2.0


def test_an_assignment_nothing_reads_happens():
    counter = tf.Variable(0.0)

    def network(x):
        counter.assign_add(tf.reduce_sum(x))
        return 2.0 * x

    replayed(network, VECTOR)(ONE)
    assert counter.numpy() == 4.0


def test_reads_and_writes_keep_their_order_through_nested_functions():
    state = tf.Variable(1.0)

    @tf.function
    def double():
        state.assign(2.0 * state)

    @tf.function
    def nothing(x):
        return tf.identity(x)

    def network(x):
        before = state.read_value()
        double()
        between = nothing(state.read_value())
        state.assign_add(10.0)
        return x * 0.0 + tf.stack([before, between, state.read_value(), 0.0])

    np.testing.assert_array_equal(replayed(network, VECTOR)(ONE), [1.0, 2.0, 12.0, 0.0])
    assert state.numpy() == 12.0


def test_assertions_still_fail():
    def network(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x)]):
            return tf.sqrt(x)

    function = replayed(network, VECTOR)
    np.testing.assert_array_equal(function(ONE), ONE)
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(-ONE)


def test_constants_from_outside_and_nested_functions_are_kept():
    outside = tf.constant([1.0, 2.0, 3.0, 4.0])
    inner = tf.function(lambda x: x + outside)
    function = replayed(lambda x: inner(inner(x)), VECTOR)
    np.testing.assert_array_equal(function(ONE), ONE + 2 * outside)


def test_variables_stay_the_same_objects_and_a_tape_sees_them():
    kernel = tf.Variable([2.0, 3.0, 4.0, 5.0])
    function = replayed(lambda x: tf.reduce_sum(x * kernel), VECTOR)
    with tf.GradientTape() as tape:
        y = function(ONE)
    np.testing.assert_array_equal(tape.gradient(y, kernel), ONE)
    kernel.assign(2.0 * kernel)
    assert function(ONE).numpy() == 28.0


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_without_calls_is_not_copied_and_equals_its_copy(monkeypatch, training):
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    adapter = source_of(model)
    kept = trace(adapter, training)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "is_flat", lambda graph: False)
        copied = trace(adapter, training)
    assert kept.graph.name != copied.graph.name == "tfquant_flat"
    assert _operations(kept) == _operations(copied)
    assert (kept.paths, kept.input_names) == (copied.paths, copied.input_names)
    gc.collect()  # nothing else holds the function whose graph was kept
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    emitted = tf.function(lambda x: kept.emit([x])[0], autograph=False)
    if not training:
        np.testing.assert_allclose(emitted(x), model(x), rtol=1e-6)


def _operations(graph):
    """Name of each operation -> type, and names of inputs and of what must precede it."""
    return {
        op.name: (op.type, [t.name for t in op.inputs], {c.name for c in op.control_inputs})
        for op in graph.operations
    }


# Loops and branches.


def looping(w, x):
    for _ in tf.range(2):
        for _ in tf.range(2):
            x = tf.tanh(w * x)
            if tf.reduce_sum(x) > 0.0:
                x = 2.0 * x
            else:
                x = w * x
    return x


def test_gradients_of_nested_loops_and_branches_are_equal_in_two_replays_side_by_side():
    w = tf.Variable(0.7)
    original = tf.function(functools.partial(looping, w))
    graph = trace(source_of(original, signature=(VECTOR,)))
    emit = [tf.function(lambda x: graph.emit([x])[0], autograph=False) for _ in range(2)]
    x = np.array([0.3, -0.8, 0.5], np.float32)
    results = []
    for function in (original, *emit):
        with tf.GradientTape() as tape:
            y = function(tf.constant(x))
        results.append((y.numpy(), tape.gradient(y, w).numpy()))
    for y, gradient in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])


def test_products_in_nested_loops_branches_and_calls_are_all_reported():
    w = tf.Variable(np.eye(4, dtype=np.float32), name="w/kernel")
    product = tf.function(lambda x: x @ w)

    @tf.function
    def network(x):
        x = x @ w
        for _ in tf.range(2):
            x = product(x) if tf.reduce_sum(x) > 0.0 else x
        return x

    plan = tfquant.plan(network, signature=(tf.TensorSpec([None, 4], tf.float32),))
    assert {s.path for s in plan.sites} == {"w"}
    assert len(plan.skipped) == 1
    assert "inside a While" in plan.skipped[0].reason


def test_a_recurrent_layer_runs_trains_and_says_that_its_loop_is_left_alone():
    inputs = keras.Input((5, 4))
    model = keras.Model(
        inputs, keras.layers.Dense(3, name="head")(keras.layers.GRU(6, name="gru")(inputs))
    )
    data = models.floats((2, 5, 4))[0]
    want = model(data).numpy()
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    assert {s.path for s in quantized.plan.sites} == {"head"}
    assert {r.partition(" (")[0] for r in (s.reason for s in quantized.plan.skipped)} >= {
        "inside a While"
    }
    np.testing.assert_allclose(quantized(data), want, atol=0.02)
    before = model.get_layer("gru").trainable_variables[0].numpy()
    quantized.compile("sgd", "mse")
    quantized.fit(data, np.ones((2, 3)), verbose=0)
    assert (model.get_layer("gru").trainable_variables[0].numpy() != before).any()


# Edits.


def test_an_edit_on_an_edge_reaches_that_consumer_alone():
    def network(x):
        return tf.math.sin(x) + tf.math.cos(x)

    graph = trace(source_of(network, signature=(VECTOR,)))
    sin = next(op for op in graph.operations if op.type == "Sin")
    edits = Edits(edges={(sin.name, 0): lambda t: 2.0 * t})
    np.testing.assert_allclose(
        replayed(network, VECTOR, edits=edits)(ONE), np.sin(2 * ONE) + np.cos(ONE), rtol=1e-6
    )


def test_an_edit_on_a_tensor_reaches_all_consumers_and_the_output():
    def network(x):
        return tf.math.sin(x)

    graph = trace(source_of(network, signature=(VECTOR,)))
    edits = Edits(tensors={graph.outputs[0].name: lambda t: t + 1.0})
    np.testing.assert_allclose(
        replayed(network, VECTOR, edits=edits)(ONE), np.sin(ONE) + 1, rtol=1e-6
    )


def test_only_what_targets_need_is_emitted():
    graph = trace(source_of(models.own_bert(1).model))
    product = next(op for op in graph.operations if op.type in ("MatMul", "BatchMatMulV2"))
    emit = tf.function(
        lambda *args: graph.emit(list(args), targets=[product.outputs[0]])[0],
        input_signature=graph.input_specs,
    )
    new = emit.get_concrete_function().graph
    assert sum(op.type in ("MatMul", "BatchMatMulV2") for op in new.get_operations()) == 1

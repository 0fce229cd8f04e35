"""Custom gradients of the user's model.

The quantized model's float mode has the gradients of the original, and trains.
"""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant.graph.gradients import GradientError
from tfquant.graph.model_adapter import source_of
from tfquant.graph.trace import trace
from tfquant.model import engine_of

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
W = tf.Variable(np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32))
SPEC = tf.TensorSpec([None, 4], tf.float32)


@tf.custom_gradient
def reversal(x):
    return tf.identity(x), lambda dy: -2.0 * dy


@tf.custom_gradient
def passed_on(x):
    return x, lambda dy: 3.0 * dy


@tf.custom_gradient
def softplus(x):
    e = tf.exp(x)
    return tf.math.log(1 + e), lambda dy: dy * (1 - 1 / (1 + e))


@tf.custom_gradient
def product_and_sum(x, y):
    return (x * y, x + y), lambda da, db: (da * y + 5.0 * db, da * x)


@tf.custom_gradient
def without_second_gradient(x, y):
    return x * y, lambda dy: (dy * y, None)


@tf.custom_gradient
def doubly_custom(x):
    @tf.custom_gradient
    def backward(dy):
        return dy * tf.cos(x), lambda ddy: ddy * tf.sin(x)

    return tf.sin(x), lambda dy: backward(dy)


@keras.ops.custom_gradient
def of_keras(x):
    e = keras.ops.exp(x)

    def gradient(*args, upstream=None):
        return (args[0] if upstream is None else upstream) * (1.0 - 1.0 / (1.0 + e))

    return keras.ops.log(1.0 + e), gradient


@tf.custom_gradient
def product_with_variable(x):
    def gradient(dy, variables=None):
        assert variables[0] is W
        return 2.0 * tf.matmul(dy, W, transpose_b=True), [3.0 * tf.matmul(x, dy, transpose_a=True)]

    return tf.matmul(x, W), gradient


@tf.custom_gradient
def rows_with_slices(x):
    def gradient(dy, variables=None):
        return None, [tf.IndexedSlices(2.0 * dy, tf.range(4), [4, 4])]

    return tf.gather(W, tf.range(4)), gradient


@tf.custom_gradient
def refers_to_a_variable_by_name_alone(x):
    return 1.0 * x, lambda dy: dy * tf.reduce_sum(W)


def with_closure_over_outer_tensors(x):
    sine, cosine = tf.sin(x), tf.cos(x)

    @tf.custom_gradient
    def inner(y):
        return y * sine, lambda dy: dy * cosine

    return tf.while_loop(lambda i, h: i < 2, lambda i, h: (i + 1, inner(h)), (0, x))[1]


def repeated(function):
    return lambda x: tf.while_loop(
        lambda i, h: i < 3, lambda i, h: (i + 1, function(h) * x), (0, x)
    )[1]


def chosen(first, second):
    return lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: first(x), lambda: second(x))


CALLED = tf.function(lambda x: softplus(tf.nn.silu(x)))
CASES = {
    "silu": tf.nn.silu,
    "gradient reversal": reversal,
    "argument returned": passed_on,
    "intermediate value": softplus,
    "two outputs": lambda x: sum(product_and_sum(x, tf.sin(x))),
    "one of two outputs": lambda x: product_and_sum(x, tf.sin(x))[1],
    "no gradient of an argument": lambda x: without_second_gradient(x, x + 1),
    "nested": doubly_custom,
    "keras.ops": of_keras,
    "variable": product_with_variable,
    "slices of a variable": rows_with_slices,
    "value of a variable in the gradient alone": refers_to_a_variable_by_name_alone,
    "grad_pass_through": lambda x: tf.grad_pass_through(tf.round)(x),
    "recompute_grad": tf.recompute_grad(lambda x: tf.sin(tf.matmul(x, W)) * x),
    "remat": keras.remat(lambda x: keras.ops.silu(x @ W)),
    "slices from behind": lambda x: tf.gather(softplus(x), [0, 1, 1, 2]),
    "function": CALLED,
    "function called twice": lambda x: CALLED(x) + CALLED(2 * x),
    "function in a function": tf.function(lambda x: CALLED(reversal(CALLED(x)))),
    "loop": repeated(lambda h: softplus(tf.nn.silu(h))),
    "loop in a function": tf.function(repeated(softplus)),
    "function in a loop": repeated(CALLED),
    "branches": chosen(lambda x: reversal(softplus(x)), lambda x: tf.nn.silu(reversal(x))),
    "branches of the other sign": lambda x: chosen(reversal, tf.nn.silu)(-x),
    "branches in a loop": repeated(chosen(CALLED, reversal)),
    "loop in a loop": repeated(repeated(lambda h: tf.nn.silu(tf.tanh(h)))),
    "one of several": lambda x: tf.switch_case(
        tf.cast(x[0, 0] > 0, tf.int32), [lambda: reversal(x), lambda: CALLED(x)]
    ),
    "tensors around a loop": with_closure_over_outer_tensors,
    "recomputation in a loop": repeated(tf.recompute_grad(tf.sin)),
}


def gradients(function, x=X, sources=()):
    """Of a sum with other weights for every element of the output, by the input and `sources`."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        weights = tf.reshape(tf.linspace(-1.0, 1.0, tf.size(y)), tf.shape(y))
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * weights)
    found = tape.gradient(loss, [x, *sources])
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def assert_same(expected, found, **tolerance):
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(other, one, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_graph_has_the_gradients_of_the_original(name):
    function = CASES[name]
    graph = trace(source_of(tf.function(function, input_signature=[SPEC])))
    again = tf.function(lambda x: graph.emit([x])[0], autograph=False, input_signature=[SPEC])
    expected = gradients(function, sources=[W])
    assert_same(expected, gradients(again, sources=[W]))
    assert_same(expected, tf.function(lambda: gradients(again, sources=[W]))())


def test_second_derivatives_go_through_the_backward_pass():
    graph = trace(source_of(tf.function(tf.nn.silu, input_signature=[SPEC])))
    again = tf.function(lambda x: graph.emit([x])[0], autograph=False, input_signature=[SPEC])
    expected, found = (gradients(lambda x, f=f: gradients(f, x)[0]) for f in (tf.nn.silu, again))
    assert_same(expected, found)


def test_a_gradient_computes_what_the_target_did_not_need():
    @tf.custom_gradient
    def with_cosine(x):
        cosine = tf.cos(tf.square(x)) * 2.0
        return tf.sin(x), lambda dy: dy * cosine

    graph = trace(source_of(tf.function(with_cosine, input_signature=[SPEC])))
    again = tf.function(
        lambda x: graph.emit([x], targets=[graph.outputs[0]])[0],
        autograph=False,
        input_signature=[SPEC],
    )
    assert_same(gradients(with_cosine), gradients(again))


def test_a_gradient_that_cannot_be_traced_is_refused_in_one_line_when_it_is_asked_for():
    @tf.custom_gradient
    def broken(x):
        def gradient(dy):
            raise RuntimeError("no gradient\nat all")

        return 2.0 * x, gradient

    graph = trace(source_of(tf.function(broken, input_signature=[SPEC])))
    again = tf.function(lambda x: graph.emit([x])[0], autograph=False, input_signature=[SPEC])
    np.testing.assert_array_equal(again(X), 2 * X)
    with pytest.raises(
        GradientError,
        match="IdentityN.* so the model cannot be trained: RuntimeError: no gradient$",
    ):
        gradients(again)


def test_the_users_graph_is_kept_only_for_custom_gradients():
    def kept(function):
        concrete = tf.function(function, input_signature=[SPEC]).get_concrete_function()
        graph = weakref.ref(concrete.graph)
        found = trace(source_of(concrete))
        del concrete
        gc.collect()
        return graph() is not None and bool(found.operations)

    assert kept(softplus) and not kept(tf.exp)


# Quantized models.


class Call(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def model_of(*layers, dtype="float32"):
    inputs = keras.Input((4,), dtype=dtype)
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


class CustomProduct(keras.layers.Layer):
    """A product with its own gradient, which scales those of its operands."""

    def __init__(self, through_variables, scales=(2.0, 3.0)):
        super().__init__()
        self.through_variables, self.scales = through_variables, scales

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")

    def call(self, x):
        a, b = self.scales

        @tf.custom_gradient
        def of_arguments(x, w):
            return tf.matmul(x, w), lambda dy: (
                a * tf.matmul(dy, w, transpose_b=True),
                b * tf.matmul(x, dy, transpose_a=True),
            )

        @tf.custom_gradient
        def of_variables(x):
            w = self.kernel.value

            def gradient(dy, variables=None):
                return a * tf.matmul(dy, w, transpose_b=True), [
                    b * tf.matmul(x, dy, transpose_a=True)
                ]

            return tf.matmul(x, w), gradient

        return of_variables(x) if self.through_variables else of_arguments(x, self.kernel.value)


@pytest.mark.parametrize("through_variables", [False, True])
def test_the_backward_pass_sees_quantized_operands_and_passes_through_their_quantizers(
    through_variables,
):
    model = model_of(CustomProduct(through_variables))
    spec = tfquant.QuantSpec("int8", method={"name": "percentile", "percentile": 90})
    recipe = tfquant.Recipe((tfquant.Rule(spec, role=("weight", "linear_input")),))
    quantized = tfquant.quantize(model, recipe, calibration=[X], progress=False)
    kernel = model.trainable_variables[0].value
    found = gradients(quantized, sources=[kernel])
    ranges = {
        address.split(":")[1]: np.maximum(*map(np.abs, ends))
        for address, ends in quantized.ranges().items()
    }

    def rounded(value, role):
        scale = ranges[role] / 127
        return np.clip(np.round(value / scale), -127, 127) * scale, np.abs(value) <= ranges[role]

    (x, inside), (w, kept) = rounded(X, "linear_input"), rounded(kernel.numpy(), "weight")
    assert 0 < (~inside).sum() < inside.size
    dy = np.linspace(-1, 1, 30, dtype=np.float32).reshape(6, 5)
    assert_same([2 * dy @ w.T * inside, 3 * x.T @ dy * kept], found, rtol=1e-4, atol=1e-5)


@pytest.mark.representatives("float32-False", "mixed_bfloat16-False")
@pytest.mark.parametrize(
    "dtype, latent",
    [("float32", False), ("float32", True), ("float64", False), ("mixed_bfloat16", False)],
)
def test_models_with_custom_gradients_train_in_both_modes(dtype, latent):
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        layers = [
            keras.layers.Dense(4, activation="silu"),
            Call(repeated(CALLED) if dtype == "float32" else tf.nn.silu),
        ]
        model = model_of(
            *layers, keras.layers.Dense(2), dtype="float64" if dtype == "float64" else "float32"
        )
    finally:
        keras.config.set_dtype_policy(policy)
    x = X.astype("float64") if dtype == "float64" else X
    quantized = tfquant.quantize(model, calibration=[x], progress=False)
    engine_of(quantized).latent = latent
    start = model.get_weights()
    steps = {}
    for mode, trained in {
        "original": model,
        "float": quantized,
        "quantized": quantized,
        "float again": quantized,
    }.items():
        model.set_weights(start)
        if trained is quantized:
            quantized.set_mode(mode.split()[0])
        trained.compile(keras.optimizers.SGD(0.1), "mse")
        trained.fit(x, np.ones((6, 2)), verbose=0)
        steps[mode] = [
            after - before for before, after in zip(start, model.get_weights(), strict=True)
        ]
    wide = dtype in ("float32", "float64")
    assert_same(
        steps["original"], steps["float"], rtol=1e-4 if wide else 0.1, atol=1e-6 if wide else 0.01
    )
    assert_same(steps["float"], steps["float again"], rtol=1e-6, atol=1e-7)
    moved, other = (
        np.concatenate([np.ravel(step).astype("float64") for step in steps[m]])
        for m in ("float", "quantized")
    )
    assert 0 < np.linalg.norm(moved - other) < 0.3 * np.linalg.norm(moved)


def test_what_is_recomputed_in_the_backward_pass_is_quantized_there_too():
    layer = keras.layers.Dense(3)
    plain, recomputed = model_of(layer), model_of(Call(keras.remat(lambda x: layer(x))))
    one, other = (tfquant.quantize(m, calibration=[X], progress=False) for m in (plain, recomputed))
    assert [s.address for s in one.plan.sites] == [s.address for s in other.plan.sites]
    kernel = layer.kernel.value
    assert_same(
        gradients(one, sources=[kernel]), gradients(other, sources=[kernel]), rtol=0, atol=0
    )


def test_a_saved_model_keeps_its_custom_gradients(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(W)

        @tf.function(input_signature=[SPEC])
        def __call__(self, x):
            return softplus(tf.matmul(tf.nn.silu(x), self.w))

    module = Module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    loaded = tf.saved_model.load(str(tmp_path))
    quantized = tfquant.quantize(loaded, calibration=[{"x": X}], progress=False)
    quantized.set_mode("float")
    expected = gradients(module, sources=[module.w])
    found = gradients(lambda x: next(iter(quantized({"x": x}).values())), sources=[loaded.w])
    assert_same(expected, found)


def test_ranges_inside_a_custom_gradient_learn_as_without_it():
    weights = [
        np.random.default_rng(n).normal(size=size).astype(np.float32)
        for n, size in enumerate([(4, 5), (5, 2)])
    ]
    spec = tfquant.QuantSpec("int4", update="lsq")
    recipe = tfquant.Recipe((tfquant.Rule(spec, role=("weight", "linear_input")),))
    trained = []
    for inner in (keras.layers.Dense(5, use_bias=False), CustomProduct(False, scales=(1.0, 1.0))):
        model = model_of(inner, keras.layers.Dense(2, use_bias=False))
        model.set_weights(weights)
        quantized = tfquant.quantize(model, recipe, calibration=[X], progress=False)
        before = list(quantized.ranges().values())
        quantized.compile(keras.optimizers.SGD(0.05), "mse")
        quantized.fit(X, np.ones((6, 2)), verbose=0)
        after = list(quantized.ranges().values())
        assert all((old[1] != new[1]).any() for old, new in zip(before, after, strict=True))
        trained.append([*model.get_weights(), *(end for ends in after for end in ends)])
    assert_same(*trained, rtol=1e-6, atol=1e-7)

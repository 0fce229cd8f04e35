"""Models that trace with the sizes of a batch alone.

Traced with those of the given batch, as few axes fixed as possible.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant

X = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)


class SumOverSteps(keras.layers.Layer):
    def call(self, x):
        return sum(x[:, step] for step in range(x.shape[1]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], x.shape[2]), x.dtype)


class SumOverSamples(keras.layers.Layer):
    def call(self, x):
        return keras.ops.stack([x[sample] * (sample + 1.0) for sample in range(x.shape[0])])

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def functional(*layers, shape=(None, 8)):
    inputs = keras.Input(shape, name="features")
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def images():
    """Two sizes of an image in one.

    The second is doubled to that of the first, known in Python alone.
    """
    inputs = keras.Input((None, None, 3), name="image")

    class Resized(keras.layers.Layer):
        def call(self, x):
            small = keras.layers.UpSampling2D(2)(keras.ops.average_pool(x, 2))
            return small[:, : int(x.shape[1]), : int(x.shape[2])] + x

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    return keras.Model(
        inputs, keras.layers.Conv2D(2, 3)(Resized()(keras.layers.Conv2D(3, 1)(inputs)))
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, tokens):
        return self.dense(sum(tf.one_hot(tokens[:, step], 5) for step in range(tokens.shape[1])))


def close(expected, found):
    expected, found = np.asarray(expected), np.asarray(found)
    return np.linalg.norm(expected - found) < 0.05 * np.linalg.norm(expected)


def test_the_length_is_fixed_and_the_batch_stays_open():
    model = functional(SumOverSteps(), keras.layers.Dense(4))
    with pytest.warns(
        UserWarning,
        match=(
            "fixed shapes alone: axis 1 of input 'features' is 6, as in .*batch.*refused.*TypeError"
        ),
    ):
        quantized = tfquant.quantize(model, calibration=[X], progress=False)
    assert close(model(X[:3]), quantized(X[:3]))
    with pytest.raises(
        ValueError, match=r"input 'features' has shape \[4, 5, 8\], the model takes \[None, 6, 8\]"
    ):
        quantized(X[:, :5])
    quantized.compile("sgd", "mse")
    quantized.fit(X, np.ones((4, 4)), batch_size=3, verbose=0)


def test_all_axes_are_fixed_where_the_batch_has_to_be_known():
    model = functional(SumOverSamples(), keras.layers.Dense(4), shape=(6, 8))
    with pytest.warns(UserWarning, match="axis 0 of input 'features' is 4"):
        quantized = tfquant.quantize(model, calibration=[(X, np.ones(4))], progress=False)
    assert close(model(X), quantized(X))
    with pytest.raises(ValueError, match=r"has shape \[3, 6, 8\], the model takes \[4, 6, 8\]"):
        quantized(X[:3])


def test_plan_and_load_take_the_shapes_of_inputs(tmp_path):
    model = functional(SumOverSteps(), keras.layers.Dense(4))
    with pytest.warns(UserWarning, match="axis 1 of input 'features' is 6"):
        assert len(tfquant.plan(model, inputs=X).sites) == 2
    with pytest.warns(UserWarning, match="fixed shapes"):
        quantized = tfquant.quantize(model, inputs={"features": X}, calibration=[X], progress=False)
    tfquant.save(quantized, tmp_path / "model")
    with pytest.raises(
        ValueError, match="pass inputs=one_batch, calibration batches, or a signature="
    ):
        tfquant.load(tmp_path / "model", model)
    with pytest.warns(UserWarning, match="fixed shapes"):
        loaded = tfquant.load(tmp_path / "model", model, inputs=X)
    np.testing.assert_array_equal(loaded(X), quantized(X))


def test_images_of_open_size_take_that_of_the_batch():
    model, batch = images(), np.random.default_rng(1).normal(size=(2, 8, 6, 3)).astype(np.float32)
    with pytest.warns(
        UserWarning, match="axis 1 of input 'image' is 8, axis 2 of input 'image' is 6, as in"
    ):
        quantized = tfquant.quantize(model, calibration=[batch], progress=False)
    assert close(model(batch), quantized(batch))


@pytest.mark.parametrize("built", [False, True])
def test_subclassed_models_and_functions_take_the_length_of_the_batch(built):
    model, tokens = Subclassed(), np.arange(12).reshape(4, 3) % 5
    if built:
        model(tokens)
    w = tf.Variable(X[0, :5])
    functions = {
        "model": model,
        "function": lambda tokens: tf.matmul(
            sum(tf.one_hot(tokens[:, i], 5) for i in range(tokens.shape[1])), w
        ),
    }
    for function in functions.values():
        with pytest.warns(UserWarning, match="axis 1 of input '.*' is 3"):
            quantized = tfquant.quantize(function, calibration=[tokens], progress=False)
        assert close(function(tf.constant(tokens)), quantized(tokens))


def test_what_traces_open_stays_open_without_a_warning(recwarn):
    model = functional(keras.layers.Dense(4))
    quantized = tfquant.quantize(model, calibration=[X], progress=False)
    assert quantized(X[:2, :3]).shape == (2, 3, 4)
    assert not [w for w in recwarn if "fixed shapes" in str(w.message)]


def test_a_model_that_traces_with_no_shapes_raises_its_first_error():
    class Broken(keras.layers.Layer):
        def call(self, x):
            raise RuntimeError(f"cannot take {x.shape[1]}")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    model = functional(Broken(), keras.layers.Dense(4))
    with pytest.raises(ValueError, match="could not be traced.*RuntimeError: cannot take None"):
        tfquant.quantize(model, calibration=[X], progress=False)


@pytest.mark.parametrize("wrap", ["layer", "function", "subclassed", "not built"])
def test_errors_of_the_users_code_are_told_in_one_line(wrap):
    def fail(x):
        raise TypeError(f"first {x.dtype.name}\nsecond")

    class Failing(keras.Model):
        def call(self, x):
            return tf.function(fail)(x) if wrap == "function" else fail(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Failing()(inputs)) if wrap in ("layer", "function") else Failing()
    model.built = wrap != "not built"
    with pytest.raises(
        ValueError, match="could not be (traced|built).*: TypeError: first float32"
    ) as error:
        tfquant.quantize(model, calibration=[np.ones((2, 3), np.float32)], progress=False)
    assert "\n" not in str(error.value)


def test_shapes_of_a_signature_are_taken_as_they_are():
    model = functional(SumOverSteps(), keras.layers.Dense(4))
    with pytest.raises(ValueError, match="could not be traced"):
        tfquant.plan(model, inputs=X, signature=tf.TensorSpec([None, None, 8]))
    assert len(tfquant.plan(model, signature=tf.TensorSpec([None, 6, 8])).sites) == 2

"""Lists of tensors, branches and loops in ONNX files, compared with the function that they were
made from.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant
from tfquant.export import ExportError
from tfquant.export.interface import Interface
from tfquant.model import engine_of
from tfquant.runtimes import onnxruntime

SIZE = 3


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def answers(model, batches, path):
    """Outputs of the float file of a quantized model for each batch, in order."""
    quantized = tfquant.quantize(model, calibration=batches[:1], progress=False)
    tfquant.export(quantized, path, mode="float")
    interface, session = (
        Interface.of(engine_of(quantized).inference),
        onnxruntime.open_file(str(path)),
    )
    named = [session(interface.named_inputs(tf.nest.flatten(batch))) for batch in batches]
    return [[outputs[name] for name in interface.outputs] for outputs in named]


def written_in_turn(x):
    array = tf.TensorArray(tf.float32, SIZE)
    for index in range(SIZE):
        array = array.write(index, x[:, index] * (index + 1.0))
    return array.stack()


def written_partly(x):
    array = tf.TensorArray(tf.float32, SIZE)
    return array.write(1, x[:, 0]).stack()


def written_twice(x):
    array = tf.TensorArray(tf.float32, SIZE, clear_after_read=False)
    array = array.unstack(tf.transpose(x)[:SIZE])
    return array.write(0, array.read(0) + array.read(2)).stack()


def read_in_turn(x):
    array = tf.TensorArray(tf.float32, SIZE, clear_after_read=False).unstack(tf.transpose(x)[:SIZE])
    return tf.stack([array.read(index) for index in (2, 0, 1)])


def gathered(x):
    array = tf.TensorArray(tf.float32, SIZE).unstack(tf.transpose(x)[:SIZE])
    return array.gather(tf.constant([2, 2, 0]))


def read_at_an_index_of_the_data(x):
    array = tf.TensorArray(tf.float32, SIZE).unstack(tf.transpose(x)[:SIZE])
    return array.read(tf.cast(x[0, 0] > 0, tf.int32))


@pytest.mark.parametrize(
    "function",
    [
        written_in_turn,
        written_partly,
        written_twice,
        read_in_turn,
        gathered,
        read_at_an_index_of_the_data,
    ],
    ids=lambda function: function.__name__,
)
def test_lists_that_are_written_at_known_indices_are_tensors(tmp_path, function):
    @tf.function(input_signature=[tf.TensorSpec([None, 4])], autograph=False)
    def traced(x):
        return tf.matmul(x, tf.ones([4, 2])), function(x)

    batch = data(5, 4)
    (found,) = answers(traced, [(batch,)], tmp_path / "m.onnx")
    np.testing.assert_allclose(found[1], function(tf.constant(batch)), rtol=1e-6)


def test_lists_written_at_indices_of_the_data_are_refused_in_one_line(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None, 4])], autograph=False)
    def traced(x):
        with tf.name_scope("mine"):
            array = tf.TensorArray(tf.float32, SIZE, element_shape=[None])
            array = array.write(tf.cast(x[0, 0] > 0, tf.int32), x[:, 0])
            return tf.matmul(x, tf.ones([4, 2])), array.stack()

    quantized = tfquant.quantize(traced, calibration=[(data(5, 4),)], progress=False)
    with pytest.raises(ExportError, match="TensorListReserve in layer mine") as error:
        tfquant.export(quantized, tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


class Branching(layers.Layer):
    """A layer with weights where an input has items, else zeros."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def build(self, shape):
        self.inner.build((shape[0], *shape[2:]))

    def call(self, x):
        def applied():
            size = keras.ops.shape(x)
            return keras.ops.sum(
                self.inner(keras.ops.reshape(x, (size[0] * size[1], *x.shape[2:]))), 0
            )

        none = keras.ops.zeros(self.inner.compute_output_shape(x.shape[1:])[1:])
        return keras.ops.cond(keras.ops.equal(keras.ops.shape(x)[1], 0), lambda: none, applied)


class Parts(layers.Layer):
    """Operations that need the rank of what a branch takes from outside."""

    def build(self, shape):
        self.table = self.add_weight(shape=(2,))

    def call(self, x):
        def parts():
            return x[..., 0:1] * self.table + keras.ops.stack(
                keras.ops.unstack(x, axis=-1), axis=-1
            )

        return keras.ops.cond(keras.ops.equal(keras.ops.shape(x)[1], 0), lambda: x, parts)


class Repeating(layers.Layer):
    """A layer with weights, applied three times."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        def step(count, y):
            return count + 1, y + self.inner(y)

        return tf.while_loop(lambda count, y: count < 3, step, (tf.constant(0), x))[1]


INNER = {
    "convolution": lambda: layers.Conv2D(2, 3, padding="same"),
    "strided convolution": lambda: layers.Conv2D(2, 2, strides=2),
    "depthwise convolution": lambda: layers.DepthwiseConv2D(3, padding="same"),
    "dense": lambda: layers.Dense(2),
}


@pytest.mark.representatives("strided convolution", "dense")
@pytest.mark.parametrize("kind", INNER)
def test_layers_in_branches_keep_the_shapes_of_their_weights(tmp_path, kind):
    x = keras.Input((None, 4, 4, 2))
    y = Branching(INNER[kind]())(x)
    model = keras.Model(x, [y, layers.Dense(2)(keras.ops.mean(x, axis=(1, 2, 3)))])
    batches = [data(3, 2, 4, 4, 2), data(3, 1, 4, 4, 2)]
    for batch, found in zip(batches, answers(model, batches, tmp_path / "m.onnx"), strict=True):
        np.testing.assert_allclose(found[0], model(batch)[0], rtol=1e-4, atol=1e-5)


def test_branches_keep_the_shapes_of_what_they_take_from_outside(tmp_path):
    model = keras.Sequential([keras.Input((None, 2)), Parts(), layers.Dense(3)])
    batches = [data(3, 4, 2), data(3, 0, 2)]
    for batch, found in zip(batches, answers(model, batches, tmp_path / "m.onnx"), strict=True):
        np.testing.assert_allclose(found[0], model(batch), rtol=1e-5, atol=1e-6)


class Refused(layers.Layer):
    def call(self, x):
        def bits():
            return tf.cast(tf.raw_ops.FFT(input=tf.cast(x, tf.complex64)), tf.float32)

        return keras.ops.cond(keras.ops.equal(keras.ops.shape(x)[1], 0), lambda: x, bits)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_operations_in_branches_without_a_counterpart_are_named(tmp_path):
    model = keras.Sequential([keras.Input((None, 2)), Refused(name="mine"), layers.Dense(3)])
    quantized = tfquant.quantize(model, calibration=[data(3, 4, 2)], progress=False)
    with pytest.raises(ExportError, match="FFT in layer .*mine") as error:
        tfquant.export(quantized, tmp_path / "m.onnx", mode="float")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.representatives("depthwise convolution")
@pytest.mark.parametrize("kind", ["convolution", "depthwise convolution", "dense"])
def test_layers_in_loops_keep_the_shapes_of_their_weights(tmp_path, kind):
    model = keras.Sequential([keras.Input((4, 4, 2)), Repeating(INNER[kind]()), layers.Dense(3)])
    batch = data(3, 4, 4, 2)
    (found,) = answers(model, [batch], tmp_path / "m.onnx")
    np.testing.assert_allclose(found[0], model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("a", "a_output")])
def test_outputs_with_the_name_of_an_input_have_another_in_the_file(tmp_path, names):
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b")}
    outputs = {
        name: layers.Dense(2)(tensor) for name, tensor in zip(names, inputs.values(), strict=True)
    }
    model, batch = keras.Model(inputs, outputs), {"a": data(5, 4), "b": data(5, 4, seed=1)}
    expected = model(batch)
    (found,) = answers(model, [batch], tmp_path / "m.onnx")
    for name, value in zip(sorted(names), found, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)

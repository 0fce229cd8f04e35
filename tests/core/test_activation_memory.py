"""Memory of activations: small graphs counted by hand."""

import keras
import numpy as np
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule


def test_a_tensor_lives_up_to_its_last_reader_and_views_take_no_memory():
    def branches(x):
        a = 2.0 * x  # x is read for the last time
        b = a + 1.0
        c = tf.reshape(b, [-1])  # shows b
        return tf.reshape(c, tf.shape(a)) * a  # a, b and the result are alive

    memory = tfquant.activation_memory(
        branches, np.zeros((5, 4), np.float32), signature=tf.TensorSpec([None, 4])
    )
    assert memory.peak_bytes == 3 * 20 * 4
    assert memory.total_bytes == 4 * 20 * 4
    assert [alive.elements for alive in memory.alive] == [20, 20, 20]


def test_a_chain_keeps_two_tensors():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(10)(inputs))
    memory = tfquant.activation_memory(model, np.zeros((3, 6), np.float32))
    # The product and its sum with the bias.
    assert memory.peak_bytes == 2 * 3 * 10 * 4
    assert memory.total_bytes == (6 + 10 + 10) * 3 * 4


def test_what_every_reader_sees_quantized_counts_with_the_bits_of_its_site():
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    batch = np.ones((3, 64), np.float32)
    recipe = Recipe((Rule(QuantSpec("int8", dynamic=True), "linear_input"),), "inputs")
    quantized = tfquant.quantize(model, recipe)
    assert tfquant.activation_memory(model, batch).peak_bytes == 3 * (64 + 2) * 4
    assert tfquant.activation_memory(quantized, batch).peak_bytes == 3 * 64 + 3 * 2 * 4
    quantized.set_mode("float")
    assert tfquant.activation_memory(quantized, batch).peak_bytes == 3 * (64 + 2) * 4


def test_a_tensor_that_is_also_read_in_float_stays_in_float():
    inputs = keras.Input((8,))
    dense = keras.layers.Dense(8)(inputs)
    model = keras.Model(inputs, keras.layers.Add()([inputs, dense]))
    recipe = Recipe((Rule(QuantSpec("int8", dynamic=True), "linear_input"),), "inputs")
    quantized = tfquant.quantize(model, recipe)
    memory = tfquant.activation_memory(quantized, np.ones((2, 8), np.float32))
    assert memory.peak_bytes == tfquant.activation_memory(model, np.ones((2, 8))).peak_bytes


def test_the_report_names_the_peak():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(10)(inputs))
    text = str(tfquant.activation_memory(model, np.zeros((3, 6), np.float32)))
    assert "peak 240 bytes" in text
    assert "BiasAdd" in text or "Add" in text

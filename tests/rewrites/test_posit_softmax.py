"""Approximated softmax against values of the literature, and posits of 16 bits against exact
arithmetic.
"""

import fractions

import numpy as np
import pytest
import tensorflow as tf

from tfquant.choices import EXPONENTIALS
from tfquant.rewrites import posit_softmax

Fraction = fractions.Fraction


def value_of(code: int, exponent_bits: int, bits: int = 16) -> Fraction:
    """Value of a positive posit, digit by digit."""
    digits = f"{code:0{bits - 1}b}"
    run = len(digits) - len(digits.lstrip(digits[0]))
    power = (run - 1 if digits[0] == "1" else -run) * 2**exponent_bits
    rest = digits[run + 1 :]
    power += int(rest[:exponent_bits].ljust(exponent_bits, "0") or "0", 2)
    fraction = rest[exponent_bits:]
    return Fraction(2) ** power * (1 + Fraction(int(fraction or "0", 2), 2 ** len(fraction)))


@pytest.mark.parametrize("exponent_bits", [0, 1, 2])
def test_every_code_of_16_bits_has_its_value_and_every_value_its_code(exponent_bits):
    codes = np.arange(1, 2**15, dtype=np.int32)
    values = np.array([float(value_of(code, exponent_bits)) for code in codes.tolist()])
    found = posit_softmax.from_posit(tf.constant(codes), exponent_bits).numpy()
    np.testing.assert_array_equal(found, values)
    again = posit_softmax.to_posit(tf.constant(found), exponent_bits).numpy()
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("exponent_bits", [0, 1])
def test_numbers_are_rounded_on_the_bit_string_and_ties_to_even(exponent_bits):
    codes = np.arange(1, 2**15 - 1, 7)
    # The code of one bit more lies half-way between two codes.
    ties = np.array(
        [float(value_of(2 * code + 1, exponent_bits, 17)) for code in codes.tolist()],
        np.float32,
    )
    for end, wanted in (
        (None, codes + codes % 2),
        (np.float32(0), codes),
        (np.float32(np.inf), codes + 1),
    ):
        x = ties if end is None else np.nextafter(ties, end)
        found = posit_softmax.to_posit(tf.constant(x), exponent_bits).numpy()
        np.testing.assert_array_equal(found, wanted)
    edges = posit_softmax.to_posit(tf.constant([0.0, 1e-30, 1e30, np.inf]), exponent_bits).numpy()
    assert edges.tolist() == [0, 1, 2**15 - 1, 2**15 - 1]


def test_values_of_the_literature():
    x = tf.constant([0, -0.5, -1, -2, -3, -4, -5, -5.5, -8])
    cut = [0.999878, 0.749878, 0.499878, 0.249878, 0.187378, 0.124878, 0.109253, 0, 0]
    shifted = [0.890628, 0.640628, 0.390628, 0.140628, 0.078128, 0.015628, 0.000003, 0, 0]
    np.testing.assert_allclose(posit_softmax.posit_exp(x), cut, atol=6e-7)
    np.testing.assert_allclose(posit_softmax.posit_exp_shifted(x), shifted, atol=6e-7)
    sums = tf.constant([1, 1.25, 1.5, 2, 3, 5, 10, 100.0])
    inverse = [0.999878, 0.874878, 0.749878, 0.499939, 0.374939, 0.218689, 0.109344, 0.011215]
    np.testing.assert_allclose(posit_softmax.reciprocal_of(sums), inverse, atol=6e-7)


def test_the_exponential_is_what_the_bit_operations_on_posits_give():
    """Every posit from 0 to 8, their midpoints, the neighbours of these, and numbers beyond."""
    values = [float(value_of(code, 0)) for code in range(1, 2**14 + 2**13 + 2**12 + 2**11 + 1)]
    middle = np.array([float(value_of(2 * code + 1, 0, 17)) for code in range(1, len(values))])
    middle = middle.astype(np.float32)
    beyond = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))
    far = np.array([0.0, 1e-30, 8.5, 100.0, 1e9, np.inf])
    x = -np.concatenate([np.array(values), middle, *beyond, far]).astype(np.float32)
    code = posit_softmax.to_posit(tf.constant(-x), 0).numpy()
    inverted = ((code + 2**15) >> 2) ^ 0x7FFF  # sigmoid, then reciprocal
    wanted = posit_softmax.from_posit(tf.constant(inverted), 0).numpy() - 1.0
    shifted = np.maximum(wanted - np.float32(0.10925), 0)
    cut = np.where(x < -5, 0, wanted).astype(np.float32)
    np.testing.assert_array_equal(posit_softmax.posit_exp_shifted(x), shifted)
    np.testing.assert_array_equal(posit_softmax.posit_exp(x), cut)
    one = tf.constant(1.0)
    for name, values in (("posit_exp", cut), ("posit_exp_shifted", shifted)):
        compiled = posit_softmax._COMPILED[name]
        np.testing.assert_array_equal(compiled(tf.constant(x), one), values)
    again = posit_softmax.from_posit(posit_softmax.to_posit(tf.constant(cut), 1), 1)
    np.testing.assert_array_equal(again, cut)


@pytest.mark.parametrize("exponential", EXPONENTIALS)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_softmax_and_its_gradient_are_their_formulas(exponential, reciprocal):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (4, 5, 17)).astype(np.float32)
    x[..., 11:] -= 1e9  # masked
    dy = rng.normal(size=x.shape).astype(np.float32)
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = posit_softmax.softmax(variable, exponential, reciprocal)
    gradient = tape.gradient(y, variable, dy).numpy()
    z = tf.constant(x - x.max(-1, keepdims=True))
    e = {
        "exact": lambda: np.exp(z),
        "posit_exp": lambda: posit_softmax.posit_exp(z),
        "posit_exp_shifted": lambda: posit_softmax.posit_exp_shifted(z),
    }[exponential]()
    e = np.asarray(e)
    total = e.sum(-1, keepdims=True)
    if reciprocal:
        wanted = e * posit_softmax.reciprocal_of(tf.constant(total)).numpy()
        slope = 2.0 ** (-2 * np.floor(np.log2(total)) - 1)
        derivative = wanted * dy - slope * e * (e * dy).sum(-1, keepdims=True)
    else:
        wanted = e / total
        derivative = wanted * (dy - (wanted * dy).sum(-1, keepdims=True))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, derivative, rtol=1e-4, atol=1e-5)
    assert (np.asarray(y)[..., 11:] == 0).all()
    sums = np.asarray(y).sum(-1)
    assert (sums > 0.999).all() and (sums < 1.126).all()


def test_unknown_exponentials_are_refused_and_other_types_cast():
    with pytest.raises(ValueError, match="unknown exponential 'fast'; known: exact, posit_exp"):
        posit_softmax.softmax(tf.zeros([1, 2]), "fast")
    assert posit_softmax.softmax(tf.zeros([1, 2], tf.bfloat16)).dtype == tf.bfloat16


@pytest.mark.parametrize("columns", [7, 5000])  # plain operations and compiled
@pytest.mark.parametrize("exponential", EXPONENTIALS)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_rows_of_open_size_are_computed_alike_and_nan_stays_nan(exponential, reciprocal, columns):
    x = np.random.default_rng(0).normal(0, 3, (5, columns)).astype(np.float32)
    x[1, 3], x[2] = np.nan, -np.inf
    x[3, :3] = -np.inf

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def network(x):
        return posit_softmax.softmax(x, exponential, reciprocal)

    found = network(x).numpy()
    for row in (1, 2):
        assert np.isnan(found[row]).all()
    np.testing.assert_array_equal(found[3, :3], 0)
    for row in (0, 3, 4):
        wanted = posit_softmax.softmax(tf.constant(x[row : row + 1]), exponential, reciprocal)
        np.testing.assert_allclose(found[row], wanted[0], rtol=1e-6)

"""Formats without a type in `ml_dtypes` against exact arithmetic of integers and fractions: every
code, every bfloat16, and the float32 numbers next to each boundary.
"""

import fractions
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfquant
from tests.few import few
from tfquant import formats, qdq
from tfquant.scale import Scale

Fraction = fractions.Fraction


# References: a positive number -> its value.


def posit_values(bits: int, exponent_bits: int) -> list[Fraction]:
    """Values of the codes 1 ... 2**(bits-1) - 1, read bit by bit."""
    values = []
    for code in range(1, 2 ** (bits - 1)):
        stream = [code >> place & 1 for place in range(bits - 2, -1, -1)]
        first, power = stream[0], 0 if stream[0] else -(2**exponent_bits)
        stream.pop(0)
        while stream and stream[0] == first:
            power += 2**exponent_bits if first else -(2**exponent_bits)
            stream.pop(0)
        stream = stream[1:]
        for place in range(exponent_bits - 1, -1, -1):
            power += (stream.pop(0) if stream else 0) << place
        value = Fraction(2) ** power
        for place, bit in enumerate(stream, 1):
            value += bit * Fraction(2) ** (power - place)
        values.append(value)
    return values


def posit(x: Fraction, bits: int, exponent_bits: int) -> Fraction:
    """Write the unbounded code, keep `bits` bits of it, round half to even."""
    values = posit_values_of(bits, exponent_bits)
    if x < Fraction(2) ** math.floor(2 ** (exponent_bits - 1) - (bits - 1) * 2**exponent_bits):
        return Fraction(0)
    if not values[0] < x < values[-1]:
        return values[0] if x <= values[0] else values[-1]
    power = x.numerator.bit_length() - x.denominator.bit_length()
    power -= x < Fraction(2) ** power
    regime, exponent = power >> exponent_bits, power % 2**exponent_bits
    text = "0" + ("1" * (regime + 1) + "0" if regime >= 0 else "0" * -regime + "1")
    text += f"{exponent:0{exponent_bits}b}" if exponent_bits else ""
    rest = x / Fraction(2) ** power - 1
    while rest:
        rest *= 2
        text += str(int(rest >= 1))
        rest -= rest >= 1
    text = text.ljust(bits + 2, "0")
    code, guard, sticky = int(text[:bits], 2), text[bits], "1" in text[bits + 1 :]
    return values[code + (guard == "1" and (sticky or code % 2)) - 1]


posit_values_of = functools.cache(posit_values)


def small_float(x: Fraction, exponent_bits: int, mantissa_bits: int) -> Fraction:
    """Round to a multiple of the spacing at x, half to even."""
    lowest = 2 - 2 ** (exponent_bits - 1)
    power = max(x.numerator.bit_length() - x.denominator.bit_length(), lowest)
    power -= power > lowest and x < Fraction(2) ** power
    spacing = Fraction(2) ** (power - mantissa_bits)
    largest = 2 ** (exponent_bits - 1) - (exponent_bits > 4)
    limit = Fraction(2) ** largest * (2 - Fraction(2) ** -mantissa_bits)
    return min(round(x / spacing) * spacing, limit)  # Python rounds fractions half to even


def power_of_two(x: Fraction, count: int) -> Fraction:
    """Equations 2 to 4 of INQ with n1 = 0."""
    powers = [Fraction(2) ** -k for k in range(count)]
    if x >= Fraction(3, 2):
        return powers[0]
    inside = [p for p in powers if Fraction(3, 4) * p <= x < Fraction(3, 2) * p]
    return inside[0] if inside else powers[-1] if x >= powers[-1] / 2 else Fraction(0)


# name -> reference
REFERENCES = {
    **{
        f"posit{bits}_{es}": functools.partial(posit, bits=bits, exponent_bits=es)
        for bits, es in ((8, 0), (8, 1), (8, 2), (8, 3), (6, 1), (5, 2), (3, 0), (4, 1))
    },
    **{
        f"e{x}m{y}": functools.partial(small_float, exponent_bits=x, mantissa_bits=y)
        for x, y in ((3, 4), (5, 1), (4, 0), (1, 2), (3, 0), (2, 2))
    },
    **{
        f"p2_{bits}": functools.partial(power_of_two, count=2 ** (bits - 1) - 1)
        for bits in (2, 3, 5, 7)
    },
    **{f"inq_{bits}": functools.partial(power_of_two, count=2 ** (bits - 2)) for bits in (3, 5, 8)},
}
# Left to `make test-long`; a format that is added is always checked.
LIKE_OTHERS = (
    *("posit8_0", "posit8_3", "posit5_2", "posit3_0", "posit4_1"),
    *("e5m1", "e4m0", "e3m0", "e2m2", "p2_2", "p2_3", "p2_7", "inq_8"),
)
NORMAL_FLOATS = ["nf4", "nf4_6", "nf2", "nf3", "nf5_8", "nf8"]


def book(name: str):
    return formats.get(name).codebook(Scale())


def both_kernels(name: str, x: np.ndarray) -> list[np.ndarray]:
    """Rounded with scale 1 by the plain and by the compiled kernel."""
    amax = tf.constant(book(name).quant_max, tf.float32)
    return [
        formats.get(name).round(tf.constant(x), amax, book(name), compiled=compiled).numpy()
        for compiled in (False, True)
    ]


def neighbours(name: str) -> np.ndarray:
    """Each boundary, and the float32 numbers next to it."""
    boundaries = np.asarray(book(name).thresholds, np.float32)
    return np.concatenate(
        [boundaries, *(np.nextafter(boundaries, np.float32(end)) for end in (-np.inf, np.inf))]
    )


@pytest.mark.parametrize(
    "name", few(REFERENCES, [name for name in REFERENCES if name not in LIKE_OTHERS])
)
def test_every_bfloat16_and_the_neighbours_of_boundaries_are_rounded_exactly(name):
    patterns = np.arange(0x7F80, dtype=np.uint32) << 16  # finite numbers of one sign
    x = np.concatenate([patterns.view(np.float32), np.abs(neighbours(name))])
    x = np.tile(x, 2)[: max(x.size, 2**14)]
    wanted = {value: float(REFERENCES[name](Fraction(value))) for value in set(x.tolist())}
    wanted = np.array([wanted[value] for value in x.tolist()], np.float32)
    for found in both_kernels(name, x):
        np.testing.assert_array_equal(found, wanted)
    for found in both_kernels(name, -x):
        np.testing.assert_array_equal(found, -wanted)
    np.testing.assert_array_equal(
        book(name).quantize(x, -book(name).quant_max, book(name).quant_max), wanted
    )


@pytest.mark.parametrize("name", [*REFERENCES, *NORMAL_FLOATS])
def test_codes_are_those_of_the_values_and_others_are_nan(name):
    format, codes = formats.get(name), np.arange(2 ** formats.get(name).bits)
    values = format.decode(codes, book(name))
    numbers = ~np.isnan(values)
    assert set(values[numbers].tolist()) == set(book(name).levels)
    again = format.encode(values[numbers], book(name))
    np.testing.assert_array_equal(format.decode(again, book(name)), values[numbers])
    if name.startswith("posit"):
        bits, exponent_bits = map(int, name[5:].split("_"))
        exact = [float(value) for value in posit_values_of(bits, exponent_bits)]
        np.testing.assert_array_equal(values[1 : len(exact) + 1], exact)
        np.testing.assert_array_equal(values[len(exact) + 2 :], -np.array(exact)[::-1])
        assert np.isnan(values[len(exact) + 1])


@pytest.mark.parametrize("name", NORMAL_FLOATS)
def test_normal_float_takes_the_nearest_quantile(name):
    bits, _, integers = name[2:].partition("_")
    half = 2 ** (int(bits) - 1)
    shares = [np.linspace(0.9677083, 0.5, count)[:-1] for count in (half + 1, half)]
    levels = np.sort([*stats.norm.isf(1 - shares[0]), *stats.norm.ppf(1 - shares[1]), 0.0])
    levels = levels / levels[-1]
    if integers:
        levels = np.unique(np.round(levels * (2 ** (int(integers) - 1) - 1)))
    np.testing.assert_allclose(book(name).levels, levels, rtol=1e-6)
    exact = [Fraction(level) for level in book(name).levels]
    chosen = np.concatenate([neighbours(name), np.linspace(-2, 2, 200, dtype=np.float32)])
    wanted = []
    for number in chosen.tolist():
        errors = [abs(Fraction(number) - level) for level in exact]
        wanted.append(float(exact[errors.index(min(errors))]))
    for found in both_kernels(name, np.resize(chosen, 2**14)):
        np.testing.assert_array_equal(found[: len(wanted)], wanted)


def test_values_of_the_literature():
    np.testing.assert_allclose(
        book("nf4").levels[:8],
        [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0910, 0],
        atol=6e-5,
    )
    assert book("nf4_6").levels == (
        *(-31, -22, -16, -12, -9, -6, -3, 0),
        *(2, 5, 8, 10, 14, 17, 22, 31),
    )
    x = np.array([1e-4, 5e-4, 0.1, 1.03125, 1.09375, 80, 81, 384, 385, 2048, 2049, 1e9, -0.07])
    x = x.astype(np.float32)
    found = both_kernels("posit8_1", x)[0].tolist()
    assert found[:3] == [0, 2**-10, 0.1015625] and found[3:5] == [1, 1.125]
    assert found[5:] == [64, 96, 256, 512, 1024, 4096, 4096, -0.0703125]
    codes = formats.get("posit8_1").encode(x, book("posit8_1")).tolist()
    assert codes == [0, 2, 0x15, 0x40, 0x42, 0x78, 0x79, 0x7C, 0x7D, 0x7E, 0x7F, 0x7F, 0xEF]
    assert book("posit8_1").quant_max == 64 and book("posit8_1").limit == 4096


@pytest.mark.parametrize("name", ["posit8_1", "nf4", "nf8", "p2_5", "e2m1"])
def test_nan_stays_and_infinity_saturates(name):
    x = np.array([np.nan, np.inf, -np.inf, 0.0] * 2**13, np.float32)
    for found in both_kernels(name, x):
        lowest, highest = book(name).extremes
        np.testing.assert_array_equal(found[:4], [np.nan, highest, lowest, 0])
    amax = tf.constant(3.0)
    y = qdq.quantize_dequantize(tf.constant(x), -amax, amax, book(name))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.parametrize(
    "name",
    ["posit9_1", "posit8_4", "nf9", "nf4_4", "p2_8", "inq_9", "fixed_1", "e6m1", "e5m2_ieee"],
)
def test_formats_that_do_not_exist_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"number format '{name}'"):
        tfquant.QuantSpec(name)

"""Codebooks against exact arithmetic: ml_dtypes for float8, sorting by distance for any levels."""

import json

import ml_dtypes
import numpy as np
import pytest

from calib import ScaledCodebook, UniformCodebook
from calib.codebook import codebook_from_dict

FLOATS = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float4_e2m1fn,
]
BITS = {ml_dtypes.float6_e3m2fn: 6, ml_dtypes.float4_e2m1fn: 4}
NF4 = ScaledCodebook.nearest([-1.0, -0.75, -0.5, -0.25, 0.0, 0.125, 0.5, 1.0])
INTEGERS = [
    UniformCodebook(-127, 127),
    UniformCodebook(-8, 7),
    UniformCodebook(0, 15),
    UniformCodebook(0, 255, symmetric=False),
]


def floating(dtype) -> ScaledCodebook:
    """Codebook of all finite values of an `ml_dtypes` type."""
    codes = np.arange(2 ** BITS.get(dtype, 8)).astype(np.uint8).view(dtype)
    values = codes.astype(np.float32)
    return ScaledCodebook.nearest(
        np.unique(values[np.isfinite(values)]).tolist(), name=dtype.__name__
    )


def every_bfloat16(limit: float) -> np.ndarray:
    """All finite numbers of 16 bits up to a magnitude."""
    values = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    return values[np.isfinite(values) & (np.abs(values) <= limit)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_floating_codebooks_round_every_bfloat16_like_ml_dtypes(dtype):
    codebook = floating(dtype)
    x = every_bfloat16(codebook.limit)
    found = codebook.quantize(x, -codebook.limit, codebook.limit)
    np.testing.assert_array_equal(found, x.astype(dtype).astype(np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_beyond_the_limit_saturate(dtype):
    codebook = floating(dtype)
    beyond = np.float32([-1e30, -1.5 * codebook.limit, 1.01 * codebook.limit, np.inf])
    np.testing.assert_array_equal(
        codebook.quantize(beyond, -codebook.limit, codebook.limit),
        np.sign(beyond) * np.float32(codebook.limit),
    )


def test_amax_is_mapped_to_quant_max_and_values_up_to_the_limit_stay():
    codebook = ScaledCodebook.nearest([-4.0, -1.0, 0.0, 1.0, 4.0], quant_max=1.0)
    assert (codebook.quant_max, codebook.limit) == (1.0, 4.0)
    x = np.float32([-9, -5, -3, 0.9, 1.1, 2, 5.1, 8, 9])
    np.testing.assert_array_equal(
        codebook.quantize(x, -2, 2), np.float32([-8, -8, -2, 0, 2, 2, 8, 8, 8])
    )


def test_a_number_on_a_threshold_is_rounded_up_and_thresholds_need_not_be_midpoints():
    codebook = ScaledCodebook(
        (0.0, 0.5, 1.0), (0.375, 0.75), 1.0
    )  # powers of two that switch at 0.75 * 2**j
    below = np.nextafter(np.float32([0.375, 0.75]), np.float32(0))
    np.testing.assert_array_equal(codebook.quantize(np.float32([0.375, 0.75]), 0, 1), [0.5, 1])
    np.testing.assert_array_equal(codebook.quantize(below, 0, 1), [0, 0.5])


@pytest.mark.parametrize(
    "codebook", [*INTEGERS, floating(FLOATS[0]), floating(FLOATS[3]), NF4], ids=str
)
def test_quantized_values_are_those_that_the_boundaries_say(codebook):
    random = np.random.default_rng(0)
    x = random.normal(size=500).astype(np.float32) * 2
    x = np.abs(x) if codebook.unsigned else x
    lower, upper = np.float32([-1.5, -2, -3]), np.float32([1.5, 1.25, 4])
    values, boundaries = codebook.values(lower, upper), codebook.boundaries(lower, upper)
    assert values.shape == (3, codebook.num_codes) and boundaries.shape == (
        3,
        codebook.num_codes - 1,
    )
    assert (
        (np.diff(values) > 0).all()
        and (values[:, :-1] <= boundaries).all()
        and (boundaries <= values[:, 1:]).all()
    )
    for index, ends in enumerate(zip(lower, upper, strict=True)):
        expected = values[index][np.searchsorted(boundaries[index], x)]
        np.testing.assert_allclose(codebook.quantize(x, *ends), expected, rtol=2e-6, atol=1e-6)
    width = np.maximum(-lower, upper) if codebook.symmetric else upper - lower
    held = values[:, -1] if codebook.symmetric else values[:, -1] - values[:, 0]
    np.testing.assert_allclose(held, width * codebook.limit / codebook.quant_max, rtol=1e-6)


@pytest.mark.parametrize("codebook", [*INTEGERS, floating(FLOATS[0]), NF4], ids=str)
def test_an_empty_range_gives_zeros(codebook):
    np.testing.assert_array_equal(codebook.quantize(np.float32([-1, 0, 5]), 0, 0), [0, 0, 0])
    assert not codebook.values(np.zeros(2, np.float32), np.zeros(2, np.float32)).any()


@pytest.mark.parametrize("codebook", [*INTEGERS, *map(floating, FLOATS), NF4], ids=str)
def test_codebooks_survive_json(codebook):
    assert codebook_from_dict(json.loads(json.dumps(codebook.to_dict()))) == codebook
    assert str(codebook_from_dict(codebook.to_dict())) == str(codebook)


@pytest.mark.parametrize(
    "levels, thresholds, quant_max, message",
    [
        ((-1, 0, 1), (0.5,), 1, "3 levels have 2 thresholds"),
        ((-1, 1, 0), (0, 0.5), 1, "levels must be finite numbers in ascending order"),
        ((-1, 0, np.inf), (-0.5, 0.5), 1, "levels must be finite"),
        ((-1, 0, 0.1), (-0.5, 0.0625), 0.1, "levels must be exact in float32"),
        ((-1, 0, 1), (0.25, 0.5), 1, "each threshold must lie between"),
        ((-1, 0.5, 1), (-0.5, 0.75), 1, "0 and a positive number"),
        ((-1, 0, 1), (-0.5, 0.5), 2, "quant_max must lie above 0 and not above 1"),
        ((-1, 0, 1), (-0.5, 0.5), float("nan"), "quant_max must lie above 0"),
    ],
)
def test_impossible_codebooks_are_refused(levels, thresholds, quant_max, message):
    with pytest.raises(ValueError, match=message):
        ScaledCodebook(levels, thresholds, quant_max)

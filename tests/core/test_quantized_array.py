"""Codes mean what the simulation rounds to, whatever the range and the format."""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant.bitpacking import pack_array, unpack_array
from tfquant.export.onnx.parameters import unsigned
from tfquant.model import engine_of
from tfquant.quantized_array import QuantParams
from tfquant.scale import SMALLEST_AMAX


def site_with(lower: float, upper: float, **spec):
    """(site, quantizer) of an activation with a range."""

    @tf.function(input_signature=[tf.TensorSpec([None, 4])])
    def network(x):
        return tf.matmul(x, tf.eye(4))

    recipe = tfquant.recipe("int8_residual_float").with_spec(roles=["linear_input"], **spec)
    batches = [(np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(2, 4),)]
    engine = engine_of(tfquant.quantize(network, recipe, calibration=batches, progress=False))
    address = next(address for address in engine.quantizers if ":linear_input:" in address)
    engine.quantizers[address].set_range(np.float32(lower), np.float32(upper))
    return engine.quantizers[address].site, engine.quantizers[address]


RANGES = [
    (-1.3, 0.7),
    (0.5, 2.0),
    (-3.0, -1.0),
    (0.0, 0.0),
    (1e-30, 2e-30),
    (0.0, 5.0),
    (-1.0, 1.0),
    (-0.37, 0.37),
    (-2.9, 2.9),
]


@pytest.mark.representatives("-1.3-0.7-*", "0.0-5.0-*", "0.0-0.0-True", "1e-30-*")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("lower", "upper"), RANGES)
def test_decoded_codes_are_what_the_simulation_rounds_to(lower, upper, symmetric):
    site, quantizer = site_with(lower, upper, symmetric=symmetric)
    params = QuantParams.of(site, quantizer)
    values = np.random.default_rng(0).uniform(lower - 1.0, upper + 1.0, 4000).astype(np.float32)
    simulated = tf.function(lambda x: quantizer(x, False))(
        tf.constant(values)
    ).numpy()  # as networks compute: in a graph
    step = float(params.scale)
    for written in (params, unsigned(params) if params.codebook.qmin < 0 else params):
        codes = written.quantize(values).codes
        assert written.codebook.qmin <= codes.min() and codes.max() <= written.codebook.qmax
        assert written.codebook.qmin <= written.zero <= written.codebook.qmax, "zero has no code"
        # A value on the border between two codes may fall to either.
        error = np.abs(written.scale * (codes - written.zero) - simulated)
        assert (
            np.mean(error > 1e-5 * np.abs(simulated).max() + 1e-30) < 2e-3
            and error.max() <= 1.01 * step
        )


def test_a_range_without_zero_is_widened_to_it():
    params = QuantParams.of(*site_with(0.5, 2.0, symmetric=False))
    assert params.zero == params.codebook.qmin and float(params.scale) == pytest.approx(2.0 / 255)


def test_an_empty_range_has_a_scale_above_zero():
    params = QuantParams.of(*site_with(0.0, 0.0, symmetric=False))
    assert params.scale >= SMALLEST_AMAX / 255 > 0


FORMATS = ["int8", "int3", "int12", "e4m3", "e5m2"]


@pytest.mark.representatives("-1.3-0.7-*", "0.0-5.0-int8", "-2.9-2.9-e5m2")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("lower", "upper"), [(-1.3, 0.7), (0.0, 5.0), (-2.9, 2.9)])
def test_dequantized_arrays_are_what_the_simulation_rounds_to(format, lower, upper):
    site, quantizer = site_with(lower, upper, format=format)
    params = QuantParams.of(site, quantizer)
    values = np.random.default_rng(0).uniform(lower - 1.0, upper + 1.0, (50, 80)).astype(np.float32)
    simulated = tf.function(lambda x: quantizer(x, False))(tf.constant(values)).numpy()
    found = params.quantize(values).values()
    assert found.dtype == np.float32 and found.shape == values.shape
    equal = np.abs(found - simulated) <= 1e-6 * np.abs(simulated).max()
    assert equal.mean() > 0.998  # a value on the border between two codes may fall to either


@pytest.mark.parametrize(
    ("format", "symmetric"),
    [*((format, True) for format in FORMATS), *((format, False) for format in FORMATS[:3])],
)
def test_packed_arrays_come_back_with_codes_and_parameters(format, symmetric):
    site, quantizer = site_with(-1.3, 0.7, format=format, symmetric=symmetric)
    array = QuantParams.of(site, quantizer).quantize(
        np.linspace(-2, 2, 60, dtype=np.float32).reshape(3, 20)
    )
    tensors, attributes = pack_array(array)
    assert tensors["codes"].nbytes == -(-60 * array.params.format.bits // 8)
    back = unpack_array(tensors, attributes, (3, 20))
    np.testing.assert_array_equal(back.codes, array.codes)
    assert back.params.codebook == array.params.codebook and back.params.zero == array.params.zero
    np.testing.assert_array_equal(back.values(), array.values())

"""Codes as bits.

The layout against Python's own large integers, round trips, files that are whole or refused.
"""

import json

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calib.codebook import UniformCodebook
from tfquant import bitpacking
from tfquant.bitpacking import (
    pack,
    pack_array,
    packed_size,
    read_file,
    unpack,
    unpack_array,
    write_file,
)
from tfquant.checkpoint import CheckpointError
from tfquant.quantized_array import QuantizedArray, QuantParams

MARKS = {"format": "test", "version": "1"}


def slow_pack(codes, bits: int) -> bytes:
    """The codes as the digits of one number, the first one lowest, written out from its lowest byte
    on.
    """
    number = sum(int(code) << (bits * place) for place, code in enumerate(np.ravel(codes)))
    return number.to_bytes((np.size(codes) * bits + 7) // 8, "little")


@st.composite
def codes_and_bits(draw):
    bits = draw(st.integers(1, 16))
    shape = draw(
        hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)
    )
    dtype = draw(st.sampled_from([np.uint16, np.int32, np.int64]))
    return (
        draw(hypothesis.extra.numpy.arrays(dtype, shape, elements=st.integers(0, 2**bits - 1))),
        bits,
    )


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(codes_and_bits())
def test_packed_codes_are_the_slow_ones_and_come_back(case):
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.tobytes() == slow_pack(codes, bits)
    assert packed.size == packed_size(codes.size, bits)
    back = unpack(packed, bits, codes.shape)
    assert back.dtype == np.uint16 and back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", range(1, 17))
def test_arrays_of_several_chunks_are_packed_without_gaps(bits, monkeypatch):
    monkeypatch.setattr(bitpacking, "_CHUNK", 16)
    for count in (1, 15, 16, 17, 32, 45):
        codes = np.random.default_rng(count).integers(0, 2**bits, count)
        assert pack(codes, bits).tobytes() == slow_pack(codes, bits)
        np.testing.assert_array_equal(unpack(pack(codes, bits), bits, (count,)), codes)


def test_the_layout_by_hand():
    # 1 is 001, 6 is 110, 3 is 011: from the lowest bit of the first byte on 100 011 110.
    assert pack([1, 6, 3], 3).tolist() == [0b11110001, 0b0]
    assert pack([[0x1, 0x2], [0xF, 0x0]], 4).tolist() == [0x21, 0x0F]
    assert pack([0x1234], 16).tolist() == [0x34, 0x12]


def test_arrays_that_are_views_are_packed_in_row_major_order():
    codes = np.arange(24).reshape(4, 6).T[::2]
    assert pack(codes, 5).tobytes() == slow_pack(codes.copy(), 5)


@pytest.mark.parametrize(
    "codes, bits, message",
    [
        ([0, 16], 4, r"codes 0..16 do not fit into 4 bits: must lie in 0..15"),
        ([-1, 3], 4, r"codes -1..3 do not fit into 4 bits"),
        ([0.5], 4, "codes are float64, must be integers"),
        ([1], 17, "codes of 17 bits: must be 1 to 16"),
        ([1], 0, "codes of 0 bits: must be 1 to 16"),
    ],
)
def test_codes_that_cannot_be_packed_are_refused(codes, bits, message):
    with pytest.raises(ValueError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize(
    "packed",
    [
        np.zeros(2, np.uint8),
        np.zeros(4, np.uint8),
        np.zeros(3, np.int8),
        np.zeros((3, 1), np.uint8),
    ],
)
def test_bytes_of_another_number_of_codes_are_refused(packed):
    with pytest.raises(ValueError, match=r"5 codes of 4 bits are uint8 of shape \[3\], got"):
        unpack(packed, 4, (5,))


@pytest.mark.parametrize("axes", [(), (0,), (2,), (1, 2)])
@pytest.mark.parametrize(
    "qmin, qmax, symmetric",
    [(-7, 7, True), (-4, 3, True), (0, 3, True), (0, 31, False), (0, 65535, False)],
)
def test_values_are_scale_times_code_less_zero(qmin, qmax, symmetric, axes):
    grid = UniformCodebook(qmin, qmax, symmetric)
    rng, shape = np.random.default_rng(0), (3, 4, 5)
    codes = rng.integers(grid.qmin, grid.qmax + 1, shape)
    scale = rng.uniform(0.1, 2.0, [shape[a] for a in axes]).astype(np.float32)
    zero = (
        np.zeros(scale.shape)
        if grid.symmetric
        else rng.integers(grid.qmin, grid.qmax + 1, scale.shape)
    )
    array = QuantizedArray(codes, QuantParams(scale, np.asarray(zero), grid, axes))
    tensors, attributes = pack_array(array)
    assert tensors.keys() == ({"codes", "scale"} if grid.symmetric else {"codes", "scale", "zero"})
    assert attributes == {
        "bits": (grid.qmax - grid.qmin).bit_length(),
        "qmin": grid.qmin,
        "axes": axes,
    }
    stored = json.loads(json.dumps(attributes))
    back = unpack_array(tensors, stored, shape)
    np.testing.assert_array_equal(back.codes, codes)
    assert back.params.codebook == grid
    values = back.values()
    assert values.dtype == np.float32 and values.shape == shape
    for place in np.ndindex(shape):
        channel = tuple(place[a] for a in axes)
        assert values[place] == np.float32(scale[channel]) * np.float32(
            int(codes[place]) - int(zero[channel])
        )


# Files


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {
        "b": np.arange(6, dtype=np.uint8),
        "a": np.float32([[1, 2], [3, 4]]).T,
        "scalar": np.float32(2.5),
    }
    tensors["none"] = np.zeros((0, 3))
    write_file(path, tensors, {**MARKS, "text": "ä\n"})
    return path, tensors


def test_tensors_and_texts_of_a_file_come_back(written):
    path, tensors = written
    found, texts = read_file(path, MARKS)
    assert (
        texts == {**MARKS, "text": "ä\n"}
        and found.keys() == tensors.keys() == load_file(path).keys()
    )
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape


def test_every_flipped_bit_and_every_cut_is_noticed(written):
    path, _ = written
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        with pytest.raises((CheckpointError, ValueError), match="file.safetensors") as error:
            read_file(path, MARKS)
        one_line(error)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="file.safetensors is damaged") as error:
            read_file(path, MARKS)
        one_line(error)


def test_other_files_are_told_from_damaged_ones(written, tmp_path):
    path, tensors = written
    with pytest.raises(ValueError, match="version is '1', not '2'"):
        read_file(path, {**MARKS, "version": "2"})
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(
        ValueError, match="format is None, not 'test': another program or version wrote it"
    ):
        read_file(path, MARKS)
    with pytest.raises(FileNotFoundError, match="there is no file .*missing"):
        read_file(tmp_path / "missing", MARKS)
    with pytest.raises(CheckpointError, match="damaged, or no safetensors file"):
        read_file(tmp_path, MARKS)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write .*nowhere") as error:
        write_file(tmp_path / "nowhere" / "file.safetensors", {"a": np.zeros(3)}, MARKS)
    one_line(error)

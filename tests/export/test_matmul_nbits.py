"""Packed products of ONNX Runtime: the file holds the weights of the simulation bit for bit, and
ONNX Runtime answers with them.
"""

import keras
import numpy as np
import onnx
import pytest

import modeling
import tfquant
from tests.few import few
from tests.graph import models
from tfquant import QuantSpec, Recipe, Rule
from tfquant.export import ExportError
from tfquant.export.onnx.packed_matrix import Levels, PackedMatrix
from tfquant.quantized_array import FittedArray
from tfquant.runtimes import onnxruntime

WIDTH, UNITS = 200, 24  # inputs are no multiple of any block from 16 on
X = np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32)
FILE = "matmul_nbits.onnx"


def blocks(format, size, **fields):
    return QuantSpec(format, "per_block", block_size=size, dynamic=True, **fields)


WEIGHTS = {
    "int4 blocks of 16": (blocks("int4", 16), 4, 16),
    "int4 blocks of 32": (blocks("int4", 32), 4, 32),
    "int8 blocks of 64": (blocks("int8", 64), 8, 64),
    "int2 blocks of 32": (blocks("int2", 32), 2, 32),
    "int4 blocks of 32, scales powers of two": (blocks("int4", 32, scale_format="e8m0"), 4, 32),
    "int4": (QuantSpec("int4", "per_channel"), 4, 128),
    "int4 per tensor": (QuantSpec("int4"), 4, 128),
    "int3 with zero points": (QuantSpec("int3", "per_channel", symmetric=False), 4, 128),
    "int2 with zero points": (QuantSpec("int2", "per_channel", symmetric=False), 2, 128),
    "int8 with zero points": (QuantSpec("int8", "per_channel", symmetric=False), 8, 128),
    "ternary": (QuantSpec("ternary", "per_channel"), 2, 128),
    "ternary per tensor": (QuantSpec("ternary"), 2, 128),
    "ternary blocks of 32": (QuantSpec("ternary", "per_block", block_size=32), 2, 32),
    "binary": (QuantSpec("binary", "per_channel"), 2, 128),
    "binary, scale a power of two": (
        QuantSpec("binary", "per_channel", scale_format="nearest_power_of_two"),
        *(2, 128),
    ),
    "sign": (QuantSpec("binary", source="none"), 2, 128),
    "irnet": (tfquant.recipe("irnet").rules[0].spec, 2, 128),
}
REPRESENTATIVES = few(
    WEIGHTS,
    kept=("int4 blocks of 32", "int2 with zero points", "ternary", "ternary blocks of 32", "irnet"),
)


def dense(seed=0):
    keras.utils.set_random_seed(seed)
    x = keras.Input((WIDTH,), name="x")
    return keras.Model(x, keras.layers.Dense(UNITS, name="only", use_bias=False)(x))


def recipe(**specs):
    return Recipe(tuple(Rule(spec, role=role) for role, spec in specs.items()), name="packed")


def quantized(model=None, batches=(X,), **specs):
    rules = recipe(**specs) if specs else None
    return tfquant.quantize(model or dense(), rules, batches, progress=False)


def products(path):
    """Attributes and operands of every packed product of a file."""
    model = onnx.load(path)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            numbers = {entry.name: entry.i for entry in node.attribute}
            yield numbers, [values[name] for name in node.input[1:]]


def unpacked(numbers, operands):
    """The matrix [K, N] of a packed product, by the documentation of the operation."""
    bits, block, k = numbers["bits"], numbers["block_size"], numbers["K"]
    count = -(-k // block)

    def codes(packed, number):
        flat = np.unpackbits(packed, axis=-1, bitorder="little")
        flat = flat.reshape(*packed.shape[:-1], -1, bits)[..., :number, :]
        return flat.astype(np.float32) @ (1 << np.arange(bits)).astype(np.float32)

    weights, scales, zeros = operands[0], operands[1], 2.0 ** (bits - 1)
    assert weights.shape == (numbers["N"], count, block * bits // 8)
    if len(operands) > 2:
        zeros = codes(operands[2], count)[..., np.newaxis]
    result = scales[..., np.newaxis] * (codes(weights, block) - np.float32(zeros))
    return result.reshape(numbers["N"], -1)[:, :k].T


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_file_holds_the_weights_of_the_simulation_and_answers_with_them(name, tmp_path):
    spec, bits, block = WEIGHTS[name]
    model = quantized(weight=spec)
    result = tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=[X])
    ((numbers, operands),) = products(tmp_path / FILE)
    assert (numbers["bits"], numbers["block_size"]) == (bits, block)
    assert numbers["accuracy_level"] == 0 and not result.contractions.integer
    rounded = np.asarray(model(np.eye(WIDTH, dtype=np.float32)))
    # Fitted values are a scale and its negative; those of integers are products, which the
    # simulation computes in another order, so that the last bit may differ.
    limit = 0 if spec.fitted else 4e-7 * np.abs(rounded).max()
    np.testing.assert_allclose(unpacked(numbers, operands), rounded, rtol=0, atol=limit)
    answers = onnxruntime.open_file(str(tmp_path / FILE))({"x": X})["output"]
    exact = X.astype(np.float64) @ rounded.astype(np.float64)
    np.testing.assert_allclose(answers, exact, atol=1e-5 * exact.std())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("int4 blocks of 32", 32),
        ("ternary", 128),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (("int4", 16), ("int8 blocks of 64", 64), ("binary", 32), ("int4", 256))
        ),
    ],
)
def test_activations_in_blocks_are_rounded_by_the_kernel(name, size, tmp_path):
    model = quantized(weight=WEIGHTS[name][0], linear_input=blocks("int8", size))
    result = tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=[X])
    ((numbers, _),) = products(tmp_path / FILE)
    assert numbers["accuracy_level"] == 4 and numbers["block_size"] == size
    assert len(result.contractions.integer) == 1 and not result.contractions.floating
    kinds = {node.op_type for node in onnx.load(tmp_path / FILE).graph.node}
    assert "QuantizeLinear" not in kinds
    rounded = np.asarray(quantized(weight=WEIGHTS[name][0])(np.eye(WIDTH, dtype=np.float32)))
    padded = np.pad(X, ((0, 0), (0, -WIDTH % size))).reshape(len(X), -1, size)
    scale = np.abs(padded).max(-1, keepdims=True) / np.float32(127)
    inputs = (np.rint(padded / scale) * scale).reshape(len(X), -1)[:, :WIDTH]
    answers = onnxruntime.open_file(str(tmp_path / FILE))({"x": X})["output"]
    exact = inputs.astype(np.float64) @ rounded
    np.testing.assert_allclose(answers, exact, atol=1e-5 * exact.std())
    # Without the rounding of activations it answers otherwise.
    assert np.abs(answers - X.astype(np.float64) @ rounded).max() > 1e-3 * exact.std()


CONFIG = modeling.BertConfig(
    vocab_size=30,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=96,
    max_position_embeddings=16,
)


@pytest.fixture(scope="module")
def bert():
    keras.utils.set_random_seed(0)
    ids = np.random.default_rng(0).integers(1, 30, (8, 12)).astype(np.int32)
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": 0 * ids}
    return modeling.build_squad_model(CONFIG, dropout=False), [batch]


@pytest.mark.parametrize(
    ("specs", "levels"),
    [
        ({"weight": blocks("int4", 32), "embedding": QuantSpec("int8")}, {0}),
        pytest.param(
            {"weight": QuantSpec("ternary", "per_channel"), "linear_input": blocks("int8", 32)},
            {4},
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"weight": QuantSpec("int4", "per_channel"), "linear_input": QuantSpec()},
            {0},
            marks=pytest.mark.long,
        ),
    ],
    ids=["W4A16, tables of 8 bits", "ternary, A8 in blocks", "W4A8 with stored ranges"],
)
def test_products_of_an_encoder_are_packed_and_its_attention_is_fused(
    specs, levels, bert, tmp_path
):
    model = quantized(*bert, **specs)
    result = tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=bert[1])
    found = [numbers["accuracy_level"] for numbers, _ in products(tmp_path / FILE)]
    assert len(found) == 6 and set(found) == levels
    nodes = onnx.load(tmp_path / FILE).graph.node
    assert sum(node.op_type == "MultiHeadAttention" for node in nodes) == 1
    # Rounding of activations may fall to either side where they differ in the last bit.
    limit = 1e-5 if levels == {0} and "linear_input" not in specs else 0.02
    assert result.agreement.largest < limit * result.agreement.spread
    again = tfquant.compare(model, tmp_path / FILE, bert[1])
    assert again.largest == result.agreement.largest


def test_bytes_beside_bytes_stay_with_the_integer_kernels(tmp_path):
    model = quantized(weight=QuantSpec("int8", "per_channel"), linear_input=QuantSpec())
    tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=[X])
    kinds = [node.op_type for node in onnx.load(tmp_path / FILE).graph.node]
    assert "MatMulNBits" not in kinds and kinds.count("DequantizeLinear") == 2


@pytest.mark.parametrize(
    "name", few([*models.KERAS, *models.FUNCTIONS], kept=("functional", "convolutional"))
)
def test_every_kind_of_model_is_packed_where_it_multiplies_matrices(name, tmp_path):
    if name == "mixed_bfloat16":
        pytest.skip("ONNX Runtime does not compute in bfloat16 on processors")
    case = models.build(name, str(tmp_path / "model"))
    model = quantized(case.model, case.batches, weight=QuantSpec("int4", "per_channel"))
    result = tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=case.batches)
    assert list(products(tmp_path / FILE))
    assert result.agreement.largest < 1e-4 * max(1.0, result.agreement.spread)


def test_a_weight_of_four_bits_takes_half_a_byte_and_its_share_of_a_scale(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((512,), name="x")
    model = keras.Model(x, keras.layers.Dense(256, name="only", use_bias=False)(x))
    rows = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    for size in (32, 128):
        packed = quantized(model, [rows], weight=blocks("int4", size))
        result = tfquant.export(packed, tmp_path / FILE, target="matmul_nbits")
        weights = 512 * 256 * (0.5 + 4 / size)
        assert weights < result.size < weights + 1024


# Refusals


def convolution():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    y = keras.layers.Conv2D(16, 3, name="conv")(x)
    return keras.Model(x, keras.layers.Dense(4, name="head")(keras.layers.Flatten()(y)))


REFUSED = {
    "odd blocks": (
        {"weight": blocks("int4", 24)},
        "only:weight:kernel: blocks of 24, MatMulNBits has powers of two from 16 on",
    ),
    "small blocks": ({"weight": blocks("int4", 8)}, "only:weight:kernel: blocks of 8"),
    "format": (
        {"weight": QuantSpec("nf4")},
        "only:weight:kernel: number format 'nf4' does not exist .* packed or saved_model",
    ),
    "format in blocks": ({"weight": QuantSpec("mxfp4")}, "only:weight:kernel: .*'e2m1'"),
    "binary activations": (
        {"weight": QuantSpec("binary"), "linear_input": QuantSpec("binary", source="none")},
        "only:linear_input:input: binary is a format of weights in this target",
    ),
    "activations of 4 bits": (
        {"weight": blocks("int4", 32), "linear_input": blocks("int4", 32)},
        "only:linear_input:input: the kernel rounds activations to int8 with float32 scales",
    ),
    "activations with scales of their own": (
        {"weight": blocks("int4", 32), "linear_input": QuantSpec("mxint8")},
        "only:linear_input:input: the kernel rounds activations to int8 with float32 scales",
    ),
    "activations alone": (
        {"linear_input": blocks("int8", 32)},
        "only:linear_input:input: blocks of 32 are rounded by products with packed weights alone",
    ),
    "unlike blocks": (
        {"weight": blocks("int4", 32), "linear_input": blocks("int8", 64)},
        "only:weight:kernel: its blocks of 32 are not those of its activation, blocks of 64",
    ),
    "two bits beside blocks that have no kernel": (
        {"weight": QuantSpec("ternary"), "linear_input": blocks("int8", 256)},
        "only:linear_input:input: .* in blocks of 32, 64, 128, got 256",
    ),
    "blocks along outputs": (
        {"weight": blocks("int4", 16, block_axis=1)},
        "only:weight:kernel: its scales, blocks of 16 along axis 1, differ within 16 weights",
    ),
}


@pytest.mark.parametrize("name", few(REFUSED, kept=("odd blocks", "unlike blocks", "format")))
def test_what_the_operation_lacks_is_refused_by_site_and_nothing_is_written(name, tmp_path):
    specs, message = REFUSED[name]
    with pytest.raises(ExportError, match=message) as error:
        tfquant.export(quantized(**specs), tmp_path / FILE, target="matmul_nbits")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_ternary_kernels_of_convolutions_are_refused_and_integers_stored_as_codes(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    model = quantized(convolution(), [rows], weight=QuantSpec("ternary", "per_channel"))
    with pytest.raises(ExportError, match="conv:weight:kernel: ternary .* with a kernel"):
        tfquant.export(model, tmp_path / FILE, target="matmul_nbits")
    assert not list(tmp_path.iterdir())
    model = quantized(convolution(), [rows], weight=QuantSpec("int4", "per_channel"))
    tfquant.export(model, tmp_path / FILE, target="matmul_nbits", check_data=[rows])
    kinds = [node.op_type for node in onnx.load(tmp_path / FILE).graph.node]
    assert "DequantizeLinear" in kinds and "Conv" in kinds


def test_tables_in_blocks_are_refused(bert, tmp_path):
    model = quantized(*bert, weight=blocks("int4", 32), embedding=blocks("int4", 32))
    with pytest.raises(ExportError, match="embeddings.*: rows of a table are looked up"):
        tfquant.export(model, tmp_path / FILE, target="matmul_nbits")


def test_an_activation_that_others_read_too_is_refused(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((64,), name="x")
    y = keras.layers.Dense(64, activation="relu", name="first")(x)
    model = keras.Model(x, keras.layers.Dense(64, name="second")(y) + y)
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    spec = blocks("int8", 32)
    model = quantized(model, [rows], weight=blocks("int4", 32), linear_input=spec, residual=spec)
    with pytest.raises(ExportError, match="second:linear_input:input: .* reads them too"):
        tfquant.export(model, tmp_path / FILE, target="matmul_nbits")
    assert not list(tmp_path.iterdir())


def test_other_targets_name_the_one_that_takes_blocks_and_ternary_weights(tmp_path):
    for spec in (blocks("int4", 32), QuantSpec("ternary")):
        with pytest.raises(ExportError, match="export to matmul_nbits or packed or saved_model"):
            tfquant.export(quantized(weight=spec), tmp_path / "model.onnx")


# The layout of one matrix


def test_zero_points_are_packed_along_blocks_and_padding_is_zero():
    codes = np.arange(40).reshape(40, 1) % 4
    zeros = np.repeat([[3], [0], [1]], 16, 0)[:40]
    scale = np.repeat(np.float32([[1], [2], [4]]), 16, 0)[:40]
    matrix = Levels(codes, zeros, scale, 2)
    packed = matrix.packed(16)
    assert isinstance(packed, PackedMatrix) and packed.codes.shape == (1, 3, 4)
    np.testing.assert_array_equal(packed.codes[0, 0], [0b11100100] * 4)
    np.testing.assert_array_equal(packed.codes[0, 2], [0b11100100] * 2 + [0b10101010] * 2)
    np.testing.assert_array_equal(packed.zeros, [[0b00010011]])
    np.testing.assert_array_equal(packed.scales, [[1, 2, 4]])
    assert matrix.largest_block() == 16 and not matrix.fit_blocks(32)


def test_values_without_a_common_scale_have_no_levels():
    array = FittedArray(np.zeros((2, 2), np.int32), np.float32([[[-2, -1, 1, 2]]]), "mb2", 2)
    with pytest.raises(ValueError, match="mb2 are no multiples of one scale"):
        Levels.of(array)


def test_blocks_that_a_second_rounding_would_move_by_a_bit_are_packed_too(tmp_path):
    largest = np.random.default_rng(0).uniform(0.5, 1.0, 4096).astype(np.float32)
    for seventh in (lambda x: x / np.float32(7), lambda x: x * np.float32(1 / 7)):
        scale = seventh(largest)
        largest = np.concatenate([largest, largest[seventh(scale * np.float32(7)) != scale]])
    kernel = np.random.default_rng(1).uniform(-0.5, 0.5, (32, len(largest))).astype(np.float32)
    kernel[5] = largest
    x = keras.Input((32,), name="x")
    layer = keras.layers.Dense(len(largest), name="only", use_bias=False)
    network = keras.Model(x, layer(x))
    layer.kernel.assign(kernel)
    model = quantized(network, [X[:, :32]], weight=blocks("int4", 32))
    once = np.asarray(model(np.eye(32, dtype=np.float32)))
    tfquant.export(model, tmp_path / FILE, target="matmul_nbits")
    ((numbers, operands),) = products(tmp_path / FILE)
    found = unpacked(numbers, operands)
    np.testing.assert_allclose(found, once, rtol=0, atol=4e-7)
    layer.kernel.assign(found)
    assert (np.asarray(model(np.eye(32, dtype=np.float32))) != once).any()

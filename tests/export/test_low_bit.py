"""Files of networks with binary and ternary weights: codes, sizes, values, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.core.conftest import two_dense_layers
from tests.few import few
from tfquant.bitpacking import unpack
from tfquant.export import ExportError
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

X = np.random.default_rng(2).normal(size=(10, 6)).astype(np.float32)
KINDS = {
    "binary": QuantSpec("binary", "per_channel"),
    "ternary": QuantSpec("ternary"),
    "sign": QuantSpec("binary", source="none"),
    "centered": QuantSpec("ternary", "per_channel", transform="center"),
    "irnet": tfquant.recipe("irnet").rules[0].spec,
    "blocks": QuantSpec("ternary", "per_block", block_size=4),
}


def quantized(spec, seed=0, **rule):
    return tfquant.quantize(
        two_dense_layers(seed), Recipe((Rule(spec, "weight", **rule),), name="weights")
    )


@pytest.mark.parametrize("kind", few(KINDS, kept=("ternary", "irnet", "blocks")))
def test_a_packed_network_computes_the_same_and_packs_to_the_same_again(kind, tmp_path):
    model, spec = quantized(KINDS[kind]), KINDS[kind]
    path = tmp_path / "model.safetensors"
    tfquant.export(model, path, target="packed")
    loaded = tfquant.load_packed(path, two_dense_layers(seed=3))
    np.testing.assert_array_equal(loaded(X), model(X))
    assert loaded.plan.sites[0].spec.transform == "none"
    again = tmp_path / "again.safetensors"
    tfquant.export(loaded, again, target="packed")
    twice = tfquant.load_packed(again, two_dense_layers(seed=4))
    np.testing.assert_array_equal(twice(X), model(X))
    bits = {row.path: row.bits for row in tfquant.size_report(model).variables}
    kernels = {path: number for path, number in bits.items() if path.endswith("kernel")}
    assert set(kernels.values()) == {1 if spec.format == "binary" else 2}


def test_codes_and_levels_are_read_as_documented(tmp_path):
    from safetensors.numpy import load_file

    model = quantized(QuantSpec("ternary", "per_channel"))
    tfquant.export(model, tmp_path / "model.safetensors", target="packed")
    tensors = load_file(tmp_path / "model.safetensors")
    kernel = model.original.layers[1].kernel.numpy()
    codes, levels = tensors["first/kernel/codes"], tensors["first/kernel/levels"]
    assert levels.shape == (1, 5, 3) and codes.size == (kernel.size * 2 + 7) // 8
    codes = unpack(codes, 2, kernel.shape)
    for column in range(5):
        magnitudes = np.abs(kernel[:, column])
        kept = magnitudes > 0.7 * magnitudes.mean()
        scale = magnitudes[kept].mean()
        np.testing.assert_allclose(levels[0, column], [-scale, 0, scale], rtol=1e-6)
        expected = np.where(kept, np.sign(kernel[:, column]), 0) + 1
        np.testing.assert_array_equal(codes[:, column], expected)


def wide(seed=0):
    """A layer whose outputs have more inputs than there are sums of four scales."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((300,), name="x")
    return keras.Model(x, keras.layers.Dense(20, name="only")(x))


MULTI_BIT = [
    (format, granularity)
    for format in ("mb4", "mb1", "mb2", "mb3", "mb3_refined")
    for granularity in ("per_channel", "per_tensor")
]


@pytest.mark.parametrize(("format", "granularity"), few(MULTI_BIT, kept=MULTI_BIT[:1]))
def test_multi_bit_weights_are_stored_as_signs_and_coefficients(format, granularity, tmp_path):
    from safetensors.numpy import load_file

    recipe = Recipe((Rule(QuantSpec(format, granularity), "weight"),), name="weights")
    model, bits = tfquant.quantize(wide(), recipe), int(format[2])
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    tfquant.export(model, path, target="packed")
    groups = 20 if granularity == "per_channel" else 1
    for file in (path, again):
        tensors = load_file(file)
        assert "only/kernel/levels" not in tensors
        coefficients = tensors["only/kernel/coefficients"]
        assert coefficients.shape == (1, groups, bits)
        assert tensors["only/kernel/codes"].nbytes == 300 * 20 * bits // 8
        # As the documentation says.
        codes = unpack(tensors["only/kernel/codes"], bits, (300, 20))
        kernel = np.zeros((300, 20), np.float32)
        for index in range(bits):
            one = coefficients[..., index]
            kernel = kernel + np.where(codes >> index & 1, one, -one)
        loaded = tfquant.load_packed(file, wide(seed=3))
        np.testing.assert_array_equal(loaded.original.layers[1].kernel, kernel)
        x = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
        np.testing.assert_array_equal(loaded(x), model(x))
        tfquant.export(loaded, again, target="packed")


# test_values_that_are_no_sums_have_no_scales stands for it.
@pytest.mark.long
def test_groups_with_fewer_values_than_sums_keep_their_values(tmp_path):
    from safetensors.numpy import load_file

    model = quantized(QuantSpec("mb4", "per_channel"))  # of five or six inputs
    tfquant.export(model, tmp_path / "model.safetensors", target="packed")
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["first/kernel/levels"].shape == (1, 5, 16)
    loaded = tfquant.load_packed(tmp_path / "model.safetensors", two_dense_layers(seed=3))
    np.testing.assert_array_equal(loaded(X), model(X))


def test_a_transformed_parameter_that_cannot_be_packed_is_refused(tmp_path):
    kernel = tf.Variable(np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32))
    model = tfquant.quantize(
        lambda x: tf.matmul(x, kernel) + tf.reduce_sum(kernel),
        Recipe((Rule(KINDS["centered"], "weight"),), name="weights"),
        signature=tf.TensorSpec([None, 6]),
    )
    with pytest.raises(ExportError, match=r"transformed \(center\) and cannot be stored as codes"):
        tfquant.export(model, tmp_path / "model.safetensors", target="packed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["binary", "irnet"])
def test_a_saved_model_computes_the_same(kind, tmp_path):
    model = quantized(KINDS[kind])
    report = tfquant.export(model, tmp_path / "folder", target="saved_model", check_data=[X])
    assert report.agreement is not None


def test_targets_without_the_formats_name_the_site_and_leave_no_file(tmp_path):
    for target, name in (("onnx", "m.onnx"), ("litert", "m.tflite"), ("openvino", "m.xml")):
        with pytest.raises(ExportError, match="first:weight:kernel: number format 'binary' does"):
            tfquant.export(quantized(KINDS["binary"]), tmp_path / name, target=target)
    assert not list(tmp_path.iterdir())


def test_activations_that_follow_the_batch_are_refused(tmp_path):
    rule = Rule(QuantSpec("binary"), "linear_input")
    model = tfquant.quantize(two_dense_layers(), Recipe((rule,), name="inputs"))
    message = "is fitted to the tensor at hand .*: a file needs ranges that stay"
    for target, name in (("packed", "m.safetensors"), ("saved_model", "folder")):
        with pytest.raises(ExportError, match=message):
            tfquant.export(model, tmp_path / name, target=target)


def test_bfloat16_weights_are_packed(tmp_path):
    def build(seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((6,), name="x")
        return keras.Model(x, keras.layers.Dense(4, name="only", dtype="bfloat16")(x))

    recipe = Recipe((Rule(QuantSpec("binary", "per_channel"), "weight"),), name="weights")
    model = tfquant.quantize(build(0), recipe)
    tfquant.export(model, tmp_path / "model.safetensors", target="packed")
    loaded = tfquant.load_packed(tmp_path / "model.safetensors", build(1))
    np.testing.assert_array_equal(tf.cast(loaded(X), tf.float32), tf.cast(model(X), tf.float32))

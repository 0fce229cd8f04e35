"""Formats, biases, types and constants of ONNX files: what is in the file, and that ONNX Runtime
computes it.

Outputs are held against the simulation by ONNX Runtime's fused kernels. As no value is compared
across a border between two codes, differences are those of float32.
"""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tfquant.export import ExportError
from tfquant.export.interface import Interface
from tfquant.model import engine_of
from tfquant.runtimes import onnxruntime

layers = keras.layers


def spec(format: str, **fields) -> tfquant.QuantSpec:
    return tfquant.QuantSpec(format, **fields)


def recipe(**roles) -> tfquant.Recipe:
    return tfquant.Recipe(
        tuple(tfquant.Rule(one, role=role, optional=True) for role, one in roles.items())
    )


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def share_of_equal_values(model, roles, batch, path, **options) -> float:
    """Share of output values of the fused file that are the simulation's up to rounding of
    float32.
    """
    quantized = tfquant.quantize(model, roles, calibration=[batch], progress=False)
    tfquant.export(quantized, path, **options)
    interface = Interface.of(engine_of(quantized).inference)
    found = onnxruntime.open_file(str(path))(interface.named_inputs([batch]))
    pairs = [
        (one.numpy(), found[name])
        for one, name in zip(tf.nest.flatten(quantized(batch)), interface.outputs, strict=True)
    ]
    return float(
        np.mean([(np.abs(one - other) <= 1e-4 * np.abs(one).max()).mean() for one, other in pairs])
    )


def sequential(*blocks, shape, dtype="float32") -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, keras.Sequential(list(blocks))(inputs))


# Which sites are in the file.


@pytest.mark.parametrize("opset", [17, 21])
def test_a_small_parameter_is_stored_as_integers_where_it_is_the_first_site(tmp_path, opset):
    model, batch = (
        sequential(layers.Dense(4, activation="relu"), layers.Dense(3), shape=(8,)),
        data(16, 8),
    )
    assert (
        share_of_equal_values(
            model, recipe(weight=spec("int2")), batch, tmp_path / "m.onnx", opset=opset
        )
        == 1.0
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("DequantizeLinear") == 2


def test_a_site_that_the_converter_drops_is_named(tmp_path, monkeypatch):
    from tfquant.export.onnx import writer

    model, batch = sequential(layers.Dense(4), shape=(8,)), data(16, 8)
    quantized = tfquant.quantize(
        model, recipe(weight=spec("int8")), calibration=[batch], progress=False
    )
    monkeypatch.setattr(writer, "insert", lambda *arguments, **options: None)
    with pytest.raises(ExportError, match="site .*dense.*weight:kernel is not in the ONNX graph"):
        tfquant.export(quantized, tmp_path / "m.onnx")


# Few bits.


@pytest.mark.representatives("True-2", "False-3")
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_activations_of_few_bits_are_computed_behind_relu_and_other_layers(
    tmp_path, bits, symmetric
):
    model = sequential(
        layers.Dense(6, activation="relu"), layers.Dense(5), layers.Dense(3), shape=(8,)
    )
    few = spec(f"int{bits}", symmetric=symmetric, unsigned="auto")
    roles = recipe(
        weight=spec("int8", granularity="per_channel"), linear_input=few, activation_output=few
    )
    assert share_of_equal_values(model, roles, data(64, 8), tmp_path / "m.onnx", opset=21) > 0.98


@pytest.mark.parametrize("bits", [2, 4])
def test_tables_of_few_bits_are_looked_up(tmp_path, bits):
    model = sequential(layers.Embedding(20, 8), layers.Dense(3), shape=(5,), dtype="int32")
    batch = np.arange(20, dtype=np.int32).reshape(4, 5)
    roles = recipe(embedding=spec(f"int{bits}"), weight=spec("int8"), linear_input=spec("int8"))
    assert share_of_equal_values(model, roles, batch, tmp_path / "m.onnx", opset=21) > 0.98


@pytest.mark.parametrize(
    ("opset", "roles", "said"),
    [
        (21, ("linear_input", "weight"), True),
        (17, ("linear_input",), False),
        (21, ("weight",), False),
    ],
)
def test_the_report_says_which_sites_take_a_byte_for_fewer_bits(tmp_path, opset, roles, said):
    model, batch = sequential(layers.Dense(3), shape=(8,)), data(16, 8)
    quantized = tfquant.quantize(
        model, recipe(**dict.fromkeys(roles, spec("int4"))), calibration=[batch], progress=False
    )
    found = str(tfquant.export(quantized, tmp_path / "m.onnx", opset=opset))
    assert ("1 of the sites, the first " in found and "take a byte a code" in found) == said


# Kernels that would compute other numbers.


@pytest.mark.parametrize("activations", [None, "int16"])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_inputs_of_integer_weights_keep_their_precision(tmp_path, weights, activations):
    roles = {"weight": spec(weights)} | ({"linear_input": spec(activations)} if activations else {})
    model = sequential(layers.Dense(16), layers.Dense(3), shape=(64,))
    assert (
        share_of_equal_values(model, recipe(**roles), data(32, 64), tmp_path / "m.onnx", opset=21)
        > 0.98
    )


@pytest.mark.parametrize("kind", ["dense", "convolution", "depthwise"])
def test_float_weights_beside_integers_keep_their_precision(tmp_path, kind):
    model, batch = product(kind)
    roles = recipe(linear_input=spec("int8"), model_output=spec("int8"), linear_output=spec("int8"))
    assert share_of_equal_values(model, roles, batch, tmp_path / "m.onnx") > 0.98


@pytest.mark.representatives(
    "8-1000000.0-0.0-dense", "8-1.0-1e-09-convolution", "2-1.0-0.0-depthwise"
)
@pytest.mark.parametrize("kind", ["dense", "convolution", "depthwise"])
@pytest.mark.parametrize(
    ("bits", "bias", "channels"), [(8, 1e6, 0.0), (8, 1.0, 1e-9), (2, 1.0, 0.0)]
)
def test_biases_beyond_the_product_of_the_scales_are_added(tmp_path, kind, bits, bias, channels):
    model, batch = product(kind)
    for variable in model.trainable_variables:
        if variable.path.endswith("bias"):
            variable.assign(bias * data(*variable.shape))
        elif channels:  # of which one holds next to nothing
            values = variable.numpy()
            values[..., 0, :] *= channels
            values[..., 0] *= channels
            variable.assign(values)
    roles = recipe(
        weight=spec(f"int{bits}", granularity="per_channel"),
        linear_input=spec(f"int{bits}"),
        model_output=spec("int8"),
        linear_output=spec("int8"),
    )
    assert share_of_equal_values(model, roles, batch, tmp_path / "m.onnx") > 0.98


def product(kind: str) -> tuple[keras.Model, np.ndarray]:
    """A model of one product, and a batch."""
    if kind == "dense":
        return sequential(layers.Dense(4), shape=(8,)), data(32, 8)
    layer = layers.Conv2D(4, 3) if kind == "convolution" else layers.DepthwiseConv2D(3)
    return sequential(layer, shape=(6, 6, 4)), data(8, 6, 6, 4)


# Types.


@pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
def test_half_precision_is_kept(tmp_path, policy):
    with _policy(policy):
        model = sequential(
            layers.Dense(8, activation="gelu"), layers.Dense(3), shape=(8,), dtype=None
        )
    batch = data(16, 8).astype(np.float16 if policy == "float16" else np.float32)
    roles = recipe(weight=spec("int8"), linear_input=spec("int8"))
    quantized = tfquant.quantize(model, roles, calibration=[batch], progress=False)
    tfquant.export(quantized, tmp_path / "m.onnx")
    interface = Interface.of(engine_of(quantized).inference)
    found = onnxruntime.open_file(str(tmp_path / "m.onnx"))(interface.named_inputs([batch]))[
        "output"
    ]
    answer = quantized(batch).numpy()
    assert (
        found.dtype == answer.dtype and np.abs(found - answer).mean() < 1e-2 * np.abs(answer).mean()
    )


class _policy:
    """Sets Keras' dtype policy for a while."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self):
        self._old = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self._name)

    def __exit__(self, *_):
        keras.config.set_dtype_policy(self._old)


@pytest.mark.parametrize("target", ["onnx", "litert"])
def test_products_of_float64_are_refused_with_the_remedy(tmp_path, target):
    with _policy("float64"):
        model = sequential(layers.Dense(3), shape=(8,), dtype=None)
    quantized = tfquant.quantize(
        model, calibration=[data(16, 8).astype(np.float64)], progress=False
    )
    path = tmp_path / ("m.onnx" if target == "onnx" else "m.tflite")
    with pytest.raises(ExportError, match="computes in float64 .*build it in float32"):
        tfquant.export(quantized, path, target=target)
    assert not list(tmp_path.iterdir())


# Tensors that a layer holds, and operations.


class Held(layers.Layer):
    """Adds rows of a table that is no variable."""

    def __init__(self, rows: int, kind: str):
        super().__init__()
        self._rows, self._kind = rows, kind

    def build(self, shape):
        table = np.random.default_rng(1).normal(size=(self._rows, shape[-1])).astype(np.float32)
        self.table = tf.constant(table, tf.float16 if self._kind == "float16" else tf.float32)
        self.index = tf.constant(
            np.arange(3) % self._rows, tf.int64 if self._kind == "int64" else tf.int32
        )

    def call(self, x):
        return x + tf.reduce_sum(tf.cast(tf.gather(self.table, self.index), tf.float32), 0)


TARGETS = {
    "onnx": "m.onnx",
    "onnxruntime": "o.onnx",
    "tensorrt": "t.onnx",
    "openvino": "m.xml",
    "litert": "m.tflite",
    "saved_model": "m",
}


@pytest.mark.representatives(
    "2-float32-onnx", "9-int64-onnx", "5000-float16-onnx", "9-float32-openvino", "9-float32-litert"
)
@pytest.mark.filterwarnings("ignore:.*quantized products in integers")
@pytest.mark.parametrize(
    ("rows", "kind", "target"),
    [
        (2, "float32", "onnx"),
        (9, "int64", "onnx"),
        (5000, "float16", "onnx"),
        *((9, "float32", name) for name in TARGETS),
    ],
)
def test_tensors_that_a_layer_holds_are_constants_of_the_file(tmp_path, rows, kind, target):
    model, batch = sequential(Held(rows, kind), layers.Dense(4), shape=(8,)), data(16, 8)
    recipe = (
        "int8_residual" if target == "tensorrt" else tfquant.api.DEFAULT_RECIPE
    )  # which has zero points
    quantized = tfquant.quantize(model, recipe, calibration=[batch], progress=False)
    found = tfquant.export(quantized, tmp_path / TARGETS[target], target=target, check_data=[batch])
    assert found.agreement.mean < 1e-5 * found.agreement.spread
    if target == "onnx":
        assert len(onnx.load(tmp_path / "m.onnx").graph.input) == 1


class Applied(layers.Layer):
    """Calls a function."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self._function = function

    def call(self, x):
        return self._function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def looked_up(x):
    with tf.init_scope():
        pairs = tf.lookup.KeyValueTensorInitializer(tf.range(5), tf.range(5) * 2)
        table = looked_up.table = tf.lookup.StaticHashTable(pairs, -1)
    return x + tf.cast(table.lookup(tf.cast(x, tf.int32)), tf.float32)


REFUSED = {
    "FFT": lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))),
    "BitwiseXor": lambda x: tf.cast(tf.bitwise.bitwise_xor(tf.cast(x, tf.int32), 3), tf.float32),
    "LookupTableFindV2": looked_up,
    "RandomStandardNormal": lambda x: x + tf.random.normal(tf.shape(x)),
    "RandomUniform": lambda x: x + tf.random.uniform([8]),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_operations_without_a_counterpart_are_named_with_their_layer(tmp_path, operation):
    model = sequential(Applied(REFUSED[operation], name="mine"), layers.Dense(4), shape=(8,))
    quantized = tfquant.quantize(model, calibration=[data(16, 8)], progress=False)
    with pytest.raises(ExportError, match=f"{operation} in layer .*mine") as error:
        tfquant.export(quantized, tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [keras.ops.argmax, keras.ops.argmin, keras.ops.signbit])
def test_functions_that_look_at_the_sign_bit_are_written_in_operations_of_onnx(tmp_path, function):
    batch = np.array(
        [[0.0, -0.0, 1.0, -1.0], [-0.0, 0.0, np.inf, 2.0], [3.0, -np.inf, 0.0, 1.0]], np.float32
    )

    @tf.function(input_signature=[tf.TensorSpec([3, 4])])
    def traced(x):
        return tf.matmul(x, tf.ones([4, 2])), tf.cast(function(x), tf.int32)

    quantized = tfquant.quantize(
        traced, calibration=[(np.ones((3, 4), np.float32),)], progress=False
    )
    tfquant.export(quantized, tmp_path / "m.onnx")
    interface = Interface.of(engine_of(quantized).inference)
    found = onnxruntime.open_file(str(tmp_path / "m.onnx"))(interface.named_inputs([batch]))[
        interface.outputs[1]
    ]
    np.testing.assert_array_equal(found, tf.cast(function(batch), tf.int32))


@pytest.mark.representatives("bilinear-5-9", "bilinear-9-5", "nearest-7-11")
@pytest.mark.parametrize(("size", "wanted"), [(5, 9), (7, 11), (9, 5), (3, 6)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_images_are_resized_to_the_wanted_size(tmp_path, size, wanted, interpolation):
    resizing = layers.Resizing(wanted, wanted, interpolation=interpolation)
    model = sequential(layers.Conv2D(4, 1), resizing, layers.Conv2D(2, 1), shape=(size, size, 3))
    roles = recipe(weight=spec("int8"), linear_input=spec("int8"))
    assert share_of_equal_values(model, roles, data(8, size, size, 3), tmp_path / "m.onnx") > 0.98

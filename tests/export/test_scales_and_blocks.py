"""Formats without a scale, delayed scales and blocks in files: packed, SavedModel, ONNX."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.export import packed
from tfquant.export.errors import ExportError
from tfquant.export.targets import TARGETS

CONFIG = modeling.BertConfig(
    vocab_size=30,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=16,
)
ROLES = ("weight", "embedding", "linear_input", "matmul_input")
BLOCKS = ("mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp6_e3m2", "mxfp4", "mxint8")
UNSCALED = ("e4m3", "e5m2", "posit8_1", "e3m2", "e2m1", "nf4", "p2_5", "int8")


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30, (4, 12)).astype(np.int32)
    return {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}


def build(seed=0):
    keras.utils.set_random_seed(seed)
    return modeling.build_squad_model(CONFIG)


def quantized(spec):
    model = tfquant.quantize(build(), Recipe((Rule(spec, role=ROLES),), name="all"))
    if spec.scale.source == "delayed":
        tfquant.calibrate(model, [batch()], progress=False)
    return model


def outputs(model):
    return [np.asarray(t) for t in tf.nest.flatten(model(batch()))]


def _specs():
    for name in BLOCKS:
        yield pytest.param(QuantSpec(name), id=name)
    for name in UNSCALED:
        yield pytest.param(QuantSpec(name, source="none", ste="identity"), id=f"{name}-unscaled")
    yield pytest.param(QuantSpec("int8", source="delayed", history=4), id="int8-delayed")
    yield pytest.param(QuantSpec("e4m3", scale_format="power_of_two"), id="e4m3-power_of_two")


SPECS = list(_specs())


@pytest.mark.representatives("mxfp4", "posit8_1-unscaled", "int8-delayed")
@pytest.mark.parametrize("spec", [p for p in SPECS if p.id != "e4m3-power_of_two"])
def test_a_packed_file_loads_back_bit_for_bit(spec, tmp_path):
    model = quantized(spec)
    path = tmp_path / "model.safetensors"
    tfquant.export(model, path, target="packed")
    report = packed.size_report(model, path)
    kernels = [v for v in report.variables if v.path.endswith("kernel")]
    bits = tfquant.formats.get(spec.format).bits if spec.format != "int8" else 8
    assert {variable.bits for variable in kernels[:-1]} == {bits}
    loaded = packed.load(path, build(seed=1))
    for one, other in zip(outputs(loaded), outputs(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_of_four_bits_take_a_byte_for_each_scale(tmp_path):
    model = quantized(QuantSpec("mxfp4"))
    tfquant.export(model, tmp_path / "model.safetensors", target="packed")
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = (n for n in tensors if n.endswith("intermediate/dense/kernel/codes"))
    assert tensors[name].nbytes == 32 * 48 // 2
    scale = tensors[name.replace("codes", "scale")]
    assert scale.dtype == np.uint8 and scale.shape == (1, 48)


@pytest.mark.representatives("mxfp6", "e4m3-unscaled")
@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_model_answers_as_the_simulation(spec, tmp_path):
    if spec.scale.rounds_scale and not spec.scale.dynamic:
        model = tfquant.quantize(
            build(), Recipe((Rule(spec, role=ROLES),)), [batch()], progress=False
        )
    else:
        model = quantized(spec)
    result = tfquant.export(
        model, tmp_path / "saved", target="saved_model", check_data=[batch()], tolerance=0.0
    )
    assert result.agreement is not None


def test_unscaled_float8_runs_in_onnx_runtime(tmp_path):
    recipe = Recipe((Rule("e4m3", role=("weight", "linear_input")),))
    model = tfquant.quantize(build(), recipe)
    path = tmp_path / "model.onnx"
    result = tfquant.export(model, path, target="onnx", opset=19, check_data=[batch()])
    assert result.agreement is not None
    import onnx

    scales = {
        node.input[1]
        for node in onnx.load(path).graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    values = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name in scales
    }
    assert values and {float(value) for value in values.values()} == {1.0}


@pytest.mark.parametrize("target", ["onnx", "onnxruntime", "tensorrt", "openvino", "litert"])
@pytest.mark.parametrize("name", ["mxfp8", "posit8_1"])
def test_other_targets_refuse_them_by_name_and_say_which_take_them(target, name, tmp_path):
    spec = QuantSpec(name) if name in BLOCKS else QuantSpec(name, source="none")
    model = tfquant.quantize(build(), Recipe((Rule(spec, role="weight"),)))
    path = tmp_path / TARGETS[target].file
    with pytest.raises(ExportError, match="packed or saved_model") as error:
        tfquant.export(model, path, target=target)
    assert name in str(error.value) or "blocks of 32" in str(error.value)
    assert not list(tmp_path.iterdir())

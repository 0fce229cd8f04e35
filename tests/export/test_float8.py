"""Float8 weights and activations in files.

ONNX in ONNX Runtime, packed, SavedModel, and refusals elsewhere.
"""

import keras
import numpy as np
import onnx
import pytest

import modeling
import tfquant
from tests.core.conftest import TINY, bert_batch
from tfquant.export.errors import ExportError

TYPES = {"e4m3": onnx.TensorProto.FLOAT8E4M3FN, "e5m2": onnx.TensorProto.FLOAT8E5M2}
BATCHES = [bert_batch((5, 9, 7), seed=seed) for seed in range(2)]


@pytest.fixture(scope="module", params=TYPES)
def quantized(request):
    """A tiny BERT with every edge of every role but biases in float8, kernels with a scale for each
    channel.
    """
    recipe = tfquant.Recipe(
        (
            tfquant.Rule(tfquant.QuantSpec(request.param), optional=True, name="everything"),
            tfquant.Rule(
                tfquant.QuantSpec(request.param, granularity="per_channel"),
                "weight",
                port="kernel",
                name="kernels",
            ),
            tfquant.Rule(None, "bias", optional=True, name="biases"),
        ),
        name=request.param,
    )
    return tfquant.quantize(bert(), recipe, BATCHES, inputs=BATCHES[0], progress=False)


def bert() -> keras.Model:
    model, rng = modeling.build_squad_model(TINY, seed=5), np.random.default_rng(1)
    model.set_weights(
        [
            rng.normal(0, 0.3, w.shape).astype(w.dtype) if w.dtype == np.float32 else w
            for w in model.get_weights()
        ]
    )
    return model


def answers(model) -> list[np.ndarray]:
    return [np.asarray(output) for batch in BATCHES for output in keras.tree.flatten(model(batch))]


def name_of(model) -> str:
    return model.recipe.name


@pytest.mark.representatives("e4m3-onnxruntime")
@pytest.mark.filterwarnings("error:.*quantized products in integers")  # which float8 is not for
@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_onnx_runtime_answers_as_the_simulation_from_stored_float8(quantized, tmp_path, target):
    path = tmp_path / "model.onnx"
    exported = tfquant.export(
        quantized, path, target=target, opset=19, check_data=BATCHES, tolerance=0.0
    )
    assert exported.agreement is not None
    model = onnx.load(path)
    kinds = {tensor.name.rstrip("#"): tensor.data_type for tensor in model.graph.initializer}
    codes = [kind for name, kind in kinds.items() if name.endswith("/codes")]
    assert len(codes) >= sum(site.is_weight for site in quantized.plan.sites) and set(codes) == {
        TYPES[name_of(quantized)]
    }
    dequantized = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(dequantized) >= len(quantized.plan.sites)


# Packed e4m3 of test_support_matrix.py stands for it.
@pytest.mark.long
def test_a_packed_file_holds_the_codes_and_loads_to_the_same_answers(quantized, tmp_path):
    path = tmp_path / "model.safetensors"
    tfquant.export(quantized, path, target="packed")
    again = tfquant.load_packed(path, bert(), inputs=BATCHES[0])
    for ours, theirs in zip(answers(quantized), answers(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    bits = {size.path: size.bits for size in tfquant.size_report(quantized).variables}
    kernels = [
        size
        for path, size in bits.items()
        if path.endswith("kernel") or path.endswith("embeddings")
    ]
    assert kernels and set(kernels) == {8}


@pytest.mark.representatives("e4m3")
def test_a_saved_model_answers_as_the_simulation_without_compiled_kernels(quantized, tmp_path):
    tfquant.export(
        quantized, tmp_path / "saved", target="saved_model", check_data=BATCHES, tolerance=0.0
    )
    assert b"_XlaMustCompile" not in (tmp_path / "saved" / "saved_model.pb").read_bytes()


@pytest.mark.representatives("e4m3-*")
@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("tensorrt", "model.onnx"),
        ("openvino", "model.xml"),
        ("litert", "model.tflite"),
        ("fastertransformer", "folder"),
    ],
)
def test_other_targets_refuse_the_format_by_name_and_write_nothing(
    quantized, tmp_path, target, file
):
    message = (
        f"number format '{name_of(quantized)}' does not exist in this target: export to onnx or"
        " onnxruntime or packed or"
    )
    with pytest.raises(ExportError, match=message):
        tfquant.export(quantized, tmp_path / file, target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.representatives("e4m3")
def test_opsets_without_float8_are_refused(quantized, tmp_path):
    with pytest.raises(
        ExportError, match="exists from ONNX opset 19 on, got 17: export with opset=19"
    ):
        tfquant.export(quantized, tmp_path / "model.onnx")


@pytest.mark.representatives("e4m3-19", "e5m2-21")
@pytest.mark.parametrize("opset", [19, 21])
@pytest.mark.parametrize("number_format", TYPES)
def test_negative_inputs_of_a_relu_are_zero_in_the_file(tmp_path, number_format, opset):
    """ONNX Runtime 1.32 drops a Relu in front of a float8 QuantizeLinear at its default level."""
    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(16, "relu")(x)))
    rows = [np.random.default_rng(i).normal(size=(32, 6)).astype("float32") for i in range(2)]
    recipe = tfquant.Recipe((tfquant.Rule(tfquant.QuantSpec(number_format), optional=True),))
    tfquant.export(
        tfquant.quantize(model, recipe, rows, progress=False),
        tmp_path / "model.onnx",
        opset=opset,
        check_data=rows,
        tolerance=0.0,
    )

"""TensorRT's rules on networks as they are exported."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tfquant
from tests.export.agreement import agreement_with
from tests.export.placement import broken, says
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export.onnx.tensorrt import PlacementError, validate
from tfquant.runtimes import onnxruntime


@pytest.fixture(scope="module")
def bert():
    """With biases: a converter drops those that are 0."""
    case, rng = models.own_bert(), models.random()
    for variable in case.model.weights:
        if variable.path.endswith("/bias"):
            variable.assign(rng.normal(size=variable.shape))
    return case


def quantized(case: models.Case, recipe):
    return tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)


def symmetric(name: str) -> tfquant.Recipe:
    return tfquant.recipe(name).with_spec(
        roles=["linear_input", "matmul_input", "model_output", "residual"], symmetric=True
    )


UNSHARED = dataclasses.replace(tfquant.recipe("int8_residual"), share=False)
KEEPING = {
    "int8_residual": (tfquant.recipe("int8_residual"), 17),
    "int8_residual in opset 21": (tfquant.recipe("int8_residual"), 21),
    "int8_residual_both": (tfquant.recipe("int8_residual_both"), 17),
    "trt": (tfquant.recipe("trt"), 17),
    "a range for each consumer": (UNSHARED, 17),
    "4-bit weights in bytes": (symmetric("w4a8_residual"), 17),
    "4-bit activations": (
        tfquant.recipe("int8_residual_both").with_spec(roles=["residual_other"], format="int4"),
        17,
    ),
}
# What stands in how many violations.
RESIDUALS, ATTENTION, INPUTS = (
    {"add role residual": 2},
    {"add role matmul_input": 2},
    {"symmetric: true for role linear_input": 4},
)
ASYMMETRIC = {
    **INPUTS,
    "symmetric: true for role matmul_input": 3,
    # probabilities, whose zero point is 0
    "symmetric: true and unsigned: false for role matmul_input": 1,
    "symmetric: true for role model_output": 1,
}
BREAKING = {
    "int8_residual_float": (tfquant.recipe("int8_residual_float"), 17, RESIDUALS),
    "int8_residual_asymmetric": (tfquant.recipe("int8_residual_asymmetric"), 17, ASYMMETRIC),
    "w4a8_residual": (tfquant.recipe("w4a8_residual"), 17, ASYMMETRIC),
    "w4a8_residual in opset 21, symmetric": (
        symmetric("w4a8_residual"),
        21,
        {"int4 ... opset below 21": 6},
    ),
    "cpu_onnxruntime": (
        tfquant.recipe("cpu_onnxruntime"),
        17,
        {**INPUTS, **ATTENTION, **RESIDUALS},
    ),
    "ft1": (tfquant.recipe("ft1"), 17, RESIDUALS),
    "ft2": (tfquant.recipe("ft2"), 17, {"remove role linear_output": 6}),
    "ft3": (
        tfquant.recipe("ft3"),
        17,
        {"remove role linear_output": 6, "remove role attention_scores": 1},
    ),
    "unsigned": (
        tfquant.recipe("int8_residual").with_spec(roles=["matmul_input"], unsigned="auto"),
        17,
        {"probabilities/codes: holds uint8": 1},
    ),
    "a weight alone": (
        dataclasses.replace(UNSHARED, disable=("intermediate/dense:linear_input",)),
        17,
        {"MatMul ... intermediate ... add role linear_input": 1},
    ),
    "an input alone": (
        dataclasses.replace(UNSHARED, disable=("intermediate/dense:weight",)),
        17,
        {"MatMul ... intermediate ... add role weight": 1},
    ),
}


@pytest.mark.representatives("a range for each consumer", "4-bit weights in bytes")
@pytest.mark.parametrize(
    "name", few(KEEPING, ("int8_residual", "a range for each consumer", "4-bit weights in bytes"))
)
def test_placements_that_tensorrt_uses_are_written_with_signed_bytes_and_answer_as_the_simulation(
    tmp_path, bert, name
):
    recipe, opset = KEEPING[name]
    model, path = quantized(bert, recipe), tmp_path / "model.onnx"
    # Checked node by node: ONNX Runtime 1.32 fails where it rewrites signed activations of opset
    # 21.
    result = export(
        model, path, target="tensorrt", opset=opset, check_data=bert.batches, tolerance=1.0
    )
    written = onnx.load(path)
    kinds = {tensor.data_type for tensor in written.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds and onnx.TensorProto.UINT8 not in kinds
    assert {node.op_type for node in written.graph.node} >= {
        "QuantizeLinear",
        "DequantizeLinear",
        "LayerNormalization",
    }
    found = agreement_with(model, onnxruntime.open_file(str(path), as_written=True), bert.batches)
    assert found.mean < 2e-3 * found.spread
    (head,) = validate(written)
    assert head.endswith("squad_1/Tensordot")
    assert result.contractions.floating == (head,) and len(result.contractions.integer) == 8


@pytest.mark.representatives("w4a8_residual", "unsigned")
@pytest.mark.parametrize(
    "name", few(BREAKING, ("w4a8_residual", "cpu_onnxruntime", "unsigned", "a weight alone"))
)
def test_placements_that_tensorrt_cannot_use_are_refused_and_leave_nothing_behind(
    tmp_path, bert, name
):
    recipe, opset, counts = BREAKING[name]
    with pytest.raises(PlacementError, match="TensorRT's rules, first ") as raised:
        export(quantized(bert, recipe), tmp_path / "model.onnx", target="tensorrt", opset=opset)
    violations = raised.value.violations
    found = {said: sum(says(text, said) for text in violations) for said in counts}
    assert found == counts and len(violations) == sum(counts.values()), violations
    assert not list(tmp_path.iterdir())


def test_of_an_exported_network_no_quantizer_can_be_left_out_nor_turned(tmp_path, bert):
    export(quantized(bert, UNSHARED), tmp_path / "model.onnx", target="tensorrt")
    written = onnx.load(tmp_path / "model.onnx")
    makers = {output: node for node in written.graph.node for output in node.output}
    pairs = [node for node in written.graph.node if node.op_type == "DequantizeLinear"]
    assert len(pairs) == 19, (
        "6 kernels, their inputs, 4 operands of attention, 2 skip operands, what leaves the encoder"
    )
    for pair in pairs:
        without, turned = (
            onnx.ModelProto.FromString(written.SerializeToString()) for _ in range(2)
        )
        quantize = makers.get(pair.input[0])
        if quantize is None:
            kernel = next(
                tensor for tensor in without.graph.initializer if tensor.name == pair.input[0]
            )
            without.graph.initializer.append(
                numpy_helper.from_array(np.ones(kernel.dims, np.float32), "float")
            )
            next(node for node in turned.graph.node if node.name == pair.name).attribute[0].i = 0
            assert broken(turned), f"{pair.name} with scales along its input channels"
        source = "float" if quantize is None else quantize.input[0]
        for node in without.graph.node:
            node.input[:] = [source if name == pair.output[0] else name for name in node.input]
        assert bool(broken(without)) != (":model_output:" in pair.name), f"without {pair.name}"


def test_a_network_in_float_is_not_asked_for_quantizers(tmp_path, bert):
    model, path = quantized(bert, "int8_residual_float"), tmp_path / "model.onnx"
    export(model, path, target="tensorrt", mode="float", check_data=bert.batches)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(path).graph.node}


# What stays in float of each.
POOL = {
    "hub_bert": ["pooled_dense"],
    "functional": ["head"],
    "subclassed": ["head"],
    "nested": [],
    "called_twice": [],
    "tied_embeddings": [],
    "encoder_decoder": ["head"],
    "written_out_attention": [],
    "convolutional": [],
    "tf_keras_functional": ["head"],
    "function_with_signature": [],
    "loop": ["while/matmul"],
}


@pytest.mark.representatives("subclassed", "function_with_signature")
@pytest.mark.parametrize("name", few(POOL))
def test_models_of_every_kind(tmp_path, name):
    case = models.build(name, str(tmp_path))
    model, path = quantized(case, "int8_residual"), tmp_path / "model.onnx"
    export(model, path, target="tensorrt", check_data=case.batches, tolerance=1.0)
    found = agreement_with(model, onnxruntime.open_file(str(path), as_written=True), case.batches)
    assert found.mean < 2e-3 * found.spread
    assert all(map(says, validate(onnx.load(path)), POOL[name])) and len(
        validate(onnx.load(path))
    ) == len(POOL[name])

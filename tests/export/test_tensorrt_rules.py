"""TensorRT's rules: each one on a small graph that keeps it and one that breaks it."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.placement import broken, says
from tfquant.export import ExportError
from tfquant.export.onnx.tensorrt import PlacementError, validate

WIDTH = 8


class Net:
    """An ONNX graph in the making, of tensors [batch, length, WIDTH]; tensors are called after the
    operations that make them.
    """

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name: str, values, dtype=np.float32) -> str:
        if name not in [tensor.name for tensor in self.constants]:
            self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def pair(self, source: str, name: str, scale=0.1, zero=0, dtype=np.int8) -> str:
        numbers = [
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero", np.full_like(scale, zero, dtype), dtype),
        ]
        codes = self.node("QuantizeLinear", source, *numbers, name=f"{name}/codes")
        return self.node("DequantizeLinear", codes, *numbers, name=f"{name}/dequantized")

    def weight(self, name: str, shape=(WIDTH, WIDTH), axis=None, dtype=np.int8) -> str:
        scale = 0.1 if axis is None else np.full(shape[axis], 0.1)
        codes = self.constant(f"{name}/codes", np.ones(shape), dtype)
        numbers = [
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero", np.zeros_like(scale), dtype),
        ]
        attributes = {} if axis is None else {"axis": axis}
        return self.node(
            "DequantizeLinear", codes, *numbers, name=f"{name}/dequantized", **attributes
        )

    def bias(self, source: str, name: str) -> str:
        return self.node("Add", source, self.constant("bias", np.ones(WIDTH)), name=name)

    def dense(self, source: str, name: str) -> str:
        """A linear layer as it should be."""
        operands = (
            self.pair(source, f"{name}:linear_input:input"),
            self.weight(f"{name}:weight:kernel", axis=1),
        )
        return self.bias(self.node("MatMul", *operands, name=f"{name}/MatMul"), f"{name}/Add")

    def model(
        self, *outputs: str, opset: int = 17, shape=("batch", "length", WIDTH)
    ) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
        ]
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "net", [x], infos, self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=10 if opset > 20 else 8,
        )
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model))
        return model


def expect(model: onnx.ModelProto, *patterns: str) -> None:
    """One violation for each pattern."""
    found = broken(model)
    assert len(found) == len(patterns) and all(map(says, found, patterns)), found


# 1. The opset.


def test_a_linear_layer_as_it_should_be_has_no_violation():
    net = Net()
    assert validate(net.model(net.dense("x", "layer"))) == ()


def test_an_opset_without_scales_per_channel():
    net = Net()
    matrix = net.node("MatMul", net.pair("x", "in"), net.weight("w"), name="product")
    expect(net.model(net.bias(matrix, "y"), opset=10), "opset 10: ... opset=17")


# 2. Numbers.


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            {"zero": 3},
            (
                "QuantizeLinear a:linear_input:input/codes: ... zero point 3 ... symmetric: true"
                " for role linear_input"
            ),
        ),
        ({"zero": 128, "dtype": np.uint8}, "zero point 128"),
        ({"dtype": np.uint8}, "holds uint8 ... unsigned: false for role linear_input"),
        ({"scale": 0.0}, "scale 0.0 ... calibrate"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"scale": np.inf}, "scale inf"),
        ({"scale": np.nan}, "scale nan"),
    ],
)
def test_numbers_of_a_pair(numbers, message):
    net = Net()
    source = net.pair("x", "a:linear_input:input", **numbers)
    product = net.node("MatMul", source, net.weight("a:weight:kernel"), name="product")
    expect(net.model(net.bias(product, "y")), message)


def test_zero_points_of_weights_and_codes_of_16_bits():
    net = Net()
    product = net.node(
        "MatMul",
        net.pair("x", "in", dtype=np.int16),
        net.weight("w", dtype=np.uint8),
        name="product",
    )
    expect(
        net.model(net.bias(product, "y"), opset=21),
        "QuantizeLinear in/codes: holds int16 ... format: int8 for its role",
        "DequantizeLinear w/dequantized: holds uint8",
    )


def test_a_pair_without_zero_points_is_unsigned():
    net = Net()
    scale = net.constant("scale", 0.1)
    codes = net.node("QuantizeLinear", "x", scale, name="codes")
    source = net.node("DequantizeLinear", codes, scale, name="source")
    product = net.node("MatMul", source, net.weight("w"), name="product")
    expect(net.model(net.bias(product, "y")), "QuantizeLinear codes: holds uint8")
    net.nodes[0].attribute.append(helper.make_attribute("output_dtype", onnx.TensorProto.INT8))
    assert broken(net.model("y", opset=21)) == ()


def test_a_scale_that_is_computed():
    net = Net()
    scale = net.node("ReduceMax", "x", name="largest", keepdims=0)
    zero = net.constant("zero", 0, np.int8)
    codes = net.node("QuantizeLinear", "x", scale, zero, name="codes")
    source = net.node("DequantizeLinear", codes, scale, zero, name="source")
    product = net.node("MatMul", source, net.weight("w"), name="product")
    expect(
        net.model(net.bias(product, "y")),
        "QuantizeLinear codes: its scale and zero point are computed",
    )


def test_scales_that_are_constant_operations():
    net = Net()
    scale = net.node("Constant", name="scale", value=numpy_helper.from_array(np.float32(0.1)))
    zero = net.node("Constant", name="zero", value=numpy_helper.from_array(np.int8(0)))
    codes = net.node("QuantizeLinear", "x", scale, zero, name="codes")
    source = net.node("DequantizeLinear", codes, scale, zero, name="source")
    assert broken(net.model(net.node("MatMul", source, net.weight("w"), name="y"))) == ()


def test_codes_of_4_bits():
    net = Net()
    for name, shape in (("codes", [WIDTH, WIDTH]), ("zero", [WIDTH])):
        net.constants.append(
            helper.make_tensor(name, onnx.TensorProto.INT4, shape, [0] * int(np.prod(shape)))
        )
    scale = net.constant("scale", np.ones(WIDTH))
    weight = net.node("DequantizeLinear", "codes", scale, "zero", name="weight", axis=1)
    product = net.node("MatMul", net.pair("x", "in"), weight, name="product")
    expect(
        net.model(net.bias(product, "y"), opset=21),
        "DequantizeLinear weight: holds int4 ... opset below 21",
    )


# 3. How many scales.


def test_an_activation_has_one_scale():
    net = Net()
    source = net.pair("x", "a:linear_input:input", scale=np.full(WIDTH, 0.1))
    net.nodes[0].attribute.append(helper.make_attribute("axis", 2))
    net.nodes[1].attribute.append(helper.make_attribute("axis", 2))
    product = net.node("MatMul", source, net.weight("w"), name="product")
    said = "an activation with 8 scales ... per_tensor for role linear_input"
    expect(
        net.model(net.bias(product, "y")),
        f"QuantizeLinear ... {said}",
        f"DequantizeLinear ... {said}",
    )


@pytest.mark.parametrize(
    ("axis", "turned", "keeps"),
    [(1, False, True), (0, False, False), (0, True, True), (1, True, False)],
)
def test_scales_of_a_kernel_lie_along_output_channels_also_behind_a_transpose(axis, turned, keeps):
    net = Net()
    weight = net.weight("a:weight:kernel", axis=axis)
    if turned:
        weight = net.node("Transpose", weight, name="turned", perm=[1, 0])
    product = net.node("MatMul", net.pair("x", "in"), weight, name="product")
    message = (
        "DequantizeLinear a:weight:kernel/dequantized: ... output channels of MatMul product: ..."
        " per_tensor for role weight"
    )
    expect(net.model(net.bias(product, "y")), *([] if keeps else [message]))


@pytest.mark.parametrize(
    ("shape", "axis", "keeps"),
    [
        ((WIDTH, 8, 1), 1, True),
        ((2, 4, WIDTH), 2, True),
        ((2, 4, WIDTH), 1, False),
        ((WIDTH, 2, 4), 1, False),
    ],
)
def test_scales_of_a_kernel_that_is_reshaped(shape, axis, keeps):
    """The last one has a scale for each head, which is not one for each channel."""
    net = Net()
    weight = net.node(
        "Reshape",
        net.weight("w", shape, axis),
        net.constant("shape", [WIDTH, -1], np.int64),
        name="matrix",
    )
    product = net.node("MatMul", net.pair("x", "in"), weight, name="product")
    expect(
        net.model(net.bias(product, "y")), *([] if keeps else ["output channels of MatMul product"])
    )


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "attributes", "keeps"),
    [
        ("Gemm", (WIDTH, 4), 1, {}, True),
        ("Gemm", (4, WIDTH), 0, {"transB": 1}, True),
        ("Gemm", (4, WIDTH), 1, {"transB": 1}, False),
        ("Conv", (4, WIDTH, 1), 0, {}, True),
        ("Conv", (4, WIDTH, 1), 1, {}, False),
        ("ConvTranspose", (WIDTH, 4, 1), 1, {}, True),
        ("ConvTranspose", (WIDTH, 4, 1), 0, {}, False),
        ("Einsum", (WIDTH, 4), 1, {"equation": "ab, bc -> ac"}, True),
        ("Einsum", (WIDTH, 4), 0, {"equation": "ab, bc -> ac"}, False),
    ],
)
def test_scales_of_kernels_of_other_products(kind, shape, axis, attributes, keeps):
    net = Net()
    weight = net.weight("w", shape, axis)
    net.node(kind, net.pair("x", "in"), weight, name="product", **attributes)
    x = ("batch", WIDTH, "length") if "Conv" in kind else ("batch", WIDTH)
    expect(
        net.model("product", shape=x),
        *([] if keeps else [f"w/dequantized: ... output channels of {kind} product"]),
    )


def test_a_kernel_on_the_left():
    net = Net()
    expect(
        net.model(
            net.node("MatMul", net.weight("w", axis=0), net.pair("x", "in"), name="y"),
            shape=("batch", WIDTH, "n"),
        )
    )
    net = Net()
    model = net.model(
        net.node("MatMul", net.weight("w", axis=1), net.pair("x", "in"), name="y"),
        shape=("batch", WIDTH, "n"),
    )
    expect(model, "output channels of MatMul y")


def test_scales_in_blocks():
    net = Net()
    scale = net.constant("scale", np.ones((2, WIDTH)))
    codes, zero = (
        net.constant("codes", np.ones((WIDTH, WIDTH)), np.int8),
        net.constant("zero", np.zeros((2, WIDTH)), np.int8),
    )
    weight = net.node("DequantizeLinear", codes, scale, zero, name="weight", axis=0, block_size=4)
    product = net.node("MatMul", net.pair("x", "in"), weight, name="product")
    expect(
        net.model(net.bias(product, "y"), opset=21),
        "weight: has scales of shape [2, 8] ... per_channel",
    )


def test_a_bias_in_integers():
    net = Net()
    product = net.node("MatMul", net.pair("x", "in"), net.weight("w"), name="product")
    total = net.node("Add", product, net.weight("a:bias:bias", (WIDTH,)), name="total")
    expect(
        net.model(total),
        "DequantizeLinear a:bias:bias/dequantized: is read by Add total ... leave role bias in"
        " float",
    )
    net = Net()
    operands = net.pair("x", "in"), net.weight("w"), net.weight("b", (WIDTH,))
    model = net.model(net.node("Gemm", *operands, name="y"), shape=("batch", WIDTH))
    expect(model, "DequantizeLinear b/dequantized: is read by Gemm y")


def test_a_table_of_which_rows_are_looked_up():
    net = Net()
    net.dense("x", "layer")
    rows = net.node(
        "Gather", net.weight("table"), net.constant("ids", [1, 2], np.int64), name="rows"
    )
    assert broken(net.model("layer/Add", rows)) == ()


# 4. Weighted operations.


def test_both_operands_of_a_weighted_operation():
    net = Net()
    kernel = net.constant("kernel", np.ones((WIDTH, WIDTH)))
    net.node("MatMul", "x", net.weight("w"), name="no input")
    net.node("MatMul", net.pair("x", "a:linear_input:input"), kernel, name="no weight")
    net.dense("x", "layer")
    expect(
        net.model("no input", "no weight", "layer/Add"),
        "MatMul no input: its weight is quantized, its input is not: add role linear_input",
        "MatMul no weight: its input is quantized, its weight is not: add role weight there or"
        " remove role linear_input",
    )


def test_layers_in_float_are_listed():
    net = Net()
    kernel = net.constant("kernel", np.ones((WIDTH, WIDTH)))
    state = net.pair(net.dense("x", "layer"), "encoder:model_output:output")
    net.node("MatMul", state, kernel, name="head")
    net.node("MatMul", "x", kernel, name="other")
    assert validate(net.model("head", "other")) == ("head", "other")


def test_products_in_a_loop_are_listed():
    net = Net()
    kernel, state = net.constant("kernel", np.ones((WIDTH, WIDTH))), net.dense("x", "layer")
    inner = [
        helper.make_node("MatMul", ["h", kernel], ["next"], name="inner"),
        helper.make_node("Identity", ["going"], ["goes on"]),
    ]
    values = {
        "i": onnx.TensorProto.INT64,
        "going": onnx.TensorProto.BOOL,
        "h": onnx.TensorProto.FLOAT,
    }
    shape = ["batch", "length", WIDTH]
    inputs = [
        helper.make_tensor_value_info(name, kind, shape if name == "h" else [])
        for name, kind in values.items()
    ]
    outputs = [helper.make_tensor_value_info("goes on", onnx.TensorProto.BOOL, [])]
    outputs += [helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, shape)]
    body = helper.make_graph(inner, "body", inputs, outputs)
    net.node(
        "Loop",
        net.constant("count", 3, np.int64),
        net.constant("start", True, bool),
        state,
        name="y",
        body=body,
    )
    flat = net.node("Reshape", "y", net.constant("shape", [-1, WIDTH], np.int64), name="flat")
    assert validate(net.model(flat)) == ("inner",)


def test_a_graph_of_which_nothing_is_quantized():
    net = Net()
    net.node(
        "MatMul",
        net.pair("x", "in:model_output:output"),
        net.constant("kernel", np.ones((WIDTH, WIDTH))),
        name="y",
    )
    expect(
        net.model("y"),
        "of no product are both operands quantized ... roles weight and linear_input",
    )


# 5. Outputs of weighted operations.


def test_a_product_is_not_rounded_before_its_bias():
    net = Net()
    product = net.node("MatMul", net.pair("x", "in"), net.weight("w"), name="product")
    rounded = net.pair(product, "a:linear_output:output")
    message = (
        "QuantizeLinear a:linear_output:output/codes: rounds MatMul product before Add y: remove"
        " role linear_output"
    )
    expect(net.model(net.bias(rounded, "y")), message)


def test_a_product_is_not_rounded_before_its_activation_nor_at_the_end():
    net = Net()
    operands = net.pair("x", "in"), net.weight("w")
    net.node("Relu", net.pair(net.node("MatMul", *operands, name="first"), "a"), name="y")
    net.pair(net.node("MatMul", *operands, name="last"), "b")
    expect(
        net.model("y", "b/dequantized"),
        "a/codes: rounds MatMul first before Relu y: remove role linear_output",
        "b/codes: rounds MatMul last before the output of the graph",
    )


def test_a_product_that_is_cut_off_to_few_codes():
    net = Net()
    product = net.node("MatMul", net.pair("x", "in"), net.weight("w"), name="product")
    clipped = net.node(
        "Clip", product, net.constant("low", -0.7), net.constant("high", 0.7), name="a/clipped"
    )
    expect(
        net.model(net.bias(net.pair(clipped, "a"), "y")),
        "a/codes: rounds MatMul product before Add y",
    )


@pytest.mark.parametrize("between", ["bias", "nothing", "reshape", "bias within"])
def test_the_input_of_the_next_product_may_be_rounded(between):
    net = Net()
    operands, shape = (
        (net.pair("x", "in"), net.weight("w")),
        net.constant("shape", [-1, WIDTH], np.int64),
    )
    if between == "bias within":
        state = net.node("Gemm", *operands, net.constant("bias", np.ones(WIDTH)), name="first")
    else:
        state = net.node("MatMul", *operands, name="first")
    if between == "bias":
        state = net.bias(state, "biased")
    if between == "reshape":
        state = net.node("Reshape", state, shape, name="flat")
    net.node("MatMul", net.pair(state, "next"), net.weight("w2"), name="second")
    assert broken(net.model("second", shape=("batch", WIDTH))) == ()


# 6. Products of two activations.


def attention(quantized=("q", "k", "probabilities", "v"), rounded=False) -> Net:
    """One head between its projections, with a scale and a mask."""
    net = Net()
    operands = {port: net.dense("x", port) for port in "qkv"}

    def operand(port, tensor):
        return net.pair(tensor, f"attention:matmul_input:{port}") if port in quantized else tensor

    q, k, v = (operand(port, operands[port]) for port in "qkv")
    scores = net.node(
        "MatMul", q, net.node("Transpose", k, name="turned", perm=[0, 2, 1]), name="scores"
    )
    scores = net.pair(scores, "attention:attention_scores:output") if rounded else scores
    scaled = net.node("Mul", scores, net.constant("root", 0.35), name="scaled")
    mask = net.node(
        "Add", scaled, net.node("ReduceMean", "x", name="mask", axes=[2], keepdims=1), name="masked"
    )
    probabilities = operand("probabilities", net.node("Softmax", mask, name="softmax"))
    net.dense(net.node("MatMul", probabilities, v, name="context"), "output")
    return net


def test_attention_with_all_operands_quantized_and_a_mask():
    assert validate(attention().model("output/Add")) == ()


def test_scores_are_not_rounded_before_scale_and_softmax():
    message = (
        "attention:attention_scores:output/codes: rounds MatMul scores before Mul scaled: remove"
        " role attention_scores"
    )
    expect(attention(rounded=True).model("output/Add"), message)


@pytest.mark.parametrize(
    ("quantized", "messages"),
    [
        (
            ("q", "probabilities", "v"),
            ["MatMul scores: ... operand 2 not quantized: add role matmul_input"],
        ),
        (("q", "k", "v"), ["MatMul context: ... operand 1 not quantized"]),
        (
            (),
            [
                "MatMul scores: ... operand 1 and operand 2 not",
                "MatMul context: ... operand 1 and operand 2 not",
            ],
        ),
    ],
)
def test_attention_of_which_an_operand_is_in_float(quantized, messages):
    expect(attention(quantized).model("output/Add"), *messages)


# 7. Residual additions.


def residual(skip=False, other=False, passed="", used_twice=False) -> onnx.ModelProto:
    """x + dense(x)."""
    net = Net()
    branch = net.dense("x", "layer")
    if passed == "Reshape":
        branch = net.node(
            "Reshape", branch, net.constant("shape", [0, -1, WIDTH], np.int64), name="reshaped"
        )
    elif passed:
        branch = net.node(passed, branch, name="passed")
    kept = net.pair("x", "a:residual:skip") if skip else "x"
    net.node(
        "Add", kept, net.pair(branch, "a:residual_other:other") if other else branch, name="sum"
    )
    outputs = ["sum"]
    if used_twice:
        outputs.append(net.node("Relu", "layer/Add", name="again"))
    return net.model(*outputs)


@pytest.mark.parametrize("passed", ["", "Dropout", "Identity", "Reshape"])
def test_the_skip_operand_of_a_residual_addition(passed):
    expect(
        residual(passed=passed),
        "Add sum: its skip operand (from input x) is not quantized: add role residual",
    )
    expect(residual(skip=True, passed=passed))


def test_the_other_operand_alone_is_not_enough_and_both_are_allowed():
    expect(residual(other=True), "Add sum: its skip operand")
    expect(residual(skip=True, other=True))


@pytest.mark.parametrize("what", [{"passed": "Relu"}, {"used_twice": True}])
def test_an_addition_that_cannot_be_fused_with_a_product_is_not_asked_for(what):
    expect(residual(**what))


def test_an_addition_to_what_the_product_was_not_computed_from_is_no_residual():
    net = Net()
    net.node("Add", net.dense("x", "layer"), net.node("Relu", "x", name="elsewhere"), name="sum")
    expect(net.model("sum"))


def test_an_addition_to_a_layer_in_float_is_not_asked_for():
    net = Net()
    net.dense("x", "layer")
    net.node(
        "Add",
        net.node("MatMul", "x", net.constant("kernel", np.ones((WIDTH, WIDTH))), name="float"),
        "x",
        name="sum",
    )
    assert validate(net.model("sum", "layer/Add")) == ("float",)


# The error.


def test_the_error_counts_all_violations_and_lists_the_first():
    net = Net()
    weight = net.weight("w")
    for index in range(12):
        product = net.node("MatMul", net.pair("x", f"in{index}", zero=1), weight, name=f"p{index}")
    with pytest.raises(PlacementError) as raised:
        validate(net.model(product))
    first, *others = str(raised.value).splitlines()
    assert first.startswith(
        "12 places break TensorRT's rules, first QuantizeLinear in0/codes: has the zero point 1"
    )
    assert (
        len(raised.value.violations) == 12
        and len(others) == 11
        and "and 2 more" in others[-2]
        and "int8_residual" in others[-1]
    )
    assert isinstance(raised.value, ExportError)

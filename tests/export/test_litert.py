"""`.tflite` files compute products in integers where their results have a range too, and answer as
the simulation does.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.export.agreement import agreement_with
from tests.few import few
from tests.graph import models
from tfquant.export import ExportError
from tfquant.export.litert import writer
from tfquant.export.request import ExportRequest
from tfquant.model import engine_of
from tfquant.runtimes import RuntimeFileError
from tfquant.runtimes.litert import open_file

# A value on the border between two codes may fall to either side: now and then a step, no drift.
CLOSE = 5e-3


def with_biases(case: models.Case) -> models.Case:
    """Biases start as zeros, which hides what becomes of them."""
    rng = np.random.default_rng(5)
    for variable in case.trainable():
        shape = tuple(variable.shape)
        if len(shape) == 1 or shape == (models.HEADS, models.WIDTH // models.HEADS):
            variable.assign(variable + rng.normal(0.0, 0.3, shape).astype(np.float32))
    return case


@pytest.fixture(scope="module")
def bert():
    return with_biases(models.own_bert())


def quantized(case: models.Case, recipe):
    return tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)


@pytest.fixture(scope="module")
def model(bert):
    return quantized(bert, "litert")


def written(model, folder, mode: str = "quantized"):
    """The opened file."""
    path = str(folder / "model.tflite")
    writer.write(ExportRequest(engine_of(model), mode, 17), path)
    return open_file(path)


def integers(session) -> tuple[int, int]:
    found = session.contractions()
    return len(found.integer), len(found.integer) + len(found.floating)


def check(model, session, batches) -> None:
    agreement = agreement_with(model, session, batches)
    assert agreement.mean < CLOSE * agreement.spread, agreement
    assert agreement.same > 0.9


RECIPES = {
    "litert": (tfquant.recipe("litert"), 8),  # all but the head, which has no site
    "results without ranges": (tfquant.recipe("cpu_onnxruntime"), 0),
    "attention": (tfquant.recipe("int8_residual_float"), 4),
    "both operands of additions": (tfquant.recipe("int8_residual_both_asymmetric"), 6),
    "products before the bias": (tfquant.recipe("ft3"), 8),
    "unsigned": (
        tfquant.recipe("int8_residual").with_spec(roles=["matmul_input"], unsigned="auto"),
        4,
    ),
    "full range": (
        tfquant.recipe("litert").with_spec(
            roles=["linear_input"], symmetric=True, narrow_range=False
        ),
        8,
    ),
    "weights per tensor": (
        tfquant.recipe("litert").with_spec(roles=["weight"], granularity="per_tensor"),
        8,
    ),
    "4-bit weights": (tfquant.recipe("litert").with_spec(roles=["weight"], format="int4"), 8),
    "4-bit activations": (
        tfquant.recipe("litert").with_spec(roles=["linear_input"], format="int4"),
        8,
    ),
    "learned": (tfquant.recipe("litert").with_spec(roles=["*"], update="tqt"), 8),
    "disabled": (dataclasses.replace(tfquant.recipe("litert"), disable=("attention",)), 2),
}


@pytest.mark.representatives("litert", "4-bit weights")
@pytest.mark.parametrize(
    "name", few(RECIPES, ("litert", "products before the bias", "4-bit weights", "disabled"))
)
def test_the_file_answers_as_the_simulation_and_multiplies_integers_where_results_have_ranges(
    tmp_path, bert, name
):
    recipe, expected = RECIPES[name]
    model = quantized(bert, recipe)
    session = written(model, tmp_path)
    check(model, session, bert.batches)  # of two sizes
    assert integers(session) == (expected, 9)


@pytest.mark.representatives(
    "sequential-*", "convolutional-*", "tied_embeddings-*", "written_out_attention-*"
)
@pytest.mark.parametrize(
    ("name", "recipe", "expected"),
    [
        ("sequential", "litert", (1, 2)),
        ("encoder_decoder", "ft3", (18, 19)),  # softmax and nothing else between two ranges
        ("convolutional", "litert", (1, 3)),
        ("tied_embeddings", "litert", (0, 2)),
        ("written_out_attention", "ft3", (6, 6)),  # without biases there are two ranges in a row
        # Masks; queries are scaled behind their bias, where nothing has a range.
        pytest.param("functional", "litert", (7, 9), marks=pytest.mark.long),
        pytest.param("functional", "ft3", (8, 9), marks=pytest.mark.long),
        pytest.param("hub_bert", "litert", (7, 9), marks=pytest.mark.long),
        pytest.param("written_out_attention", "litert", (6, 6), marks=pytest.mark.long),
        pytest.param("tf_keras_functional", "litert", (7, 9), marks=pytest.mark.long),
    ],
)
def test_models_of_many_kinds(tmp_path, name, recipe, expected):
    case = with_biases(models.build(name, str(tmp_path)))
    model = quantized(case, recipe)
    session = written(model, tmp_path)
    assert integers(session) == expected
    check(model, session, case.batches)


def test_kernels_are_stored_as_bytes_with_the_scales_of_their_sites(tmp_path, model):
    session = written(model, tmp_path)
    tensors = session._interpreter.get_tensor_details()
    kernels = [
        t
        for t in tensors
        if t["dtype"] == np.int8 and t["quantization_parameters"]["scales"].size > 1
    ]
    ranges = {a: r for a, r in model.ranges().items() if a.endswith(":weight:kernel")}
    expected = sorted(tuple(np.round(upper / 127, 7)) for _, upper in ranges.values())
    assert (
        sorted(tuple(np.round(t["quantization_parameters"]["scales"], 7)) for t in kernels)
        == expected
    )
    floats = [tuple(t["shape"]) for t in tensors if t["dtype"] == np.float32]
    assert all(shape not in floats for shape in ((16, 24), (24, 16), (16, 16))), (
        "float kernels are left in the file"
    )


def dense(
    kernel: np.ndarray, bias: np.ndarray
) -> tuple[tf.types.experimental.GenericFunction, tuple]:
    """relu(x · kernel + bias) · ones and its data: the first product has ranges on all sides."""
    first, first_bias = (
        tf.Variable(kernel, name="first/kernel"),
        tf.Variable(bias, name="first/bias"),
    )
    second = tf.Variable(np.ones((kernel.shape[1], 2), np.float32), name="second/kernel")

    @tf.function(input_signature=[tf.TensorSpec([None, kernel.shape[0]], tf.float32, name="x")])
    def network(x):
        hidden = tf.nn.relu(x @ first + first_bias)
        return {"hidden": hidden, "sums": hidden @ second}

    network.owner = (first, second, first_bias)
    return network, (
        np.random.default_rng(1).normal(size=(500, kernel.shape[0])).astype(np.float32),
    )


def test_biases_of_channels_without_weights_and_with_tiny_ones_survive(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 24)).astype(np.float32)
    kernel[:, 3], kernel[:, 4] = 0.0, 1e-9 * kernel[:, 4]
    network, batch = dense(kernel, rng.normal(size=24).astype(np.float32) + 3.0)
    model = tfquant.quantize(network, "litert", calibration=[batch], progress=False)
    session = written(model, tmp_path)
    simulated, found = model(*batch)["hidden"].numpy(), session({"x": batch[0]})["hidden"]
    np.testing.assert_allclose(found[:, 3:5], simulated[:, 3:5], atol=0.1)


def test_a_table_looked_up_is_stored_as_bytes(tmp_path):
    table = tf.Variable(
        np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), name="table"
    )
    kernel = tf.Variable(
        np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32), name="kernel"
    )

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="ids")])
    def score(ids):
        return tf.matmul(tf.reshape(tf.gather(table, ids), [-1, 8]), kernel)

    rule = tfquant.Rule(tfquant.QuantSpec("int8"), role="embedding")
    batches = [
        (np.arange(12, dtype=np.int32).reshape(3, 4),),
        (np.arange(40, 50, dtype=np.int32).reshape(2, 5),),
    ]
    model = tfquant.quantize(
        score, tfquant.recipe("litert").with_rules(rule), calibration=batches, progress=False
    )
    session = written(model, tmp_path)
    assert agreement_with(model, session, batches).largest < 1e-4
    tables = [
        t["dtype"]
        for t in session._interpreter.get_tensor_details()
        if tuple(t["shape"]) == (50, 8)
    ]
    assert tables == [np.int8]


def test_the_float_network_has_no_integers(tmp_path, bert, model):
    session = written(model, tmp_path, "float")
    assert integers(session) == (0, 9)
    assert agreement_with(model, session, bert.batches, "float").largest < 1e-5
    assert all(t["dtype"] != np.int8 for t in session._interpreter.get_tensor_details())


def test_batch_and_length_stay_open_and_names_are_kept(tmp_path, bert, model):
    session = written(model, tmp_path)
    assert {(entry.name, entry.shape) for entry in session.inputs} == {
        (name, (None, None)) for name in bert.batches[0]
    }
    for rows, length in ((1, 5), (7, 3), (1, 5)):
        answers = session({name: np.ones((rows, length), np.int64) for name in bert.batches[0]})
        shapes = {name: value.shape for name, value in answers.items()}
        assert shapes == dict.fromkeys(("start_logits", "end_logits"), (rows, length))


# tests/graph/test_fixed_shapes.py stands for it.
@pytest.mark.long
def test_sizes_that_are_fixed_stay_fixed(tmp_path):
    case = with_biases(models.own_bert(sequence_length=9))
    model = tfquant.quantize(case.model, "litert", calibration=case.batches[1:], progress=False)
    session = written(model, tmp_path)
    assert {entry.shape for entry in session.inputs} == {(None, 9)} and integers(session) == (8, 9)
    check(model, session, case.batches[1:])


# What a user may do wrong.


# test_support_matrix.py stands for it.
@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"roles": ["linear_input"], "format": "int16"},
            "site bert/.*:linear_input:input: codes 0..65535 have no kernels",
        ),
        (
            {"roles": ["weight"], "symmetric": False},
            "site bert/.*:weight:kernel: .* have no zero point: make the spec symmetric",
        ),
    ],
)
def test_formats_without_kernels_are_named_with_their_site(tmp_path, bert, changes, message):
    with pytest.raises(ExportError, match=message):
        written(quantized(bert, tfquant.recipe("litert").with_spec(**changes)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_operations_that_litert_lacks_are_named(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None, 4])])
    def network(x):
        return tf.matmul(tf.math.bessel_i0e(x), tf.ones([4, 2]))

    model = tfquant.quantize(
        network, "litert", calibration=[(np.ones((3, 4), np.float32),)], progress=False
    )
    with pytest.raises(
        ExportError,
        match="LiteRT cannot take the model: operations without a counterpart: BesselI0e",
    ):
        written(model, tmp_path)


def test_bfloat16_is_refused(tmp_path):
    keras.utils.set_random_seed(7)
    case = models.mixed_bfloat16()
    with pytest.raises(ExportError, match="computes in bfloat16 .* build it in float32"):
        written(quantized(case, "litert"), tmp_path)


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"no such file" * 99,
    "cut off": lambda content: content[: len(content) // 2],
    "zeros": lambda content: b"\0" * len(content),
}


@pytest.mark.representatives("empty", "cut off")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_broken_files_are_named_in_one_line(tmp_path, model, damage):
    path = tmp_path / "model.tflite"
    writer.write(ExportRequest(engine_of(model), "quantized", 17), str(path))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        RuntimeFileError, match=r"model.tflite: LiteRT cannot read it: .+"
    ) as raised:
        open_file(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_input_is_named_and_others_are_passed_over(tmp_path, bert, model):
    path = str(tmp_path / "model.tflite")
    writer.write(ExportRequest(engine_of(model), "quantized", 17), path)
    session = open_file(path, threads=2)
    session({**bert.batches[0], "labels": np.zeros(3)})
    with pytest.raises(KeyError, match="input 'input_mask' is missing"):
        session(
            {
                "input_ids": bert.batches[0]["input_ids"],
                "segment_ids": bert.batches[0]["segment_ids"],
            }
        )


@pytest.mark.parametrize("multiplier, bias", [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("scaled_by", ["batch normalization", "Rescaling"])
def test_depthwise_convolutions_may_be_scaled(tmp_path, multiplier, bias, scaled_by):
    """The converter multiplies kernels by such scales, and fails where they are quantized."""
    keras.utils.set_random_seed(0)
    batch = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    scaling = (
        keras.layers.BatchNormalization(gamma_initializer="random_normal")
        if scaled_by == "batch normalization"
        else keras.layers.Rescaling(np.linspace(0.5, 2, 3 * multiplier))
    )
    x = keras.Input((8, 8, 3))
    hidden = keras.layers.DepthwiseConv2D(3, depth_multiplier=multiplier, use_bias=bias)(x)
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(scaling(hidden)))
    model = keras.Model(x, keras.layers.Dense(3)(hidden))
    made = tfquant.quantize(model, "litert", calibration=[batch], progress=False)
    report = tfquant.export(made, tmp_path / "model.tflite", target="litert", check_data=[batch])
    assert report.agreement.largest < 1e-5

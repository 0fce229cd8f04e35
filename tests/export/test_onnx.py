"""ONNX files hold integers, and answer as the simulation does, node by node and fused."""

import dataclasses

import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tests.export.agreement import agreement_with
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export import ExportError, MismatchError, site_markers
from tfquant.export.onnx import external_data
from tfquant.model import engine_of
from tfquant.runtimes import RuntimeFileError, onnxruntime

NAMES = ("input_ids", "input_mask", "segment_ids")


def quantized(case: models.Case, recipe, **options):
    return tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False, **options)


def as_written(model, path, batches):
    """How far the file, run node by node, is from the simulation."""
    return agreement_with(model, onnxruntime.open_file(str(path), as_written=True), batches)


def nodes(path) -> list:
    return list(onnx.load(path).graph.node)


RECIPES = {
    "symmetric": (tfquant.recipe("int8_residual_float"), 17),
    "skip operands": (tfquant.recipe("int8_residual"), 17),
    "zero points": (tfquant.recipe("int8_residual_both_asymmetric"), 17),
    "unsigned": (
        tfquant.recipe("int8_residual").with_spec(roles=["matmul_input"], unsigned="auto"),
        17,
    ),
    "full range": (tfquant.recipe("ft1"), 17),
    "weights per tensor": (
        tfquant.recipe("int8_residual").with_spec(roles=["weight"], granularity="per_tensor"),
        17,
    ),
    "4-bit weights in bytes": (tfquant.recipe("w4a8_residual"), 17),
    "4-bit weights": (tfquant.recipe("w4a8_residual"), 21),
    "4-bit activations": (
        tfquant.recipe("int8_residual_asymmetric").with_spec(roles=["linear_input"], format="int4"),
        17,
    ),
    "16 bits": (
        tfquant.recipe("int8_residual_float").with_spec(roles=["linear_input"], format="int16"),
        21,
    ),
}


@pytest.fixture(scope="module")
def bert():
    return models.own_bert()


@pytest.mark.filterwarnings("ignore:.*quantized products in integers")
@pytest.mark.parametrize("name", few(RECIPES, ("zero points", "4-bit weights")))
def test_the_file_answers_as_the_simulation_for_every_placement_and_format(tmp_path, bert, name):
    recipe, opset = RECIPES[name]
    model, path = quantized(bert, recipe), tmp_path / "model.onnx"
    found = export(model, path, opset=opset, check_data=bert.batches, tolerance=1.0)
    assert found.agreement.batches == 2 and found.size == path.stat().st_size
    # A value on the border between two codes may fall to either side: now and then a step, no
    # drift.
    assert as_written(model, path, bert.batches).mean < 2e-3 * found.agreement.spread


def test_parameters_are_integers_and_every_activation_site_is_one_pair(tmp_path, bert):
    model, path = quantized(bert, "int8_residual_asymmetric"), tmp_path / "model.onnx"
    found = export(model, path)
    kinds = [node.op_type for node in nodes(path)]
    activations, parameters = found.sites
    assert (activations, parameters) == (9, 6)
    assert (
        kinds.count("QuantizeLinear") == activations
        and kinds.count("DequantizeLinear") == activations + parameters
    )
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    kernels = [address for address in model.ranges() if address.endswith(":weight:kernel")]
    for address in kernels:
        codes = stored[f"{address}/codes"]
        assert codes.data_type == onnx.TensorProto.INT8 and tuple(
            stored[f"{address}/scale"].dims
        ) == (codes.dims[1],)
    floats = [list(t.dims) for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert all(shape not in floats for shape in ([16, 24], [24, 16], [16, 16])), (
        "float kernels are left in the file"
    )


def test_four_bits_take_half_a_byte_from_opset_21_on(tmp_path, bert):
    model = quantized(bert, "w4a8_residual")
    export(model, tmp_path / "model.onnx", opset=21)
    codes = [
        t
        for t in onnx.load(tmp_path / "model.onnx").graph.initializer
        if t.name.endswith(":kernel/codes")
    ]
    assert len(codes) == 6 and all(t.data_type == onnx.TensorProto.INT4 for t in codes)


def test_sizes_of_batch_and_length_stay_open(tmp_path, bert, model):
    path = tmp_path / "model.onnx"
    export(model, path, check_data=bert.batches, tolerance=1.0)  # of two sizes
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [size.dim_param for size in shape.dim] == ["batch", "input_ids_1"]


def test_kernels_with_several_channel_axes_and_named_inputs(tmp_path):
    case = models.functional()
    model, path = quantized(case, "int8_residual_both_asymmetric"), tmp_path / "model.onnx"
    export(model, path, check_data=case.batches, tolerance=1.0)
    agreement = as_written(model, path, case.batches)
    assert agreement.mean < 2e-3 * agreement.spread and agreement.same == 1.0


def test_a_function_and_a_table_looked_up(tmp_path):
    table = tf.Variable(
        np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), name="table"
    )
    kernel = tf.Variable(
        np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32), name="kernel"
    )

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def score(ids):
        return tf.matmul(tf.reshape(tf.gather(table, ids), [-1, 8]), kernel)

    rule = tfquant.Rule(tfquant.QuantSpec("int8"), role="embedding")
    recipe = tfquant.recipe("int8_residual_float").with_rules(rule)
    batches = [
        (np.arange(12, dtype=np.int32).reshape(3, 4),),
        (np.arange(40, 50, dtype=np.int32).reshape(2, 5),),
    ]
    model, path = (
        tfquant.quantize(score, recipe, calibration=batches, progress=False),
        tmp_path / "score.onnx",
    )
    export(model, path)
    assert as_written(model, path, batches).largest < 1e-4
    tables = [t for t in onnx.load(path).graph.initializer if list(t.dims) == [50, 8]]
    assert [t.data_type for t in tables] == [onnx.TensorProto.INT8]


def test_ranges_that_were_learned_are_exported(tmp_path, bert):
    recipe = tfquant.recipe("int8_residual_asymmetric").with_spec(roles=["*"], update="tqt")
    model, path = quantized(bert, recipe), tmp_path / "model.onnx"
    export(model, path)
    assert as_written(model, path, bert.batches).largest < 1e-2


def test_disabled_sites_are_left_in_float(tmp_path, bert):
    recipe = dataclasses.replace(tfquant.recipe("int8_residual_float"), disable=("attention",))
    model = quantized(bert, recipe)
    found = export(model, tmp_path / "model.onnx")
    assert (
        sum(found.sites) == sum(site.enabled for site in model.plan.sites) < len(model.plan.sites)
    )


# What a user may do wrong.


@pytest.fixture(scope="module")
def model(bert):
    return quantized(bert, "int8_residual_float")


def test_a_model_without_ranges_is_refused_and_leaves_nothing_behind(tmp_path, bert):
    with pytest.raises(
        tfquant.UncalibratedError, match="has no range.*export the float network with mode='float'"
    ):
        export(tfquant.quantize(bert.model), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, bert, model, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("the old one")

    answer = onnxruntime.OnnxSession.__call__
    monkeypatch.setattr(
        onnxruntime.OnnxSession,
        "__call__",
        lambda self, feed: {name: -value for name, value in answer(self, feed).items()},
    )
    with pytest.raises(
        MismatchError, match="was not written, as it answers otherwise.*same answer in"
    ):
        export(model, path, check_data=bert.batches)
    assert path.read_text() == "the old one" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tflite"}, "target='tflite': must be one of onnx"),
        ({"opset": 13}, "opset=13: must be at least 17"),
        ({"tolerance": 5}, "tolerance=5: is a share of rows"),
        ({"check_data": {}}, "takes an iterable of batches, got one batch"),
        ({"check_data": []}, "check_data: no batch was given to compare on"),
        (
            {"check_data": [{"input_ids": np.ones((2, 4), np.int32)}]},
            "check_data, batch 0: input 'input_mask' is missing",
        ),
        (
            {
                "check_data": [
                    dict(zip(NAMES, (np.ones((n, 4), np.int32) for n in (2, 2, 3)), strict=True))
                ]
            },
            "check_data, batch 0: the network cannot answer it: ",
        ),
        (
            {"check_data": [{name: np.ones((0, 4), np.int32) for name in NAMES}]},
            "check_data, batch 0: has no rows",
        ),
        (
            {"check_data": [{name: np.full((2, 4), 10**6, np.int32) for name in NAMES}]},
            "check_data, batch 0: the network cannot answer it: ",
        ),
    ],
)
def test_arguments_that_cannot_work_are_named(tmp_path, model, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path, model):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        export(model, tmp_path / "nowhere" / "model.onnx")


def test_a_float_model_is_refused(tmp_path, bert):
    with pytest.raises(TypeError, match="expected a model from tfquant.quantize"):
        export(bert.model, tmp_path / "model.onnx")


def test_operations_that_onnx_lacks_are_named(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None, 4])])
    def network(x):
        return tf.matmul(tf.math.bessel_i0e(x), tf.ones([4, 2]))

    batches = [(np.ones((3, 4), np.float32),)]
    model = tfquant.quantize(network, "int8_residual_float", calibration=batches, progress=False)
    with pytest.raises(ExportError, match="operations without a counterpart in ONNX: BesselI0e"):
        export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_opset_of_the_future_is_named(tmp_path, model):
    with pytest.raises(ExportError, match="opset=99: onnx .* knows opsets up to"):
        export(model, tmp_path / "model.onnx", opset=99)


def test_formats_that_the_opset_lacks_are_named_with_their_site(tmp_path, bert):
    recipe = tfquant.recipe("int8_residual_float").with_spec(roles=["linear_input"], format="int16")
    with pytest.raises(
        ExportError,
        match=(
            "site bert/.*:linear_input:input: codes -32767..32767 have no integer type in opset 17"
        ),
    ):
        export(quantized(bert, recipe), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# test_fused_attention.py has two layers.
@pytest.mark.long
def test_a_deeper_model_keeps_its_answers_when_the_runtime_fuses(tmp_path):
    case = models.own_bert(layers=2)
    model = quantized(case, "int8_residual_asymmetric")
    found = export(model, tmp_path / "model.onnx", check_data=case.batches, tolerance=1.0)
    assert found.agreement.mean < 0.05 * found.agreement.spread


@pytest.mark.parametrize(
    ("opset", "mode"),
    few([(17, "quantized"), (21, "quantized"), (20, "float")], [(21, "quantized")]),
)
def test_beyond_two_gigabytes_parameters_are_in_a_file_beside_it(
    tmp_path, monkeypatch, opset, mode
):
    case = models.own_bert()
    model = tfquant.quantize(
        case.model, "cpu_onnxruntime", calibration=case.batches, progress=False
    )
    whole = export(model, tmp_path / "whole.onnx", opset=opset, mode=mode, check_data=case.batches)
    monkeypatch.setattr(external_data, "LIMIT", 3000)
    found = export(model, tmp_path / "model.onnx", opset=opset, mode=mode, check_data=case.batches)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
        "whole.onnx",
    ]
    assert found.contractions == whole.contractions and found.agreement == whole.agreement
    assert found.size == sum(
        (tmp_path / f"model.onnx{end}").stat().st_size for end in ("", ".data")
    )
    one, two = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("whole", "model"))
    values = [
        {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer} for graph in (one, two)
    ]
    large = [sorted(v.tobytes() for v in found.values() if v.nbytes > 1024) for found in values]
    assert large[0] == large[1] and len(large[0]) > 0
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(RuntimeFileError, match="model.onnx"):
        tfquant.compare(model, tmp_path / "model.onnx", case.batches, mode=mode)


@pytest.mark.representatives("subclassed", "function_with_signature")
@pytest.mark.parametrize(
    "name", few(sorted({*models.KERAS, *models.FUNCTIONS, *models.SAVED} - {"mixed_bfloat16"}))
)
def test_models_of_every_kind_answer_alike_with_parameters_kept_out_of_the_conversion(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(site_markers, "_LARGE", 0)
    case = models.build(name, str(tmp_path / "saved"))
    model = tfquant.quantize(
        case.model, "int8_residual_float", calibration=case.batches, progress=False
    )
    for mode in ("quantized", "float"):
        path = tmp_path / f"{mode}.onnx"
        export(model, path, mode=mode)
        found = agreement_with(
            model, onnxruntime.open_file(str(path), as_written=True), case.batches, mode
        )
        assert found.mean < 2e-3 * found.spread, mode
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    kept_out = site_markers.marked(engine_of(model), mode="float").parameters
    matrices = {
        path for path, variable in kept_out.items() if len(variable.shape) > 1
    }  # vectors may be part of a normalisation
    assert len(matrices) > 0 and stored >= matrices

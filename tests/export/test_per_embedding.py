"""Ranges along the embedding axis in files.

The same answers as the simulation's, or a refusal that names the site.
"""

import re

import numpy as np
import onnx
import pytest

import tfquant
from tests.export.agreement import agreement_with
from tests.few import few
from tests.graph import models
from tfquant.export import ExportError
from tfquant.rules import Rule
from tfquant.runtimes import onnxruntime
from tfquant.spec import QuantSpec

WIDTH = models.WIDTH


def recipe(**changes) -> tfquant.Recipe:
    """Groups of dimensions in front of a product, at both operands of additions and behind them,
    and one range a dimension.
    """
    spec = QuantSpec(granularity="per_embedding_group", groups=4, permute="shared", **changes)
    each = QuantSpec(granularity="per_embedding", **changes)
    return tfquant.recipe("int8_residual_float_asymmetric").with_rules(
        Rule(spec, "linear_input", path="*/intermediate/dense"),
        Rule(spec, ("residual", "residual_other", "residual_sum")),
        Rule(each, "linear_input", path="re:layer_./output/dense"),
        name="groups",
    )


RECIPES = {
    "symmetric": (recipe(), 17),
    "zero points": (recipe(symmetric=False), 17),
    "4 bits": (recipe(symmetric=False, format="int4"), 17),
    "4 bits, symmetric": (recipe(format="int4"), 17),
    "16 bits": (recipe(format="int16"), 21),
}


@pytest.fixture(scope="module")
def bert():
    return models.own_bert()


def quantized(case, made: tfquant.Recipe):
    return tfquant.quantize(case.model, made, case.batches, progress=False)


@pytest.mark.representatives("zero points")
@pytest.mark.parametrize("name", few(RECIPES, ("zero points", "16 bits")))
def test_the_file_answers_as_the_simulation_node_by_node_and_fused(tmp_path, bert, name):
    made, opset = RECIPES[name]
    model, path = quantized(bert, made), tmp_path / "model.onnx"
    found = tfquant.export(model, path, opset=opset, check_data=bert.batches, tolerance=1.0)
    as_written = agreement_with(
        model, onnxruntime.open_file(str(path), as_written=True), bert.batches
    )
    # A value on the border between two codes may fall to either side: now and then a step, no
    # drift.
    assert max(found.agreement.mean, as_written.mean) < 2e-3 * found.agreement.spread
    # Products with several scales are none of integers; those of the attention are.
    feed_forward = re.compile("layer_0[^/]*/(intermediate|output)[^/]*/dense")
    assert len([n for n in found.contractions.floating if feed_forward.search(n)]) == 2
    assert (
        not any(map(feed_forward.search, found.contractions.integer))
        and len(found.contractions.integer) >= 4
    )


def test_every_site_is_a_pair_along_the_last_axis_with_a_scale_for_each_dimension(tmp_path, bert):
    model, path = quantized(bert, recipe(symmetric=False)), tmp_path / "model.onnx"
    tfquant.export(model, path)
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    along = [
        node
        for node in graph.node
        if node.op_type == "QuantizeLinear" and list(stored[node.input[1]].dims)
    ]
    assert len(along) == sum(site.spec.layout.per_embedding for site in model.plan.sites)
    for node in along:
        assert {a.name: a.i for a in node.attribute} == {"axis": -1}
        site = model.plan.site(node.input[1].removesuffix("/scale"))
        scale = onnx.numpy_helper.to_array(stored[node.input[1]])
        assert scale.shape == site.shape[-1:]
        if site.spec.groups:
            assert len(np.unique(scale)) == 4 and set(np.unique(scale, return_counts=True)[1]) == {
                WIDTH // 4
            }


# The SavedModel of test_targets.py stands for it.
@pytest.mark.long
def test_a_saved_model_answers_to_the_last_bit(tmp_path, bert):
    model = quantized(bert, recipe(symmetric=False))
    found = tfquant.export(model, tmp_path / "saved", target="saved_model", check_data=bert.batches)
    assert found.agreement.largest == 0


@pytest.mark.representatives("litert*", "openvino*")
@pytest.mark.parametrize(
    "target, suffix, message",
    [
        (
            "litert",
            ".tflite",
            (
                "LiteRT has one range for an activation, this site has per_embedding_group: set"
                " granularity"
            ),
        ),
        ("openvino", ".xml", "OpenVINO has one range for an activation"),
        (
            "tensorrt",
            ".onnx",
            "an activation with 16 scales: set granularity: per_tensor for role residual",
        ),
    ],
)
def test_targets_with_one_range_for_an_activation_refuse_and_name_the_site(
    tmp_path, bert, target, suffix, message
):
    made = tfquant.recipe("int8_residual").with_rules(
        Rule(
            QuantSpec(granularity="per_embedding_group", groups=4),
            "residual",
            path="*/attention/*",
            name="groups",
        )
    )
    with pytest.raises(
        ExportError, match="bert/encoder/layer_0/attention/output/dense:residual:skip.*" + message
    ):
        tfquant.export(quantized(bert, made), tmp_path / f"model{suffix}", target=target)
    assert not list(tmp_path.iterdir())

"""A file that answers otherwise is found out, and so is the place where it begins to."""

import numpy as np
import onnx
import pytest

import tfquant
from tests.graph import models
from tfquant.export import MismatchError, divergence
from tfquant.export.request import ExportRequest
from tfquant.model import engine_of


@pytest.fixture(scope="module")
def case():
    return models.own_bert(layers=2)


@pytest.fixture(scope="module")
def model(case):
    return tfquant.quantize(
        case.model, "int8_residual_asymmetric", calibration=case.batches, progress=False
    )


def changed(path, name: str, change) -> None:
    """Another value of an initializer."""
    proto = onnx.load(path)
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), name))
    onnx.save(proto, path)


def test_a_file_is_compared_with_its_model_at_any_time(tmp_path, case, model):
    path = tmp_path / "model.onnx"
    tfquant.export(model, path)
    found = tfquant.compare(model, path, case.batches, tolerance=0.2)
    assert found.batches == 2 and found.mean < 0.05 * found.spread
    tfquant.export(model, path, mode="float")
    assert tfquant.compare(model, path, case.batches, mode="float").largest < 1e-5


# test_run_squad_export.py scores both.
@pytest.mark.long
def test_both_are_scored_where_the_caller_can(tmp_path, case, model):
    path = tmp_path / "model.onnx"

    def score(outputs):
        assert [one["start_logits"].shape[0] for one in outputs] == [
            len(batch["input_ids"]) for batch in case.batches
        ]
        return sum(float(one["start_logits"].mean()) for one in outputs)

    found = tfquant.export(
        model, path, check_data=case.batches, score=score, tolerance=1.0
    ).agreement
    simulated = score(
        [{name: out.numpy() for name, out in model(batch).items()} for batch in case.batches]
    )
    assert found.scores[0] == pytest.approx(simulated) and found.scores[1] == pytest.approx(
        simulated, rel=0.2
    )
    assert f"score {found.scores[0]:.2f}, of the file {found.scores[1]:.2f}" in str(found)
    again = tfquant.compare(model, path, iter(case.batches), score=score, tolerance=1.0)
    assert again.scores == found.scores


# test_parity.py has another network for every runtime.
@pytest.mark.long
def test_a_file_with_another_weight_is_refused(tmp_path, case, model):
    path = tmp_path / "model.onnx"
    tfquant.export(model, path)
    address = next(a for a in model.ranges() if "layer_1/intermediate" in a and ":weight:" in a)
    changed(path, f"{address}/codes", np.negative)
    with pytest.raises(
        MismatchError, match="model.onnx answers otherwise than the simulation: largest"
    ):
        tfquant.compare(model, path, case.batches, tolerance=0.0)


# A fused file in test_fused_attention.py stands for it.
@pytest.mark.long
def test_the_first_site_that_is_reached_by_other_values_is_named(case, model, monkeypatch):
    """Written with another scale in the middle of the network, as a fault of the exporter would
    be.
    """
    order, sites = (
        ExportRequest(engine_of(model), "quantized", 17),
        [s.address for s in model.plan.sites if not s.is_weight],
    )
    assert all(
        one.mean < divergence.SHARE
        for one in divergence.differences(order, "onnxruntime", case.batches[0])
    )
    assert divergence.where(order, "onnxruntime", case.batches[0]).endswith(
        "they part behind the last one"
    )
    middle = next(address for address in sites if "layer_1/attention/output" in address)
    build = divergence.writer.build

    def faulty(order, **options):
        proto = build(order, **options)
        for tensor in proto.graph.initializer:
            if tensor.name == f"{middle}/scale":
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(
                        50 * onnx.numpy_helper.to_array(tensor), tensor.name
                    )
                )
        return proto

    monkeypatch.setattr(divergence.writer, "build", faulty)
    found = divergence.differences(order, "onnxruntime", case.batches[0])
    order_of_sites = [one.site for one in found]
    first = next(one.site for one in found if one.mean > divergence.SHARE)
    assert order_of_sites.index(first) > order_of_sites.index(middle)
    assert all(one.mean < divergence.SHARE for one in found[: order_of_sites.index(middle) + 1])
    assert f"; they part at site {first} (what reaches it differs by" in divergence.where(
        order, "onnxruntime", case.batches[0]
    )


def test_what_cannot_be_compared_is_named(tmp_path, case, model):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        tfquant.compare(model, tmp_path / "model.onnx", case.batches)
    with pytest.raises(ValueError, match="mode='int': must be one of float, quantized"):
        tfquant.compare(model, tmp_path / "model.onnx", case.batches, mode="int")
    with pytest.raises(tfquant.UncalibratedError):
        tfquant.compare(tfquant.quantize(case.model), tmp_path / "model.onnx", case.batches)

"""Every target answers as the simulation and appears whole or not at all."""

import dataclasses
import pathlib
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.export.agreement import agreement_with
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export import ExportError, MismatchError, x86_saturation
from tfquant.export.targets import TARGETS, publish
from tfquant.runtimes import RuntimeFileError, open_file, openvino


@pytest.fixture(scope="module")
def bert():
    return models.own_bert()


def quantized(case, recipe):
    return tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)


@pytest.fixture(scope="module")
def model(bert):
    return quantized(bert, "cpu_openvino")


@pytest.mark.representatives("quantized-*")
@pytest.mark.parametrize(
    "recipe",
    few(["cpu_openvino", "int8_residual_both_asymmetric", "w4a8_residual"], "w4a8_residual"),
)
@pytest.mark.parametrize("mode", ["quantized", "float"])
def test_a_saved_model_answers_like_the_simulation_to_the_last_digits(tmp_path, bert, recipe, mode):
    model, path = quantized(bert, recipe), tmp_path / "served"
    export(model, path, target="saved_model", mode=mode, check_data=bert.batches)
    found = agreement_with(model, open_file(path), bert.batches, mode)
    assert found.largest < 1e-5 and found.same == 1.0


def test_a_saved_model_of_a_function_is_served_under_its_names(tmp_path):
    kernel = tf.Variable(
        np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), name="kernel"
    )

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="features")])
    def score(features):
        return {"scores": tf.matmul(features, kernel)}

    batches = [(np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32),)]
    model = tfquant.quantize(score, "int8_residual_float", calibration=batches, progress=False)
    export(model, tmp_path / "served", target="saved_model")
    signature = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    answer = signature(features=tf.constant(batches[0][0]))
    np.testing.assert_allclose(answer["scores"], model(batches[0][0])["scores"], atol=1e-6)


def test_a_saved_model_replaces_another_and_nothing_else(tmp_path, model):
    path = tmp_path / "served"
    path.mkdir()
    (path / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="served: is there and is no SavedModel"):
        export(model, path, target="saved_model")
    assert (path / "thesis.txt").read_text() == "the only copy"
    (path / "thesis.txt").unlink()  # an empty folder is taken
    for _ in range(2):
        export(model, path, target="saved_model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["served"] and (
        path / "saved_model.pb"
    ).exists()


@pytest.mark.parametrize(
    "recipe", few(["cpu_openvino", "int8_residual_float", "w4a8_residual"], ("cpu_openvino",))
)
def test_openvino_answers_like_the_simulation(tmp_path, bert, recipe):
    # On processors without VNNI its sums of two products of 8 bits overflow, with 7-bit weights
    # they do not.
    recipe = tfquant.recipe(recipe)
    recipe = (
        recipe
        if recipe.name == "w4a8_residual"
        else recipe.with_spec(roles=["weight"], format="int7")
    )
    model, path = quantized(bert, recipe), tmp_path / "model.xml"
    found = export(model, path, target="openvino", check_data=bert.batches, tolerance=0.1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert found.size == path.stat().st_size + (tmp_path / "model.bin").stat().st_size
    assert found.agreement.mean < 0.02 * found.agreement.spread


# test_where_sums_overflow_the_result_says_so stands for it.
@pytest.mark.long
@pytest.mark.parametrize("flags", ["fpu avx2 fma", "fpu avx2 avx512_vnni"])
def test_where_openvino_overflows_the_error_says_what_to_do(
    tmp_path, bert, model, monkeypatch, flags
):
    monkeypatch.setattr(x86_saturation, "_processor_flags", lambda: set(flags.split()))
    answer = openvino.OpenVinoSession.__call__
    monkeypatch.setattr(
        openvino.OpenVinoSession,
        "__call__",
        lambda self, feed: {name: -value for name, value in answer(self, feed).items()},
    )
    with pytest.raises(MismatchError) as caught:
        export(model, tmp_path / "model.xml", target="openvino", check_data=bert.batches)
    assert ("int7" in str(caught.value)) == ("vnni" not in flags)


@pytest.mark.parametrize(
    ("flags", "format"),
    [
        ("avx2 fma", "int8"),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (("avx2 avx512_vnni", "int8"), ("avx2 fma", "int7"))
        ),
    ],
)
def test_where_sums_overflow_the_result_says_so(tmp_path, bert, monkeypatch, flags, format):
    monkeypatch.setattr(x86_saturation, "_processor_flags", lambda: set(flags.split()))
    recipe = tfquant.recipe("cpu_onnxruntime").with_spec(roles=["weight"], format=format)
    for target, said in (("onnx", "session.x64quantprecision=1"), ("openvino", "format='int7'")):
        found = export(
            quantized(bert, recipe), tmp_path / f"model{TARGETS[target].suffix}", target=target
        )
        overflows = "vnni" not in flags and format == "int8"
        assert (said in str(found)) == (said in found.note) == overflows


def test_openvino_computes_linear_layers_in_integers(tmp_path, bert, model):
    found = export(
        model, tmp_path / "model.xml", target="openvino", check_data=bert.batches, tolerance=1.0
    )
    float_too = export(
        model,
        tmp_path / "float.xml",
        target="openvino",
        mode="float",
        check_data=bert.batches,
        tolerance=1.0,
    )
    assert len(found.contractions.integer) == 6 and not float_too.contractions.integer
    assert float_too.agreement.largest < 1e-4


def test_onnxruntime_computes_linear_layers_in_integers(tmp_path, bert, model):
    found = export(model, tmp_path / "model.onnx", check_data=bert.batches, tolerance=1.0)
    assert (
        len(found.contractions.integer) == 6 and str(found).count("of 9 products in integers") == 1
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_wants_its_suffix_and_a_folder_that_is_there(tmp_path, model, target):
    with pytest.raises(ValueError, match="there is no folder"):
        export(model, tmp_path / "nowhere" / f"model{TARGETS[target].suffix}", target=target)
    if TARGETS[target].suffix:
        with pytest.raises(ValueError, match=f"model.bin: must end in {TARGETS[target].suffix}"):
            export(model, tmp_path / "model.bin", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_documentation_names_the_files_and_runtimes_of_the_table(name):
    target, text = (
        TARGETS[name],
        (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text(),
    )
    readers = ", ".join(f"`{reader}`" for reader in target.readers if reader != "tensorflow")
    assert f"| `{name}` | `{target.file}` | {readers}".rstrip() in text and target.file.endswith(
        target.suffix
    )


def test_a_recipe_of_another_runtime_is_named_and_so_is_the_one_that_fits(tmp_path, bert):
    other = quantized(bert, "cpu_onnxruntime")
    with pytest.warns(
        UserWarning,
        match="litert computes none of .*'cpu_onnxruntime' is made for another.* recipe 'litert'",
    ):
        found = export(
            other,
            tmp_path / "model.tflite",
            target="litert",
            check_data=bert.batches,
            tolerance=1.0,
        )
    assert not found.contractions.integer and "quantize with recipe 'litert'" in str(found)
    narrow = quantized(
        bert, tfquant.recipe("cpu_onnxruntime").with_spec(roles=["weight"], format="int4")
    )
    with pytest.warns(UserWarning, match="half bytes from opset 21 on: export with opset=17"):
        export(narrow, tmp_path / "model.onnx", opset=21, check_data=bert.batches, tolerance=1.0)
    with warnings.catch_warnings(action="error", category=UserWarning):
        export(narrow, tmp_path / "model.onnx", check_data=bert.batches, tolerance=1.0)


def test_what_a_target_does_not_take_is_refused_before_anything_is_computed(
    tmp_path, model, monkeypatch
):
    for target in TARGETS:
        monkeypatch.setitem(
            TARGETS,
            target,
            dataclasses.replace(TARGETS[target], write=lambda order, path: pytest.fail("written")),
        )
    for target in ("packed", "fastertransformer"):
        with pytest.raises(ExportError, match="mode 'float' has none"):
            export(model, tmp_path / TARGETS[target].file, target=target, mode="float")
    assert not list(tmp_path.iterdir())


def test_files_that_belong_together_are_moved_with_the_one_that_names_them_last(
    tmp_path, monkeypatch
):
    (tmp_path / "new").mkdir()
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_text("old")
        (tmp_path / "new" / name).write_text("new")
    publish(tmp_path / "new" / "model.xml", tmp_path / "model.xml")
    assert [(tmp_path / name).read_text() for name in ("model.xml", "model.bin")] == ["new", "new"]


def test_a_packed_file_needs_no_check(tmp_path, bert, model):
    found = export(model, tmp_path / "model.safetensors", target="packed", check_data=bert.batches)
    assert found.agreement is None and found.size == (tmp_path / "model.safetensors").stat().st_size
    assert "bit for bit the simulation" in str(found) and "not checked" not in str(found)


def test_a_broken_saved_model_is_named(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(RuntimeFileError, match="served: TensorFlow cannot read it"):
        open_file(tmp_path / "served")

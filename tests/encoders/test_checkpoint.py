"""Reading of weights.

TensorFlow name-based bundles, Hugging Face safetensors, and what does not fit.
"""

import contextlib
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

import modeling
from encoders.checkpoint import google_name
from tests.encoders import hugging_face
from tests.encoders.stored_weights import TINY, hugging_face_weights, values_for, write_bundle


def assert_holds(model, values, **tolerance):
    for variable in model.weights:
        np.testing.assert_allclose(
            variable.numpy(), values[variable.path], err_msg=variable.path, **tolerance
        )


@contextlib.contextmanager
def unchanged(model):
    before = {v.path: v.numpy() for v in model.weights}
    yield
    for variable in model.weights:
        np.testing.assert_array_equal(
            variable.numpy(), before[variable.path], err_msg=variable.path
        )


@pytest.mark.parametrize(
    "build",
    [
        modeling.build_encoder,
        modeling.build_squad_model,
        lambda config: modeling.build_classifier(config, 3),
    ],
    ids=["encoder", "squad", "classifier"],
)
def test_tensorflow_1_checkpoint_loads_into_every_model_by_name(build, tmp_path):
    model = build(TINY)
    values = values_for(model)
    prefix = write_bundle(tmp_path / "bert_model.ckpt", values)
    report = modeling.load_weights(model, prefix)
    assert_holds(model, values, rtol=0)
    assert report == modeling.LoadReport(tuple(sorted(values)), (), ())


def test_optimizer_slots_counters_and_training_state_are_no_weights(tmp_path):
    model = modeling.build_squad_model(TINY)
    values = values_for(model)
    kernel = "bert/encoder/layer_0/output/dense/kernel"
    noise = {
        f"{kernel}/adam_m": values[kernel],
        f"{kernel}/adam_v": values[kernel],
        f"{kernel}/LAMB_1": values[kernel],
        "tfquant/state/random": np.zeros(2, np.int32),
        "global_step": np.int64(7),
        "beta1_power": np.float32(0.9),
    }
    prefix = write_bundle(tmp_path / "model.ckpt-7", values | noise)
    assert modeling.load_weights(model, prefix).unexpected == ()
    assert_holds(model, values, rtol=0)


def test_pretrained_checkpoint_loads_into_a_squad_model_with_a_fresh_head(tmp_path):
    pretrained = values_for(modeling.build_encoder(TINY))
    extra = {
        "cls/predictions/output_bias": np.zeros(11, np.float32),
        "cls/seq_relationship/output_bias": np.ones(2),
    }
    prefix = write_bundle(tmp_path / "bert_model.ckpt", pretrained | extra)
    model = modeling.build_squad_model(TINY, seed=0)
    head = ("cls/squad/output_bias", "cls/squad/output_weights")
    initial = {v.path: v.numpy() for v in model.weights if v.path in head}
    report = modeling.load_weights(model, prefix, allow_missing=("cls/",))
    assert_holds(model, pretrained | initial, rtol=0)
    assert report.missing == head
    assert report.unexpected == ("bert/pooler/dense/bias", "bert/pooler/dense/kernel", *extra)


def test_ranges_of_a_quantized_checkpoint_are_reported_and_left(tmp_path):
    model = modeling.build_squad_model(TINY)
    ranges = {
        "bert/encoder/layer_0/output/dense/tensor_quantizer_1/quant_max": np.float32(1),
        "bert/encoder/layer_0/output/dense/kernel_quantizer/quant_min": np.ones(4, np.float32),
    }
    prefix = write_bundle(tmp_path / "model.ckpt-calibrated", values_for(model) | ranges)
    assert modeling.load_weights(model, prefix).unexpected == tuple(sorted(ranges))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_point_storage_becomes_float32(dtype, tmp_path):
    model = modeling.build_squad_model(TINY)
    values = {name: value.astype(dtype) for name, value in values_for(model).items()}
    modeling.load_weights(model, write_bundle(tmp_path / "model.ckpt", values))
    assert_holds(model, {name: value.astype(np.float32) for name, value in values.items()}, rtol=0)
    assert {variable.dtype for variable in model.weights} == {"float32"}


def test_weights_load_into_a_bfloat16_model_at_full_precision(tmp_path):
    model = modeling.build_squad_model(TINY, dtype="mixed_bfloat16")
    values = values_for(model)
    modeling.load_weights(model, write_bundle(tmp_path / "model.ckpt", values))
    assert_holds(model, values, rtol=0)


@pytest.mark.representatives("bert.-float16", "-bfloat16", "-float32")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_hugging_face_directory_loads_with_and_without_prefix(prefix, dtype, tmp_path):
    model = modeling.build_squad_model(TINY)
    values = values_for(model)
    stored = hugging_face_weights(values, prefix, dtype=dtype)
    stored[f"{prefix}embeddings.position_ids"] = np.arange(7)[None]
    save_file(stored, tmp_path / "model.safetensors")
    report = modeling.load_weights(model, tmp_path)
    assert_holds(
        model,
        {name: value.astype(dtype).astype(np.float32) for name, value in values.items()},
        rtol=0,
    )
    assert report == modeling.LoadReport(tuple(sorted(values)), (), ())


def test_hugging_face_classifier_file_with_old_layer_norm_names_loads(tmp_path):
    model = modeling.build_classifier(TINY, 3)
    values = values_for(model)
    save_file(hugging_face_weights(values, old=True), tmp_path / "old.safetensors")
    modeling.load_weights(model, str(tmp_path / "old.safetensors"))
    assert_holds(model, values, rtol=0)


def test_hugging_face_pretraining_heads_are_reported_and_left(tmp_path):
    model = modeling.build_encoder(TINY)
    heads = {
        "cls.predictions.transform.dense.weight": np.zeros((4, 4), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }
    save_file(hugging_face_weights(values_for(model)) | heads, tmp_path / "model.safetensors")
    wanted = ("cls/predictions/transform/dense/weight", "cls/seq_relationship/bias")
    assert modeling.load_weights(model, tmp_path).unexpected == wanted


def test_sharded_directory_loads_and_a_lost_shard_is_named(tmp_path):
    model = modeling.build_squad_model(TINY)
    values = values_for(model)
    stored = list(hugging_face_weights(values).items())
    shards = {"model-1.safetensors": dict(stored[:9]), "model-2.safetensors": dict(stored[9:])}
    for name, content in shards.items():
        save_file(content, tmp_path / name)
    weight_map = {key: name for name, content in shards.items() for key in content}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    modeling.load_weights(model, tmp_path)
    assert_holds(model, values, rtol=0)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shards that are not there: model-2.safetensors"):
        modeling.load_weights(model, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="index.json is damaged"):
        modeling.load_weights(model, tmp_path)


def test_names_of_hugging_face_are_translated_or_left_alone():
    # Pairs as they stand in the published files of bert-base-uncased on both sides.
    assert google_name("bert.encoder.layer.11.attention.self.query.weight") == (
        "bert/encoder/layer_11/attention/self/query/kernel",
        True,
    )
    assert google_name("encoder.layer.0.attention.output.LayerNorm.gamma") == (
        "bert/encoder/layer_0/attention/output/LayerNorm/gamma",
        False,
    )
    assert google_name("bert.embeddings.LayerNorm.bias") == (
        "bert/embeddings/LayerNorm/beta",
        False,
    )
    assert google_name("embeddings.token_type_embeddings.weight") == (
        "bert/embeddings/token_type_embeddings",
        False,
    )
    assert google_name("bert.pooler.dense.weight") == ("bert/pooler/dense/kernel", True)
    assert google_name("bert.encoder.layer.3.output.dense.bias") == (
        "bert/encoder/layer_3/output/dense/bias",
        False,
    )
    assert google_name("qa_outputs.weight") == ("cls/squad/output_weights", False)
    assert google_name("roberta.pooler.dense.weight") == ("roberta.pooler.dense.weight", False)


def wrong(values):
    """One of each fault: a wrong shape, a missing and a left-over variable."""
    values = dict(values)
    values["bert/embeddings/word_embeddings"] = np.zeros((12, 4), np.float32)
    del values["bert/encoder/layer_1/output/dense/bias"]
    values["bert/encoder/layer_2/output/dense/bias"] = np.zeros(4, np.float32)
    return values


def test_all_that_does_not_fit_is_listed_at_once_and_nothing_is_loaded(tmp_path):
    model = modeling.build_squad_model(TINY)
    prefix = write_bundle(tmp_path / "model.ckpt", wrong(values_for(model)))
    with unchanged(model), pytest.raises(ValueError, match="nothing was loaded") as error:
        modeling.load_weights(model, prefix)
    assert str(error.value).splitlines()[1:] == [
        "  missing: bert/encoder/layer_1/output/dense/bias [4]",
        "  left over: bert/encoder/layer_2/output/dense/bias [4]",
        "  wrong shape: bert/embeddings/word_embeddings is [12, 4], the model wants [11, 4]",
    ]


def test_faults_of_a_hugging_face_file_are_listed_under_its_own_names(tmp_path):
    model = modeling.build_squad_model(TINY)
    stored = hugging_face_weights(wrong(values_for(model)))
    save_file(stored, tmp_path / "model.safetensors")
    with unchanged(model), pytest.raises(ValueError, match="nothing was loaded") as error:
        modeling.load_weights(model, tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  missing: bert/encoder/layer_1/output/dense/bias [4]",
        "  left over: bert.encoder.layer.2.output.dense.bias [4]",
        "  wrong shape: bert.embeddings.word_embeddings.weight is [12, 4], the model wants [11, 4]",
    ]


def test_checkpoint_of_another_size_is_refused(tmp_path):
    wide = modeling.BertConfig(11, 8, 2, 2, 6, max_position_embeddings=7)
    prefix = write_bundle(tmp_path / "model.ckpt", values_for(modeling.build_squad_model(wide)))
    model = modeling.build_squad_model(TINY)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="query/kernel is \\[8, 8\\], the model wants \\[4, 4\\]"),
    ):
        modeling.load_weights(model, prefix)


def test_another_tasks_head_is_refused_unless_allowed(tmp_path):
    values = values_for(modeling.build_squad_model(TINY))
    prefix = write_bundle(tmp_path / "model.ckpt", values)
    model = modeling.build_classifier(TINY, 2, seed=0)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="left over: cls/squad/output_bias") as error,
    ):
        modeling.load_weights(model, prefix)
    assert "missing: output_weights [2, 4]" in str(error.value)
    fresh = ("bert/pooler/", "output_")
    report = modeling.load_weights(
        model, prefix, allow_missing=fresh, allow_unexpected="cls/squad/"
    )
    assert report.missing == (
        "bert/pooler/dense/bias",
        "bert/pooler/dense/kernel",
        "output_bias",
        "output_weights",
    )
    assert report.unexpected == ("cls/squad/output_bias", "cls/squad/output_weights")


def test_file_without_any_of_the_weights_is_refused_even_where_all_may_be_missing(tmp_path):
    save_file({"vision.patch.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no variable of the model is in the checkpoint"):
        modeling.load_weights(
            modeling.build_squad_model(TINY), tmp_path, allow_missing="", allow_unexpected=""
        )


def test_single_string_is_one_beginning_not_its_letters(tmp_path):
    values = values_for(modeling.build_squad_model(TINY))
    values = {
        name: value for name, value in values.items() if not name.startswith("bert/encoder/layer_0")
    }
    prefix = write_bundle(tmp_path / "model.ckpt", values)
    with pytest.raises(ValueError, match="missing: bert/encoder/layer_0"):
        modeling.load_weights(modeling.build_squad_model(TINY), prefix, allow_missing="bar")


def test_integer_weights_are_refused(tmp_path):
    model = modeling.build_squad_model(TINY)
    values = values_for(model)
    values["cls/squad/output_bias"] = np.ones(2, np.int32)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="wrong dtype: cls/squad/output_bias is int32"),
    ):
        modeling.load_weights(model, write_bundle(tmp_path / "model.ckpt", values))
    save_file(
        hugging_face_weights(values) | {"qa_outputs.bias": np.ones(2, np.int8)},
        tmp_path / "model.safetensors",
    )
    with unchanged(model), pytest.raises(ValueError, match="wrong dtype: qa_outputs.bias is I8"):
        modeling.load_weights(model, tmp_path)


def test_nan_in_weights_is_refused_and_named(tmp_path):
    model = modeling.build_squad_model(TINY)
    values = values_for(model)
    values["bert/embeddings/LayerNorm/beta"][1] = np.nan
    values["cls/squad/output_bias"][0] = np.inf
    with (
        unchanged(model),
        pytest.raises(ValueError, match="NaN or Inf: bert/embeddings/LayerNorm/beta") as error,
    ):
        modeling.load_weights(model, write_bundle(tmp_path / "model.ckpt", values))
    assert "NaN or Inf: cls/squad/output_bias" in str(error.value)


def test_weight_stored_under_both_prefixes_is_refused(tmp_path):
    model = modeling.build_squad_model(TINY)
    stored = hugging_face_weights(values_for(model))
    stored["embeddings.word_embeddings.weight"] = stored[
        "bert.embeddings.word_embeddings.weight"
    ].copy()
    save_file(stored, tmp_path / "model.safetensors")
    with (
        unchanged(model),
        pytest.raises(ValueError, match="holds bert/embeddings/word_embeddings twice"),
    ):
        modeling.load_weights(model, tmp_path)


def test_wrong_paths_get_a_hint(tmp_path):
    model = modeling.build_squad_model(TINY)
    prefix = write_bundle(tmp_path / "tf" / "model.ckpt-3", values_for(model))
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "pytorch_model.bin").touch()
    (tmp_path / "notes").touch()
    for path, message in (
        (prefix + ".index", f"give the prefix '{prefix}'"),
        (tmp_path / "tf" / "model.ckpt-4", "found in .*tf: model.ckpt-3"),
        (tmp_path / "tf", "no model.safetensors in .*tf; found: model.ckpt-3 .*give its prefix"),
        (tmp_path / "torch", "convert them to model.safetensors"),
        (
            tmp_path / "tf" / "x.safetensors",
            "no such file: .*x.safetensors; beside it: model.ckpt-3",
        ),
        (tmp_path / "none" / "model.ckpt", "no such folder"),
        (tmp_path / "notes", "neither a .safetensors file nor the prefix"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            modeling.load_weights(model, path)


def test_object_based_checkpoint_is_told_apart(tmp_path):
    prefix = tf.train.Checkpoint(kernel=tf.Variable(1.0)).write(str(tmp_path / "ckpt"))
    with pytest.raises(ValueError, match="keyed by objects; a name-based one is wanted"):
        modeling.load_weights(modeling.build_squad_model(TINY), prefix)


@pytest.mark.representatives("cut-.data*", "overwritten-.index", "gone-.data*")
@pytest.mark.parametrize("part", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("fault", ["cut", "overwritten", "gone"])
def test_damaged_bundle_is_refused(part, fault, tmp_path):
    model = modeling.build_squad_model(TINY)
    prefix = write_bundle(tmp_path / "model.ckpt", values_for(model))
    file = tmp_path / f"model.ckpt{part}"
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(
        content[:half] if fault == "cut" else content[:half] + b"\xa5" * 200 + content[half + 200 :]
    )
    if fault == "gone":
        file.unlink()
    with (
        unchanged(model),
        pytest.raises((ValueError, FileNotFoundError), match="damaged or|is damaged|no checkpoint"),
    ):
        modeling.load_weights(model, prefix)


@pytest.mark.parametrize("keep", [0, 20, 0.9])
def test_damaged_safetensors_file_is_refused(keep, tmp_path):
    model = modeling.build_squad_model(TINY)
    file = tmp_path / "model.safetensors"
    save_file(hugging_face_weights(values_for(model)), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with (
        unchanged(model),
        pytest.raises(ValueError, match="model.safetensors cannot be read as safetensors"),
    ):
        modeling.load_weights(model, tmp_path)


def test_lower_case_is_told_from_the_vocabulary_before_all_else(tmp_path):
    folder = tmp_path / "uncased_L-2"
    folder.mkdir()
    prefix = folder / "bert_model.ckpt"
    assert modeling.detect_lower_case(prefix) is True  # by name
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert modeling.detect_lower_case(folder) is False
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n1\n##2\n")  # tells nothing
    assert modeling.detect_lower_case(prefix) is False
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[unused1]\nthe\n##s\n", encoding="utf-8")
    for path in (folder, prefix, folder / "vocab.txt", str(folder)):
        assert modeling.detect_lower_case(path) is True
    (folder / "vocab.txt").write_text("[PAD]\nthe\nThe\n", encoding="utf-8")
    assert modeling.detect_lower_case(prefix) is False
    stray = [
        "\u13a0",
        *(f"piece{i}" for i in range(500)),
    ]  # Cherokee: a capital to Python, yet in uncased files too
    (folder / "vocab.txt").write_text("\n".join(stray), encoding="utf-8")
    assert modeling.detect_lower_case(prefix) is True


def test_lower_case_is_told_from_the_name_or_not_at_all(tmp_path):
    assert modeling.detect_lower_case(tmp_path / "multi_cased_L-12" / "bert_model.ckpt") is False
    assert modeling.detect_lower_case(tmp_path / "bert-base-uncased") is True
    assert modeling.detect_lower_case(tmp_path / "model.ckpt") is None
    (tmp_path / "tokenizer_config.json").write_text("not JSON")
    assert modeling.detect_lower_case(tmp_path) is None


def test_vocabulary_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="vocab.txt: is not UTF-8 text"):
        modeling.detect_lower_case(tmp_path)


@pytest.mark.needs_shared
def test_real_hugging_face_file_says_the_same_as_a_bundle_of_it(shared_dir, tmp_path):
    folder = shared_dir / "models" / "minilm_squad"
    config = modeling.BertConfig.from_json_file(folder / "config.json")
    first, second = (modeling.build_squad_model(config) for _ in range(2))
    modeling.load_weights(first, folder)
    prefix = write_bundle(tmp_path / "model.ckpt-1", {v.path: v.numpy() for v in first.weights})
    modeling.load_weights(second, prefix)
    assert_holds(second, {v.path: v.numpy() for v in first.weights}, rtol=0)
    assert modeling.detect_lower_case(folder) is True
    shutil.rmtree(tmp_path)


STATE = (
    "bad_steps",
    "good_steps",
    "current_loss_scale",
    "loss_scale",
    "num_good_steps",
    "beta2_power_1",
    "local_step",
    "batch_finite",
    "amp/loss_scale",
    "bert/pooler/dense/kernel/lamb_m",
    "bert/pooler/dense/kernel/Adam_1",
    "bert/pooler/dense/kernel/accum",
    "bert/pooler/dense/kernel/Momentum",
    "cls/squad/output_bias/adam_v",
)


def test_state_of_mixed_precision_and_of_optimizers_is_no_weight(squad_model, tmp_path):
    values = values_for(squad_model)
    prefix = write_bundle(tmp_path / "model.ckpt", values | dict.fromkeys(STATE, np.float32(1)))
    assert modeling.load_weights(squad_model, prefix).unexpected == ()
    prefix = write_bundle(
        tmp_path / "model.ckpt", values | {"bert/encoder/bad_kernel": np.float32(1)}
    )
    with pytest.raises(ValueError, match="left over: bert/encoder/bad_kernel"):
        modeling.load_weights(squad_model, prefix)


@pytest.fixture(scope="module")
def squad_model():
    return modeling.build_squad_model(TINY, seed=1)


@pytest.fixture(scope="module")
def classifier():
    return modeling.build_classifier(TINY, 5, seed=1)


# name -> (weights that a checkpoint of another task holds beside the encoder, whether it has a
# pooler)
OTHER_TASKS = {
    "question answering": ({"qa_outputs.weight": (2, 4), "qa_outputs.bias": (2,)}, False),
    "labels of tokens": ({"classifier.weight": (9, 4), "classifier.bias": (9,)}, False),
    "classes": ({"classifier.weight": (3, 4), "classifier.bias": (3,)}, True),
    "masked words": (
        {"cls.predictions.bias": (11,), "cls.predictions.transform.dense.weight": (4, 4)},
        True,
    ),
    "a head of one's own": ({"my_head.0.weight": (5, 4)}, False),
    "no head": ({}, False),
}


@pytest.mark.parametrize("other", OTHER_TASKS)
@pytest.mark.parametrize("build", ["squad_model", "classifier"])
def test_encoder_of_another_task_loads_under_a_fresh_head(other, build, tmp_path, request):
    heads, pooler = OTHER_TASKS[other]
    model = request.getfixturevalue(build)
    shapes = {v.path: v.shape for v in model.weights if v.path.startswith("bert/")}
    shapes |= {"bert/pooler/dense/kernel": (4, 4), "bert/pooler/dense/bias": (4,)}
    rng = np.random.default_rng(len(other))
    encoder = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    stored = {
        name: value
        for name, value in hugging_face_weights(encoder).items()
        if pooler or "pooler" not in name
    }
    save_file(
        stored | {name: np.ones(shape, np.float32) for name, shape in heads.items()},
        tmp_path / "model.safetensors",
    )
    initial = {v.path: v.numpy() for v in model.weights}
    report = modeling.load_weights(model, tmp_path, new_head=True)
    for variable in model.weights:
        same_task = variable.path in report.loaded and not variable.path.startswith("bert/")
        taken = variable.path.startswith("bert/") and (pooler or "pooler" not in variable.path)
        expected = 1.0 if same_task else encoder[variable.path] if taken else initial[variable.path]
        np.testing.assert_array_equal(
            variable.numpy(), np.broadcast_to(expected, variable.shape), err_msg=variable.path
        )
    if (other, build) != ("question answering", "squad_model"):
        with unchanged(model), pytest.raises(ValueError, match="missing|left over|wrong shape"):
            modeling.load_weights(model, tmp_path)  # where nothing may be new


def test_fresh_head_is_no_excuse_for_another_encoder(squad_model, classifier, tmp_path):
    values = values_for(squad_model)
    deeper = values | {"bert/encoder/layer_2/output/dense/bias": np.ones(4, np.float32)}
    shallower = {name: value for name, value in values.items() if "layer_1" not in name}
    wider = values | {"bert/embeddings/word_embeddings": np.ones((12, 4), np.float32)}
    for stored, message in (
        (deeper, "left over: bert/encoder/layer_2"),
        (shallower, "missing: bert/enc"),
        (wider, "wrong shape"),
    ):
        prefix = write_bundle(tmp_path / "model.ckpt", stored)
        with unchanged(classifier), pytest.raises(ValueError, match=message):
            modeling.load_weights(classifier, prefix, new_head=True)


@pytest.mark.parametrize("folder", ["run[1]", "a*b", "a?b", "back\\slash", "[x]{y}*"])
def test_names_that_look_like_patterns_are_names(folder, squad_model, tmp_path):
    values = values_for(squad_model, seed=len(folder))
    place = tmp_path / folder
    place.mkdir()
    for path in tmp_path.glob(f"{write_bundle(tmp_path / 'plain', values).rsplit('/')[-1]}.*"):
        path.rename(place / f"model[2].ckpt{path.suffix}")
    modeling.load_weights(squad_model, place / "model[2].ckpt")
    assert_holds(squad_model, values, rtol=0)


def test_names_of_tensors_are_shown_escaped(squad_model, tmp_path):
    stored = hugging_face_weights(values_for(squad_model)) | {
        "a\x1b[31m\nb": np.ones(1, np.float32)
    }
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"left over: a\\x1b\[31m\\nb \[1\]"):
        modeling.load_weights(squad_model, tmp_path)


def mobilebert_variable(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """The variable of Google's MobileBERT code (mobilebert/modeling.py) for a weight of Hugging
    Face's.
    """
    *scope, parameter = name.removeprefix("mobilebert.").split(".")
    path = "/".join(["bert", *scope]).replace("/layer/", "/layer_").replace("/ffn/", "/ffn_layer_")
    if scope[-1] == "LayerNorm":
        own = {"weight": "gamma", "bias": "beta"}[parameter]
        return f"{path.replace('LayerNorm', 'FakeLayerNorm')}/{own}", value
    if scope[-1].endswith("embeddings"):
        return path, value
    return (f"{path}/kernel", value.T) if parameter == "weight" else (f"{path}/bias", value)


def test_googles_mobilebert_checkpoint_loads_as_its_hugging_face_folder(tmp_path):
    named = hugging_face.MOBILEBERT
    stored = {
        name: value
        for name, value in hugging_face.mobilebert_weights(named).items()
        if name.startswith("mobilebert.")
    }
    folder = hugging_face.write(tmp_path / "folder", named, stored)
    values = dict(mobilebert_variable(name, value) for name, value in stored.items())
    assert {
        "bert/encoder/layer_1/ffn_layer_0/output/FakeLayerNorm/gamma",
        "bert/encoder/layer_0/bottleneck/attention/dense/kernel",
        "bert/encoder/layer_0/output/bottleneck/FakeLayerNorm/beta",
        "bert/embeddings/embedding_transformation/kernel",
        "bert/embeddings/word_embeddings",
    } <= values.keys()
    prefix = write_bundle(tmp_path / "mobilebert_variables.ckpt", values)
    # Google's configuration names no architecture.
    (tmp_path / "bert_config.json").write_text(
        json.dumps({name: value for name, value in named.items() if name != "model_type"})
    )
    config = modeling.config_from_file(tmp_path / "bert_config.json")
    assert config == modeling.config_from_file(folder)
    one, two = (modeling.build_squad_model(config, seed=seed) for seed in (1, 2))
    report = modeling.load_weights(one, prefix, new_head=True)
    assert report.missing == ("cls/squad/output_bias", "cls/squad/output_weights")
    assert modeling.load_weights(two, folder, new_head=True).loaded == report.loaded
    for variable, other in zip(one.weights, two.weights, strict=True):
        if variable.path in report.loaded:
            np.testing.assert_array_equal(variable.numpy(), other.numpy(), err_msg=variable.path)

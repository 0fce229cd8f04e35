"""Checkpoints of quantized models.

Read back bit for bit, here and in another process, or refused with all differences listed.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from encoders import checkpoint as encoder_weights
from tests.graph import models
from tfquant import checkpoint
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

ROWS = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
BOTH = Recipe(
    (Rule(QuantSpec(granularity="per_channel"), "weight"), Rule(QuantSpec(), "linear_input")),
    name="both",
)
ROOT = pathlib.Path(__file__).parents[2]

# Runs in a process of its own; builds each model with other weights, and loads the checkpoint
# into it.
RELOAD = """
    import sys
    import keras, numpy as np, tensorflow as tf
    import modeling, tfquant

    folder = sys.argv[1]
    batch = dict(np.load(f"{folder}/inputs.npz"))
    rows = batch.pop("rows")
    config = modeling.BertConfig.from_json_file(f"{folder}/bert_config.json")
    bert = tfquant.load(f"{folder}/bert", modeling.build_squad_model(config, seed=99))
    logits = bert(batch)

    x = keras.Input((6,))
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dense(6), keras.layers.Dense(3)]
    numbered = tfquant.load(f"{folder}/numbered", keras.Model(x, layers[2](layers[1](layers[0](x)))))

    kernel, offset = tf.Variable(tf.zeros([6, 2]), name="kernel"), tf.Variable(tf.zeros([2]), name="offset")
    function = tfquant.load(f"{folder}/function", lambda x: tf.matmul(x, kernel) + offset, signature=tf.TensorSpec([None, 6]))
    np.savez(f"{folder}/outputs.npz", numbered=numbered(rows), function=function(rows), names=[v.path for v in numbered.weights],
             range=bert.ranges()["bert/encoder/layer_0/output/dense:weight:kernel"][1], **logits)
"""  # noqa: E501


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def numbered_model() -> keras.Model:
    """Layers without names, which Keras numbers by how many it has made; two of one shape, so that
    a mix-up shows.
    """
    x = keras.Input((6,))
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dense(6), keras.layers.Dense(3)]
    return keras.Model(x, layers[2](layers[1](layers[0](x))))


def assert_same_state(a, b):
    for first, second in zip(a.ranges().values(), b.ranges().values(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module")
def batch(make_bert_batch):
    return make_bert_batch([9, 4, 7])


@pytest.fixture(scope="module")
def bert(tiny_bert_config, batch):
    """Calibrated, on all placements; with dropout, whose random states are no weights."""
    model = modeling.build_squad_model(tiny_bert_config, seed=1)
    return tfquant.quantize(model, "int8_residual_both", [batch], progress=False)


@pytest.fixture(scope="module")
def bert_prefix(bert, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("bert") / "model.ckpt-calibrated"
    tfquant.save(bert, prefix, extra={"global_step": np.int64(7)})
    return prefix


@pytest.fixture
def two(make_two_dense):
    return tfquant.quantize(make_two_dense(), BOTH, [ROWS], progress=False)


# Back again


def test_another_process_gives_bit_equal_outputs(bert, batch, tiny_bert_config, tmp_path):
    keras.layers.Dense(1)
    numbered = tfquant.quantize(numbered_model(), BOTH, [ROWS], progress=False)
    kernel = tf.Variable(
        np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32), name="kernel"
    )
    offset = tf.Variable([1.0, 2.0], name="offset")
    function = tfquant.quantize(
        lambda x: tf.matmul(x, kernel) + offset,
        BOTH,
        [ROWS],
        signature=tf.TensorSpec([None, 6]),
        progress=False,
    )
    for name, model in (("bert", bert), ("numbered", numbered), ("function", function)):
        tfquant.save(model, tmp_path / name)
    np.savez(tmp_path / "inputs.npz", rows=ROWS, **batch)
    (tmp_path / "bert_config.json").write_text(json.dumps(dataclasses.asdict(tiny_bert_config)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RELOAD), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.load(tmp_path / "outputs.npz")
    for name, logits in bert(batch).items():
        np.testing.assert_array_equal(theirs[name], logits)
    np.testing.assert_array_equal(theirs["numbered"], numbered(ROWS))
    np.testing.assert_array_equal(theirs["function"], function(ROWS))
    np.testing.assert_array_equal(
        theirs["range"], bert.ranges()["bert/encoder/layer_0/output/dense:weight:kernel"][1]
    )
    assert set(theirs["names"]) != {v.path for v in numbered.weights}  # the numbers did differ
    bert.set_mode("float")
    different = bert(batch)
    bert.set_mode("quantized")
    assert any((theirs[name] != logits.numpy()).any() for name, logits in different.items())


def test_loading_overwrites_the_weights_of_the_model_and_shares_them(
    bert, bert_prefix, batch, tiny_bert_config
):
    model = modeling.build_squad_model(tiny_bert_config, seed=2)
    loaded = tfquant.load(bert_prefix, model)
    for mine, theirs in zip(model.trainable_weights, bert.original.trainable_weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name, logits in bert(batch).items():
        np.testing.assert_array_equal(loaded(batch)[name], logits)
    assert loaded.recipe == bert.recipe and loaded.calibrated and loaded.mode == "quantized"
    assert_same_state(loaded, bert)


def test_a_model_for_one_length_reads_the_file_of_a_model_for_any(
    bert, bert_prefix, batch, tiny_bert_config
):
    loaded = tfquant.load(
        bert_prefix, modeling.build_squad_model(tiny_bert_config, sequence_length=9, seed=2)
    )
    for name, logits in bert(batch).items():
        np.testing.assert_allclose(loaded(batch)[name], logits, atol=1e-5)


# test_renaming.py stands for it.
@pytest.mark.long
@pytest.mark.parametrize("made_before", [1, 3])
def test_layers_numbered_otherwise_are_matched_by_their_order(tmp_path, made_before):
    keras.backend.clear_session()
    saved = tfquant.quantize(numbered_model(), BOTH, [ROWS], progress=False)
    tfquant.save(saved, tmp_path / "model")
    keras.backend.clear_session()
    for _ in range(made_before):
        keras.layers.Dense(1)
    other = numbered_model()
    common = {v.path for v in other.weights} & {v.path for v in saved.original.weights}
    assert len(common) == (4 if made_before == 1 else 0)  # names in common mean other layers
    loaded = tfquant.load(tmp_path / "model", other)
    np.testing.assert_array_equal(loaded(ROWS), saved(ROWS))
    assert_same_state(loaded, saved)


def test_keras_save_weights_and_load_weights_carry_the_ranges(two, make_two_dense, tmp_path):
    two.save_weights(tmp_path / "q.weights.h5")
    fresh = tfquant.quantize(make_two_dense(seed=9), BOTH)
    assert not fresh.calibrated
    fresh.load_weights(tmp_path / "q.weights.h5")
    assert fresh.calibrated
    np.testing.assert_array_equal(fresh(ROWS), two(ROWS))
    np.testing.assert_array_equal(fresh.predict(ROWS, verbose=0), two.predict(ROWS, verbose=0))
    assert_same_state(fresh, two)


def test_keras_save_weights_of_bert_carries_the_ranges(bert, batch, tiny_bert_config, tmp_path):
    bert.save_weights(tmp_path / "bert.weights.h5")
    fresh = tfquant.quantize(modeling.build_squad_model(tiny_bert_config, seed=5), bert.recipe)
    fresh.load_weights(tmp_path / "bert.weights.h5")
    for name, logits in bert(batch).items():
        np.testing.assert_array_equal(fresh(batch)[name], logits)


def test_a_trained_and_compiled_model_is_saved_without_metrics_and_optimizer(
    two, make_two_dense, tmp_path
):
    two.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    two.fit(ROWS, np.ones((40, 3)), verbose=0)
    two.evaluate(ROWS, np.ones((40, 3)), verbose=0)
    tfquant.save(two, tmp_path / "trained")
    names = [
        n
        for n in tf.train.load_checkpoint(str(tmp_path / "trained")).get_variable_to_shape_map()
        if "tfquant/" not in n
    ]
    assert sorted(names) == ["first/bias", "first/kernel", "second/bias", "second/kernel"]
    np.testing.assert_array_equal(
        tfquant.load(tmp_path / "trained", make_two_dense(seed=4))(ROWS), two(ROWS)
    )


def test_moving_statistics_are_saved(tmp_path):
    def build():
        layers = [
            keras.Input((6,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.BatchNormalization(name="norm"),
        ]
        return keras.Sequential([*layers, keras.layers.Dense(2, name="last")])

    model = build()
    model.get_layer("norm").moving_mean.assign([1.0, -2.0, 3.0, 0.5])
    saved = tfquant.quantize(model, BOTH, [ROWS], progress=False)
    tfquant.save(saved, tmp_path / "model")
    np.testing.assert_array_equal(tfquant.load(tmp_path / "model", build())(ROWS), saved(ROWS))


def test_uncalibrated_model_stays_uncalibrated(make_two_dense, tmp_path):
    model = make_two_dense()
    tfquant.save(tfquant.quantize(model, BOTH), tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", make_two_dense(seed=3))
    assert not loaded.calibrated
    with pytest.raises(tfquant.UncalibratedError, match="4 of 4 sites have none"):
        loaded(ROWS)
    loaded.set_mode("float")
    np.testing.assert_array_equal(loaded(ROWS), model(ROWS))
    tfquant.calibrate(loaded, [ROWS], progress=False)
    np.testing.assert_array_equal(
        loaded(ROWS), tfquant.quantize(model, BOTH, [ROWS], progress=False)(ROWS)
    )


def test_sites_without_a_range_stay_without_among_others(two, make_two_dense, tmp_path):
    quantizer = two.quantizers["second:weight:kernel"]
    quantizer.lower.assign(np.full(3, np.nan))
    tfquant.save(two, tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", make_two_dense())
    with pytest.raises(
        tfquant.UncalibratedError, match=r"site second:weight:kernel has no range \(1 of 4"
    ):
        loaded(ROWS)


def test_every_part_of_the_recipe_comes_back(make_two_dense, tmp_path):
    recipe = dataclasses.replace(
        BOTH.with_spec(roles=["linear_input"], format="int6", symmetric=False).with_method(
            "percentile", percentile=99.0
        ),
        share=False,
        disable=("first:weight",),
        name="special",
    )
    saved = tfquant.quantize(make_two_dense(), recipe, [ROWS], progress=False)
    tfquant.save(saved, tmp_path / "model")
    loaded = tfquant.load(tmp_path / "model", make_two_dense(seed=8))
    assert loaded.recipe == recipe
    assert [(s.address, s.spec, s.enabled) for s in loaded.plan.sites] == [
        (s.address, s.spec, s.enabled) for s in saved.plan.sites
    ]
    np.testing.assert_array_equal(loaded(ROWS), saved(ROWS))


def test_saving_again_replaces_the_file_as_a_whole(two, make_two_dense, tmp_path):
    prefix = tmp_path / "deep" / "folders" / "model"
    tfquant.save(two, prefix, extra={"global_step": 1})
    tfquant.calibrate(two, [ROWS * 5], progress=False)
    tfquant.save(two, str(prefix))
    assert "global_step" not in checkpoint.read(prefix)
    assert_same_state(tfquant.load(prefix, make_two_dense()), two)


# The file is an ordinary checkpoint


def test_tensorflow_reads_googles_names_and_ours_below_one_prefix(bert, bert_prefix):
    reader = tf.train.load_checkpoint(str(bert_prefix))
    names = set(reader.get_variable_to_shape_map())
    weights = {v.path: v.numpy() for v in bert.original.weights}
    assert {n for n in names if not n.startswith("tfquant/")} == set(weights) | {"global_step"}
    assert (
        "bert/encoder/layer_0/attention/self/query/kernel" in names
        and "cls/squad/output_weights" in names
    )
    for name, value in weights.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value)
    for address, ends in bert.ranges().items():
        for end, value in zip(("lower", "upper"), ends, strict=True):
            np.testing.assert_array_equal(
                reader.get_tensor(f"tfquant/ranges/{address}/{end}"), value
            )
    assert reader.get_tensor("global_step") == 7
    assert Recipe.from_json(reader.get_tensor("tfquant/recipe").decode()) == bert.recipe


def test_modeling_reads_the_weights_and_ignores_the_rest(
    bert, bert_prefix, batch, tiny_bert_config
):
    model = modeling.build_squad_model(tiny_bert_config, seed=4)
    report = encoder_weights.load_weights(model, str(bert_prefix))
    assert not report.missing and not report.unexpected
    for name, logits in bert.original(batch).items():
        np.testing.assert_array_equal(model(batch)[name], logits)


def test_functions_are_saved_under_the_names_of_their_variables(tmp_path):
    def make(seed):
        rng = np.random.default_rng(seed)
        kernels = [
            tf.Variable(rng.normal(size=s).astype(np.float32), name=n)
            for s, n in (((6, 4), "inner"), ((4, 2), "outer"))
        ]
        unnamed = [tf.Variable(rng.normal(size=n).astype(np.float32)) for n in (4, 2)]
        return lambda x: tf.nn.relu(x @ kernels[0] + unnamed[0]) @ kernels[1] + unnamed[1]

    saved = tfquant.quantize(make(0), BOTH, [ROWS], progress=False)
    tfquant.save(saved, tmp_path / "function")
    names = {n for n in checkpoint.read(tmp_path / "function") if not n.startswith("tfquant/")}
    assert {"inner", "outer"} < names and len(names) == 4
    loaded = tfquant.load(tmp_path / "function", make(1), inputs=ROWS)
    np.testing.assert_array_equal(loaded(ROWS), saved(ROWS))
    assert isinstance(loaded, tfquant.QuantizedFunction)


# Refusals


def refused(prefix, model, message, kind=ValueError):
    """Loads in vain: one line, and the weights of the model as before."""
    before = [v.numpy() for v in model.weights]
    with pytest.raises(kind, match=message) as error:
        tfquant.load(prefix, model)
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, variable)
    return one_line(error)


def test_checkpoint_of_another_size_lists_every_shape(bert_prefix, tiny_bert_config):
    larger = modeling.build_squad_model(
        dataclasses.replace(tiny_bert_config, hidden_size=16), seed=0
    )
    text = refused(bert_prefix, larger, "model.ckpt-calibrated: shapes differ from the model's: ")
    assert "bert/embeddings/word_embeddings: [30, 8] in the file, [30, 16] in the model" in text
    assert text.count(" in the file, ") == len([v for v in larger.weights if 16 in v.shape])


def test_checkpoint_with_other_layers_lists_missing_and_left_over_sites(
    bert_prefix, tiny_bert_config
):
    deeper = modeling.build_squad_model(
        dataclasses.replace(tiny_bert_config, num_hidden_layers=2), seed=0
    )
    text = refused(
        bert_prefix,
        deeper,
        "sites differ from the model's. Missing in the file: .*layer_1/.*Left over: ",
    )
    assert (
        "bert/encoder/layer_1/output/dense:weight:kernel" in text
        and "layer_0/output/dense:weight" not in text
    )


def test_fewer_layers_than_the_file_lists_what_is_left_over(tmp_path):
    def build(names):
        return keras.Sequential(
            [keras.Input((6,)), *(keras.layers.Dense(6, name=n) for n in names)], name="letters"
        )

    tfquant.save(tfquant.quantize(build("abc"), BOTH, [ROWS], progress=False), tmp_path / "model")
    text = refused(tmp_path / "model", build("ab"), "Missing in the file: none. Left over: ")
    assert "'letters/c:weight:kernel'" in text and "a:weight" not in text
    text = refused(
        tmp_path / "model", build("abd"), "Missing in the file: .*Left over: "
    )  # same shapes, another name: no guess
    assert "'letters/d:weight:kernel'" in text and "'letters/c:weight:kernel'" in text


def test_variables_without_a_site_are_compared_too(tmp_path):
    def build(use_bias):
        return keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(3, name="dense", use_bias=use_bias)], name="one"
        )

    for saved, loaded, message in (
        (True, False, r"Missing: none. Left over: \['one/dense/bias'\]"),
        (False, True, r"Missing: \['one/dense/bias'\]. Left over: none"),
    ):
        tfquant.save(
            tfquant.quantize(build(saved), BOTH, [ROWS], progress=False), tmp_path / "model"
        )
        refused(
            tmp_path / "model",
            build(loaded),
            "model: variables differ from the model's. " + message,
        )


def test_checkpoint_of_a_float_model_says_it_has_no_recipe(bert, tiny_bert_config, tmp_path):
    checkpoint.write(tmp_path / "float", {v.path: v.value for v in bert.original.weights})
    model = modeling.build_squad_model(tiny_bert_config, seed=0)
    refused(
        tmp_path / "float",
        model,
        "float: holds weights but no recipe: it was not written by tfquant.save",
    )


def test_missing_checkpoint_lists_what_is_there(two, make_two_dense, tmp_path):
    tfquant.save(two, tmp_path / "model.ckpt-5")
    refused(
        tmp_path / "model.ckpt-6",
        make_two_dense(),
        "no checkpoint .*model.ckpt-6.*model.ckpt-5",
        FileNotFoundError,
    )


def test_damaged_checkpoint_is_named(two, make_two_dense, tmp_path):
    tfquant.save(two, tmp_path / "model")
    data = tmp_path / "model.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    refused(
        tmp_path / "model",
        make_two_dense(),
        "checkpoint .*model is damaged",
        checkpoint.CheckpointError,
    )


@pytest.mark.parametrize("place", ["file/model", "/proc/nowhere/model"])
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(two, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        checkpoint.CheckpointError, match="cannot write checkpoint .*model: "
    ) as error:
        tfquant.save(two, tmp_path / place)
    one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert two.calibrated


def test_model_without_quantizers_is_not_saved(make_two_dense, tmp_path):
    with pytest.raises(
        TypeError, match="expected a model from tfquant.quantize or tfquant.load, got Functional"
    ):
        tfquant.save(make_two_dense(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_layers_of_one_name_are_told_apart_by_the_order_of_data(tmp_path):
    quantized = tfquant.quantize(models.TwoOfAName(), BOTH, [ROWS], progress=False)
    tfquant.save(quantized, tmp_path / "model")
    fresh = tfquant.load(tmp_path / "model", models.TwoOfAName(), inputs=ROWS)
    assert np.array_equal(fresh(ROWS), quantized(ROWS))
    assert {"twins/dense/kernel", "twins/dense_1/kernel"} <= set(
        checkpoint.read(tmp_path / "model")
    )

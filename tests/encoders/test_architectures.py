"""RoBERTa, DistilBERT and MobileBERT read from Hugging Face directories.

Outputs against KerasHub and NumPy, heads, errors.
"""

import dataclasses
import json

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import modeling
from tests.encoders import hugging_face
from tests.encoders.mobilebert_reference import mobilebert_states
from tfquant import checkpoint

TOLERANCE = dict(rtol=0, atol=1e-5)
ARCHITECTURES = list(hugging_face.CONFIGS)


def keras_hub_states(backbone, layers, names, weights, batch) -> np.ndarray:
    """[B, S, H] of a KerasHub backbone with the weights of a Hugging Face file.

    Args:
        backbone: whose embeddings are set already.
        layers: scope of a layer in the file, with the number left open.
        names: in the file, of query, key, value, output projection, its norm, both linears of the
          FFN, their norm.
    """

    def assign(layer, name):
        kernel, bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
        layer.set_weights(
            [value.reshape(v.shape) for value, v in zip((kernel, bias), layer.weights, strict=True)]
        )

    for i, layer in enumerate(backbone.transformer_layers):
        attention = layer._self_attention_layer
        parts = (
            attention._query_dense,
            attention._key_dense,
            attention._value_dense,
            attention._output_dense,
            layer._self_attention_layer_norm,
            layer._feedforward_intermediate_dense,
            layer._feedforward_output_dense,
            layer._feedforward_layer_norm,
        )
        for part, name in zip(parts, names, strict=True):
            assign(part, f"{layers.format(i)}.{name}")
    inputs = {"token_ids": batch["input_ids"], "padding_mask": batch["input_mask"]}
    return backbone(inputs, training=False).numpy()


def roberta_states(config, weights, batch) -> np.ndarray:
    backbone = keras_hub.models.RobertaBackbone(
        config["vocab_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["hidden_size"],
        config["intermediate_size"],
        max_sequence_length=hugging_face.POSITIONS,
    )
    embeddings = {
        name: weights[f"roberta.embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    }
    # KerasHub has no token types, and its positions begin at the first token.
    backbone.token_embedding.set_weights([embeddings["word"] + embeddings["token_type"][0]])
    backbone.embeddings.position_embedding.set_weights([embeddings["position"][2:]])
    norm = [weights[f"roberta.embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]
    backbone.embeddings_layer_norm.set_weights(norm)
    names = (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    return keras_hub_states(backbone, "roberta.encoder.layer.{}", names, weights, batch)


def distilbert_states(config, weights, batch) -> np.ndarray:
    backbone = keras_hub.models.DistilBertBackbone(
        config["vocab_size"],
        config["n_layers"],
        config["n_heads"],
        config["dim"],
        config["hidden_dim"],
        max_sequence_length=config["max_position_embeddings"],
    )
    backbone.token_embedding.set_weights([weights["distilbert.embeddings.word_embeddings.weight"]])
    backbone.embeddings.position_embedding.set_weights(
        [weights["distilbert.embeddings.position_embeddings.weight"]]
    )
    norm = [weights[f"distilbert.embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]
    backbone.embeddings_layer_norm.set_weights(norm)
    names = (
        *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    )
    return keras_hub_states(backbone, "distilbert.transformer.layer.{}", names, weights, batch)


STATES = {
    "roberta": roberta_states,
    "distilbert": distilbert_states,
    "mobilebert": mobilebert_states,
}


def logits(name, states, weights) -> np.ndarray:
    """[B, 3] of the classification head, as its architecture has it, from [B, S, H]."""

    def linear(layer, x):
        return x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]

    first = states[:, 0]
    if name == "roberta":
        return linear("classifier.out_proj", np.tanh(linear("classifier.dense", first)))
    if name == "distilbert":
        return linear("classifier", np.maximum(linear("pre_classifier", first), 0.0))
    pooled = (
        np.tanh(linear("mobilebert.pooler.dense", first))
        if "mobilebert.pooler.dense.weight" in weights
        else first
    )
    return linear("classifier", pooled)


def loaded(build, config, weights, folder, *args, shards=1, **options):
    """A model built and loaded from a directory, and the report."""
    hugging_face.write(folder, config, weights, shards)
    model = build(modeling.config_from_file(folder), *args, seed=0)
    return model, modeling.load_weights(model, folder, **options)


@pytest.mark.representatives(
    "roberta-changes1-3", "distilbert-changes2-1", "mobilebert-changes5-2", "mobilebert-changes8-1"
)
@pytest.mark.parametrize(
    ("name", "changes", "shards"),
    [
        ("roberta", {}, 1),
        ("roberta", {}, 3),
        ("distilbert", {}, 1),
        ("distilbert", {}, 3),
        ("mobilebert", {}, 1),
        ("mobilebert", {"classifier_activation": True}, 2),
        ("mobilebert", {"normalization_type": "layer_norm"}, 1),
        (
            "mobilebert",
            {"normalization_type": "layer_norm", "layer_norm_eps": 1e-3, "hidden_act": "gelu"},
            1,
        ),
        ("mobilebert", {"use_bottleneck_attention": True, "num_feedforward_networks": 1}, 1),
        ("mobilebert", {"use_bottleneck": False, "trigram_input": False}, 1),
    ],
)
def test_classifier_from_a_directory_has_the_logits_of_the_reference(
    name, changes, shards, tmp_path
):
    config = hugging_face.CONFIGS[name] | changes
    weights = hugging_face.WEIGHTS[name](config, "classification")
    model, report = loaded(modeling.build_classifier, config, weights, tmp_path, 3, shards=shards)
    assert report.missing == () and set(report.loaded) == {v.path for v in model.weights}
    batch = hugging_face.batch(config)
    wanted = logits(name, STATES[name](config, weights, batch), weights)
    np.testing.assert_allclose(model(batch, training=False)["logits"], wanted, **TOLERANCE)


@pytest.mark.representatives("distilbert", "mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_squad_model_has_the_scores_of_the_reference_at_every_token(name, tmp_path):
    config = hugging_face.CONFIGS[name]
    weights = hugging_face.WEIGHTS[name](config, "squad")
    model, report = loaded(modeling.build_squad_model, config, weights, tmp_path)
    assert report.missing == report.unexpected == ()
    batch = hugging_face.batch(config)
    wanted = (
        STATES[name](config, weights, batch) @ weights["qa_outputs.weight"].T
        + weights["qa_outputs.bias"]
    )
    got = model(batch, training=False)
    tokens = batch["input_mask"] > 0  # at padding KerasHub's RoBERTa has other positions
    np.testing.assert_allclose(
        got["start_logits"].numpy()[tokens], wanted[tokens][:, 0], **TOLERANCE
    )
    np.testing.assert_allclose(got["end_logits"].numpy()[tokens], wanted[tokens][:, 1], **TOLERANCE)


@pytest.mark.representatives("mobilebert-True")
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_base_model_leaves_the_head_fresh_and_reports_it(name, prefix, tmp_path):
    config = hugging_face.CONFIGS[name]
    weights = hugging_face.WEIGHTS[name](config)
    if not prefix:  # as the bare encoder is stored
        weights = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
    model, report = loaded(
        modeling.build_classifier, config, weights, tmp_path, 3, allow_missing=modeling.HEAD_NAMES
    )
    dense = {"roberta": "classifier/dense", "distilbert": "pre_classifier/dense"}
    hidden = [f"{dense[name]}/{part}" for part in ("bias", "kernel")] if name in dense else []
    assert sorted(report.missing) == sorted([*hidden, "output_bias", "output_weights"])
    fresh = modeling.build_classifier(modeling.config_from_file(tmp_path), 3, seed=0)
    for ours, initial in zip(model.weights, fresh.weights, strict=True):
        assert np.array_equal(ours, initial) == (ours.path in report.missing), ours.path


@pytest.mark.representatives("distilbert", "mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_stored_weight_becomes_one_variable_with_its_values(name, tmp_path):
    config = hugging_face.CONFIGS[name]
    weights = hugging_face.WEIGHTS[name](config, "classification")
    model, _ = loaded(modeling.build_classifier, config, weights, tmp_path, 3)
    stored = sorted(np.sort(value.ravel()).tobytes() for value in weights.values())
    assert sorted(np.sort(v.numpy().ravel()).tobytes() for v in model.weights) == stored
    assert all(v.path.startswith((f"{name}/", *modeling.HEAD_NAMES)) for v in model.weights)


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_written_by_name_are_read_again_by_name(name, tmp_path):
    config = hugging_face.CONFIGS[name]
    model, _ = loaded(
        modeling.build_classifier,
        config,
        hugging_face.WEIGHTS[name](config, "classification"),
        tmp_path / "hub",
        3,
    )
    checkpoint.write(tmp_path / "model.ckpt", {v.path: v.numpy() for v in model.weights})
    again = modeling.build_classifier(modeling.config_from_file(tmp_path / "hub"), 3, seed=9)
    report = modeling.load_weights(again, tmp_path / "model.ckpt")
    assert report.missing == report.unexpected == ()
    for ours, same in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, same, err_msg=ours.path)


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", ["roberta", "mobilebert"])
def test_pooled_output_of_a_base_model_is_tanh_of_its_dense_layer(name, tmp_path):
    config = hugging_face.CONFIGS[name] | (
        {"classifier_activation": True} if name == "mobilebert" else {}
    )
    weights = hugging_face.WEIGHTS[name](config)
    model, report = loaded(modeling.build_encoder, config, weights, tmp_path)
    assert report.missing == ()
    batch = hugging_face.batch(config)
    first = STATES[name](config, weights, batch)[:, 0]
    wanted = np.tanh(
        first @ weights[f"{name}.pooler.dense.weight"].T + weights[f"{name}.pooler.dense.bias"]
    )
    np.testing.assert_allclose(model(batch, training=False)["pooled_output"], wanted, **TOLERANCE)


def test_distilbert_encoder_has_no_pooled_output():
    config = modeling.DistilBertConfig(50, 16, 1, 4, 24)
    assert list(modeling.build_encoder(config).output) == ["sequence_output"]


def test_roberta_counts_positions_past_the_padding_token_wherever_it_stands():
    config = modeling.RobertaConfig(50, 8, 1, 2, 12, max_position_embeddings=12, pad_token_id=1)
    layer = modeling.Roberta(config, seed=0).embeddings
    layer.build(None)
    ids = np.array([[7, 1, 8, 9, 1, 1], [1, 1, 5, 5, 5, 5]], np.int32)
    words, types, positions = (
        layer.tables[f"{name}_embeddings"].numpy() for name in ("word", "token_type", "position")
    )
    x = words[ids] + types[0] + positions[[[2, 1, 3, 4, 1, 1], [1, 1, 2, 3, 4, 5]]]
    wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + config.layer_norm_eps
    )
    np.testing.assert_allclose(layer(ids, np.ones_like(ids)), wanted, **TOLERANCE)


@pytest.mark.representatives("distilbert")
@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_segment_ids_change_nothing_where_an_architecture_has_no_segments(name, tmp_path):
    config = hugging_face.CONFIGS[name]
    weights = hugging_face.WEIGHTS[name](config, "classification")
    model, _ = loaded(modeling.build_classifier, config, weights, tmp_path, 3)
    batch = hugging_face.batch(config)
    other = batch | {"segment_ids": np.full_like(batch["segment_ids"], 5)}
    np.testing.assert_array_equal(
        model(batch, training=False)["logits"], model(other, training=False)["logits"]
    )


def tiny(name: str, **changes):
    """Configuration of an architecture without a file."""
    own = {
        "mobilebert": {
            "embedding_size": 6,
            "intra_bottleneck_size": 8,
            "num_feedforward_networks": 2,
        }
    }.get(name, {})
    kinds = {
        "roberta": modeling.RobertaConfig,
        "distilbert": modeling.DistilBertConfig,
        "mobilebert": modeling.MobileBertConfig,
    }
    return kinds[name](
        50, 16, 1, 4, 24, max_position_embeddings=22, hidden_dropout_prob=0.1, **own | changes
    )


@pytest.mark.representatives("mobilebert-*")
@pytest.mark.parametrize(
    ("name", "places"),
    [
        (
            "roberta",
            [
                "roberta/embeddings",
                "attention/self",
                "attention/output",
                "output",
                "classifier",
                "out_proj",
            ],
        ),
        ("distilbert", ["distilbert/embeddings", "attention/self", "output", "classifier"]),
        (
            "mobilebert",
            ["mobilebert/embeddings", "attention/self", "output/bottleneck", "classifier"],
        ),
    ],
)
def test_training_draws_dropout_where_the_architecture_has_it_and_inference_does_not(name, places):
    model = modeling.build_classifier(tiny(name), 3, seed=0)
    states = {v.path: v for v in model.variables if v.path.endswith("seed_generator_state")}
    before = {path: state.numpy().tolist() for path, state in states.items()}
    batch = hugging_face.batch(hugging_face.CONFIGS[name])
    model(batch, training=False)
    assert {path: state.numpy().tolist() for path, state in states.items()} == before
    trained = tf.function(lambda inputs: model(inputs, training=True)["logits"])
    inputs = {key: tf.constant(value) for key, value in batch.items()}
    first, second = trained(inputs), trained(inputs)
    assert np.isfinite(first).all() and not np.allclose(first, second)
    used = {path for path, state in states.items() if state.numpy().tolist() != before[path]}
    prefixes = {
        (
            place
            if place.startswith(name) or place in ("classifier", "out_proj")
            else f"{name}/encoder/layer_0/{place}"
        )
        for place in places
    }
    assert used == {f"{prefix}/dropout/random/seed_generator_state" for prefix in prefixes}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_reaches_every_variable_and_dropout_can_be_turned_off(name):
    model = modeling.build_classifier(tiny(name, initializer_range=0.3), 3, seed=0, dropout=False)
    batch = hugging_face.batch(hugging_face.CONFIGS[name])
    np.testing.assert_array_equal(
        model(batch, training=True)["logits"], model(batch, training=False)["logits"]
    )
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch, training=True)["logits"] ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        # Softmax is blind to what all keys share, so the key bias learns nothing but rounding
        # noise.
        assert tf.norm(tf.convert_to_tensor(gradient)) > 1e-4 or variable.path.endswith(
            "key/bias"
        ), variable.path


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initial_weights_follow_the_seed_and_no_two_are_alike(name):
    first, again, other = (
        modeling.build_classifier(tiny(name), 3, seed=seed) for seed in (5, 5, 6)
    )
    for ours, same in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, same, err_msg=ours.path)
    drawn = [
        v.numpy().ravel()[:8].tobytes()
        for v in (*first.weights, *other.weights)
        if v.numpy().std() > 0
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_survive_a_keras_file(name, tmp_path):
    model = modeling.build_classifier(tiny(name), 3, seed=1)
    model.save(tmp_path / "model.keras")
    kinds = (
        modeling.Roberta,
        modeling.DistilBert,
        modeling.MobileBert,
        modeling.FirstToken,
        modeling.Head,
    )
    again = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={kind.__name__: kind for kind in kinds}
    )
    batch = hugging_face.batch(hugging_face.CONFIGS[name])
    np.testing.assert_array_equal(
        again(batch, training=False)["logits"], model(batch, training=False)["logits"]
    )
    assert [v.path for v in again.weights] == [v.path for v in model.weights]


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_policy_keeps_variables_and_logits_in_float32(name):
    single, half = (
        modeling.build_classifier(tiny(name), 3, seed=0, dtype=dtype)
        for dtype in (None, "mixed_bfloat16")
    )
    batch = hugging_face.batch(hugging_face.CONFIGS[name])
    got = half(batch, training=False)["logits"]
    assert got.dtype == tf.float32 and {v.dtype for v in half.weights} == {"float32"}
    np.testing.assert_allclose(got, single(batch, training=False)["logits"], atol=5e-3)


@pytest.mark.representatives("mobilebert")
@pytest.mark.parametrize("name", [*ARCHITECTURES, "bert"])
def test_float64_policy_computes_everything_in_float64_and_answers_as_float32_does(name):
    config = (
        modeling.BertConfig(20, 16, 2, 2, 24, max_position_embeddings=12)
        if name == "bert"
        else tiny(name)
    )
    single, double = (
        modeling.build_classifier(config, 3, seed=0, dtype=dtype)
        for dtype in ("float32", "float64")
    )
    assert {v.dtype for v in double.weights} == {"float64"}
    for one, two in zip(single.weights, double.weights, strict=True):
        two.assign(one.numpy())
    ids = np.random.default_rng(0).integers(4, 20, (3, 8)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "input_mask": (np.arange(8) < [[8], [5], [2]]).astype(np.int32),
        "segment_ids": ids % 2,
    }
    exact, rounded = (model(batch)["logits"].numpy() for model in (double, single))
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-6)
    assert exact.dtype == np.float64 and np.abs(exact - rounded).max() > 0
    graph = tf.function(double).get_concrete_function(batch).graph
    contractions = [
        op
        for op in graph.get_operations()
        if op.type in ("MatMul", "BatchMatMulV2", "Einsum", "Softmax", "Erf")
    ]
    assert len(contractions) > 10 and all(op.outputs[0].dtype == tf.float64 for op in contractions)


def test_length_that_roberta_has_no_positions_for_is_refused():
    config = tiny("roberta")  # 22 positions, of which tokens have those from 2 on
    limit = r"20 \(max_position_embeddings 22 - pad_token_id - 1\)"
    with pytest.raises(
        ValueError,
        match=f"sequence_length must be between 1 and the configuration's {limit}, got 21",
    ):
        modeling.build_squad_model(config, sequence_length=21)
    model = modeling.build_squad_model(config)
    assert model(hugging_face.batch(hugging_face.ROBERTA, length=20))["start_logits"].shape == (
        3,
        20,
    )
    with pytest.raises(ValueError, match=f"sequence length 21 is above {limit}"):
        model(hugging_face.batch(hugging_face.ROBERTA, length=21))


def test_configurations_are_told_by_their_model_type(tmp_path):
    google = {
        key: value
        for key, value in hugging_face.ROBERTA.items()
        if key not in ("model_type", "layer_norm_eps")
    }
    kinds = {
        "bert": modeling.BertConfig,
        "roberta": modeling.RobertaConfig,
        "distilbert": modeling.DistilBertConfig,
        "mobilebert": modeling.MobileBertConfig,
    }
    for name, kind in kinds.items():
        file = tmp_path / name / ("bert_config.json" if name == "bert" else "config.json")
        file.parent.mkdir()
        file.write_text(json.dumps(google if name == "bert" else hugging_face.CONFIGS[name]))
        config = modeling.config_from_file(file.parent)
        assert type(config) is kind and config == modeling.config_from_file(file)
        sizes = (
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
        )
        assert (*sizes, config.intermediate_size) == (50, 16, 2, 4, 24)
    assert modeling.config_from_file(tmp_path / "distilbert").classifier_dropout_prob == 0.2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "roberta",
            {"model_type": "albert"},
            "model_type 'albert' is not supported; supported: bert, roberta, distil",
        ),
        ("roberta", {"model_type": ["roberta"]}, r"model_type \['roberta'\] is not supported"),
        (
            "roberta",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', but only 'absolute'",
        ),
        ("roberta", {"is_decoder": True}, "is_decoder is True, but only False"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id must be a non-negative integer, got -1"),
        ("roberta", {"pad_token_id": 50}, "pad_token_id 50 is too large for vocab_size 50"),
        (
            "roberta",
            {"classifier_dropout": 1.5},
            r"classifier_dropout must be in \[0, 1\), got 1.5",
        ),
        (
            "distilbert",
            {"n_heads": 5},
            (
                r"hidden_size \(dim in its file\) 16 is not a multiple of num_attention_heads"
                r" \(n_heads"
            ),
        ),
        (
            "distilbert",
            {"dim": 0},
            r"hidden_size \(dim in its file\) must be a positive integer, got 0",
        ),
        (
            "distilbert",
            {"activation": "silu"},
            r"unknown hidden_act \(activation in its file\) 'silu'; known: gelu",
        ),
        ("distilbert", {"qa_dropout": "0.1"}, "qa_dropout must be a number, got '0.1'"),
        (
            "mobilebert",
            {"normalization_type": "rms"},
            "unknown normalization_type 'rms'; known: no_norm, layer_norm",
        ),
        ("mobilebert", {"trigram_input": 1}, "trigram_input must be true or false, got 1"),
        (
            "mobilebert",
            {"intra_bottleneck_size": 6},
            "intra_bottleneck_size 6 is not a multiple of num_attention_heads 4",
        ),
        (
            "mobilebert",
            {"key_query_shared_bottleneck": False},
            "use_bottleneck without use_bottleneck_attention or key_query",
        ),
    ],
)
def test_wrong_configuration_is_one_line_with_the_key_and_the_file(
    name, changes, message, tmp_path
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hugging_face.CONFIGS[name] | changes))
    with pytest.raises(ValueError, match=message) as error:
        modeling.config_from_file(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_keys_are_named_as_in_the_file_and_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model configuration .*config.json not found"):
        modeling.config_from_file(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "dim": 4}')
    with pytest.raises(ValueError, match="lacks vocab_size, n_layers, n_heads, hidden_dim"):
        modeling.config_from_file(tmp_path)


def test_weights_of_another_architecture_or_format_are_refused(tmp_path):
    weights = hugging_face.distilbert_weights(hugging_face.DISTILBERT, "classification")
    hugging_face.write(tmp_path, hugging_face.DISTILBERT, weights)
    model = modeling.build_classifier(tiny("roberta"), 3)
    before = model.get_weights()
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        modeling.load_weights(model, tmp_path, allow_missing=modeling.HEAD_NAMES)
    assert "no variable of the model is in the checkpoint" in str(error.value)
    np.testing.assert_equal(model.get_weights(), before)
    pickled = tmp_path / "torch" / "pytorch_model.bin"
    pickled.parent.mkdir()
    pickled.touch()
    for path in (pickled, pickled.parent):
        with pytest.raises(FileNotFoundError, match="convert (it|them) to model.safetensors"):
            modeling.load_weights(model, path)


def test_configuration_can_be_changed_before_building():
    config = dataclasses.replace(
        tiny("roberta"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = modeling.build_classifier(config, 3, seed=0)
    batch = hugging_face.batch(hugging_face.ROBERTA)
    np.testing.assert_array_equal(
        model(batch, training=True)["logits"], model(batch, training=False)["logits"]
    )

"""The BERT of modeling.py against KerasHub's, and what its builders promise.

Names, shapes, dtypes, seeds, errors.
"""

import dataclasses
import json
import re

import keras
import keras_hub
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from safetensors.numpy import load_file

import modeling

TINY = modeling.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=20,
    type_vocab_size=2,
)

# The names in Google's released checkpoints, written out for two layers.
LAYER_NAMES = """
attention/self/query/kernel attention/self/query/bias attention/self/key/kernel
attention/self/key/bias attention/self/value/kernel attention/self/value/bias
attention/output/dense/kernel attention/output/dense/bias
attention/output/LayerNorm/gamma attention/output/LayerNorm/beta
intermediate/dense/kernel intermediate/dense/bias
output/dense/kernel output/dense/bias output/LayerNorm/gamma output/LayerNorm/beta
""".split()
ENCODER_NAMES = [
    "bert/embeddings/word_embeddings",
    "bert/embeddings/token_type_embeddings",
    "bert/embeddings/position_embeddings",
    "bert/embeddings/LayerNorm/gamma",
    "bert/embeddings/LayerNorm/beta",
    *(f"bert/encoder/layer_0/{name}" for name in LAYER_NAMES),
    *(f"bert/encoder/layer_1/{name}" for name in LAYER_NAMES),
]
POOLER_NAMES = ["bert/pooler/dense/kernel", "bert/pooler/dense/bias"]


def random_weights(model, seed=0):
    """Weights far from their initial values, so that every one of them matters to the outputs."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        centre = 1.0 if variable.path.endswith("gamma") else 0.0
        variable.assign(rng.normal(centre, 0.3, variable.shape))
    return {variable.path: variable.numpy() for variable in model.weights}


def random_batch(batch=3, length=11, config=TINY, seed=0):
    """Rows of several true lengths; the first one is full."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[length], rng.integers(1, length, batch - 1)])
    mask = np.arange(length) < lengths[:, None]
    return {
        "input_ids": (rng.integers(0, config.vocab_size, (batch, length)) * mask).astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "segment_ids": (
            (rng.integers(0, config.type_vocab_size, (batch, length)) * mask).astype(np.int32)
        ),
    }


def keras_hub_outputs(config, weights, batch):
    """KerasHub's BERT with weights under Google's names: (sequence_output, pooled_output)."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        dropout=0.0,
        max_sequence_length=config.max_position_embeddings,
        num_segments=config.type_vocab_size,
    )

    def assign(layer, scope, *names):
        layer.set_weights(
            [
                weights[f"bert/{scope}/{name}"].reshape(variable.shape)
                for name, variable in zip(names, layer.weights, strict=True)
            ]
        )

    norm, dense = ("LayerNorm/gamma", "LayerNorm/beta"), ("dense/kernel", "dense/bias")
    assign(backbone.token_embedding, "embeddings", "word_embeddings")
    assign(backbone.position_embedding, "embeddings", "position_embeddings")
    assign(backbone.segment_embedding, "embeddings", "token_type_embeddings")
    assign(backbone.embeddings_layer_norm, "embeddings", *norm)
    for i, layer in enumerate(backbone.transformer_layers):
        scope = f"encoder/layer_{i}"
        attention = layer._self_attention_layer
        assign(attention._query_dense, f"{scope}/attention/self", "query/kernel", "query/bias")
        assign(attention._key_dense, f"{scope}/attention/self", "key/kernel", "key/bias")
        assign(attention._value_dense, f"{scope}/attention/self", "value/kernel", "value/bias")
        assign(attention._output_dense, f"{scope}/attention/output", *dense)
        assign(layer._self_attention_layer_norm, f"{scope}/attention/output", *norm)
        assign(layer._feedforward_intermediate_dense, f"{scope}/intermediate", *dense)
        assign(layer._feedforward_output_dense, f"{scope}/output", *dense)
        assign(layer._feedforward_layer_norm, f"{scope}/output", *norm)
        if config.hidden_act == "gelu":  # KerasHub has the tanh approximation built in
            layer._feedforward_intermediate_dense.activation = lambda x: keras.activations.gelu(
                x, approximate=False
            )
    if "bert/pooler/dense/kernel" in weights:
        assign(backbone.pooled_dense, "pooler", *dense)
    inputs = {"token_ids": "input_ids", "padding_mask": "input_mask", "segment_ids": "segment_ids"}
    outputs = backbone({theirs: batch[ours] for theirs, ours in inputs.items()}, training=False)
    return outputs["sequence_output"].numpy(), outputs["pooled_output"].numpy()


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_squad_logits_equal_those_of_keras_hub_with_a_numpy_head(hidden_act):
    config = dataclasses.replace(TINY, hidden_act=hidden_act)
    model = modeling.build_squad_model(config)
    weights, batch = random_weights(model), random_batch()
    sequence, _ = keras_hub_outputs(config, weights, batch)
    wanted = sequence @ weights["cls/squad/output_weights"].T + weights["cls/squad/output_bias"]
    got = model(batch, training=False)
    np.testing.assert_allclose(got["start_logits"], wanted[..., 0], atol=1e-4)
    np.testing.assert_allclose(got["end_logits"], wanted[..., 1], atol=1e-4)


def test_encoder_and_classifier_outputs_equal_those_of_keras_hub():
    encoder, classifier = modeling.build_encoder(TINY), modeling.build_classifier(TINY, 3)
    weights, batch = random_weights(classifier), random_batch()
    for variable in encoder.weights:
        variable.assign(weights[variable.path])
    sequence, pooled = keras_hub_outputs(TINY, weights, batch)
    got = encoder(batch, training=False)
    np.testing.assert_allclose(got["sequence_output"], sequence, atol=1e-4)
    np.testing.assert_allclose(got["pooled_output"], pooled, atol=1e-4)
    logits = classifier(batch, training=False)["logits"]
    np.testing.assert_allclose(
        logits, pooled @ weights["output_weights"].T + weights["output_bias"], atol=1e-4
    )


def test_both_gelus_follow_their_formulas():
    x = np.linspace(-6, 6, 1001)
    exact = x * 0.5 * scipy.special.erfc(-x / np.sqrt(2))
    approximate = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(modeling.gelu(tf.constant(x, tf.float32)), exact, atol=1e-6)
    np.testing.assert_allclose(
        modeling.gelu_tanh(tf.constant(x, tf.float32)), approximate, atol=1e-6
    )


def test_exact_gelu_is_written_with_erf_for_the_exporters():
    types = {op.type for op in traced(modeling.build_squad_model(TINY)).graph.get_operations()}
    assert "Erf" in types and "Erfc" not in types


def test_variable_names_are_googles():
    squad = [*ENCODER_NAMES, "cls/squad/output_weights", "cls/squad/output_bias"]
    assert [v.path for v in modeling.build_squad_model(TINY).weights] == squad
    assert [v.path for v in modeling.build_encoder(TINY).weights] == ENCODER_NAMES + POOLER_NAMES
    classifier = [*ENCODER_NAMES, *POOLER_NAMES, "output_weights", "output_bias"]
    assert [v.path for v in modeling.build_classifier(TINY, 2).weights] == classifier


def test_variable_names_do_not_depend_on_models_built_before():
    first, second = (modeling.build_classifier(TINY, 2, seed=0) for _ in range(2))
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    states = [v.path for v in first.variables if v.path.endswith("seed_generator_state")]
    assert len(states) == len(set(states)) == 8  # embeddings, three in each of two layers, head


def test_kernels_are_input_by_output_and_head_weights_output_by_input():
    shapes = {v.path: tuple(v.shape) for v in modeling.build_squad_model(TINY).weights}
    assert shapes["bert/encoder/layer_0/intermediate/dense/kernel"] == (16, 24)
    assert shapes["bert/encoder/layer_0/output/dense/kernel"] == (24, 16)
    assert shapes["cls/squad/output_weights"] == (2, 16)


def traced(model, batch=None, length=None):
    """The concrete inference function of a model for inputs [batch, length]."""
    spec = {
        name: tf.TensorSpec((batch, length), tf.int32)
        for name in ("input_ids", "input_mask", "segment_ids")
    }
    return tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(spec)


def test_one_dynamic_trace_serves_every_shape_with_the_logits_of_static_ones():
    model = modeling.build_squad_model(TINY, seed=0)
    random_weights(model)
    dynamic = traced(model)
    assert dynamic.structured_outputs["start_logits"].shape.as_list() == [None, None]
    for batch, length in ((1, 2), (3, 11), (5, 20)):
        inputs = random_batch(batch, length)
        static = modeling.build_squad_model(TINY, sequence_length=length)
        static.set_weights(model.get_weights())
        wanted = traced(static, batch, length)(as_tensors(inputs))
        assert wanted["end_logits"].shape.as_list() == [batch, length]
        got = dynamic(as_tensors(inputs))
        np.testing.assert_allclose(got["end_logits"], wanted["end_logits"], atol=1e-5)


def as_tensors(batch):
    return {name: tf.constant(value) for name, value in batch.items()}


def test_padding_changes_no_logit_of_a_real_token():
    model = modeling.build_squad_model(TINY)
    random_weights(model)
    batch = random_batch(1, 9)
    padded = {name: np.pad(value, ((0, 0), (0, 6))) for name, value in batch.items()}
    padded["input_ids"][:, 9:] = 7  # what stands in the padding must not matter either
    short, long = model(batch, training=False), model(padded, training=False)
    np.testing.assert_allclose(long["start_logits"][:, :9], short["start_logits"], atol=1e-5)


def test_bfloat16_policy_keeps_variables_logits_and_softmax_in_float32():
    single = modeling.build_squad_model(TINY, seed=0)
    half = modeling.build_squad_model(TINY, seed=0, dtype="mixed_bfloat16")
    half.set_weights(single.get_weights())
    assert {variable.dtype for variable in half.weights} == {"float32"}
    operations = traced(half).graph.get_operations()
    assert {op.outputs[0].dtype for op in operations if op.type == "Softmax"} == {tf.float32}
    products = [op.outputs[0].dtype for op in operations if op.type in ("MatMul", "BatchMatMulV2")]
    assert (
        products.count(tf.float32) == 1 and products.count(tf.bfloat16) == 2 * 8
    )  # the head; 6 dense + 2 a layer
    batch = random_batch()
    wanted, got = single(batch, training=False), half(batch, training=False)
    assert got["start_logits"].dtype == tf.float32
    np.testing.assert_allclose(got["start_logits"], wanted["start_logits"], atol=5e-3)


def test_global_bfloat16_policy_is_taken_when_no_dtype_is_given():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = modeling.build_encoder(TINY)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model(random_batch(), training=False)["sequence_output"].dtype == tf.bfloat16


def test_same_seed_gives_the_same_weights_and_dropout():
    batch = random_batch()
    first, again = (modeling.build_squad_model(TINY, seed=5) for _ in range(2))
    other = modeling.build_squad_model(TINY, seed=6)
    for ours, same in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, same, err_msg=ours.path)
    drawn = [v.numpy().tobytes() for v in (*first.weights, *other.weights) if v.numpy().std() > 0]
    assert (
        len(set(drawn)) == len(drawn) == 2 * (3 + 2 * 6 + 1)
    )  # tables, kernels and head: no two alike
    one = [first(batch, training=True)["start_logits"].numpy() for _ in range(2)]
    two = [again(batch, training=True)["start_logits"].numpy() for _ in range(2)]
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one[0], one[1])


def test_without_dropout_training_computes_what_inference_does_from_the_same_weights():
    batch = random_batch()
    on, off = (modeling.build_classifier(TINY, 2, seed=3, dropout=flag) for flag in (True, False))
    np.testing.assert_array_equal(
        off(batch, training=True)["logits"], off(batch, training=False)["logits"]
    )
    np.testing.assert_array_equal(
        off(batch, training=False)["logits"], on(batch, training=False)["logits"]
    )
    assert not np.allclose(on(batch, training=True)["logits"], on(batch, training=False)["logits"])


def test_dropout_acts_on_embeddings_probabilities_and_both_dense_outputs_of_a_layer():
    model = modeling.build_encoder(dataclasses.replace(TINY, num_hidden_layers=1), seed=0)
    states = {v.path: v for v in model.variables if v.path.endswith("seed_generator_state")}
    before = {path: state.numpy().tolist() for path, state in states.items()}
    model(random_batch(), training=False)
    assert {path: state.numpy().tolist() for path, state in states.items()} == before
    model(random_batch(), training=True)
    used = {path for path, state in states.items() if state.numpy().tolist() != before[path]}
    layer = "encoder/layer_0"
    places = (
        "embeddings",
        f"{layer}/attention/self",
        f"{layer}/attention/output",
        f"{layer}/output",
    )
    assert used == {f"bert/{place}/dropout/random/seed_generator_state" for place in places}


def test_initial_weights_are_a_truncated_normal_of_the_configured_range():
    config = dataclasses.replace(TINY, vocab_size=2000, initializer_range=0.05)
    model = modeling.build_squad_model(config, seed=0)
    words = model.weights[0].numpy()
    assert np.abs(words).max() <= 2 * 0.05 + 1e-6
    assert words.std() == pytest.approx(
        0.05 * 0.88, rel=0.02
    )  # a normal cut at two deviations has 0.88 of the spread
    for variable in model.weights:
        if variable.path.endswith(("bias", "beta")):
            assert not variable.numpy().any(), variable.path


def test_training_reaches_every_variable():
    model = modeling.build_squad_model(TINY, seed=0)
    random_weights(model)
    with tf.GradientTape() as tape:
        logits = model(random_batch(), training=True)
        loss = tf.reduce_sum(logits["start_logits"] ** 2) + tf.reduce_sum(logits["end_logits"] ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        norm = tf.norm(tf.convert_to_tensor(gradient))
        # Softmax is blind to what all keys share, so the key bias learns nothing but rounding
        # noise.
        assert norm > 1e-3 or variable.path.endswith("key/bias"), variable.path


def test_one_label_is_a_regression_with_one_score():
    logits = modeling.build_classifier(TINY, 1)(random_batch(), training=False)["logits"]
    assert logits.shape == (3, 1) and logits.dtype == tf.float32


@pytest.mark.parametrize("labels", [0, -1, 2.0, True, "2"])
def test_wrong_number_of_labels_is_refused(labels):
    with pytest.raises(ValueError, match="num_labels must be a positive integer"):
        modeling.build_classifier(TINY, labels)


@pytest.mark.parametrize("length", [0, 21])
def test_static_length_out_of_range_is_refused_when_building(length):
    with pytest.raises(
        ValueError, match=rf"sequence_length.* max_position_embeddings 20, got {length}"
    ):
        modeling.build_squad_model(TINY, sequence_length=length)


def test_length_above_the_positions_is_refused_when_running():
    model = modeling.build_squad_model(TINY)
    with pytest.raises(ValueError, match="sequence length 21 is above max_position_embeddings 20"):
        model(random_batch(1, 21), training=False)
    with pytest.raises(tf.errors.InvalidArgumentError):
        traced(model)(as_tensors(random_batch(1, 21)))


@pytest.mark.representatives("build_squad_model")
@pytest.mark.parametrize(
    "build", [modeling.build_encoder, modeling.build_squad_model, modeling.build_classifier]
)
def test_model_survives_a_keras_file(build, tmp_path):
    extra = (3,) if build is modeling.build_classifier else ()
    model = build(dataclasses.replace(TINY, hidden_act="gelu_new"), *extra, seed=1)
    random_weights(model)
    model.save(tmp_path / "model.keras")
    custom = {"Bert": modeling.Bert, "Head": modeling.Head}
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)
    batch = random_batch()
    for name, value in model(batch, training=False).items():
        np.testing.assert_array_equal(again(batch, training=False)[name], value)
    assert [v.path for v in again.weights] == [v.path for v in model.weights]


def test_config_reads_googles_and_hugging_faces_files(tmp_path):
    own = dataclasses.asdict(TINY)
    google = {key: value for key, value in own.items() if key != "layer_norm_eps"} | {
        "directionality": "bidi"
    }
    hugging_face = own | {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "position_embedding_type": "absolute",
    }
    hugging_face |= {"layer_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh", "is_decoder": False}
    (tmp_path / "bert_config.json").write_text(json.dumps(google))
    (tmp_path / "config.json").write_text(json.dumps(hugging_face))
    assert modeling.BertConfig.from_json_file(tmp_path / "bert_config.json") == TINY
    wanted = dataclasses.replace(TINY, layer_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh")
    assert modeling.BertConfig.from_json_file(str(tmp_path / "config.json")) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of num_attention_heads 4"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers must be a positive integer, got '12'"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive integer, got True"),
        ({"hidden_act": "swish"}, "unknown hidden_act 'swish'; known: gelu, gelu_new"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\), got 1.0"),
        (
            {"attention_probs_dropout_prob": "0.1"},
            "attention_probs_dropout_prob must be a number, got '0.1'",
        ),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, got 0.0"),
        ({"initializer_range": float("nan")}, "initializer_range must be above 0, got nan"),
        ({"model_type": "roberta"}, "model_type is 'roberta', but only 'bert' is supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_config_names_the_key_that_is_wrong_and_the_file(changes, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(TINY) | changes))
    with pytest.raises(ValueError, match=message) as error:
        modeling.BertConfig.from_json_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON text"),
        ("[1]", "expected a JSON object, found list"),
        (
            '{"vocab_size": 5, "hidden_size": 4}',
            "lacks num_hidden_layers, num_attention_heads, intermediate_size",
        ),
    ],
)
def test_config_file_that_is_no_configuration_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        modeling.BertConfig.from_json_file(tmp_path / "config.json")


def test_absent_config_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        modeling.BertConfig.from_json_file(tmp_path / "nowhere.json")


@pytest.mark.needs_shared
def test_fine_tuned_model_equals_keras_hub_and_answers_a_question(shared_dir):
    from tokenizers import BertWordPieceTokenizer

    folder = shared_dir / "models" / "minilm_squad"
    config = modeling.BertConfig.from_json_file(folder / "config.json")
    model = modeling.build_squad_model(config)
    report = modeling.load_weights(model, folder)
    assert len(report.loaded) == len(model.weights) == 5 + 6 * 16 + 2 and report.missing == ()
    assert report.unexpected == ("bert/pooler/dense/bias", "bert/pooler/dense/kernel")

    encoding = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).encode(
        "Where was the treaty signed?",
        "After two years of talks the treaty was signed in Geneva by nine countries.",
    )
    row = {
        "input_ids": encoding.ids,
        "input_mask": encoding.attention_mask,
        "segment_ids": encoding.type_ids,
    }
    batch = {
        name: np.pad(np.array([value], np.int32), ((0, 0), (0, 8))) for name, value in row.items()
    }
    got = model(batch, training=False)
    start, end = (
        int(np.argmax(got[name][0, : len(encoding.ids)])) for name in ("start_logits", "end_logits")
    )
    assert encoding.tokens[start : end + 1] == ["geneva"]

    weights = {}  # read past our reader
    for name, value in load_file(folder / "model.safetensors").items():
        name = re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")
        value = value.astype(np.float32)
        if name.endswith("_embeddings/weight"):
            weights[name.removesuffix("/weight")] = value
        elif "LayerNorm" in name:
            weights[
                name.replace("/weight", "/gamma").replace("LayerNorm/bias", "LayerNorm/beta")
            ] = value
        else:
            weights[name.replace("/weight", "/kernel")] = value.T
    sequence, _ = keras_hub_outputs(config, weights, batch)
    wanted = sequence @ weights["qa_outputs/kernel"] + weights["qa_outputs/bias"]
    np.testing.assert_allclose(got["start_logits"], wanted[..., 0], atol=1e-4)
    np.testing.assert_allclose(got["end_logits"], wanted[..., 1], atol=1e-4)

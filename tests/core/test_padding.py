"""Padding stays out of ranges wherever a model marks it.

Compared with calibration on the same sequences one by one, cut.
"""

import warnings

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfquant
from tests.few import few
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

VOCAB, WIDTH, LENGTHS, LENGTH = 20, 8, (3, 7, 5), 7
INPUTS = Recipe(
    (Rule(QuantSpec(), "linear_input"), Rule(QuantSpec(), "matmul_input", optional=True)),
    name="inputs",
)
EVERYTHING = tfquant.recipe("int8_residual_both").with_method("max")
HUB = dict(vocabulary_size=VOCAB, num_layers=1, hidden_dim=WIDTH, intermediate_dim=12)
GROUPED = dict(num_query_heads=2, num_key_value_heads=1)


def ids_of(lengths=LENGTHS, length=LENGTH, left=False, seed=3) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, 0 where padding is, and the mask."""
    real = np.arange(length) < np.array(lengths)[:, None]
    real = real[:, ::-1] if left else real
    return (np.random.default_rng(seed).integers(1, VOCAB, real.shape) * real).astype(
        np.int32
    ), real


def unlike_any_other(model):
    """Makes what stands for padding large, so that a range shows it."""
    for variable in model.weights:
        path = getattr(variable, "path", variable.name)
        if "embeddings" in path and variable.shape[0] == VOCAB:
            values = np.random.default_rng(1).normal(size=variable.shape)
            values[0] = 50.0
            variable.assign(values.astype(np.float32))
    return model


def tokens(name=None, length=None):
    return keras.Input((length,), dtype="int32", name=name)


def assert_as_cut(model, padded, cut, recipe=INPUTS, mask="auto", exempt=(), reference=None):
    """The same counts and extremes on a padded batch as on sequences one by one; none where
    `exempt` says.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="padding is counted")
        found = tfquant.calibrate(
            tfquant.quantize(model, recipe, inputs=padded), [padded], mask=mask, progress=False
        )
    alone = tfquant.calibrate(
        tfquant.quantize(reference or model, recipe, inputs=cut[0]), cut, mask=None, progress=False
    )
    pairs = [
        (a, b)
        for a, b in zip(found, alone, strict=True)
        if ":weight:" not in a and not any(part in a for part in exempt)
    ]
    assert pairs
    for address, other in pairs:
        mine, single = found[address].statistics, alone[other].statistics
        assert mine.count == single.count, (address, mine.count, single.count)
        for ours, theirs in ((mine.minimum, single.minimum), (mine.maximum, single.maximum)):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5, err_msg=address)
    return found


def cut_rows(batch, lengths, left=False):
    """One batch for each row, without its padding; every array has the tokens along axis 1."""
    rows = []
    for row, length in enumerate(lengths):
        kept = slice(-length, None) if left else slice(length)
        rows.append(
            tf.nest.map_structure(lambda x, row=row, kept=kept: x[row : row + 1, kept], batch)
        )
    return rows


# Masks of Keras


def embedded(length=None):
    inputs = tokens("ids", length)
    return inputs, keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True)(inputs)


def attention(length=None):
    inputs, x = embedded(length)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.LayerNormalization()(x)))


def recurrent(length=None):
    inputs, x = embedded(length)
    x = keras.layers.Dense(6)(keras.layers.LSTM(WIDTH, return_sequences=True)(x))
    x = keras.layers.Dense(5)(keras.layers.GRU(4, return_sequences=True)(x))
    return keras.Model(inputs, x)


def bidirectional():
    inputs, x = embedded()
    return keras.Model(
        inputs,
        keras.layers.Dense(5)(
            keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(x)
        ),
    )


def pooled():
    inputs, x = embedded()
    x = keras.layers.Dense(6)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True)
        self.up, self.out = keras.layers.Dense(6), keras.layers.Dense(3)

    def call(self, ids):
        return self.out(self.up(self.table(ids)))


def of_keras_2():
    inputs = tf_keras.Input((None,), dtype="int32", name="ids")
    x = tf_keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True)(inputs)
    return tf_keras.Model(
        inputs, tf_keras.layers.Dense(3)(tf_keras.layers.LSTM(WIDTH, return_sequences=True)(x))
    )


class Heads(keras.layers.Layer):
    """Attention with the heads in the axis of the batch."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.queries, self.out = keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH)

    def call(self, x, mask=None):
        batch, length = tf.shape(x)[0], tf.shape(x)[1]
        split = tf.transpose(
            tf.reshape(self.queries(x), [batch, length, 2, WIDTH // 2]), [0, 2, 1, 3]
        )
        heads = tf.reshape(split, [batch * 2, length, WIDTH // 2])
        scores = tf.matmul(heads, heads, transpose_b=True)
        keys = tf.repeat(tf.cast(mask, tf.float32), 2, axis=0)[:, None, :]
        context = tf.matmul(tf.nn.softmax(scores - 1e9 * (1.0 - keys)), heads)
        merged = tf.transpose(tf.reshape(context, [batch, 2, length, WIDTH // 2]), [0, 2, 1, 3])
        return self.out(tf.reshape(merged, [batch, length, WIDTH]))


def heads_in_the_batch():
    inputs, x = embedded()
    return keras.Model(inputs, keras.layers.Dense(3)(Heads()(x)))


MASKED = {
    "attention": attention,
    "recurrent": recurrent,
    "bidirectional": bidirectional,
    "pooled": pooled,
    "subclassed": Subclassed,
    "keras 2": of_keras_2,
    "heads in the batch": heads_in_the_batch,
}
# A step of a cell outside of its loop, on the first token of each row.
FIRST_STEPS = ("_cell",)


@pytest.mark.representatives(
    "attention", "recurrent", "pooled", "subclassed", "keras 2", "heads in the batch"
)
@pytest.mark.parametrize("name", MASKED)
def test_masks_that_keras_attaches_are_used(name):
    ids, _ = ids_of()
    model = MASKED[name]()
    model(ids)
    assert_as_cut(unlike_any_other(model), ids, cut_rows(ids, LENGTHS), exempt=FIRST_STEPS)


@pytest.mark.representatives("True")
@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_and_batches_without_any(left):
    model = unlike_any_other(attention())
    ids, _ = ids_of(left=left)
    assert_as_cut(model, ids, cut_rows(ids, LENGTHS, left))
    full, _ = ids_of((LENGTH,) * 3)
    assert_as_cut(model, full, [full])


@pytest.mark.representatives("7-recurrent", "8-attention")
@pytest.mark.parametrize("kind", [attention, recurrent])
@pytest.mark.parametrize("length", [LENGTH, WIDTH])
def test_fixed_lengths_that_may_equal_a_number_of_features(kind, length):
    ids, _ = ids_of(length=length)
    fixed, free = unlike_any_other(kind(length)), kind()
    free.set_weights(fixed.get_weights())
    assert_as_cut(fixed, ids, cut_rows(ids, LENGTHS), exempt=FIRST_STEPS, reference=free)


def test_masking_of_numbers():
    inputs = keras.Input((None, 4))
    x = np.random.default_rng(0).normal(size=(3, LENGTH, 4)).astype(np.float32)
    x[~ids_of()[1]] = -1.0
    model = keras.Model(
        inputs, keras.layers.Dense(2)(keras.layers.Dense(6)(keras.layers.Masking(-1.0)(inputs)))
    )
    assert_as_cut(model, x, cut_rows(x, LENGTHS))


def test_every_input_has_a_mask_of_its_own():
    """A query of one length, keys of another: pairs count where both are real."""
    first, second, table = (
        tokens("a"),
        tokens("b"),
        keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True),
    )
    x = keras.layers.MultiHeadAttention(2, 4)(table(first), table(second))
    model = unlike_any_other(keras.Model([first, second], keras.layers.Dense(3)(x)))
    (a, _), (b, _) = ids_of(), ids_of((4, 1, 9), 9, seed=4)
    cut = [list(pair) for pair in zip(cut_rows(a, LENGTHS), cut_rows(b, (4, 1, 9)), strict=True)]
    assert_as_cut(model, [a, b], cut)


def test_masks_of_added_inputs_differ_before_and_behind_the_addition():
    first, second, table = (
        tokens("a"),
        tokens("b"),
        keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True),
    )
    left, right = (
        keras.layers.Dense(WIDTH, name="left")(table(first)),
        keras.layers.Dense(WIDTH, name="right")(table(second)),
    )
    model = keras.Model(
        [first, second], keras.layers.Dense(3, name="both")(keras.layers.Add()([left, right]))
    )
    (a, real), (b, other) = ids_of(), ids_of((5, 2, 7), seed=4)
    calibration = tfquant.calibrate(tfquant.quantize(model, INPUTS), [[a, b]], progress=False)
    counts = {
        name: calibration[f"{name}:linear_input:input"].statistics.count
        for name in ("left", "right", "both")
    }
    # Keras takes what either of them has.
    assert counts == {
        "left": WIDTH * real.sum(),
        "right": WIDTH * other.sum(),
        "both": WIDTH * (real | other).sum(),
    }


def test_a_mask_passed_as_an_argument_is_used():
    inputs, mask = (
        keras.Input((None, 4), name="x"),
        keras.Input((None,), dtype="bool", name="valid"),
    )
    x = keras.layers.Dense(3)(keras.layers.LSTM(5, return_sequences=True)(inputs, mask=mask))
    model = keras.Model([inputs, mask], x)
    x, real = np.random.default_rng(0).normal(size=(3, LENGTH, 4)).astype(np.float32), ids_of()[1]
    x[~real] = 100.0
    assert_as_cut(model, [x, real], cut_rows([x, real], LENGTHS), exempt=FIRST_STEPS)


# Masks among the inputs


def hub(kind, **sizes):
    return kind(**{**HUB, **sizes})


BACKBONES = {
    "bert": lambda: hub(keras_hub.models.BertBackbone, num_heads=2, max_sequence_length=16),
    "roberta": lambda: hub(keras_hub.models.RobertaBackbone, num_heads=2, max_sequence_length=16),
    "gemma": lambda: hub(keras_hub.models.GemmaBackbone, head_dim=4, **GROUPED),
    "gemma 3": lambda: hub(keras_hub.models.Gemma3Backbone, head_dim=4, image_size=16, **GROUPED),
    "llama": lambda: hub(keras_hub.models.LlamaBackbone, **GROUPED),
}
SEQUENCE_TO_SEQUENCE = {
    "t5": lambda: hub(keras_hub.models.T5Backbone, num_heads=2),
    "bart": lambda: hub(keras_hub.models.BartBackbone, num_heads=2, max_sequence_length=16),
}


@pytest.mark.representatives("gemma 3")
@pytest.mark.parametrize("name", few(BACKBONES, ("bert", "gemma 3")))
def test_backbones_count_real_tokens_alone(name):
    model = unlike_any_other(BACKBONES[name]())
    ids, real = ids_of()
    batch = {"token_ids": ids, "padding_mask": real}
    if name == "bert":
        batch["segment_ids"] = np.zeros_like(ids)
    assert_as_cut(model, batch, cut_rows(batch, LENGTHS), EVERYTHING, exempt=("pooled",))


# test_every_input_has_a_mask_of_its_own stands for it.
@pytest.mark.long
@pytest.mark.parametrize("name", few(SEQUENCE_TO_SEQUENCE, ("t5",)))
def test_tensors_belong_to_the_mask_of_the_encoder_or_of_the_decoder(name):
    model = unlike_any_other(SEQUENCE_TO_SEQUENCE[name]())
    sides = {"encoder": LENGTHS, "decoder": (4, 1, 9)}
    parts = {}
    for side, lengths in sides.items():
        ids, real = ids_of(lengths, max(lengths), seed=len(side) + lengths[0])
        parts[side] = {f"{side}_token_ids": ids, f"{side}_padding_mask": real}
    cut = [
        encoder | decoder
        for encoder, decoder in zip(*(cut_rows(parts[s], sides[s]) for s in sides), strict=True)
    ]
    assert_as_cut(model, parts["encoder"] | parts["decoder"], cut, EVERYTHING)


def test_what_has_no_mask_is_counted_as_it_is():
    """Whisper has one for the tokens of the decoder, not for the frames of the encoder."""
    model = unlike_any_other(
        hub(
            keras_hub.models.WhisperBackbone,
            num_heads=2,
            max_encoder_sequence_length=40,
            max_decoder_sequence_length=16,
        )
    )
    ids, real = ids_of()
    features = np.random.default_rng(0).normal(size=(3, 40, 80)).astype(np.float32)
    batch = {"encoder_features": features, "decoder_token_ids": ids, "decoder_padding_mask": real}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="padding is counted")
        found = tfquant.calibrate(tfquant.quantize(model, EVERYTHING), [batch], progress=False)
    counts = {address: entry.statistics.count for address, entry in found.items()}
    assert (
        counts["transformer_encoder_layer_0/feedforward_output_dense:linear_input:input"]
        == 3 * 20 * 12
    )
    assert (
        counts["transformer_decoder_layer_0/feedforward_output_dense:linear_input:input"]
        == real.sum() * 12
    )
    assert (
        counts["transformer_decoder_layer_0/cross_attention:matmul_input:probabilities"]
        == real.sum() * 20 * 2
    )


@pytest.mark.representatives("attention_mask-float32", "encoder_mask-bool")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("input_mask", "int32"),
        ("attention_mask", "float32"),
        ("padding_mask", "bool"),
        ("token_mask", "int32"),
        ("mask", "bool"),
        ("text_padding_mask", "int32"),
        ("encoder_mask", "bool"),
        ("decoder_attention_mask", "float32"),
    ],
)
def test_names_and_types_of_masks(name, dtype):
    ids, real = ids_of()
    inputs, mask = tokens("ids"), keras.Input((None,), dtype=dtype, name=name)
    x = keras.layers.Embedding(VOCAB, WIDTH)(inputs)
    x = keras.layers.MultiHeadAttention(2, 4)(
        x, x, attention_mask=keras.ops.cast(mask, "bool")[:, None, :]
    )
    model = unlike_any_other(keras.Model({"ids": inputs, name: mask}, keras.layers.Dense(3)(x)))
    batch = {"ids": ids, name: real.astype(dtype)}
    assert_as_cut(model, batch, cut_rows(batch, LENGTHS))


@pytest.mark.representatives("valid")
@pytest.mark.parametrize("mask", ["valid", ["valid"]])
def test_masks_of_any_other_name_can_be_given(mask):
    ids, real = ids_of()
    inputs, valid = tokens("ids"), keras.Input((None,), dtype="bool", name="valid")
    x = keras.layers.Embedding(VOCAB, WIDTH)(inputs)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x, attention_mask=valid[:, None, :])
    model = unlike_any_other(keras.Model({"ids": inputs, "valid": valid}, keras.layers.Dense(3)(x)))
    batch = {"ids": ids, "valid": real}
    assert_as_cut(model, batch, cut_rows(batch, LENGTHS), mask=mask)


def test_an_input_mask_comes_before_that_of_keras():
    inputs, mask = tokens("ids"), keras.Input((None,), dtype="bool", name="padding_mask")
    x = keras.layers.Embedding(VOCAB, WIDTH, mask_zero=True)(inputs)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask[:, None, :])
    model = keras.Model({"ids": inputs, "padding_mask": mask}, keras.layers.Dense(3, name="out")(x))
    ids, real = ids_of()
    real[:, 0] = False  # the first token is no padding by its id
    found = tfquant.calibrate(
        tfquant.quantize(model, INPUTS), [{"ids": ids, "padding_mask": real}], progress=False
    )
    assert found["out:linear_input:input"].statistics.count == real.sum() * WIDTH


# Masks that are passed to attention alone


def attending(x, mask, **options):
    return keras.layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask, **options)


def added(x, ids, valid):
    """Attention written out, with a term that lowers the scores."""
    scores = keras.layers.Dense(WIDTH)(x) @ keras.ops.transpose(x, (0, 2, 1))
    lowered = (1.0 - keras.ops.cast(valid, "float32"))[:, None, :] * -1e9
    return keras.ops.softmax(scores + lowered) @ x


def pooled_by_attention(x, ids, valid):
    scores = keras.ops.where(valid, keras.ops.squeeze(keras.layers.Dense(1)(x), -1), -1e9)
    return keras.layers.Dense(WIDTH)(x) + keras.ops.softmax(scores)[:, None, :] @ x


PASSED = {
    "computed from ids": lambda x, ids, valid: attending(
        x, keras.ops.not_equal(ids, 0)[:, None, :]
    ),
    "computed from ids with another axis": lambda x, ids, valid: attending(
        x, keras.ops.not_equal(ids[:, None, :], 0)
    ),
    "an input": lambda x, ids, valid: attending(x, valid[:, None, :]),
    "joined with a causal one": lambda x, ids, valid: attending(
        x, valid[:, None, :], use_causal_mask=True
    ),
    "pairs": lambda x, ids, valid: attending(x, valid[:, None, :] & valid[:, :, None]),
    "added": added,
    "pooling": pooled_by_attention,
    "encoder of KerasHub": lambda x, ids, valid: keras_hub.layers.TransformerEncoder(12, 2)(
        x, padding_mask=valid
    ),
    "decoder of KerasHub": lambda x, ids, valid: keras_hub.layers.TransformerDecoder(12, 2)(
        x, decoder_padding_mask=valid
    ),
    "true for padding": lambda x, ids, padding: attending(
        x, keras.ops.logical_not(padding)[:, None, :]
    ),
}


def masked_by_argument(change, name="valid", dtype="bool"):
    ids, valid = tokens("ids"), keras.Input((None,), dtype=dtype, name=name)
    x = change(keras.layers.Embedding(VOCAB, WIDTH)(ids), ids, valid)
    return unlike_any_other(keras.Model([ids, valid], keras.layers.Dense(3, name="behind")(x)))


@pytest.mark.representatives(
    "computed from ids",
    "an input",
    "joined with a causal one",
    "pairs",
    "added",
    "pooling",
    "decoder of KerasHub",
)
@pytest.mark.parametrize("name", PASSED)
def test_masks_that_attention_alone_is_given_are_used(name):
    ids, real = ids_of()
    batch = [ids, ~real if name == "true for padding" else real]
    assert_as_cut(masked_by_argument(PASSED[name]), batch, cut_rows(batch, LENGTHS))


DOUBTFUL = {
    "another id than 0": lambda x, ids, valid: attending(
        x, keras.ops.not_equal(ids[:, None, :], 7)
    ),
    "segments": lambda x, ids, valid: attending(
        x, keras.ops.equal(valid[:, None, :], valid[:, :, None])
    ),
    "numbers": lambda x, ids, valid: attending(x, keras.ops.less(valid[:, None, :], 4)),
}


@pytest.mark.representatives("segments")
@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_warning_names_an_attention_mask_that_does_not_tell_padding(name):
    ids, real = ids_of()
    quantized = tfquant.quantize(
        masked_by_argument(DOUBTFUL[name], dtype="int32"), INPUTS, inputs=[ids, ids]
    )
    pattern = (
        r"padding is counted at (\d+) of \1 sites, .*: the attention mask at .* follows from .*;"
        r" pass mask="
    )
    with pytest.warns(UserWarning, match=pattern):
        calibration = tfquant.calibrate(quantized, [[ids, real.astype("int32")]], progress=False)
    assert calibration["behind:linear_input:input"].statistics.count == ids.size * WIDTH
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="padding is counted")
        calibration = tfquant.calibrate(
            quantized, [[ids, real.astype("int32")]], mask="valid", progress=False
        )
    assert calibration["behind:linear_input:input"].statistics.count == real.sum() * WIDTH


def test_attention_without_a_mask_of_inputs_gives_no_warning():
    model = masked_by_argument(lambda x, ids, valid: attending(x, None, use_causal_mask=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="padding is counted")
        tfquant.quantize(model, INPUTS, [list(ids_of())], progress=False)


# What cannot be told


class Class(keras.layers.Layer):
    """A token before all others."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, WIDTH), name="token")

    def call(self, x):
        return tf.concat([tf.tile(self.token, [tf.shape(x)[0], 1, 1]), x], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], None, shape[2])


def one_more_token(x):
    return Class()(x)


def the_first_four(x):
    return x[:, :4]


def every_second(x):
    return x[:, ::2]


@pytest.mark.parametrize("change", [one_more_token, the_first_four, every_second])
def test_a_warning_says_what_was_counted_where_padding_cannot_be_told(change):
    inputs, x = embedded()
    model = keras.Model(
        inputs,
        keras.layers.Dense(3, name="behind")(change(keras.layers.Dense(WIDTH, name="before")(x))),
    )
    ids, real = ids_of()
    quantized = tfquant.quantize(model, INPUTS)
    with pytest.warns(
        UserWarning, match="padding is counted at 1 of 2 sites, first behind:linear_input:input: "
    ) as caught:
        calibration = tfquant.calibrate(quantized, [ids], progress=False)
    messages = [str(w.message) for w in caught if "padding" in str(w.message)]
    assert len(messages) == 1 and "\n" not in messages[0]
    assert calibration["before:linear_input:input"].statistics.count == real.sum() * WIDTH
    length = change(np.zeros((1, LENGTH, WIDTH), np.float32)).shape[1]
    assert calibration["behind:linear_input:input"].statistics.count == len(ids) * length * WIDTH


def test_a_model_without_a_sign_of_padding_gives_no_warning():
    inputs = tokens("ids")
    x = keras.layers.Embedding(VOCAB, WIDTH)(inputs)
    model = keras.Model(
        inputs, keras.layers.Dense(3)(one_more_token(keras.layers.MultiHeadAttention(2, 4)(x, x)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfquant.quantize(model, INPUTS, [ids_of()[0]], progress=False)


# The other stages


def test_all_stages_find_the_same_padding():
    """Sequential calibration, dynamic ranges, AdaRound, correction of biases, equalization and
    sensitivity.
    """
    inputs, x = embedded()
    x = keras.layers.Dense(12, activation="relu", name="up")(x)
    model = unlike_any_other(keras.Model(inputs, keras.layers.Dense(3, name="down")(x)))
    ids, real = ids_of()
    table = next(v.numpy() for v in model.weights if "embeddings" in v.path)
    largest = abs(table[ids[real]]).max()

    quantized = tfquant.quantize(model, INPUTS)
    calibration = tfquant.calibrate(quantized, [ids], order="sequential", progress=False)
    assert calibration["up:linear_input:input"].statistics.count == real.sum() * WIDTH

    dynamic = tfquant.quantize(
        model, Recipe((Rule(QuantSpec(dynamic=True), "linear_input", path="up"),))
    )
    assert np.abs(dynamic(ids)[real] - model(ids)[real]).max() < largest / 127 * 50

    weights = Recipe((*INPUTS.rules, Rule(QuantSpec(granularity="per_channel"), "weight")))
    quantized = tfquant.quantize(model, weights, [ids], progress=False)
    exact, found = model(ids).numpy()[real], quantized(ids).numpy()[real]
    expected = 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2))
    assert tfquant.sensitivity(quantized, [ids], progress=False).quantized_value == pytest.approx(
        expected, rel=1e-4
    )
    adaround = tfquant.ptq.adaround(quantized, [ids], iterations=2, progress=False)
    assert adaround.layers[0].rows == real.sum()

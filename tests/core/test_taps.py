"""Taps.

What comes out of a graph at an edge is what the layers compute there, in every mode, and can be
learned from.
"""

import keras
import keras_hub
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.intermediate_outputs import tap
from tfquant.training import seed_variables

LAYERS = 2


@pytest.fixture(scope="module")
def case():
    return models.own_bert(LAYERS)


@pytest.fixture(scope="module")
def quantized(case):
    return tfquant.quantize(case.model, "int8_residual", calibration=case.batches, progress=False)


def layer_by_layer(model, batch):
    """(probabilities, hidden state) of each layer, without dropout, from the layers of `modeling`
    and NumPy.
    """
    bert = model.get_layer("bert")
    mask = tf.cast((1 - batch["input_mask"])[:, None, None, :], tf.float32) * -10000.0
    x = bert.embeddings(batch["input_ids"], batch["segment_ids"])
    found = []
    for layer in bert.encoder.stack:
        attention = layer.attention.self_attention
        query, key = (
            f(x).numpy().reshape(*x.shape[:2], models.HEADS, -1).transpose(0, 2, 1, 3)
            for f in (attention.query, attention.key)
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
        x = layer(x, mask)
        found.append((scipy.special.softmax(scores + mask.numpy(), -1), x))
    return found


def test_every_block_gives_its_attention_and_the_state_that_leaves_it(case):
    tapped, batch = tap(case.model), case.batches[0]
    assert [block.path for block in tapped.blocks] == list(case.attention)
    outputs, found = tapped(
        batch, [a for block in tapped.blocks for a in (block.probabilities, block.output)]
    )
    for block, (probabilities, state) in zip(
        tapped.blocks, layer_by_layer(case.model, batch), strict=True
    ):
        np.testing.assert_allclose(found[block.probabilities], probabilities, atol=1e-5)
        np.testing.assert_allclose(found[block.output], state, atol=1e-5)
    for name, logits in case.model(batch).items():
        np.testing.assert_allclose(outputs[name], logits, atol=1e-5)


def test_where_the_norm_comes_first_the_state_that_leaves_a_block_is_the_bare_sum():
    model = keras_hub.models.GPT2Backbone(
        vocabulary_size=models.VOCAB,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=8,
    )
    (batch,) = models.tokens(("token_ids", "padding_mask"), (3, 8))
    tapped = tap(model)
    first, last = [block.output for block in tapped.blocks]
    _, found = tapped(batch, [first, last])
    inner = keras.Model(model.input, [model.get_layer("transformer_layer_0").output, model.output])
    for address, expected in zip((first, last), inner(batch), strict=True):
        np.testing.assert_allclose(found[address], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["float", "quantized"])
def test_one_training_pass_gives_outputs_and_taps_and_draws_dropout_once(case, quantized, mode):
    quantized.set_mode(mode)
    seeds, batch = seed_variables(case.model), case.batches[0]
    before = [v.numpy() for v in seeds]
    expected = quantized(batch, training=True)
    after = [v.numpy() for v in seeds]
    for variable, value in zip(seeds, before, strict=True):
        variable.assign(value)
    tapped = tap(quantized)
    outputs, found = tapped(batch, [tapped.blocks[-1].output], training=True)
    for name, logits in expected.items():
        np.testing.assert_array_equal(outputs[name], logits)
    np.testing.assert_array_equal([v.numpy() for v in seeds], after)
    # The head is quantized as well in one mode; in float the logits follow from the tapped state.
    if mode == "float":
        head = case.model.get_layer("squad")
        np.testing.assert_allclose(
            head(found[tapped.blocks[-1].output])[..., 0], expected["start_logits"], atol=1e-5
        )


def test_quantizers_work_in_what_is_tapped(case, quantized):
    tapped, batch = tap(quantized), case.batches[0]
    addresses = [block.output for block in tapped.blocks]
    quantized.set_mode("float")
    _, exact = tapped(batch, addresses)
    quantized.set_mode("quantized")
    _, found = tapped(batch, addresses)
    for address in addresses:
        assert 0 < np.abs(found[address] - exact[address]).max() < 0.5


def test_a_tensor_that_is_quantized_for_all_is_tapped_quantized(case):
    recipe = tfquant.Recipe(
        (tfquant.Rule(tfquant.QuantSpec(unsigned=True), role="softmax_output"),)
    )
    quantized = tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)
    tapped = tap(quantized)
    address = tapped.blocks[0].probabilities
    _, found = tapped(case.batches[0], [address])
    codes = found[address].numpy() * 255 / quantized.ranges()[address][1]
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)


def test_gradients_of_a_tapped_state_are_those_through_the_layers(case):
    model, batch = case.model, case.batches[0]
    weights = [
        v.value for v in model.get_layer("bert").trainable_variables if "layer_1" not in v.path
    ]
    tapped = tap(model)
    address = tapped.blocks[0].output
    with tf.GradientTape(persistent=True) as tape:
        state = layer_by_layer(model, batch)[0][1]
        reference = tf.reduce_sum(tf.sin(3.0 * state))
        target = tf.reduce_sum(tf.sin(3.0 * tapped(batch, [address])[1][address]))
    for expected, got in zip(
        tape.gradient(reference, weights), tape.gradient(target, weights), strict=True
    ):
        expected, got = (tf.convert_to_tensor(g).numpy() for g in (expected, got))
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_no_gradient_reaches_a_model_that_is_only_looked_at(case):
    model, batch = case.model, case.batches[0]
    tapped = tap(model, differentiable=False)
    with tf.GradientTape() as tape:
        outputs, found = tapped(batch, [tapped.blocks[0].output])
        target = tf.reduce_sum(outputs["start_logits"]) + tf.reduce_sum(
            found[tapped.blocks[0].output]
        )
    assert all(
        g is None for g in tape.gradient(target, [v.value for v in model.trainable_variables])
    )


def test_an_address_that_is_not_there_is_refused_with_the_nearest_ones(case):
    tapped = tap(case.model)
    with pytest.raises(
        ValueError,
        match="no edge 'layer_0:softmax_output:output'; the nearest are .*softmax_output",
    ):
        tapped(case.batches[0], ["layer_0:softmax_output:output"])


def test_a_model_without_attention_has_no_blocks():
    assert tap(models.sequential().model).blocks == ()

"""Quantized decoders: masks and rotary embeddings stay in float, caches change nothing."""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.examples import presets

LENGTH, BATCH = 12, 3
# Attention scores before and after the mask, outputs and inputs of everything.
EVERYTHING = "int8_outputs"


def ids_of(model):
    size = model.backbone.vocabulary_size
    return np.random.default_rng(3).integers(0, size, (BATCH, LENGTH)).astype(np.int32)


def full(model):
    ids = ids_of(model)
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def cached(model):
    """Return a function of tokens, cache and position, its signature, and an empty cache."""
    network = model.backbone
    heads = getattr(network, "num_key_value_heads", None) or network.num_heads
    query_heads = getattr(network, "num_query_heads", None) or network.num_heads
    shape = [network.num_layers, 2, LENGTH, heads, network.hidden_dim // query_heads]

    def function(token_ids, cache, index):
        logits, _, cache = model.call_with_cache(token_ids, cache, index)
        return logits, cache

    signature = (
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, *shape], tf.float32),
        tf.TensorSpec([], tf.int32),
    )
    return function, signature, np.zeros([BATCH, *shape], np.float32)


def check_sites(network):
    assert network.plan.sites
    for address, site in network.calibration.items():
        # Masks are added as -1e9 or the least number of the type.
        assert -1e4 < np.min(site.lower) <= np.max(site.upper) < 1e4, address
        assert "rotary" not in address, address


@pytest.mark.parametrize(
    "build", [presets.llama3, pytest.param(presets.gpt2, marks=pytest.mark.long)]
)
def test_no_site_carries_a_mask_or_a_rotation(build):
    model = build()
    check_sites(tfquant.quantize(model, EVERYTHING, calibration=[full(model)], progress=False))


@pytest.mark.parametrize(
    "build", [presets.gpt2, pytest.param(presets.llama3, marks=pytest.mark.long)]
)
def test_quantized_logits_with_and_without_cache_agree(build):
    model = build()
    batch = full(model)
    whole = tfquant.quantize(model, calibration=[batch], progress=False)
    check_sites(whole)
    function, signature, cache = cached(model)
    stepwise = tfquant.quantize(function, calibration=whole.calibration, signature=signature)
    assert {site.address for site in stepwise.plan.sites} == {
        site.address for site in whole.plan.sites
    }
    expected = np.asarray(whole(batch))
    assert np.abs(expected - np.asarray(model(batch))).max() > 1e-3  # it is quantized
    for index in range(LENGTH):
        logits, cache = stepwise(batch["token_ids"][:, index : index + 1], cache, np.int32(index))
        np.testing.assert_allclose(np.asarray(logits)[:, 0], expected[:, index], atol=1e-4)

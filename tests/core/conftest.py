"""Tiny models that the tests of this folder share."""

import keras
import numpy as np
import pytest

import modeling

TINY = modeling.BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)


@pytest.fixture(scope="session")
def tiny_bert_config() -> modeling.BertConfig:
    return TINY


def bert_batch(lengths, width=None, seed=0) -> dict[str, np.ndarray]:
    """A batch with one row of real tokens for each length, padded to `width`."""
    rng = np.random.default_rng(seed)
    width = width or max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    ids = rng.integers(1, TINY.vocab_size, (len(lengths), width)).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)}


@pytest.fixture(scope="session")
def make_bert_batch():
    return bert_batch


def two_dense_layers(seed=0) -> keras.Model:
    """[batch, 6] -> [batch, 3]; the bare minimum: two kernels, two inputs."""
    inputs = keras.Input((6,), name="x")
    initializer = keras.initializers.GlorotUniform(seed=seed)
    hidden = keras.layers.Dense(5, "relu", name="first", kernel_initializer=initializer)(inputs)
    return keras.Model(
        inputs,
        keras.layers.Dense(3, name="second", kernel_initializer=initializer)(hidden),
        name="two",
    )


@pytest.fixture(scope="session")
def make_two_dense():
    return two_dense_layers

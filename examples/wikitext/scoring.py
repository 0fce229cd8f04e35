"""Losses of a network in windows of a text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from examples.wikitext.settings import Settings
from examples.wikitext.windows import Windows, perplexity


def batches_of(windows: Windows, size: int) -> Iterator[np.ndarray]:
    """Yield the token ids of batches of `size` windows; the last may be smaller."""
    for first in range(0, len(windows.token_ids), size):
        yield windows.token_ids[first : first + size]


def inputs_of(token_ids: Any) -> dict[str, Any]:
    """Return the inputs of a model for windows, which have no padding."""
    ones = np.ones_like if isinstance(token_ids, np.ndarray) else tf.ones_like
    return {"token_ids": token_ids, "padding_mask": ones(token_ids)}


def loss_function(network: Any, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from token ids to the losses of a network's predictions.

    Args:
        network: of token ids and padding masks, returns logits.
        length: tokens in a window.

    Returns:
        [windows, length] -> negative log likelihoods in nats, float32 [windows, length - 1].
    """

    @tf.function(
        input_signature=[tf.TensorSpec([None, length], tf.int32)],
        autograph=False,
        jit_compile=False,
    )
    def losses(token_ids):
        logits = network(inputs_of(token_ids), training=False)
        # Log likelihoods in bfloat16 would have two digits.
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=token_ids[:, 1:], logits=tf.cast(logits[:, :-1], tf.float32)
        )

    return lambda token_ids: losses(tf.constant(token_ids)).numpy()


def score(network: Any, windows: Windows, settings: Settings, name: str) -> dict[str, Any]:
    """Return the perplexity of a network and the time it took.

    Args:
        network: float or quantized.
        windows: over the text.
        settings: of the run.
        name: of the network, for the progress bar.
    """
    losses = loss_function(network, settings.max_length)
    started, result = time.perf_counter(), []
    with tqdm(total=len(windows.token_ids), desc=name, unit="window") as bar:
        for batch in batches_of(windows, settings.batch_size):
            result.append(losses(batch))
            bar.update(len(batch))
    found = perplexity(np.concatenate(result), windows)
    seconds = round(time.perf_counter() - started, 2)
    return found.figures() | {"scored_tokens": found.scored_tokens, "seconds": seconds}

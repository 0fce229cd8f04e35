"""KerasHub's Whisper as two functions for greedy decoding, in float or quantized.

`start` runs the encoder and the decoder over the prompt, `step` the decoder over one more token,
with the keys and values of earlier tokens and of the audio in caches. KerasHub has the backbone and
the tokenizer of Whisper, but no task that generates with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import calib
import tfquant
from examples.quantizing import quantize


class Decoder:
    """Functions `start` and `step` of a Whisper backbone, with caches of a fixed length.

    Args:
        backbone: of KerasHub.
        max_length: tokens that the caches hold.
    """

    def __init__(self, backbone: Any, max_length: int):
        self.backbone, self.max_length = backbone, max_length
        self._encoder = keras.Model(
            backbone.input["encoder_features"], backbone.output["encoder_sequence_output"]
        )

    def start(self, features: Any, token_ids: Any) -> tuple[Any, Any, Any]:
        """Encode audio and decode the first tokens of its transcript.

        Args:
            features: log-mel spectrograms, [utterances, frames, mels].
            token_ids: int32, [utterances, tokens].

        Returns:
            Logits [utterances, tokens, vocabulary], and the two caches: of the tokens and of the
            audio. A cache has one tensor for each layer, [utterances, 2 (keys and values),
            positions, heads, size of a head].
        """
        audio = self._encoder(features, training=False)
        own, cross = (self._empty(audio, length) for length in (self.max_length, audio.shape[1]))
        return self._decode(token_ids, audio, own, cross, index=0, cross_index=0)

    def step(self, token_ids: Any, own: Any, cross: Any, index: Any) -> tuple[Any, Any]:
        """Decode one more token.

        Args:
            token_ids: int32, [utterances, 1].
            own: cache of the tokens before.
            cross: cache of the audio.
            index: position of the token.

        Returns:
            Logits [utterances, 1, vocabulary], and the cache of the tokens.
        """
        logits, own, _ = self._decode(token_ids, None, own, cross, index, cross_index=None)
        return logits, own

    def start_signature(self, frames: int) -> tuple[tf.TensorSpec, ...]:
        """Return the specs of the arguments of `start`, for spectrograms of `frames` frames."""
        shape = [None, frames, self.backbone.num_mels]
        return tf.TensorSpec(shape, tf.float32), tf.TensorSpec([None, None], tf.int32)

    def step_signature(self, frames: int) -> tuple[Any, ...]:
        """Return the specs of the arguments of `step`, for audio of `frames` frames."""
        dtype = self.backbone.compute_dtype
        positions = (frames + 1) // 2  # the second convolution has stride 2
        own, cross = (
            (tf.TensorSpec([None, *self._cache_shape(length)], dtype),) * self.backbone.num_layers
            for length in (self.max_length, positions)
        )
        return tf.TensorSpec([None, 1], tf.int32), own, cross, tf.TensorSpec([], tf.int32)

    def _cache_shape(self, length: int) -> list[int]:
        """Keys and values, positions, heads, size of a head."""
        network = self.backbone
        return [2, length, network.num_heads, network.hidden_dim // network.num_heads]

    def _empty(self, audio: Any, length: int) -> list[Any]:
        shape = [tf.shape(audio)[0], *self._cache_shape(length)]
        return [tf.zeros(shape, self.backbone.compute_dtype)] * self.backbone.num_layers

    def _decode(
        self, token_ids: Any, audio: Any, own: Any, cross: Any, index: Any, cross_index: int | None
    ) -> tuple[Any, Any, Any]:
        """Run the decoder; `cross_index` is 0 to fill the cache of the audio, None to use it."""
        x = self.backbone.decoder_embeddings(token_ids, start_index=index)
        caches = []
        for number, layer in enumerate(self.backbone.decoder_transformer_layers):
            x, *updated = layer(
                x,
                # The layer must be given some, and takes keys and values from its cache.
                encoder_sequence=x if audio is None else audio,
                self_attention_cache=own[number],
                self_attention_cache_update_index=index,
                cross_attention_cache=cross[number],
                cross_attention_cache_update_index=cross_index,
                training=False,
            )
            caches.append(updated)
        x = self.backbone.decoder_layer_norm(x)
        logits = self.backbone.token_embedding(x, reverse=True)
        own, cross = zip(*caches, strict=True)
        return tf.cast(logits, tf.float32), own, cross


@dataclasses.dataclass(frozen=True)
class Network:
    """Functions that decode, float or quantized.

    Attributes:
        start, step: of `Decoder`, as graphs.
    """

    start: Callable[..., Any]
    step: Callable[..., Any]


def float_network(decoder: Decoder, frames: int) -> Network:
    """Return the graphs of the float network, for spectrograms of `frames` frames."""
    return Network(
        *(
            tf.function(function, input_signature=signature, autograph=False, jit_compile=False)
            for function, signature in (
                (decoder.start, decoder.start_signature(frames)),
                (decoder.step, decoder.step_signature(frames)),
            )
        )
    )


def quantized_network(
    decoder: Decoder,
    frames: int,
    recipe: tfquant.Recipe,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    source: str,
) -> tuple[Network, dict[str, Any]]:
    """Quantize both functions with the same ranges.

    Args:
        decoder: float functions.
        frames: of spectrograms.
        recipe: what is quantized, and how.
        batches: arguments of `start` that the ranges are set from.
        source: option that names these, for messages.

    Returns:
        The quantized network, and figures for the report.
    """
    start, calibration, figures = quantize(
        decoder.start,
        recipe,
        batches,
        signature=decoder.start_signature(frames),
        source=source,
    )
    return Network(start, _quantized_step(decoder, frames, recipe, calibration)), figures


def _quantized_step(
    decoder: Decoder, frames: int, recipe: tfquant.Recipe, calibration: calib.Calibration
) -> Any:
    """Quantize `step` with the ranges of `start`, which has all its sites."""
    # Without the encoder some rules match nothing.
    rules = tuple(dataclasses.replace(rule, optional=True) for rule in recipe.rules)
    return tfquant.quantize(
        decoder.step,
        dataclasses.replace(recipe, rules=rules),
        calibration,
        signature=decoder.step_signature(frames),
    )

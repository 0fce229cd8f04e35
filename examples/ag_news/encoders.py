"""Classifiers on a pre-trained encoder: a BERT checkpoint or a KerasHub preset.

The encoder takes the place of the embeddings and the blocks of `classifier.build`; the hidden layer
and the final layer on the first token are those of the source.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import modeling
from examples.ag_news.settings import Settings
from examples.presets import load_preset
from fileio.messages import printable
from runs.glue.networks import weights_of
from runs.networks import load_weights

_HUB_INPUTS = {"token_ids", "padding_mask"}


def build_on_encoder(settings: Settings, num_ids: int, classes: int) -> keras.Model:
    """Return a classifier on the encoder of `--encoder` or `--preset`.

    Args:
      settings: of the run.
      num_ids: token ids of the vocabulary.
      classes: number of classes.

    Returns:
      A model from `input_ids` and `input_mask`, both int32 [batch, length], to logits
      [batch, classes].

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the encoder is damaged, of another kind, or smaller than vocabulary or texts.
    """
    dtype = "mixed_bfloat16" if settings.amp else None
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="input_mask")
    hidden = (_checkpoint if settings.encoder else _preset)(settings, num_ids, dtype)(ids, mask)
    make = keras.initializers.GlorotUniform
    inner = layers.Dense(
        settings.classifier,
        "relu",
        kernel_initializer=make(settings.seed),
        name="classifier_hidden",
        dtype=dtype,
    )
    outer = layers.Dense(
        classes, kernel_initializer=make(settings.seed + 1), name="classifier_output", dtype=dtype
    )
    logits = outer(inner(hidden[:, 0]))
    return keras.Model({"input_ids": ids, "input_mask": mask}, logits, name="classifier")


def _checkpoint(settings: Settings, num_ids: int, dtype: str | None) -> Any:
    """Function from ids and mask to the hidden states of a BERT checkpoint."""
    folder = settings.encoder
    assert folder is not None
    config = modeling.config_from_file(os.path.join(folder, "config.json"))
    option = f"--encoder={printable(folder)}"
    _check_sizes(option, config.vocab_size, config.max_sequence_length, num_ids, settings)
    encoder = modeling.build_encoder(config, pooler=False, seed=settings.seed, dtype=dtype)
    load_weights(encoder, weights_of(folder), new_head=True)

    def hidden(ids: Any, mask: Any) -> Any:
        inputs = {"input_ids": ids, "input_mask": mask, "segment_ids": ops.zeros_like(ids)}
        return encoder(inputs)["sequence_output"]

    return hidden


def _preset(settings: Settings, num_ids: int, dtype: str | None) -> Any:
    """Function from ids and mask to the hidden states of a KerasHub backbone."""
    import keras_hub

    preset = settings.preset
    assert preset is not None
    policy = {} if dtype is None else {"dtype": dtype}
    backbone = load_preset(keras_hub.models.Backbone, preset, **policy)
    option = f"--preset={printable(preset)}"
    outputs = backbone.output
    states = outputs.get("sequence_output") if isinstance(outputs, dict) else outputs
    taken = set(backbone.input) if isinstance(backbone.input, dict) else set()
    if states is None or not _HUB_INPUTS <= taken <= _HUB_INPUTS | {"segment_ids"}:
        raise ValueError(
            f"{option}: {type(backbone).__name__} is no encoder of token_ids and padding_mask: name"
            " one such as BertBackbone"
        )
    positions = getattr(backbone, "max_sequence_length", settings.max_length)
    _check_sizes(option, backbone.vocabulary_size, positions, num_ids, settings)
    # Without the pooler, which nothing would read or train.
    encoder = keras.Model(backbone.input, states, name="encoder")

    def hidden(ids: Any, mask: Any) -> Any:
        inputs = {"token_ids": ids, "padding_mask": mask, "segment_ids": ops.zeros_like(ids)}
        return encoder({name: inputs[name] for name in taken})

    if not _reads_what_follows(hidden):
        raise ValueError(
            f"{option}: the first token of a {type(backbone).__name__} reads nothing behind it, and"
            " the classifier reads the first token: name an encoder such as BertBackbone"
        )
    return hidden


def _reads_what_follows(hidden: Any) -> bool:
    """Whether the first hidden state depends on the second token: not in a causal model."""
    ids = ops.convert_to_tensor([[0, 0], [0, 1]], "int32")
    states = ops.cast(hidden(ids, ops.ones_like(ids)), "float32")
    first, second = ops.convert_to_numpy(states)[:, 0]
    return not np.array_equal(first, second)


def _check_sizes(
    option: str, vocabulary: int, positions: int, num_ids: int, settings: Settings
) -> None:
    """Refuse an encoder with fewer ids than the vocabulary or fewer positions than a text."""
    if num_ids > vocabulary:
        raise ValueError(
            f"{option}: has {vocabulary} token ids, --vocab_file={printable(settings.vocab_file)}"
            f" has {num_ids}: give the vocabulary that came with it"
        )
    if settings.max_length > positions:
        raise ValueError(
            f"{option}: has {positions} positions: set --max_length={positions} or less"
        )

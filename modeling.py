"""BERT, RoBERTa, DistilBERT and MobileBERT in plain Keras 3 layers; nothing here knows about
quantization.

This module builds whole models and is the public face of the package `encoders`, which has what
they are made of: sizes read from files, the four encoders, their layers and heads, and the reading
of weights.

All models take the same inputs; an architecture ignores what it has no use for. Letters in shapes:
B batch, S sequence length, H hidden size.
"""

from collections.abc import Callable

import keras

from encoders import distilbert, roberta
from encoders.backbone import Backbone
from encoders.bert import Bert
from encoders.checkpoint import LoadReport as LoadReport
from encoders.checkpoint import detect_lower_case as detect_lower_case
from encoders.checkpoint import labels_in as labels_in
from encoders.checkpoint import load_weights as load_weights
from encoders.config import BertConfig, DistilBertConfig, MobileBertConfig, RobertaConfig
from encoders.config import config_from_file as config_from_file
from encoders.distilbert import DistilBert
from encoders.heads import FirstToken as FirstToken
from encoders.heads import Head
from encoders.layers import ACTIVATIONS as ACTIVATIONS
from encoders.layers import MASKED_SCORE as MASKED_SCORE
from encoders.layers import gelu as gelu
from encoders.layers import gelu_tanh as gelu_tanh
from encoders.memory import check_memory as check_memory
from encoders.mobilebert import MobileBert
from encoders.names import HEAD_NAMES as HEAD_NAMES
from encoders.roberta import Roberta

Config = BertConfig | RobertaConfig | DistilBertConfig | MobileBertConfig

_BACKBONES: dict[type[Config], type[Backbone]] = {
    backbone.config_class: backbone for backbone in (Bert, Roberta, DistilBert, MobileBert)
}


def _inputs(config: Config, sequence_length: int | None) -> dict:
    """The three int32 inputs [B, S]; sizes that cannot be built are refused here, before anything
    is.
    """
    if sequence_length is not None and not 1 <= sequence_length <= config.max_sequence_length:
        raise ValueError(
            f"sequence_length must be between 1 and the configuration's {config.length_limit}, got"
            f" {sequence_length!r}"
        )
    check_memory(config)
    names = ("input_ids", "input_mask", "segment_ids")
    return {name: keras.Input((sequence_length,), dtype="int32", name=name) for name in names}


def _backbone(
    config: Config, *, pooler: bool, dropout: bool, seed: int | None, dtype: str | None
) -> Backbone:
    return _BACKBONES[type(config)](config, pooler=pooler, dropout=dropout, seed=seed, dtype=dtype)


def build_encoder(
    config: Config,
    *,
    sequence_length: int | None = None,
    pooler: bool = True,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional encoder with its pooler; DistilBERT has none.

    Args:
        config: architecture, size and constants.
        sequence_length: static S, or None for any length that there are positions for.
        pooler: False leaves the pooler out.
        dropout: False turns dropout off even in training.
        seed: see `Backbone`.
        dtype: Keras dtype policy; None takes the global one.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"sequence_output":
        [B, S, H], "pooled_output": [B, H]} in the compute dtype, without "pooled_output" for
        DistilBERT and where `pooler` is False.

    Raises:
        ValueError: `sequence_length` is out of range.
    """
    inputs = _inputs(config, sequence_length)
    outputs = _backbone(config, pooler=pooler, dropout=dropout, seed=seed, dtype=dtype)(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    names = ("sequence_output", "pooled_output")
    return keras.Model(
        inputs, dict(zip(names, outputs, strict=False)), name=f"{config.model_type}_encoder"
    )


def build_squad_model(
    config: Config,
    *,
    sequence_length: int | None = None,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional model for extractive question answering. It has no pooler, as nothing would read
    it.

    Args and errors: see `build_encoder`.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"start_logits",
        "end_logits"} ([B, S], float32; float64 under that policy).
    """
    inputs = _inputs(config, sequence_length)
    sequence = _backbone(config, pooler=False, dropout=dropout, seed=seed, dtype=dtype)(**inputs)
    rate = config.squad_dropout_prob if dropout else 0.0
    head = Head(
        2,
        scope="cls/squad",
        dropout_rate=rate,
        initializer_range=config.initializer_range,
        seed=seed,
        name="squad",
        dtype=dtype,
    )
    logits = head(sequence)  # [B, S, 2]
    outputs = {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    return keras.Model(inputs, outputs, name=f"{config.model_type}_squad")


def build_classifier(
    config: Config,
    num_labels: int,
    *,
    sequence_length: int | None = None,
    dropout: bool = True,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """A functional model for classification, or for regression with `num_labels` 1 (which wants a
    squared loss).

    Its head is Hugging Face's for the architecture: scores of the pooled output (BERT, MobileBERT),
    or of a hidden layer on the first token, with tanh (RoBERTa) or ReLU (DistilBERT). The names of
    its weights begin with one of `HEAD_NAMES`.

    Args and errors: see `build_encoder`.

    Returns:
        Model from {"input_ids", "input_mask", "segment_ids"} (int32 [B, S]) to {"logits"} ([B,
        num_labels], float32; float64 under that policy).
    """
    if type(num_labels) is not int or num_labels < 1:
        raise ValueError(f"num_labels must be a positive integer, got {num_labels!r}")
    inputs = _inputs(config, sequence_length)
    hidden_layer = _hidden_layer(config, dropout, seed, dtype)
    outputs = _backbone(
        config, pooler=hidden_layer is None, dropout=dropout, seed=seed, dtype=dtype
    )(**inputs)
    features = outputs[1] if hidden_layer is None else hidden_layer(outputs)  # [B, H]
    rate = config.classifier_dropout_prob if dropout else 0.0
    head = Head(
        num_labels,
        dropout_rate=rate,
        initializer_range=config.initializer_range,
        seed=seed,
        name="out_proj" if isinstance(config, RobertaConfig) else "classifier",
        dtype=dtype,
    )
    return keras.Model(inputs, {"logits": head(features)}, name=f"{config.model_type}_classifier")


def _hidden_layer(
    config: Config, dropout: bool, seed: int | None, dtype: str | None
) -> Callable | None:
    """The hidden layer of a classification head; None where the pooler is in its place."""
    if isinstance(config, RobertaConfig):
        return roberta.classifier_features(config, dropout=dropout, seed=seed, dtype=dtype)
    if isinstance(config, DistilBertConfig):
        return distilbert.classifier_features(config, seed=seed, dtype=dtype)
    return None

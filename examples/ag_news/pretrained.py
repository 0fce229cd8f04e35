"""Embeddings and attention of a pre-trained BERT in the classifier.

As in the source: word and position embeddings, and of each block query, key, value, the output of
the attention and its layer norm. Feed-forward blocks and the classifier stay random.
"""

from __future__ import annotations

import os

import keras

import modeling
from encoders.checkpoint import load_weights
from encoders.config import config_from_file
from examples.ag_news.classifier import Architecture
from fileio.messages import printable
from runs.glue.networks import weights_of

_LAYER = "bert/encoder/layer_{}/attention/"
_ATTENTION = {
    "query": "self/query",
    "key": "self/key",
    "value": "self/value",
    "output": "output/dense",
}


def load_pretrained(model: keras.Model, folder: str, architecture: Architecture) -> None:
    """Copy weights of a BERT checkpoint.

    Args:
      model: of `classifier.build`.
      folder: with config.json and the weights, model.safetensors or model.ckpt.
      architecture: of the model.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: its sizes are others, or its file is damaged.
    """
    config = config_from_file(os.path.join(folder, "config.json"))
    wanted = {
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "vocab_size": architecture.vocabulary,
    }
    other = {name: getattr(config, name) for name, size in wanted.items()}
    least = {
        "num_hidden_layers": architecture.blocks,
        "max_position_embeddings": architecture.positions,
    }
    few = {name: getattr(config, name) for name, size in least.items()}
    if other != wanted or any(few[name] < size for name, size in least.items()):
        raise ValueError(
            f"--pretrained_checkpoint={printable(folder)}: has {other | few}; the classifier has"
            f" {wanted} and at least {least}: set --width, --heads, --blocks or --max_length"
        )
    encoder = modeling.build_encoder(config)
    load_weights(encoder, weights_of(folder), new_head=True)
    values = {variable.path: variable.numpy() for variable in encoder.weights}
    for variable in model.weights:
        name = source_of(variable.path)
        if name is not None:
            variable.assign(values[name][: variable.shape[0]])


def source_of(path: str) -> str | None:
    """Name in the checkpoint of a variable of the classifier; None for one that stays."""
    layer, _, name = path.rpartition("/")
    if layer.startswith("embedding_"):
        kind = "word" if layer == "embedding_tokens" else "position"
        return f"bert/embeddings/{kind}_embeddings"
    if not layer.startswith("block_") or "_attention_" not in layer:
        return None
    block, _, part = layer.removeprefix("block_").partition("_attention_")
    if part == "norm":
        return f"{_LAYER.format(block)}output/LayerNorm/{name}"
    return f"{_LAYER.format(block)}{_ATTENTION[part]}/{name}"

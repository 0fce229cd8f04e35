"""Model directories as Hugging Face's libraries write them, made of random values.

Names, shapes and keys as in published files.
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

VOCAB, WIDTH, LAYERS, HEADS, INNER, POSITIONS = 50, 16, 2, 4, 24, 20

ROBERTA = {
    "model_type": "roberta",
    "architectures": ["RobertaModel"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": POSITIONS + 2,
    "type_vocab_size": 1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
}
DISTILBERT = {
    "model_type": "distilbert",
    "activation": "gelu",
    "attention_dropout": 0.1,
    "dim": WIDTH,
    "dropout": 0.1,
    "hidden_dim": INNER,
    "initializer_range": 0.02,
    "max_position_embeddings": POSITIONS,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": VOCAB,
}
MOBILEBERT = {
    "model_type": "mobilebert",
    "attention_probs_dropout_prob": 0.1,
    "classifier_activation": False,
    "embedding_size": 6,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "intra_bottleneck_size": 8,
    "key_query_shared_bottleneck": True,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
    "normalization_type": "no_norm",
    "num_attention_heads": HEADS,
    "num_feedforward_networks": 3,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "trigram_input": True,
    "true_hidden_size": 8,
    "type_vocab_size": 2,
    "use_bottleneck": True,
    "use_bottleneck_attention": False,
    "vocab_size": VOCAB,
}
CONFIGS = {"roberta": ROBERTA, "distilbert": DISTILBERT, "mobilebert": MOBILEBERT}


class _Values:
    """Random weights far from their usual initial values, so that every one of them matters to the
    outputs.
    """

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self.stored: dict[str, np.ndarray] = {}

    def table(self, name: str, rows: int, width: int) -> None:
        self.stored[f"{name}.weight"] = self._rng.normal(0, 0.4, (rows, width)).astype(np.float32)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.stored[f"{name}.weight"] = self._rng.normal(0, 0.25, (outputs, inputs)).astype(
            np.float32
        )
        self.stored[f"{name}.bias"] = self._rng.normal(0, 0.2, outputs).astype(np.float32)

    def norm(self, name: str, width: int) -> None:
        self.stored[f"{name}.weight"] = self._rng.normal(1, 0.2, width).astype(np.float32)
        self.stored[f"{name}.bias"] = self._rng.normal(0, 0.2, width).astype(np.float32)


def roberta_weights(config: dict, task: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """Task "" is the base model, with its pooler and a language modelling head; "classification"
    and "squad" are fine-tuned.
    """
    values, width, inner = _Values(seed), config["hidden_size"], config["intermediate_size"]
    prefix = "roberta."
    values.table(f"{prefix}embeddings.word_embeddings", config["vocab_size"], width)
    values.table(
        f"{prefix}embeddings.position_embeddings", config["max_position_embeddings"], width
    )
    values.table(f"{prefix}embeddings.token_type_embeddings", config["type_vocab_size"], width)
    values.norm(f"{prefix}embeddings.LayerNorm", width)
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{i}"
        for name in ("query", "key", "value"):
            values.linear(f"{layer}.attention.self.{name}", width, width)
        values.linear(f"{layer}.attention.output.dense", width, width)
        values.norm(f"{layer}.attention.output.LayerNorm", width)
        values.linear(f"{layer}.intermediate.dense", inner, width)
        values.linear(f"{layer}.output.dense", width, inner)
        values.norm(f"{layer}.output.LayerNorm", width)
    if task == "classification":
        values.linear("classifier.dense", width, width)
        values.linear("classifier.out_proj", 3, width)
    elif task == "squad":
        values.linear("qa_outputs", 2, width)
    else:
        values.linear(f"{prefix}pooler.dense", width, width)
        values.linear("lm_head.dense", width, width)
        values.norm("lm_head.layer_norm", width)
        values.stored["lm_head.bias"] = np.zeros(config["vocab_size"], np.float32)
    return values.stored


def distilbert_weights(config: dict, task: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """See `roberta_weights`."""
    values, width, inner = _Values(seed), config["dim"], config["hidden_dim"]
    prefix = "distilbert."
    values.table(f"{prefix}embeddings.word_embeddings", config["vocab_size"], width)
    values.table(
        f"{prefix}embeddings.position_embeddings", config["max_position_embeddings"], width
    )
    values.norm(f"{prefix}embeddings.LayerNorm", width)
    for i in range(config["n_layers"]):
        layer = f"{prefix}transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            values.linear(f"{layer}.attention.{name}", width, width)
        values.norm(f"{layer}.sa_layer_norm", width)
        values.linear(f"{layer}.ffn.lin1", inner, width)
        values.linear(f"{layer}.ffn.lin2", width, inner)
        values.norm(f"{layer}.output_layer_norm", width)
    if task == "classification":
        values.linear("pre_classifier", width, width)
        values.linear("classifier", 3, width)
    elif task == "squad":
        values.linear("qa_outputs", 2, width)
    else:
        values.linear("vocab_transform", width, width)
        values.norm("vocab_layer_norm", width)
        values.stored["vocab_projector.bias"] = np.zeros(config["vocab_size"], np.float32)
    return values.stored


def mobilebert_weights(config: dict, task: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """See `roberta_weights`."""
    values, width, inner = _Values(seed), config["hidden_size"], config["intermediate_size"]
    narrow = config["intra_bottleneck_size"] if config["use_bottleneck"] else width
    prefix = "mobilebert."
    values.table(
        f"{prefix}embeddings.word_embeddings", config["vocab_size"], config["embedding_size"]
    )
    values.table(
        f"{prefix}embeddings.position_embeddings", config["max_position_embeddings"], width
    )
    values.table(f"{prefix}embeddings.token_type_embeddings", config["type_vocab_size"], width)
    trigrams = 3 if config["trigram_input"] else 1
    values.linear(
        f"{prefix}embeddings.embedding_transformation", width, trigrams * config["embedding_size"]
    )
    values.norm(f"{prefix}embeddings.LayerNorm", width)
    for i in range(config["num_hidden_layers"]):
        _mobilebert_layer(values, f"{prefix}encoder.layer.{i}", config, width, narrow, inner)
    if config["classifier_activation"] and task != "squad":
        values.linear(f"{prefix}pooler.dense", width, width)
    if task == "classification":
        values.linear("classifier", 3, width)
    elif task == "squad":
        values.linear("qa_outputs", 2, width)
    else:
        values.stored["cls.predictions.bias"] = np.zeros(config["vocab_size"], np.float32)
        values.linear("cls.predictions.transform.dense", width, width)
        values.linear("cls.seq_relationship", 2, width)
    return values.stored


def _mobilebert_layer(
    values: _Values, layer: str, config: dict, width: int, narrow: int, inner: int
) -> None:
    wide_value = config["use_bottleneck"] and not config["use_bottleneck_attention"]
    for name, inputs in (
        ("query", narrow),
        ("key", narrow),
        ("value", width if wide_value else narrow),
    ):
        values.linear(f"{layer}.attention.self.{name}", narrow, inputs)
    values.linear(f"{layer}.attention.output.dense", narrow, narrow)
    values.norm(f"{layer}.attention.output.LayerNorm", narrow)
    values.linear(f"{layer}.intermediate.dense", inner, narrow)
    values.linear(f"{layer}.output.dense", narrow, inner)
    values.norm(f"{layer}.output.LayerNorm", narrow)
    for number in range(config["num_feedforward_networks"] - 1):
        values.linear(f"{layer}.ffn.{number}.intermediate.dense", inner, narrow)
        values.linear(f"{layer}.ffn.{number}.output.dense", narrow, inner)
        values.norm(f"{layer}.ffn.{number}.output.LayerNorm", narrow)
    if config["use_bottleneck"]:
        values.linear(f"{layer}.output.bottleneck.dense", width, narrow)
        values.norm(f"{layer}.output.bottleneck.LayerNorm", width)
        for name in ("input", *(["attention"] if config["key_query_shared_bottleneck"] else [])):
            values.linear(f"{layer}.bottleneck.{name}.dense", narrow, width)
            values.norm(f"{layer}.bottleneck.{name}.LayerNorm", narrow)


WEIGHTS = {
    "roberta": roberta_weights,
    "distilbert": distilbert_weights,
    "mobilebert": mobilebert_weights,
}


def write(
    folder: pathlib.Path, config: dict, weights: dict[str, np.ndarray], shards: int = 1
) -> pathlib.Path:
    """Writes `config.json` and `model.safetensors`, or as many shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    parts = [dict(list(weights.items())[i::shards]) for i in range(shards)]
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def batch(config: dict, rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several true lengths, the first one full; padding has the architecture's id."""
    rng, pad = np.random.default_rng(seed), config["pad_token_id"]
    lengths = np.concatenate([[length], rng.integers(2, length, rows - 1)])
    mask = np.arange(length) < lengths[:, None]
    segments = rng.integers(0, 2, (rows, length)) * mask
    return {
        "input_ids": (
            np.where(mask, rng.integers(2, config["vocab_size"], (rows, length)), pad).astype(
                np.int32
            )
        ),
        "input_mask": mask.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
    }

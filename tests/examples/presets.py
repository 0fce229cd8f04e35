"""Presets of small random models, and made data, for the tests of the examples."""

import pathlib

import keras_hub
import numpy as np

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
SPACE, NEWLINE = "Ġ", "Ċ"  # of byte-level BPE


def byte_pairs(*special: str) -> tuple[dict[str, int], list[str]]:
    """Return a vocabulary and merges of byte-level BPE: letters and a few pairs."""
    merges = ["t h", "th e", "a n", "an d", f"{SPACE} s", f"{SPACE} the", "a t"]
    pieces = [*LETTERS, *LETTERS.upper(), *".,=0123456789", SPACE, NEWLINE]
    pieces += [merge.replace(" ", "") for merge in merges] + list(special)
    return {piece: number for number, piece in enumerate(pieces)}, merges


def randomize(model, seed: int = 0, scale: float = 0.3):
    """Set larger weights than the initial ones, so that outputs of the network differ."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        noise = scale * generator.normal(size=variable.shape)
        is_scale = variable.path.rpartition("/")[2] in ("gamma", "scale")
        variable.assign(noise + 1 if is_scale else noise)
    return model


def gpt2(length: int = 64) -> keras_hub.models.GPT2CausalLM:
    vocabulary, merges = byte_pairs("<|endoftext|>")
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=length,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=length)
    return randomize(keras_hub.models.GPT2CausalLM(backbone, preprocessor))


def llama3(length: int = 64) -> keras_hub.models.Llama3CausalLM:
    """Rotary embeddings, RMSNorm, gated feed-forward, grouped queries."""
    vocabulary, merges = byte_pairs("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *HEADERS)
    tokenizer = keras_hub.models.Llama3Tokenizer(vocabulary, merges)
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer, sequence_length=length)
    return randomize(keras_hub.models.Llama3CausalLM(backbone, preprocessor))


def made_text(lines: int, seed: int) -> str:
    """Return lines of random words, with blank lines between them as in WikiText."""
    generator = np.random.default_rng(seed)
    rows = [" ".join(generator.choice(WORDS, 12)) + " .\n" for _ in range(lines)]
    return " \n = Heading = \n \n " + " \n ".join(rows)


def save_text(folder: pathlib.Path, name: str, lines: int, seed: int) -> str:
    path = folder / name
    path.write_text(made_text(lines, seed), encoding="utf-8")
    return str(path)

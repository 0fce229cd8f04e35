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
        num_layers=1,
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
        num_layers=1,
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


FRAMES, MELS, RATE = 100, 8, 16_000  # of one second of audio


def save_whisper(folder: pathlib.Path, *, multilingual: bool = False) -> str:
    """Save the backbone, tokenizer and converter of a small random Whisper as a preset."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>"]
    vocabulary, merges = byte_pairs()
    size = len(vocabulary)
    special_ids = {name: size + i for i, name in enumerate([*special, "<|notimestamps|>"])}
    languages = {"<|en|>": size + 5, "<|de|>": size + 6} if multilingual else None
    tokenizer = keras_hub.tokenizers.WhisperTokenizer(vocabulary, merges, special_ids, languages)
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=size + 12,  # with ids of timestamps
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        num_mels=MELS,
        max_encoder_sequence_length=FRAMES,
        max_decoder_sequence_length=32,
    )
    converter = keras_hub.layers.WhisperAudioConverter(num_mels=MELS, max_audio_length=1)
    randomize(backbone)
    for part in (backbone, tokenizer, converter):
        part.save_to_preset(str(folder))
    return str(folder)


def save_speech(folder: pathlib.Path, count: int, seed: int, suffix: str = ".flac") -> str:
    """Save noise of different tones with made transcripts, in the layout of LibriSpeech."""
    import soundfile

    generator = np.random.default_rng(seed)
    place = folder / "19" / "198"
    place.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"19-198-{number:04d}"
        time = np.arange(int(generator.integers(RATE // 2, RATE))) / RATE
        tone = np.sin(2 * np.pi * generator.uniform(100, 4000) * time)
        soundfile.write(place / f"{name}{suffix}", 0.3 * tone + 0.1 * generator.normal(), RATE)
        lines.append(f"{name} {' '.join(generator.choice(WORDS, 4)).upper()}\n")
    (place / "19-198.trans.txt").write_text("".join(lines))
    return str(folder)

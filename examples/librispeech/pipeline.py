"""A run of run_librispeech.py from its settings to its figures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras_hub
import numpy as np
from tqdm import tqdm

from calib.tables import build, render
from examples.librispeech import speech
from examples.librispeech.decoding import DecodingRules, decoding_rules, greedy
from examples.librispeech.scores import (
    Comparison,
    compare_runs,
    normalizer,
    word_error_rate,
    write_texts,
)
from examples.librispeech.settings import Settings
from examples.librispeech.speech import Utterance
from examples.librispeech.whisper import Decoder, Network, float_network, quantized_network
from examples.presets import load_preset
from examples.quantizing import write_results
from fileio.messages import printable
from runs.logging import log


class Whisper(NamedTuple):
    """Parts of a preset.

    Attributes:
        decoder: functions of the backbone.
        tokenizer: of KerasHub.
        converter: from audio to spectrograms, of KerasHub.
        frames: of a spectrogram.
        rules: tokens of transcripts.
    """

    decoder: Decoder
    tokenizer: Any
    converter: Any
    frames: int
    rules: DecodingRules


def run(settings: Settings) -> dict[str, Any]:
    """Transcribe speech with the float network and, if asked for, with the quantized one; or
    compare two runs.

    Args:
        settings: that `check` has passed.

    Returns:
        The figures, which results.json holds as well.
    """
    if settings.compare:
        assert settings.output_dir is not None
        first, second = settings.compare
        return compare_runs(first, second, settings.output_dir)
    whisper = load(settings)
    assert settings.data_dir is not None
    utterances = speech.read(settings.data_dir, settings.tfds_dir)[: settings.max_utterances]
    log(f"{settings.data_dir}: {len(utterances)} utterances")
    networks = {"float": float_network(whisper.decoder, whisper.frames)}
    figures: dict[str, Any] = {"utterances": len(utterances), "float": {}}
    if settings.quantizes:
        networks["quantized"], figures["quantized"] = quantized(
            whisper, networks["float"], settings
        )
    normalize = normalizer(settings.language)
    references = [normalize(one.text) for one in utterances]
    texts = {}
    for name, network in networks.items():
        started = time.perf_counter()
        texts[name] = [
            normalize(text) for text in transcripts(network, whisper, utterances, settings, name)
        ]
        figures[name] |= {
            "wer": word_error_rate(references, texts[name]),
            "seconds": round(time.perf_counter() - started, 2),
        }
        if settings.output_dir:
            write_texts(os.path.join(settings.output_dir, name), references, texts[name])
    if settings.quantizes:
        comparison = Comparison.of(references, texts["float"], texts["quantized"])
        figures["comparison"] = comparison.figures()
        if settings.output_dir:
            comparison.write(settings.output_dir)
    write_results(settings, figures)
    log(table(figures))
    return figures


def load(settings: Settings) -> Whisper:
    """Return the parts of `--preset`.

    Raises:
        ValueError: it cannot be loaded, or its parts do not fit.
    """
    preset = settings.preset or ""
    backbone = load_preset(keras_hub.models.WhisperBackbone, preset, dtype=settings.dtype)
    tokenizer = load_preset(keras_hub.tokenizers.WhisperTokenizer, preset)
    converter = load_preset(keras_hub.layers.WhisperAudioConverter, preset)
    where = f"--preset={printable(preset)}"
    frames = converter.num_samples // converter.stride
    if frames != backbone.max_encoder_sequence_length or converter.num_mels != backbone.num_mels:
        raise ValueError(
            f"{where}: its converter makes {frames} frames of {converter.num_mels} mels, its"
            f" network takes {backbone.max_encoder_sequence_length} of {backbone.num_mels}"
        )
    if settings.max_length > backbone.max_decoder_sequence_length:
        raise ValueError(
            f"--max_length={settings.max_length}: the network takes at most"
            f" {backbone.max_decoder_sequence_length} tokens"
        )
    rules = decoding_rules(tokenizer, backbone.vocabulary_size, settings.language)
    log(f"loaded {type(backbone).__name__} from {preset}")
    return Whisper(Decoder(backbone, settings.max_length), tokenizer, converter, frames, rules)


def quantized(
    whisper: Whisper, network: Network, settings: Settings
) -> tuple[Network, dict[str, Any]]:
    """Quantize the network and set its ranges from what the float one transcribes.

    Args:
        whisper: parts of the preset.
        network: the float network.
        settings: of the run.
    """
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    if settings.calibration_dir:
        utterances = speech.read(settings.calibration_dir, settings.tfds_dir)
        utterances = utterances[: settings.calibration_steps * settings.batch_size]
        log(f"{settings.calibration_dir}: {len(utterances)} utterances set the ranges")
        with tqdm(total=len(utterances), desc="float, calibration", unit="utterance") as bar:
            for features in features_of(whisper, utterances, settings.batch_size):
                tokens = greedy(network, features, whisper.rules, settings.max_length)
                bar.update(len(features))
                # Alone, as the network has no mask for the padding of shorter transcripts.
                for one, ids in zip(features, tokens, strict=True):
                    transcript = np.array([[*whisper.rules.prompt, *ids]], np.int32)
                    batches.append((one[None], transcript))
    return quantized_network(
        whisper.decoder,
        whisper.frames,
        settings.quantization(),
        batches,
        source="--calibration_dir=DIR",
    )


def features_of(
    whisper: Whisper, utterances: Sequence[Utterance], size: int
) -> Iterator[np.ndarray]:
    """Yield the spectrograms of batches of utterances, float32 [utterances, frames, mels].

    Audio that is longer than the network takes (30 seconds) is cut.
    """
    for first in range(0, len(utterances), size):
        batch = utterances[first : first + size]
        audio = [one.samples(whisper.converter.sampling_rate) for one in batch]
        features = [np.asarray(whisper.converter(samples)) for samples in audio]
        yield np.stack(features).astype(np.float32)


def transcripts(
    network: Network,
    whisper: Whisper,
    utterances: Sequence[Utterance],
    settings: Settings,
    name: str,
) -> list[str]:
    """Return the texts that a network finds in utterances.

    Args:
        network: float or quantized.
        whisper: parts of the preset.
        utterances: to transcribe.
        settings: of the run.
        name: of the network, for the progress bar.
    """
    result = []
    with tqdm(total=len(utterances), desc=name, unit="utterance") as bar:
        for features in features_of(whisper, utterances, settings.batch_size):
            for ids in greedy(network, features, whisper.rules, settings.max_length):
                result.append(whisper.tokenizer.detokenize(ids) if ids else "")
            bar.update(len(features))
    return result


def summary(settings: Settings, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the last line of stdout: word error rates, and where the rest is."""
    if settings.compare:
        return figures
    result = {
        f"{name}_wer": figures[name]["wer"] for name in ("float", "quantized") if name in figures
    }
    if settings.output_dir:
        result["results"] = os.path.join(settings.output_dir, "results.json")
    return result


def table(figures: dict[str, Any]) -> str:
    """Return word error rates of both networks as a table."""
    rows = []
    for name in ("float", "quantized"):
        if name in figures:
            one = figures[name]
            rows.append(
                [
                    one.get("recipe", "float"),
                    str(one.get("sites", 0)),
                    f"{one['wer']:.2f}",
                    f"{one['wer'] - figures['float']['wer']:+.2f}",
                    f"{one['seconds']:.1f}",
                ]
            )
    columns = ["network", "sites", "WER %", "difference", "seconds"]
    return render(build(None, columns, rows, left=["network"]))

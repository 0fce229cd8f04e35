"""Utterances with their transcripts: folders in the layout of LibriSpeech, and TensorFlow Datasets.

19/198/19-198.trans.txt     lines "19-198-0000 NORTHANGER ABBEY"
19/198/19-198-0000.flac     16 kHz, mono; .wav as well
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from examples.settings import TFDS, split_name
from fileio.messages import printable
from tasks.files import read_text
from tasks.tfds_builder import check_split, tfds_builder
from tfquant.error_messages import one_line

_SOURCE = "https://www.openslr.org"
_SUFFIXES = (".flac", ".wav")


class Utterance(NamedTuple):
    """One recording.

    Attributes:
        name: its identifier, such as "19-198-0000".
        text: its transcript.
        samples: reads it, with the sampling rate that it must have; float32 from -1 to 1,
            [samples].
    """

    name: str
    text: str
    samples: Callable[[int], np.ndarray]


def read(path: str, tfds_dir: str | None = None) -> list[Utterance]:
    """Return the utterances of a folder or of a split of TensorFlow Datasets.

    Raises:
        FileNotFoundError: no transcripts, a recording is missing, or no such data set.
        ValueError: a file of transcripts is none, or there is no such split.
    """
    return _prepared(path, tfds_dir) if path.startswith(TFDS) else _folder(path)


def _folder(path: str) -> list[Utterance]:
    """Return the utterances of all *.trans.txt below a folder, sorted by name."""
    files = sorted(pathlib.Path(path).rglob("*.trans.txt"))
    if not files:
        raise FileNotFoundError(
            f"{printable(path)}: no *.trans.txt in it or below; give a folder of LibriSpeech, such"
            " as LibriSpeech/test-clean"
        )
    result: dict[str, Utterance] = {}
    for file in files:
        for number, line in enumerate(read_text(file, "transcripts").splitlines(), 1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            if not text.strip():
                raise ValueError(f"{printable(file)}, line {number}: must be NAME TEXT")
            if name in result:
                raise ValueError(f"{printable(file)}, line {number}: {printable(name)} is twice")
            result[name] = Utterance(name, text.strip(), _reader(file.parent, name))
    return [result[name] for name in sorted(result)]


def _reader(folder: pathlib.Path, name: str) -> Callable[[int], np.ndarray]:
    for suffix in _SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return functools.partial(read_audio, folder / f"{name}{suffix}")
    raise FileNotFoundError(
        f"{printable(folder / name)}: no recording {' or '.join(_SUFFIXES)} for its transcript"
    )


def read_audio(path: pathlib.Path, rate: int) -> np.ndarray:
    """Return the samples of a recording, float32 [samples].

    Args:
        path: file of libsndfile: FLAC, WAV.
        rate: samples a second that it must have.

    Raises:
        ValueError: it cannot be read, has another rate, several channels, or no samples.
    """
    import soundfile

    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{printable(path)}: no audio file ({one_line(error, 200)})") from error
    if found != rate or samples.shape[1] != 1 or not len(samples):
        raise ValueError(
            f"{printable(path)}: {len(samples)} samples of {found} Hz in {samples.shape[1]}"
            f" channels; the preset takes {rate} Hz in one: convert it"
        )
    return samples[:, 0]


def _prepared(name: str, tfds_dir: str | None) -> list[Utterance]:
    """Return the utterances of TensorFlow Datasets, their samples in memory as 16-bit integers."""
    import tensorflow_datasets as tfds

    dataset, split = split_name(name)
    instead = "a folder of LibriSpeech"
    builder = tfds_builder((dataset,), tfds_dir, source=_SOURCE, instead=instead)
    check_split(builder, split)
    result = []
    for number, row in enumerate(tfds.as_numpy(builder.as_dataset(split=split))):
        if not isinstance(row, dict) or not {"speech", "text"} <= set(row):
            raise ValueError(f"{name}: its records have no features `speech` and `text`")
        identifier = row["id"].decode() if "id" in row else str(number)
        integers = row["speech"].astype(np.int16)
        result.append(
            Utterance(identifier, row["text"].decode(), functools.partial(_scaled, integers))
        )
    return sorted(result, key=lambda one: one.name)


def _scaled(integers: np.ndarray, rate: int) -> np.ndarray:
    """Return 16-bit samples as float32 from -1 to 1; data sets do not say their rate."""
    return integers.astype(np.float32) / 2**15

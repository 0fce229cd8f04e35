"""Options of run_librispeech.py; TensorFlow is not imported here."""

import dataclasses

from examples.settings import ModelSettings
from runs.settings import AT_LEAST_1, at_least, flag


@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of a run; each field is an option of the same name, and has its help."""

    data_dir: str | None = flag(
        None,
        "Speech to transcribe: a folder in the layout of LibriSpeech (*.trans.txt beside *.flac or"
        " *.wav), or tfds:librispeech:test_clean.",
        metavar="DIR|TFDS",
    )
    calibration_dir: str | None = flag(
        None,
        "Speech that the ranges are set from, as --data_dir; usually dev-clean. Its texts are not"
        " used: the float network transcribes it.",
        metavar="DIR|TFDS",
    )
    batch_size: int = flag(8, "Utterances in a batch.", bound=AT_LEAST_1)
    max_length: int = flag(448, "Tokens of a transcript, the prompt included.", bound=at_least(5))
    max_utterances: int | None = flag(
        None, "Transcribe only the first ones of --data_dir.", bound=AT_LEAST_1
    )
    language: str = flag(
        "en",
        "Language of the speech, for presets of several languages; other languages than English are"
        " scored by Whisper's basic normalizer.",
    )
    compare: tuple[str, ...] = flag(
        (),
        "Only compare the results of two runs: the folders with their predictions.txt. Writes"
        " wer_scores.txt and wer_difference.png to --output_dir.",
        metavar="DIR",
    )

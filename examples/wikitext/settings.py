"""Options of run_wikitext.py; TensorFlow is not imported here."""

import dataclasses

from examples.settings import ModelSettings
from runs.settings import AT_LEAST_1, at_least, flag

START_TOKENS = ("auto", "always", "never")


@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of a run; each field is an option of the same name, and has its help."""

    text_file: str | None = flag(
        None,
        "Text to score, UTF-8, or tfds:DATASET:SPLIT, records with a feature `text`.",
        metavar="FILE|TFDS",
    )
    calibration_file: str | None = flag(
        None,
        "Text that the ranges are set from, as --text_file; usually the validation split.",
        metavar="FILE|TFDS",
    )
    join_lines: bool = flag(
        True,
        "Join the lines of a file by two newlines, as the rows of WikiText-2 and WikiText-103 are;"
        " --nojoin_lines takes the text as it is.",
    )
    start_token: str = flag(
        "auto",
        "Begin the text with the tokenizer's start token; auto: unless that is its end token too,"
        " as of GPT-2.",
        choices=START_TOKENS,
    )
    max_length: int = flag(1024, "Tokens in a window.", bound=at_least(2))
    stride: int = flag(512, "Tokens from one window to the next.", bound=AT_LEAST_1)
    batch_size: int = flag(1, "Windows in a batch.", bound=AT_LEAST_1)
    sweep: bool = flag(
        False,
        "Score --sweep_formats at every level of op fusion; writes perplexity.csv to --output_dir.",
    )
    sweep_formats: tuple[str, ...] = flag(
        ("posit8_1", "posit8_2", "e4m3"),
        "Specs of activations and weights that --sweep scores.",
        metavar="SPEC",
        needs={"sweep": True},
    )

"""The command line of run_glue.py, made from its settings: a mode, then options."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import NoReturn

from runs.command_line import CommandLine, read_config
from runs.glue.settings import MODES, Settings, option
from tfquant.cli.parser import Parser

SCRIPT = "run_glue.py"
# Options of other scripts for GLUE (Hugging Face's, INQ-pytorch's, nlp-architect's) -> ours.
ALIASES = {
    "nbits": "n_bits",
    "task_name": "task",
    "model_name_or_path": "model_path",
    "per_gpu_train_batch_size": "batch_size",
    "per_gpu_eval_batch_size": "eval_batch_size",
    "num_train_epochs": "num_epochs",
    "overwrite_output_dir": "overwrite_output",
}


def parse(arguments: Sequence[str], description: str | None) -> Settings:
    """Return the settings that a command line asks for.

    Args:
        arguments: the words behind the program's name. The mode is the first, that of `--mode`, or
          that of the --config file.
        description: what `--help` without a mode shows.

    Raises:
        SystemExit: 0 after help and version; 2, after a line on stderr, where an option is wrong.
    """
    mode, options = _mode_of(arguments)
    if mode is None:
        mode = _mode_of_config(options)
    if mode is None:
        _without_mode(options, description)
    mode = mode.replace("_", "-")
    if mode not in MODES:
        _parser(description).error(f"unknown mode {mode!r}, must be one of {', '.join(MODES)}")
    fields = [
        field
        for field in dataclasses.fields(Settings)
        if mode in field.metadata["modes"] and "positional" not in field.metadata
    ]
    known = {field.name for field in fields}
    line = CommandLine(
        SCRIPT,
        fields,
        mark="-",
        usage=(
            f"{SCRIPT} {mode} [OPTION ...]; an option that is true or false is set by --OPTION and"
            " --no-OPTION as well"
        ),
        description=f"Options of {mode}.",
        unknown=lambda words: f"{mode} has no {', '.join(words)}{_of_other_modes(words)}",
        aliases={other: own for other, own in ALIASES.items() if own in known},
        ignored=("mode",),
    )
    return Settings(mode=mode, **line.parse(options))


def _mode_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the mode, None where there is none, and the other words; `--mode X` anywhere is `X` in
    front.
    """
    words = [
        part
        for word in arguments
        for part in (word.split("=", 1) if word.startswith("--mode=") else [word])
    ]
    if "--mode" in words and words.index("--mode") + 1 < len(words):
        at = words.index("--mode")
        return words[at + 1], [*words[:at], *words[at + 2 :]]
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    return None, words


def _mode_of_config(words: Sequence[str]) -> str | None:
    """Return the mode that a --config file names; None without one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        path = parser.parse_known_args(list(words))[0].config
        mode = read_config(path).get("mode") if path else None
    except (argparse.ArgumentError, OSError, ValueError) as error:
        _parser(None).error(f"--config: {error}")
    return mode if isinstance(mode, str) else None


def _parser(description: str | None) -> Parser:
    """Return the parser of a command line without a mode."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        SCRIPT,
        f"{SCRIPT} MODE [OPTION ...]",
        description,
        formatter_class=plain,
        allow_abbrev=False,
    )
    parser.add_version()
    parser.add_argument(
        "mode", metavar="MODE", help=f"one of {', '.join(MODES)}; MODE --help lists its options"
    )
    return parser


def _without_mode(words: Sequence[str], description: str | None) -> NoReturn:
    """Show the help or the version, or say that the mode is missing."""
    parser = _parser(description)
    if {"-h", "--help", "--version"} & set(words):
        parser.parse_args(words)
    parser.error(f"MODE is missing: one of {', '.join(MODES)}")


def _of_other_modes(words: Sequence[str]) -> str:
    """Return the modes that have an unknown option, as an ending of its message; empty where none
    has.
    """
    fields = {option(field.name): field.metadata["modes"] for field in dataclasses.fields(Settings)}
    known = {word: fields.get(word.replace("_", "-"), ()) for word in words}
    return "".join(
        f"; {word} is of {' and '.join(modes)}" for word, modes in known.items() if modes
    )

"""The command line of run_squad.py, made from its settings; TensorFlow is not imported here."""

import dataclasses
from collections.abc import Sequence

from runs.command_line import CommandLine
from runs.squad.flags import Settings
from tfquant.training_args import ARGUMENTS

_ALIASES = {
    "use_fp16": "use_bf16",
    "target": "export_target",
    "quantize_weights": "quantize_weight",
}


def parse(words: Sequence[str], description: str | None) -> Settings:
    """Return the settings that a command line asks for.

    Args:
        words: the command line, without the name of the program.
        description: what `--help` shows above the flags.

    Raises:
        SystemExit: 0 after help and version; 2, after a line on stderr, where a flag is wrong.
    """
    usage = (
        "run_squad.py [--FLAG=VALUE ...]; a flag that is true or false is set by --FLAG and"
        " --noFLAG as well"
    )
    # Those of the script before those that it shares.
    fields = sorted(dataclasses.fields(Settings), key=lambda field: field.name in ARGUMENTS)
    line = CommandLine(
        "run_squad.py",
        fields,
        mark="_",
        usage=usage,
        description=description or "",
        aliases=_ALIASES,
    )
    return Settings(**line.parse(words))


def arguments(settings: Settings) -> list[str]:
    """Return the command line that asks for these settings."""
    specified = {
        f.name: getattr(settings, f.name)
        for f in dataclasses.fields(Settings)
        if getattr(settings, f.name) != f.default
    }
    words: list[str] = []
    for name, value in specified.items():
        if isinstance(value, tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words

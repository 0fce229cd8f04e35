"""The command line of run_glue.py, made from its settings: a mode, then options with hyphens or underscores."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from glue_run.settings import ALL, MODES, Settings
from tasks import glue


def parse(arguments: Sequence[str], description: str) -> Settings:
    """Settings from the words behind the program's name; ends the process with a line where they are wrong."""
    arguments = _mode_first(arguments)
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="run_glue.py", description=description, formatter_class=plain)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE", help=f"one of {', '.join(MODES)}")
    for mode in MODES:
        usage = f"run_glue.py {mode} [OPTION ...]; --help lists the options"
        one = modes.add_parser(mode, aliases=[mode.replace("-", "_")], allow_abbrev=False, usage=usage)
        one.set_defaults(mode=mode)
        for field in dataclasses.fields(Settings):
            if mode in field.metadata["modes"] and "positional" not in field.metadata:
                _add(one, field)
    read, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = [word for word in unknown if word.startswith("-")] or unknown  # others are values of theirs
        parser.error(f"{read.mode} has no {', '.join(options)}{_of_other_modes(options)}")
    found = {name: value for name, value in vars(read).items() if value is not None}
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def _mode_first(arguments: Sequence[str]) -> list[str]:
    """`--mode X` anywhere is the same as `X` in front."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--mode=") else [word])]
    if "--mode" in words and words.index("--mode") + 1 < len(words):
        at = words.index("--mode")
        return [words[at + 1], *words[:at], *words[at + 2 :]]
    return words


def _of_other_modes(words: Sequence[str]) -> str:
    """Which modes have them, to follow the message that one has not; empty where none has."""
    fields = {field.name: field.metadata["modes"] for field in dataclasses.fields(Settings)}
    known = {word: fields.get(word.removeprefix("--").partition("=")[0].replace("-", "_"), ()) for word in words}
    return "".join(f"; {word} is of {' and '.join(modes)}" for word, modes in known.items() if modes)


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """One option in both spellings."""
    kind, several = _kind(field.type)
    names = list(dict.fromkeys(f"--{field.name.replace('_', mark)}" for mark in "-_"))
    how: dict[str, Any] = {"dest": field.name, "default": None, "help": f"{field.metadata['help']}{_default(field)}"}
    if kind is bool:
        parser.add_argument(*names, action="store_true", **how)
        negative = field.metadata.get("negative", f"no-{field.name.replace('_', '-')}")
        off = list(dict.fromkeys((f"--{negative}", f"--{negative.replace('-', '_')}", f"--no-{field.name.replace('_', '-')}")))
        parser.add_argument(*off, action="store_false", dest=field.name, default=None, help=argparse.SUPPRESS)
        return
    if field.name == "task":
        kind, how["choices"] = str.lower, (*glue.TASKS, ALL)
        how["metavar"] = "TASK"
    elif "choices" in field.metadata:
        how["choices"] = field.metadata["choices"]
    if several:
        how |= {"action": "extend", "nargs": "+"}
    parser.add_argument(*names, type=kind, **how)


def _kind(annotation: Any) -> tuple[type, bool]:
    """(type of a value, whether there may be several)"""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType), False
    return annotation, False


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if value is None or value is False:
        return ""
    if value is True:
        return f" On unless --no-{field.name.replace('_', '-')} is given."
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [{shown}]"

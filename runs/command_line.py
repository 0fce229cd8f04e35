"""Command lines of the run scripts: an option for each field of a settings dataclass, and files of
options.

Parsing needs no TensorFlow: `--help`, `--version` and wrong options are answered before it is
imported. Names may be written with hyphens or underscores, on the command line and in files.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from fileio.messages import printable
from tfquant.cli.parser import Parser

_HELP = ("help", "helpfull", "helpshort")  # the last two are those of absl's flags
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")
_METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
_NOTHING = ("null", "~")  # of YAML


def boolean(text: str) -> bool:
    """Return the value of a text that is true or false; ValueError otherwise."""
    if text.lower() not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


class CommandLine:
    """Options of a script, or of one of its modes.

    Args:
      program: name of the script in messages.
      fields: of the settings dataclass, one for each option. Metadata that is used: `help`,
        `choices`, `parse` (text -> value), and `negative`, a name that means `--NAME=false`.
      mark: "-" or "_", how names are written in help and messages.
      usage, description: of the help.
      aliases: other name of an option -> name of its field.
      unknown: options that are none of these -> message that refuses them.
      ignored: names in a --config file that the caller reads by itself.
    """

    def __init__(
        self,
        program: str,
        fields: Sequence[dataclasses.Field],
        *,
        mark: str,
        usage: str,
        description: str,
        aliases: Mapping[str, str] | None = None,
        unknown: Callable[[Sequence[str]], str] | None = None,
        ignored: Sequence[str] = (),
    ):
        self._mark, self._aliases, self._ignored = mark, dict(aliases or {}), tuple(ignored)
        self._fields = {field.name: field for field in fields}
        self._unknown = unknown or self._suggest
        self._negatives = {}
        for field in fields:
            if _kind(field.type)[0] is bool:
                own = field.metadata.get("negative", f"no_{field.name}")
                self._negatives |= dict.fromkeys(
                    (f"no{field.name}", f"no_{field.name}", own), field.name
                )
        plain = argparse.RawDescriptionHelpFormatter
        self._parser = Parser(
            program, usage, description, formatter_class=plain, allow_abbrev=False
        )
        self._parser.add_version()
        what = "YAML file of options, NAME: VALUE; those of the command line win"
        self._parser.add_argument("--config", metavar="FILE.yaml", help=what)
        for field in fields:
            self._add(field)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Return field -> value of what a command line and its --config file give.

        Raises:
          SystemExit: 0 after help and version; 2, after a line on stderr, where an option is wrong.
        """
        specified = self._parse(words)
        path = specified.pop("config", None)
        if path is None:
            return specified
        self._parser.source = f"--config={path}"
        return self._parse(self._words_of(self.read(path))) | specified

    def read(self, path: str) -> dict[str, str | list[str]]:
        """Return the names and texts of a --config file; end the process where it is none."""
        try:
            return read_config(path)
        except (OSError, ValueError) as error:
            self._parser.source = "--config"
            self._parser.error(str(error))

    def error(self, message: str) -> NoReturn:
        """End the process with status 2, after one line."""
        self._parser.error(message)

    def written(self, name: str) -> str:
        """Return an option as it is written on the command line."""
        return f"--{name.replace('_', self._mark)}"

    def _add(self, field: dataclasses.Field) -> None:
        kind, several = _kind(field.type)
        choices = field.metadata.get("choices")
        how: dict[str, Any] = {"dest": field.name, "default": None, "help": _help(field)}
        if kind is bool:
            how |= {"nargs": "?", "metavar": "true|false", "type": boolean}
        else:
            how |= {
                "type": field.metadata.get("parse", kind),
                "choices": choices,
                "metavar": _metavar(field),
            }
        if field.metadata.get("bare") is not None:
            how |= {"nargs": "?", "const": field.metadata["bare"]}
        if several:
            how |= {"action": "extend", "nargs": "+"}
        self._parser.add_argument(self.written(field.name), **how)

    def _parse(self, words: Sequence[str]) -> dict[str, Any]:
        read, unknown = self._parser.parse_known_args(list(self._canonical(words)))
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if options:  # the others are values of theirs
            self._parser.error(self._unknown(options))
        if unknown:
            self._parser.error(f"unexpected argument {unknown[0]!r}")
        result = {name: value for name, value in vars(read).items() if value is not None}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in result.items()
        }

    def _canonical(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the words with each known option in the one spelling that the parser knows."""
        for word in words:
            name, equals, value = word.partition("=")
            name = name.lstrip("-").replace("-", "_")
            name = self._aliases.get(name, name)
            if not word.startswith("-") or not name[:1].isalpha():
                yield word
            elif word == "-h" or name in _HELP:
                yield "--help"
            elif name in self._negatives and not equals and name not in self._fields:
                yield f"{self.written(self._negatives[name])}=false"
            elif name in self._fields:
                single = _kind(self._fields[name].type)[0] is bool and not equals
                yield self.written(name) + ("=true" if single else equals + value)
            else:
                yield word

    def _words_of(self, config: Mapping[str, str | list[str]]) -> list[str]:
        """Return a file of options as a command line."""
        words = []
        for key, value in config.items():
            name = self._aliases.get(key, key)
            if name in self._ignored:
                continue
            if name not in self._fields:
                self._parser.error(self._unknown([self.written(key)]))
            if isinstance(value, list) and not _kind(self._fields[name].type)[1]:
                self._parser.error(f"{self.written(key)} takes one value, not a list")
            words += [
                f"{self.written(name)}={text}"
                for text in ([value] if isinstance(value, str) else value)
            ]
        return words

    def _suggest(self, options: Sequence[str]) -> str:
        known = [self.written(name) for name in self._fields]
        shown = [self.written(option.lstrip("-").replace("-", "_")) for option in options]
        near = [
            match for option in shown for match in difflib.get_close_matches(option, known, 1, 0.8)
        ]
        return f"unknown option {', '.join(options)}" + (
            f", did you mean {near[0]}?" if near else ""
        )


def read_config(path: str) -> dict[str, str | list[str]]:
    """Return name -> text, or texts, of a YAML file of options; a value of `null` is left out.

    Values are texts, as on the command line: `no`, `1e-5` and `0:1` are what they look like.

    Raises:
      FileNotFoundError, OSError: the file cannot be read.
      ValueError: it holds something else.
    """
    from fileio.yaml_text import read_yaml

    content = read_yaml(path, resolve=False)
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path}: must hold NAME: VALUE, one option a line")
    result: dict[str, str | list[str]] = {}
    for key, value in (content or {}).items():
        texts = value if isinstance(value, list) else [value]
        if not isinstance(key, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{path}: {printable(str(key), 100)} must have a value or a list of values"
            )
        name = key.replace("-", "_")
        if name in result:
            raise ValueError(f"{path}: {key} is there twice")
        if value not in _NOTHING:
            result[name] = value
    return result


def _kind(annotation: Any) -> tuple[type, bool]:
    """Return the type of a field's value, and whether there may be several."""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    if isinstance(annotation, types.UnionType):
        return (
            next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType),
            False,
        )
    return annotation, False


def _metavar(field: dataclasses.Field) -> str | None:
    """Return what stands for the value in the help; None lists the choices."""
    if "metavar" in field.metadata or "choices" not in field.metadata:
        return field.metadata.get("metavar", _METAVARS.get(_kind(field.type)[0]))
    return None


def _help(field: dataclasses.Field) -> str:
    """Return the help with the default value."""
    text, value = field.metadata["help"].replace("%", "%%"), field.default
    if value is None or value is False or value in ("", ()):
        return text
    shown = (
        "true"
        if value is True
        else " ".join(map(str, value))
        if isinstance(value, tuple)
        else value
    )
    return f"{text} [{shown}]"

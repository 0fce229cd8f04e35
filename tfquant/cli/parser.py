"""Parser of a command line that reports a wrong argument in one line, with exit status 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fileio.messages import printable
from tfquant.version import __version__


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` without the usage in front of an error.

    Attributes:
      source: where the arguments come from if not from the command line; shown in errors.
    """

    source = ""

    def error(self, message: str) -> NoReturn:
        where = f"{self.source}: " if self.source else ""
        self.exit(2, f"{self.prog}: {printable(where + message)}; --help lists the arguments\n")

    def add_version(self) -> None:
        """Add `--version`, which shows the version of tfquant."""
        self.add_argument(
            "--version",
            action="version",
            version=f"tfquant {__version__}",
            help="show the version and exit",
        )

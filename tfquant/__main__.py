"""The command line: `python -m tfquant export`, `check` and `benchmark`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from fileio.messages import printable
from tfquant.messages import one_line

TRACEBACK = "TFQUANT_TRACEBACK"  # environment variable: errors end with Python's trace


class _Parser(argparse.ArgumentParser):
    """Ends with one line where the arguments are wrong, as every other error does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; --help lists the arguments\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, 1 after an error, or 130 if it was interrupted.

    Raises:
      SystemExit: 0 after --help, 2 if the arguments are wrong.
    """
    from tfquant import cli

    parser = _Parser(prog="python -m tfquant", description="Quantization of TensorFlow and Keras 3 models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (cli.export, cli.check, cli.benchmark):
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"tfquant {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"tfquant {options.command}: {_reason(error)}", file=sys.stderr)
        return 1
    return 0


def _reason(error: Exception) -> str:
    """An error in one line: its message, and its kind where that says more."""
    from tfquant import UncalibratedError
    from tfquant.export.errors import ExportError
    from tfquant.runtimes import RuntimeFileError

    if isinstance(error, KeyError):
        return one_line(error.args[0] if error.args else error)
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError, ExportError, RuntimeFileError, UncalibratedError)):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error, 500)} ({TRACEBACK}=1 shows where)"


if __name__ == "__main__":
    sys.exit(main())

"""Command line: `python -m tfquant export`, `check` and `benchmark`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from tfquant.cli import benchmark, check, export
from tfquant.cli.parser import Parser
from tfquant.error_messages import one_line

TRACEBACK = "TFQUANT_TRACEBACK"  # environment variable: errors end with Python's trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 after an error, or 130 if it was interrupted.

    Raises:
      SystemExit: 0 after --help and --version, 2 if the arguments are wrong.
    """
    parser = Parser(
        prog="python -m tfquant", description="Quantization of TensorFlow and Keras 3 models."
    )
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (export, check, benchmark):
        command.add(commands)
    options = parser.parse_args(_underscored(sys.argv[1:] if arguments is None else arguments))
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


def _underscored(arguments: Sequence[str]) -> list[str]:
    """Write names of options with underscores: `--check-data=x` becomes `--check_data=x`."""
    parts = [word.partition("=") if word.startswith("--") else ("", "", word) for word in arguments]
    return [
        name.replace("-", "_").replace("__", "--", 1) + equals + value
        for name, equals, value in parts
    ]


def _reason(error: Exception) -> str:
    """Return an error in one line: its message, and its type where the message alone is unclear."""
    from tfquant import UncalibratedError
    from tfquant.export.errors import ExportError
    from tfquant.runtimes import RuntimeFileError

    if isinstance(error, KeyError):
        return one_line(error.args[0] if error.args else error)
    if isinstance(
        error,
        (
            ValueError,
            OSError,
            ModuleNotFoundError,
            ExportError,
            RuntimeFileError,
            UncalibratedError,
        ),
    ):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error, 500)} ({TRACEBACK}=1 shows where)"


if __name__ == "__main__":
    sys.exit(main())

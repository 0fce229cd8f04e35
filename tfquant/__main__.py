"""The command line: `python -m tfquant export`, `check` and `benchmark`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code."""
    from tfquant import UncalibratedError, cli
    from tfquant.export.errors import ExportError
    from tfquant.runtimes import RuntimeFileError

    own_errors = (ExportError, RuntimeFileError, UncalibratedError)
    parser = argparse.ArgumentParser(prog="python -m tfquant", description="Quantization of TensorFlow and Keras 3 models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (cli.export, cli.check, cli.benchmark):
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, KeyError, TypeError, ModuleNotFoundError, *own_errors) as error:
        print(f"tfquant {options.command}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Command line of the benchmarks that read the real model and data."""

from __future__ import annotations

import argparse
import pathlib


def shared_parser(
    description: str | None, contents: str = "models/ and data/", *, fresh: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the option `--shared`.

    Args:
      description: docstring of the benchmark, shown as it is written.
      contents: what the folder of `--shared` has to hold.
      fresh: whether to add the option `--fresh`, for benchmarks that keep earlier rows.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared",
        type=pathlib.Path,
        default=pathlib.Path("../shared"),
        help=f"folder with {contents}",
    )
    if fresh:
        parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    return parser

"""`python -m tfquant check`.

An exported file against the checkpoint that it was made from, on real batches.
"""

from __future__ import annotations

import argparse
from typing import Any

from tfquant.choices import MODES
from tfquant.cli import check_flags
from tfquant.runtimes import RUNTIMES


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="compare an exported file with its checkpoint",
        description=(
            "Compares an exported file with its checkpoint, every output by itself; ends with 1 if"
            " more rows differ than --tolerance allows."
        ),
    )
    check_flags.add_model(parser)
    parser.add_argument("path", help="the exported file")
    check_flags.add_check(parser, required=True)
    parser.add_argument(
        "--mode",
        default="quantized",
        choices=MODES,
        help="in which the file was written (default %(default)s)",
    )
    parser.add_argument(
        "--runtime", choices=list(RUNTIMES), help="that answers; by the file's suffix if not given"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints how far both agree."""
    import tfquant
    from tfquant.cli import arrays, models

    kinds = check_flags.parse_check(options)
    rows = arrays.read(options.check_data)
    batches = list(arrays.batches(rows, options.batch_size))
    result = tfquant.compare(
        models.load(options, rows),
        options.path,
        batches,
        mode=options.mode,
        runtime=options.runtime,
        tolerance=options.tolerance,
        check=kinds,
    )
    print(result.table())
    print(f"{options.path}: {result}")

"""`python -m tfquant export`: a checkpoint of `tfquant.save` as a file for another runtime."""

from __future__ import annotations

import argparse
from typing import Any

from tfquant.choices import MODES
from tfquant.cli import check_flags
from tfquant.export.targets import TARGETS


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a calibrated or trained checkpoint for another runtime",
        description=(
            "Writes a checkpoint of tfquant.save for another runtime and compares both on real"
            " batches."
        ),
    )
    check_flags.add_model(parser)
    parser.add_argument("path", help="what to write")
    parser.add_argument("--target", default="onnx", choices=list(TARGETS))
    parser.add_argument(
        "--mode",
        default="quantized",
        choices=MODES,
        help="float writes the network without quantizers",
    )
    parser.add_argument("--opset", type=int, default=17, help="of ONNX (default %(default)s)")
    parser.add_argument(
        "--sm",
        type=int,
        default=80,
        help="of fastertransformer: 75 (Turing) or from 80 on (default %(default)s)",
    )
    check_flags.add_check(parser, required=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints what was written."""
    import tfquant
    from tfquant.cli import arrays, models

    kinds = check_flags.parse_check(options)
    rows = arrays.read(options.check_data) if options.check_data else None
    written = tfquant.export(
        models.load(options, rows),
        options.path,
        target=options.target,
        mode=options.mode,
        opset=options.opset,
        sm=options.sm,
        tolerance=options.tolerance,
        check=kinds,
        check_data=None if rows is None else list(arrays.batches(rows, options.batch_size)),
    )
    if written.agreement:
        print(written.agreement.table())
    print(written)

"""Flags of a comparison with an exported file, and of the model that it was made from."""

from __future__ import annotations

import argparse

from tfquant.choices import OUTPUT_KINDS


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the model that it belongs to."""
    parser.add_argument(
        "checkpoint", help="prefix as given to tfquant.save, for example out/model.ckpt-calibrated"
    )
    parser.add_argument(
        "--model",
        required=True,
        help=(
            "the model, built like the saved one: module:function that returns it, a .keras file,"
            " or a SavedModel folder"
        ),
    )


def add_check(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the data and the tolerance of a comparison.

    Args:
      parser: of the command.
      required: whether there is nothing to do without data.
    """
    otherwise = "" if required else "; without it nothing is compared"
    parser.add_argument(
        "--check_data",
        required=required,
        help=f".npz with one array for each input, rows first{otherwise}",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="rows of --check_data at a time (default %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help=(
            "largest share of rows with another answer, of every output by itself, from 0 to 1"
            " (default %(default)s)"
        ),
    )
    parser.add_argument(
        "--check",
        metavar="OUTPUT=KIND,...",
        help=f"what an output is, where that is not found out: {', '.join(OUTPUT_KINDS)}",
    )


def parse_check(options: argparse.Namespace) -> dict[str, str]:
    """Return the kinds of outputs that --check names.

    Raises:
      ValueError: it is no list of names and kinds, or --tolerance is no share.
    """
    from tfquant.export.parity import check_tolerance

    check_tolerance(options.tolerance, "--tolerance")
    if not options.check:
        return {}
    result = dict(entry.rpartition("=")[::2] for entry in options.check.split(","))
    if any(not name or kind not in OUTPUT_KINDS for name, kind in result.items()):
        known = ", ".join(OUTPUT_KINDS)
        raise ValueError(f"--check={options.check}: wants OUTPUT=KIND, with a KIND of {known}")
    return result

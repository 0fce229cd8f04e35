"""Export of a run's network to a file that is compared with it."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import tfquant
from runs.logging import log
from tfquant.export.targets import TARGETS


def export_file(
    network: Any, path: str, target: str, check_data: Callable[[], tuple[Any, Any]], **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Write a network for another runtime and log how the file compares with it.

    Args:
        network: what `tfquant.quantize` returns.
        path: of the file or folder that is written.
        target: key of `TARGETS`.
        check_data: returns batches of inputs, and the score of what answers them or None; only
          called if a runtime here reads the file.
        options: of `tfquant.export`.

    Returns:
        The report of `tfquant.export`, and the same as a dictionary.

    Raises:
        ExportError: the file could not be written as asked, or answers otherwise than the network.
    """
    batches, score = check_data() if TARGETS[target].readers else (None, None)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    written = tfquant.export(
        network, path, target=target, check_data=batches, score=score, **options
    )
    log(f"exported {written}")
    if written.agreement:
        log(written.agreement.table())
    return written, dataclasses.asdict(written)

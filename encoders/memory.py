"""The memory that a network's weights need, compared with what the machine has before anything is
built.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

from encoders.config import TransformerConfig

_BYTES = 8  # of a weight in float32 and of the value that it starts with
_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # of a container


def check_memory(config: TransformerConfig) -> None:
    """Refuse a configuration whose weights alone do not fit into memory.

    Raises:
        ValueError: they do not; the message has both sizes.
    """
    needed, there = _BYTES * config.num_parameters, machine_memory()
    if needed > there:
        raise ValueError(
            f"{config.title} configuration: its {config.num_parameters:.3g} weights need"
            f" {needed / 2**30:,.1f} GiB to start with, this machine has {there / 2**30:,.1f} GiB"
            " of memory: check vocab_size, hidden_size, intermediate_size, max_position_embeddings"
            " and the number of layers"
        )


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: of the machine, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(pathlib.Path(limit).read_text()))
    return total

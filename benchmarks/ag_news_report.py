"""Tables of `results/ag_news.json`, beside what "Transformer-Quantization" (2022) reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Best test accuracy over 10 epochs of 120,000 texts, one run, tables 2 to 8 of the source.
SOURCE = {
    "baseline": 91.8,
    "basic, 8 bits": 91.6,
    "basic, 4 bits": 91.8,
    "basic, 2 bits": 91.8,
    "fully, 8 bits": 83.2,
    "ALL, basic": 83.7,
    "ALL, IR-Net": 85.6,
    "MHA": 86.9,
    "MHA_QK": 88.6,  # of its arrays; in no table
    "FFN": 91.4,
    "CLS with the final layer": 89.8,
    "ALL with the final layer": 25.0,
    "ALL_QK": 89.3,
    "ALL_QV": 86.7,
    "ALL_KV": 86.2,
    "fully, 8 bits, pre-trained": 84.9,
    "fully, 8 bits, latent": 87.9,
    # Printed the other way round in the source; these are its arrays.
    "ALL, basic, pre-trained": 88.9,
    "ALL, basic, latent": 88.6,
}
_HEADS = (
    *("row", "median", "to baseline", "spread", "source", "source to its baseline"),
    *("size by its count", "packed", "activations"),
)
_MEGABYTE = 1e6


def table(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Markdown of an experiment: median of the best test accuracies and how far it is from the
    baseline's, here and in the source, and sizes in MB.

    Args:
        rows: of the result file; those without all seeds are left out.
        names: of the rows of the experiment; the first is the baseline.
    """
    done = {name: rows[name] for name in names if "median" in rows.get(name, {})}
    if names[0] not in done:
        return "Not measured yet."
    lines = [f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    for name, row in done.items():
        lines.append(f"| {' | '.join(_cells(name, row, done[names[0]]))} |")
    return "\n".join(lines)


def _cells(name: str, row: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    source = SOURCE.get(name)
    sizes = ("source_size", "packed_bytes", "activation_bytes")
    return [
        name,
        f"{row['median']:.2f}",
        f"{row['median'] - baseline['median']:+.2f}",
        f"{row['spread']:.2f}",
        "" if source is None else f"{source:.1f}",
        "" if source is None else f"{source - SOURCE['baseline']:+.1f}",
        *(f"{row[key] / _MEGABYTE:.2f}" for key in sizes),
    ]

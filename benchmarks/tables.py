"""Tables of docs/benchmarks.md, generated from the result files.

    python -m benchmarks.tables            updates the document

A table lies between the lines `<!-- table NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from benchmarks import (
    ag_news_report,
    cost_report,
    eight_bit_report,
    glue_report,
    int8_peers_report,
    outliers_report,
    packed_inference_report,
    squad_noise_report,
    squad_qat_report,
    squad_report,
)
from benchmarks.ag_news import EXPERIMENTS
from benchmarks.results import FOLDER

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- table (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows_of(name: str) -> dict[str, Any]:
    """Figures of `results/<name>.json` by row name; empty if nothing has been measured yet."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


TABLES: dict[str, Callable[[], str]] = {
    "squad_ptq": lambda: squad_report.table(rows_of("squad_ptq")),
    "squad_ptq_1200": lambda: squad_report.table(rows_of("squad_ptq_1200")),
    "squad_qat": lambda: squad_qat_report.table(rows_of("squad_qat")),
    "squad_qat_bfloat16": lambda: squad_qat_report.table(rows_of("squad_qat_bfloat16")),
    "squad_noise": lambda: squad_noise_report.table(rows_of("squad_noise")),
    "int8_minilm": lambda: int8_peers_report.latency_table(rows_of("int8_peers"), "MiniLM"),
    "int8_bert_base": lambda: int8_peers_report.latency_table(rows_of("int8_peers"), "BERT-base"),
    "int8_accuracy": lambda: int8_peers_report.accuracy_table(rows_of("int8_peers"), "MiniLM"),
    "int8_parity": lambda: int8_peers_report.parity_table(rows_of("int8_peers")),
    "int8_export": lambda: int8_peers_report.export_cost(rows_of("int8_peers")),
    "packed_minilm": lambda: packed_inference_report.table(rows_of("packed_inference"), "MiniLM"),
    "packed_bert_base": lambda: packed_inference_report.table(
        rows_of("packed_inference"), "BERT-base"
    ),
    "glue": lambda: glue_report.table(rows_of("glue")),
    "glue_paper": glue_report.paper_table,
    "low_bit_glue": lambda: glue_report.table(rows_of("low_bit_glue")),
    **{
        f"ag_news_{number}": lambda names=tuple(rows): ag_news_report.table(
            rows_of("ag_news"), names
        )
        for number, rows in EXPERIMENTS.items()
    },
    "outliers": lambda: outliers_report.table(rows_of("outliers")),
    "rounding": lambda: eight_bit_report.rounding_table(rows_of("qdq_cost")),
    "eight_bit_squad": lambda: eight_bit_report.squad_table(rows_of("eight_bit_squad")),
    "eight_bit_mrpc": lambda: eight_bit_report.mrpc_table(rows_of("eight_bit_mrpc")),
    "cost": lambda: cost_report.table(rows_of),
}


def filled(text: str) -> str:
    """Return the text with every table generated again.

    Raises:
      KeyError: the name of a table is not in `TABLES`.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n{found[3]}", text)


def main() -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(filled(text))
    print(f"{len(BLOCK.findall(text))} tables in {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

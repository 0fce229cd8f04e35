"""Compatibility of the toolkit with KerasHub's backbones and keras.applications.

python -m benchmarks.compatibility [--models NAME ...] [--fresh] [--failed]

Every model runs in a process of its own, which may crash or hang without harm to the others.
Finished rows stay in results/compatibility.json, so that an interrupted run resumes. At the end,
docs/compatibility.md is written from that file.
"""

from __future__ import annotations

import argparse
import json

from tqdm.auto import tqdm

from benchmarks.compatibility.process import run_checks_apart
from benchmarks.compatibility.report import failed, write_report
from benchmarks.results import FOLDER, Results


def main() -> None:
    parser = argparse.ArgumentParser(description="Compatibility table: results and document.")
    parser.add_argument("--models", nargs="*", help="rows to compute (default: all)")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument("--failed", action="store_true", help="compute rows with a failure again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _compute_here(options.one)
        return
    names = options.models or _all_names()
    results = Results("compatibility", seed=0, fresh=options.fresh)
    if options.failed:
        for name in [n for n in names if n in results.rows and failed(results.rows[n])]:
            del results.rows[name]
    for name in tqdm(names, "compatibility", unit="model"):
        results.row(name, lambda name=name: run_checks_apart(name))
    write_report(results.path, FOLDER.parent / "docs" / "compatibility.md")


def _all_names() -> list[str]:
    from benchmarks.compatibility.models import all_models

    return list(all_models())


def _compute_here(name: str) -> None:
    from benchmarks.compatibility.checks import run_checks
    from benchmarks.compatibility.models import all_models

    print("\n" + json.dumps(run_checks(all_models()[name])), flush=True)


if __name__ == "__main__":
    main()

"""Result files.

Rows by name, written whole after each row, so that an interrupted benchmark resumes where it
stopped.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fileio.atomic import write_json

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "results"
_PACKAGES = ("tensorflow", "keras", "numpy", "tfquant")
_FEATURES = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_int8", "amx_bf16"),
)


class Results:
    """`results/<name>.json`: command, versions, machine and one object a row.

    Args:
      name: of the file.
      seed: of the benchmark.
      fresh: whether to forget earlier rows.
      packages: whose versions are stated beside those of all benchmarks.

    Attributes:
      rows: row name -> figures.
    """

    def __init__(self, name: str, *, seed: int, fresh: bool = False, packages: Sequence[str] = ()):
        self.path = FOLDER / f"{name}.json"
        self.header = {
            "command": " ".join(["python -m", _module(), *map(_portable, sys.argv[1:])]),
            "seed": seed,
            "versions": (
                {p: importlib.metadata.version(p) for p in (*_PACKAGES, *packages)}
                | {"python": platform.python_version()}
            ),
            "machine": {
                "cores": os.cpu_count(),
                "processor": _processor(),
                "features": _features(),
            },
        }
        self.rows: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()  # rows may be computed in several threads
        if self.path.exists() and not fresh:
            self.rows = json.loads(self.path.read_text())["rows"]

    def row(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a row, computed and saved unless the file has them already; prints them as
        one JSON line.
        """
        if name not in self.rows:
            figures = compute()
            with self._writing:
                self.rows[name] = figures
                self._write()
        print(json.dumps({"row": name, **self.rows[name]}), flush=True)
        return self.rows[name]

    def add(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds figures to rows that are there, by row name.

        Such as come of several rows together.
        """
        with self._writing:
            for name in figures.keys() & self.rows.keys():
                self.rows[name] |= figures[name]
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, {**self.header, "rows": self.rows}, indent=1)


def _module() -> str:
    """Dotted name of the module that runs, which of a package is its `__main__`."""
    path = pathlib.Path(sys.argv[0])
    return f"benchmarks.{path.parent.name if path.stem == '__main__' else path.stem}"


def _portable(argument: str) -> str:
    """An argument without the folders of this machine."""
    flag, sign, value = argument.rpartition("=")
    return f"{flag}{sign}../{pathlib.Path(value).name}" if os.path.isabs(value) else argument


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _features() -> list[str]:
    """Vector and matrix instructions of the processor that kernels differ by; of Linux on x86."""
    known = set(_cpuinfo("flags").split())
    return [name for name in _FEATURES if name in known]


def _cpuinfo(key: str) -> str:
    """Value of the first line of a key in /proc/cpuinfo; empty on other systems."""
    info = pathlib.Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""

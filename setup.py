"""Layout of the packages; the metadata is in pyproject.toml.

In the repository `calib`, `tasks`, `modeling` and the others lie beside `tfquant`. In a wheel all
of them lie below `tfquant`, so that no environment gets a top-level package called `tasks` or
`runs`: `calib` becomes `tfquant.calib`, and absolute imports of it are rewritten in the built
files. An editable install (`pip install -e .`) keeps the layout of the repository.
"""

import pathlib
import re
import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
PACKAGES = ("calib", "fileio", "encoders", "tasks", "runs", "runs.squad", "runs.glue")
MODULES = ("modeling", "squad_evaluate", "run_squad", "run_glue")

_NAMES = "|".join(PACKAGES + MODULES)
_FROM = re.compile(rf"^(\s*)from ({_NAMES})(?=[.\s])", re.MULTILINE)
_IMPORT_AS = re.compile(rf"^(\s*)import ((?:{_NAMES})[\w.]*) as ", re.MULTILINE)
_IMPORT = re.compile(rf"^(\s*)import ({_NAMES})$", re.MULTILINE)


def below_tfquant(source: str) -> str:
    """Return the source of a module with imports of our packages made imports from `tfquant`."""
    source = _FROM.sub(r"\1from tfquant.\2", source)
    source = _IMPORT_AS.sub(r"\1import tfquant.\2 as ", source)
    return _IMPORT.sub(r"\1from tfquant import \2", source)


class BuildBelowTfquant(build_py):
    """Build step of a wheel: adds the single modules and rewrites imports."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        built = pathlib.Path(self.build_lib) / "tfquant"
        for name in MODULES:
            (built / f"{name}.py").write_bytes((ROOT / f"{name}.py").read_bytes())
        for path in built.rglob("*.py"):
            path.write_text(below_tfquant(path.read_text(encoding="utf-8")), encoding="utf-8")


def found(package: str) -> list[str]:
    """Return a package and its subpackages."""
    return find_packages(ROOT, include=[package, f"{package}.*"])


if "editable_wheel" in sys.argv:
    layout = {
        "packages": [name for package in ("tfquant", *PACKAGES) for name in found(package)],
        "py_modules": list(MODULES),
    }
else:
    bundled = [name for package in PACKAGES for name in found(package)]
    layout = {
        "packages": found("tfquant") + [f"tfquant.{name}" for name in bundled],
        "package_dir": {f"tfquant.{name}": name.replace(".", "/") for name in bundled},
    }

setup(cmdclass={"build_py": BuildBelowTfquant}, **layout)

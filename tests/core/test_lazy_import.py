"""`import tfquant` is light, and what it offers is there at the first use, in any order of
imports.
"""

import subprocess
import sys

import pytest


def run(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_package_imports_without_tensorflow():
    found = run(
        "import sys, tfquant, tfquant.version; print('tensorflow' in sys.modules,"
        " tfquant.__version__)"
    )
    assert found.startswith("False ")


def test_functions_keep_their_names_beside_subpackages_of_the_same_name():
    found = run(
        "import tfquant, tfquant.export.errors, tfquant.sensitivity.report,"
        " tfquant.mixed_precision.report\nprint(all(callable(f) for f in (tfquant.export,"
        " tfquant.sensitivity, tfquant.mixed_precision)))\nfrom tfquant import"
        " *\nprint(callable(quantize), export is tfquant.export, tfquant.ptq.__name__, 'quantize'"
        " in dir(tfquant))"
    )
    assert found.splitlines()[-2:] == ["True", "True True tfquant.ptq True"]


@pytest.mark.parametrize("name", ["nonsense", "_nonsense", "quantise"])
def test_a_name_that_is_not_there_is_an_attribute_error(name):
    import tfquant

    with pytest.raises(AttributeError, match=f"module 'tfquant' has no attribute '{name}'"):
        getattr(tfquant, name)


def test_every_public_name_is_there():
    import tfquant

    assert all(getattr(tfquant, name) is not None for name in tfquant.__all__)

"""Freed memory is kept.

Looked at from fresh processes, since the C library is told once for all.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

FILE = pathlib.Path(__file__).resolve().parents[2] / "tfquant" / "host_memory.py"
PAGES = 4000
SCRIPT = f"""
import json, resource, runpy
import numpy as np

# without TensorFlow, whose import takes seconds
done = runpy.run_path({str(FILE)!r})["keep_freed_memory"]()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.empty({PAGES} * 4096, np.uint8)
    block[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([done, faults(), faults()]))
"""


def found(**variables: str) -> list:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    # NumPy asks for huge pages where the system offers them: one fault for many pages.
    environment |= {"NUMPY_MADVISE_HUGEPAGE": "0"} | variables
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_freed_memory_is_used_again_without_asking_the_system():
    done, first, second = found()
    assert done and first > PAGES / 2 and second < PAGES / 10


@pytest.mark.parametrize(
    "variable", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}]
)
def test_what_the_environment_says_is_left_alone(variable):
    done, first, second = found(**variable)
    assert not done and min(first, second) > PAGES / 2

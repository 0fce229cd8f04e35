"""Import, `--help` and file writing on a system without `fcntl` and SIGUSR1, such as Windows."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HIDE = """
import signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # its import raises ImportError
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
"""
WRITE = """
import pathlib
from fileio.transaction import replacing_together
folder = pathlib.Path(sys.argv[1])
for text in ("old", "new"):
    with replacing_together(folder) as staged:
        (staged / "file").write_text(text)
print((folder / "file").read_text())
"""
HELP = """
import runpy
sys.argv = ["run_squad.py", "--help"]
runpy.run_path("run_squad.py", run_name="__main__")
"""
SIGNALS = """
import tfquant
from tfquant.training.interrupt import STOPPING, Terminate
with Terminate() as stop:
    signal.raise_signal(signal.SIGTERM)
    print(stop.asked.name, len(STOPPING))
    stop.served()
"""


@pytest.mark.parametrize(
    ("code", "expected"), [(WRITE, "new"), (HELP, "--do_train"), (SIGNALS, "SIGTERM 1")]
)
def test_works_without_fcntl_and_sigusr1(tmp_path, code, expected):
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout

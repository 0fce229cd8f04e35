"""Execution of a run script.

Signals, errors as lines, the exit status, and the result as the last line of stdout.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from runs.errors import EXPECTED, describe
from runs.logging import is_chief
from runs.settings import FlagError
from runs.stopping import end_on_signals
from tfquant.host_memory import keep_freed_memory


def execute(script: str, work: Callable[[], Mapping[str, Any]], *, trace: bool = False) -> None:
    """Do the work of a script and print its result as one line of JSON, by rank 0.

    Args:
        script: its name in messages.
        work: returns the result.
        trace: whether an expected error is shown with Python's trace.

    Raises:
        SystemExit: 2 for invalid flags, 1 for any other expected error; both after
          a message on stderr.
    """
    end_on_signals(script)
    keep_freed_memory()
    try:
        result = work()
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted; the same command resumes from the last checkpoint")
    except EXPECTED as error:
        if trace:
            raise
        wrong_flags = isinstance(error, FlagError)
        headline = "invalid flags:\n" if wrong_flags else ""
        print(f"{script}: {headline}{describe(error)}", file=sys.stderr)
        sys.exit(2 if wrong_flags else 1)
    if is_chief():
        print(json.dumps(result), flush=True)

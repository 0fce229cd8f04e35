"""One of two ranks that are not started alike; run by test_unlike_ranks.py with the case as its
argument.
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfquant.distributed.errors import agree
from tfquant.distributed.group import DivergedError, start

CASE = sys.argv[1]
group = start(horovod=True, timeout=4.0)


def unlike(what):
    """What rank 0 has where the case is another, or rank 1 has in its own."""
    return group.rank if CASE == what else 0


try:
    agree(group, {"--learning_rate": 1e-5 * (1 + unlike("flags"))}, "flags or files")
    if unlike("frozen"):
        os.kill(os.getpid(), signal.SIGSTOP)
    group.broadcast([tf.Variable(np.zeros([2 + unlike("network")], np.float32))])
    if not unlike("calls"):
        group.gather(b"")
    group.check_equal({"kernel": tf.Variable(1.0)}, "at the end")
    print("FINE", flush=True)
except DivergedError as error:
    sys.exit(f"LINE {error}")

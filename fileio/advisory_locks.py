"""Advisory locks on folders (`flock`), or none where the system has no `fcntl` module.

`filelock` cannot stand in here: the lock is on the folder itself, so that it vanishes with the
folder and no lock file is left between the user's files.
"""

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open folder for this process until the descriptor is closed.

    Args:
      descriptor: of the folder.
      wait: whether to wait while another process holds the lock.

    Raises:
      BlockingIOError: another process holds it, and `wait` is false.
      OSError: the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)

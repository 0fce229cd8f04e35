"""GLUE: the nine tasks, reading, features, batches, scores, and a generated data set of the same
form.
"""

from typing import TYPE_CHECKING

from fileio.lazy import lazy_names

if TYPE_CHECKING:
    from tasks.glue.public import *  # noqa: F403

__getattr__ = lazy_names(globals())

"""Range estimation: statistics of tensors, methods that turn them into ranges, and a portable file
of both.

Knows nothing of models or recipes. `Observer` and `DimensionObserver` are the only parts that use
TensorFlow.
"""

from typing import TYPE_CHECKING

from fileio.lazy import lazy_names

if TYPE_CHECKING:
    from calib.public import *  # noqa: F403

__getattr__ = lazy_names(globals())
